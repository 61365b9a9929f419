package gateway

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// A process that did not run for a while has its timers served before it reads what came meanwhile.
func TestAnEngineIsNotFrozenThatIsHeardAsSoonAsWeRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		var w watch
		defer w.stop()
		w.base = time.Now()
		w.start(nil, "a", time.Second, cancel)
		w.reading(true)
		time.Sleep(1050 * time.Millisecond)
		w.reading(false)
		w.heard()
		w.reading(true)
		synctest.Wait()
		if ctx.Err() != nil {
			t.Fatalf("the engine was heard 50 ms after the bound, and was given up: %v", context.Cause(ctx))
		}
		time.Sleep(1150 * time.Millisecond)
		synctest.Wait()
		if !errors.Is(context.Cause(ctx), errFrozen) {
			t.Errorf("1.15 s of silence, with a bound of 1 s, end by %v", context.Cause(ctx))
		}
	})
}

// A tool's call is written in silence: only the engine's other answers tell whether it stands still.
func TestASilenceByDesignIsWaitedForWhileTheEngineAnswersOtherwise(t *testing.T) {
	for stands, want := range map[bool]time.Duration{false: time.Minute, true: 4 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			var view atomic.Pointer[cluster.View]
			tell := func(condition cluster.EngineCondition) {
				view.Store(cluster.NewView("a", time.Time{}, []*cluster.Node{{ID: "a", Engine: &cluster.Engine{Condition: condition}}}))
			}
			tell(cluster.EngineReady)
			g := &Gateway{deps: Deps{View: view.Load}}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			var w watch
			defer w.stop()
			w.base = time.Now()
			w.start(g, "a", time.Second, cancel)
			w.within(time.Second, time.Minute)
			w.reading(true)
			time.Sleep(3900 * time.Millisecond)
			if stands {
				tell(cluster.EngineDown)
			}
			<-ctx.Done()
			if took := time.Since(w.base); !errors.Is(context.Cause(ctx), errFrozen) || took < want || took > want*11/10+time.Second {
				t.Errorf("the engine stands still %t: ended after %v by %v", stands, took, context.Cause(ctx))
			}
		})
	}
}
