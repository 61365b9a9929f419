package schedule

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestLowPriorityBesideOneShotCallersIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), oneSlot())
		ctx, stop := context.WithCancel(t.Context())
		// A new caller each second, exactly as many as the node can serve, two always waiting.
		serveOne := func(i int) {
			r := from(fmt.Sprint("caller", i), 0)
			lease, err := s.Acquire(ctx, r, nil)
			if err != nil {
				return
			}
			time.Sleep(time.Second)
			lease.Done(cluster.Outcome{Result: cluster.Answered, First: 1, PromptTokens: 25, OutputTokens: 100})
		}
		go func() {
			for i := 0; ctx.Err() == nil; i++ {
				go serveOne(i)
				if i > 6 {
					time.Sleep(time.Second)
				}
			}
		}()
		time.Sleep(5 * time.Second)
		low := from("patient", 0)
		low.Priority = cluster.Low
		began := time.Now()
		lease, err := s.Acquire(ctx, low, nil)
		t.Logf("low waited %v, err %v", time.Since(began), err)
		if lease != nil {
			lease.Done(cluster.Outcome{})
		} else {
			t.Error("a low priority starves")
		}
		stop()
		time.Sleep(5 * time.Minute)
	})
}

func TestSecondRequestBesideOneShotCallersIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), oneSlot())
		ctx, stop := context.WithCancel(t.Context())
		ask := func(r *cluster.Request) error {
			lease, err := s.Acquire(ctx, r, nil)
			if err != nil {
				return err
			}
			time.Sleep(time.Second)
			lease.Done(cluster.Outcome{Result: cluster.Answered, First: 1, PromptTokens: 25, OutputTokens: 100})
			return nil
		}
		go func() {
			for i := 0; ctx.Err() == nil; i++ {
				go ask(from(fmt.Sprint("caller", i), 0))
				if i > 6 {
					time.Sleep(time.Second)
				}
			}
		}()
		time.Sleep(5 * time.Second)
		for i := range 3 {
			began := time.Now()
			err := ask(from("steady", i))
			t.Logf("request %d took %v, err %v", i, time.Since(began), err)
			if err != nil {
				t.Error("a caller's next request starves")
			}
		}
		stop()
		time.Sleep(5 * time.Minute)
	})
}

func TestOneGenerousLimitThatIsCancelledDoesNotStarveItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), oneSlot())
		ctx, stop := context.WithCancel(t.Context())
		for i := range 4 {
			go func() {
				for ctx.Err() == nil {
					r := from(fmt.Sprint("other", i), 0)
					lease, err := s.Acquire(ctx, r, nil)
					if err != nil {
						return
					}
					time.Sleep(time.Second)
					lease.Done(cluster.Outcome{Result: cluster.Answered, First: 1, PromptTokens: 25, OutputTokens: 100})
				}
			}()
		}
		time.Sleep(5 * time.Second)
		big := from("me", 0)
		big.MaxTokens = 100_000
		lease, err := s.Acquire(ctx, big, nil)
		if err != nil {
			t.Fatal(err)
		}
		lease.Done(cluster.Outcome{}) // the client pressed stop
		began := time.Now()
		lease, err = s.Acquire(ctx, from("me", 1), nil)
		t.Logf("the next waited %v, err %v", time.Since(began), err)
		if err != nil {
			t.Error("starves")
		} else {
			lease.Done(cluster.Outcome{})
		}
		stop()
		time.Sleep(5 * time.Minute)
	})
}

func TestManyFailuresAtOnceOpenABreakerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := ready("a", "m"), ready("b", "m"), ready("c", "m")
		s := scheduler(t, Default(), slots(a, 64), slots(b, 64), slots(c, 64))
		var leases []*cluster.Lease
		for range 60 {
			l := s.Try(prompt(100), []cluster.NodeID{"b", "c"})
			leases = append(leases, l)
		}
		for _, l := range leases {
			l.Done(cluster.Outcome{Result: cluster.Failed})
		}
		out := s.node("a").pair("m:latest").breaker.ejectedFor(time.Now())
		if out > 2*time.Second {
			t.Errorf("out for %v after its streams broke together", out)
		}
	})
}

func TestALongQueueSpillsToAColdNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		warm, cold := slots(loaded(ready("warm", "m"), "m", 0), 1), slots(ready("cold", "m"), 1)
		for _, n := range []*cluster.Node{warm, cold} {
			n.Models[0].Size = 5 << 30
		}
		s := scheduler(t, Default(), warm, cold)
		s.node("warm").pair("m:latest").known.Store(&known{took: 2 * time.Second, prefill: 1000, bytes: 4})
		ctx, stop := context.WithCancel(t.Context())
		var mu sync.Mutex
		used := map[cluster.NodeID]int{}
		for i := range 100 {
			go func() {
				l, err := s.Acquire(ctx, from("x", i), nil)
				if err != nil {
					return
				}
				mu.Lock()
				used[l.Node.ID]++
				mu.Unlock()
				time.Sleep(2 * time.Second)
				l.Done(cluster.Outcome{Result: cluster.Answered, First: 1, PromptTokens: 25, OutputTokens: 100})
			}()
			synctest.Wait()
		}
		time.Sleep(100 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if used["cold"] == 0 {
			t.Errorf("a hundred wait (200 s) for one node while the other, which loads in 11 s, idles: %v", used)
		}
		stop()
		time.Sleep(5 * time.Minute)
	})
}

func TestRetryAfterIsOfItsOwnQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := slots(loaded(ready("a", "m"), "m", 0), 1)
		b := slots(loaded(ready("b", "other"), "other", 0), 64)
		s := scheduling(t, Default(), Queue{Max: 3, Wait: time.Hour}, func() *cluster.View {
			return cluster.NewView("self", time.Time{}, []*cluster.Node{a, b})
		})
		ctx, stop := context.WithCancel(t.Context())
		for i := range 3 { // m: one a minute
			go func() {
				l, err := s.Acquire(ctx, from("x", i), nil)
				if err != nil {
					return
				}
				time.Sleep(time.Minute)
				l.Done(cluster.Outcome{})
			}()
			synctest.Wait()
		}
		for i := range 50 { // other, which has room
			r := from("y", i)
			r.Model, r.Canonical = "other", ""
			l, err := s.Acquire(ctx, r, nil)
			if err != nil {
				t.Fatal(err)
			}
			l.Done(cluster.Outcome{})
		}
		go func() {
			if l, _ := s.Acquire(ctx, from("x", 8), nil); l != nil {
				l.Done(cluster.Outcome{})
			}
		}()
		synctest.Wait()
		_, err := s.Acquire(ctx, from("x", 9), nil)
		full, _ := err.(*cluster.NoRoomError)
		if full == nil || full.RetryAfter < 10*time.Second {
			t.Errorf("%+v, though one leaves a minute", full)
		}
		stop()
		time.Sleep(5 * time.Minute)
	})
}
