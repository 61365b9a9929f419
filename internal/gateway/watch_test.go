package gateway

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A process that did not run for a while has its timers served before it reads what came meanwhile.
func TestAnEngineIsNotFrozenThatIsHeardAsSoonAsWeRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		var w watch
		defer w.stop()
		w.base = time.Now()
		w.start(time.Second, cancel)
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
