package schedule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve has one request served as a node with that speed does it, and returns how long it took in all.
func serve(t *testing.T, s *Scheduler, r *cluster.Request, generation time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	lease, err := s.Acquire(t.Context(), r, nil)
	if err != nil {
		t.Error(err)
		time.Sleep(time.Second) // a bubble's time stands still while somebody only tries
		return 0
	}
	time.Sleep(generation)
	lease.Done(cluster.Outcome{Result: cluster.Answered, First: time.Millisecond, PromptTokens: 25, OutputTokens: 100})
	return time.Since(began)
}

func oneSlot() *cluster.Node { return slots(loaded(ready("a", "m"), "m", 0), 1) }

// from is a caller's request.
func from(caller string, i int) *cluster.Request {
	r := prompt(100)
	r.Caller, r.ID = caller, fmt.Sprint(caller, i)
	return r
}

func TestOneClientBesideFiftyOfAnotherCallerHardlyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const generation = time.Second
		s := scheduler(t, Default(), oneSlot())
		ctx, stop := context.WithCancel(t.Context())
		var crowd sync.WaitGroup
		for i := range 50 {
			crowd.Go(func() {
				for ctx.Err() == nil {
					serve(t, s, from("crowd", i), generation)
				}
			})
		}
		time.Sleep(10 * time.Second)
		var worst time.Duration
		for i := range 20 {
			worst = max(worst, serve(t, s, from("one", i), generation))
			time.Sleep(time.Duration(i) * 137 * time.Millisecond)
		}
		if worst > 2*generation+generation {
			t.Errorf("it took %v beside fifty, %v alone", worst, generation)
		}
		t.Logf("the one: at most %v, alone %v", worst, generation)
		stop()
		crowd.Wait()
	})
}

// shared has two callers with eight clients each served for ten minutes by one slot, and returns how many
// tokens the first got for one of the second's. Each asks for so many tokens and uses so many.
func shared(t *testing.T, asks, uses [2]int) (ratio float64) {
	t.Helper()
	s := scheduler(t, Default(), oneSlot())
	ctx, stop := context.WithCancel(t.Context())
	var served [2]atomic.Int64 // tokens
	var running sync.WaitGroup
	for caller := range asks {
		for i := range 8 {
			running.Go(func() {
				for ctx.Err() == nil {
					r := from(fmt.Sprint("caller", caller), i)
					r.MaxTokens = asks[caller]
					lease, err := s.Acquire(ctx, r, nil)
					if err != nil {
						return
					}
					time.Sleep(time.Duration(uses[caller]) * time.Millisecond)
					served[caller].Add(int64(uses[caller]))
					lease.Done(cluster.Outcome{Result: cluster.Answered, First: 1, PromptTokens: 25, OutputTokens: uses[caller]})
				}
			})
		}
	}
	time.Sleep(10 * time.Minute)
	stop()
	running.Wait()
	return float64(served[0].Load()) / float64(served[1].Load())
}

func TestTokensAreSharedNotRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if ratio := shared(t, [2]int{100, 1000}, [2]int{100, 1000}); ratio < 0.8 || ratio > 1.25 {
			t.Errorf("short answers got %.2f tokens for one of the long ones'", ratio)
		}
	})
}

func TestWhoAsksForLittleAndUsesMuchPaysForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if ratio := shared(t, [2]int{100, 100}, [2]int{100, 1000}); ratio < 0.7 || ratio > 1.4 {
			t.Errorf("the honest caller got %.2f tokens for one of the other's", ratio)
		}
	})
}

func TestALowPriorityWaitsLongerAndNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const generation = time.Second
		s := scheduler(t, Default(), oneSlot())
		ctx, stop := context.WithCancel(t.Context())
		var crowd sync.WaitGroup
		for i := range 20 {
			crowd.Go(func() {
				for ctx.Err() == nil {
					r := from(fmt.Sprint("crowd", i%4), i)
					r.Priority = cluster.High
					serve(t, s, r, generation)
				}
			})
		}
		time.Sleep(time.Minute)
		took := map[cluster.Priority]time.Duration{}
		for _, p := range []cluster.Priority{cluster.High, cluster.Normal, cluster.Low} {
			for i := range 5 {
				r := from("one", i)
				r.Priority = p
				took[p] = max(took[p], serve(t, s, r, generation))
			}
		}
		t.Logf("beside 20 clients of 4 callers with high priority: %v", took)
		if took[cluster.High] > took[cluster.Normal] || took[cluster.Normal] >= took[cluster.Low] {
			t.Errorf("%v", took)
		}
		// A low request of c tokens is passed by at most 3c tokens of each other caller at a quarter of
		// their price, and itself waits for its own share once.
		if took[cluster.Low] > 90*generation {
			t.Errorf("a low priority starves: %v", took[cluster.Low])
		}
		stop()
		crowd.Wait()
	})
}

func TestAFullQueueAndAHopelessDeadlineAreRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := DefaultQueue()
		q.Max = 10
		s := scheduling(t, Default(), q, func() *cluster.View { return cluster.NewView("self", time.Time{}, []*cluster.Node{oneSlot()}) })
		ctx, stop := context.WithCancel(t.Context())
		var crowd sync.WaitGroup
		for i := range 11 {
			crowd.Go(func() {
				for ctx.Err() == nil {
					serve(t, s, from("crowd", i), 2*time.Second)
				}
			})
		}
		time.Sleep(time.Minute + time.Second) // it drains one in two seconds, and not just now
		var full *cluster.NoRoomError
		if _, err := s.Acquire(t.Context(), from("crowd", 99), nil); !errors.As(err, &full) {
			t.Fatalf("a full queue: %v", err)
		}
		if full.RetryAfter < time.Second || full.RetryAfter > 4*time.Second || !strings.Contains(full.Why, "10 requests wait") {
			t.Errorf("%+v", full)
		}
		q2 := scheduling(t, Default(), DefaultQueue(), s.deps.View)
		for i := range 11 {
			crowd.Go(func() {
				for ctx.Err() == nil {
					serve(t, q2, from("late", i), 2*time.Second)
				}
			})
		}
		time.Sleep(time.Minute + time.Second)
		r := from("late", 99)
		r.Deadline = time.Now().Add(5 * time.Second)
		if _, err := q2.Acquire(t.Context(), r, nil); !errors.As(err, &full) || full.RetryAfter < time.Second {
			t.Fatalf("ten wait two seconds each, and five are left: %v", err)
		}
		r.Deadline = time.Now().Add(time.Minute)
		if lease, err := q2.Acquire(t.Context(), r, nil); err != nil {
			t.Errorf("a deadline that can be met: %v", err)
		} else {
			lease.Done(cluster.Outcome{})
		}
		stop()
		crowd.Wait()
	})
}

func TestAClientThatLeavesFreesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), oneSlot())
		held := s.Try(prompt(1), nil)
		ctx, leave := context.WithCancel(t.Context())
		var leaving sync.WaitGroup
		for i := range 5 {
			leaving.Go(func() {
				if _, err := s.Acquire(ctx, from("leaving", i), nil); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		got := make(chan *cluster.Lease, 1)
		leaving.Go(func() {
			lease, err := s.Acquire(t.Context(), from("staying", 0), nil)
			if err != nil {
				t.Error(err)
			}
			got <- lease
		})
		synctest.Wait()
		if n, places := s.Length(), s.Waiting(); n != 6 || places["staying0"] != 2 {
			t.Errorf("%d wait, in places %v: one of each caller is next", n, places)
		}
		leave()
		synctest.Wait()
		if n, places := s.Length(), s.Waiting(); n != 1 || places["staying0"] != 1 {
			t.Errorf("%d wait, in places %v", n, places)
		}
		held.Done(cluster.Outcome{})
		(<-got).Done(cluster.Outcome{})
		leaving.Wait()
		if s.Length() != 0 || s.node("a").inFlight.Load() != 0 {
			t.Error("something is left")
		}
	})
}

func TestAModelThatIsBeingLoadedKeepsItsWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		n := with(ready("a", "m"), func(n *cluster.Node) { n.Engine.Condition = cluster.EngineStarting })
		s := scheduling(t, Default(), DefaultQueue(), func() *cluster.View {
			mu.Lock()
			defer mu.Unlock()
			return cluster.NewView("self", time.Time{}, []*cluster.Node{n})
		})
		done := make(chan error, 1)
		go func() {
			lease, err := s.Acquire(t.Context(), prompt(1), nil)
			if err == nil {
				lease.Done(cluster.Outcome{})
			}
			done <- err
		}()
		time.Sleep(2 * time.Minute)
		if s.Length() != 1 {
			t.Fatal("it does not wait")
		}
		mu.Lock()
		n = ready("a", "m")
		mu.Unlock()
		s.Notify()
		if err := <-done; err != nil {
			t.Error(err)
		}
		mu.Lock()
		n = with(ready("a", "m"), func(n *cluster.Node) { n.Condition = cluster.Dead })
		mu.Unlock()
		if _, err := s.Acquire(t.Context(), prompt(1), nil); !errors.Is(err, cluster.ErrNobody) {
			t.Errorf("a dead node: %v", err)
		}
	})
}

func TestOneModelsWaitersDoNotStandInAnothersWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy, idle := oneSlot(), slots(loaded(ready("b", "other"), "other", 0), 1)
		q := DefaultQueue()
		q.Max = 3
		s := scheduling(t, Default(), q, func() *cluster.View { return cluster.NewView("self", time.Time{}, []*cluster.Node{busy, idle}) })
		held := s.Try(prompt(1), nil)
		var waiting sync.WaitGroup
		for i := range 3 {
			waiting.Go(func() { serve(t, s, from("crowd", i), time.Second) })
		}
		synctest.Wait()
		r := prompt(1)
		r.Model = "other"
		lease, err := s.Acquire(t.Context(), r, nil)
		if err != nil || lease.Node.ID != "b" {
			t.Fatalf("an idle node's model waits behind another's full queue: %v", err)
		}
		lease.Done(cluster.Outcome{})
		held.Done(cluster.Outcome{})
		waiting.Wait()
	})
}

func TestWhoHasHadItsTurnGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), oneSlot())
		held := s.Try(prompt(1), nil)
		var mu sync.Mutex
		var order []string
		var waiting sync.WaitGroup
		for i := range 4 {
			r := from(fmt.Sprint("caller", i), 0)
			r.Again = i == 3
			waiting.Go(func() {
				lease, err := s.Acquire(t.Context(), r, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, r.ID)
				mu.Unlock()
				lease.Done(cluster.Outcome{})
			})
			synctest.Wait()
		}
		held.Done(cluster.Outcome{})
		waiting.Wait()
		if want := []string{"caller30", "caller00", "caller10", "caller20"}; !slices.Equal(order, want) {
			t.Errorf("%v", order)
		}
	})
}

func TestNothingIsLostUnderManyCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := []*cluster.Node{slots(loaded(ready("a", "m"), "m", 0), 3), slots(loaded(ready("b", "m"), "m", 0), 2)}
		s := scheduler(t, Default(), nodes...)
		var running atomic.Int64
		var all sync.WaitGroup
		for i := range 400 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i%50)*time.Second)
				defer cancel()
				lease, err := s.Acquire(ctx, from(fmt.Sprint(i%7), i), nil)
				if err != nil {
					return
				}
				if n := running.Add(1); n > 5 {
					t.Errorf("%d at once on five slots", n)
				}
				time.Sleep(time.Duration(100+i%9*50) * time.Millisecond)
				running.Add(-1)
				lease.Done(cluster.Outcome{Result: cluster.Answered, First: 1, OutputTokens: 1 + i%300})
			})
		}
		all.Wait()
		if s.Length() != 0 || s.node("a").inFlight.Load() != 0 || s.node("b").inFlight.Load() != 0 || len(s.queue.lists) != 0 || len(s.queue.accounts) != 0 {
			t.Errorf("left: %d waiting, %+v", s.Length(), s.queue.accounts)
		}
	})
}

func TestWhoWaitsForAnotherNodeHidesNoIdleOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("a", "m"), "m", 0), 1), slots(loaded(ready("b", "m"), "m", 0), 1))
		busy, err := s.Acquire(t.Context(), from("x", 0), []cluster.NodeID{"a"})
		if err != nil {
			t.Fatal(err)
		}
		var waiting sync.WaitGroup
		for i := range 3 * lookedAt {
			waiting.Go(func() {
				r := from("again", i)
				r.Again = true
				lease, err := s.Acquire(t.Context(), r, []cluster.NodeID{"a"})
				if err != nil {
					t.Error(err)
					return
				}
				lease.Done(cluster.Outcome{})
			})
		}
		synctest.Wait()
		began := time.Now()
		lease, err := s.Acquire(t.Context(), from("new", 0), nil)
		if err != nil || lease.Node.ID != "a" || time.Since(began) > 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if lease != nil {
			lease.Done(cluster.Outcome{})
		}
		busy.Done(cluster.Outcome{})
		waiting.Wait()
	})
}

func TestOneCallerDoesNotFillTheQueueForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := oneSlot()
		s := scheduling(t, Default(), Queue{Max: 10, Wait: time.Hour}, func() *cluster.View {
			return cluster.NewView("self", time.Time{}, []*cluster.Node{node})
		})
		busy, err := s.Acquire(t.Context(), from("x", 0), nil)
		if err != nil {
			t.Fatal(err)
		}
		var waiting sync.WaitGroup
		var mu sync.Mutex
		served, refused := map[string]int{}, map[string]int{}
		enter := func(caller string, i int) {
			waiting.Go(func() {
				lease, err := s.Acquire(t.Context(), from(caller, i), nil)
				mu.Lock()
				defer mu.Unlock()
				var full *cluster.NoRoomError
				switch {
				case err == nil:
					served[caller]++
					lease.Done(cluster.Outcome{Result: cluster.Answered, First: time.Millisecond})
				case errors.As(err, &full) && full.RetryAfter > 0:
					refused[caller]++
				default:
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		for i := range 10 {
			enter("crowd", i)
		}
		for i := range 3 {
			enter("one", i)
		}
		enter("crowd", 10)
		enter("other", 0)
		if s.Length() != 10 {
			t.Errorf("%d wait", s.Length())
		}
		busy.Done(cluster.Outcome{})
		waiting.Wait()
		if served["crowd"] != 6 || served["one"] != 3 || served["other"] != 1 || refused["crowd"] != 5 {
			t.Errorf("served %v, refused %v", served, refused)
		}
	})
}

func TestNobodyMakesRoomForWhoIsLessUrgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := oneSlot()
		s := scheduling(t, Default(), Queue{Max: 4, Wait: time.Hour}, func() *cluster.View {
			return cluster.NewView("self", time.Time{}, []*cluster.Node{node})
		})
		busy, err := s.Acquire(t.Context(), from("x", 0), nil)
		if err != nil {
			t.Fatal(err)
		}
		var waiting sync.WaitGroup
		var refused atomic.Int64
		enter := func(r *cluster.Request) {
			waiting.Go(func() {
				lease, err := s.Acquire(t.Context(), r, nil)
				if err != nil {
					refused.Add(1)
					return
				}
				lease.Done(cluster.Outcome{Result: cluster.Answered, First: time.Millisecond})
			})
			synctest.Wait()
		}
		urgent := func(i int) *cluster.Request { r := from("crowd", i); r.Priority = cluster.High; return r }
		for i := range 4 {
			enter(urgent(i))
		}
		less := from("one", 0)
		less.Priority = cluster.Low
		if enter(less); refused.Load() != 1 || s.Length() != 4 {
			t.Errorf("%d were refused, %d wait", refused.Load(), s.Length())
		}
		nowhere := from("other", 0) // no node may serve it
		nowhere.Labels, nowhere.Priority = map[string]string{"zone": "nowhere"}, cluster.High
		if enter(nowhere); refused.Load() != 2 || s.Length() != 4 {
			t.Errorf("%d were refused, %d wait", refused.Load(), s.Length())
		}
		busy.Done(cluster.Outcome{})
		waiting.Wait()
		if refused.Load() != 2 {
			t.Errorf("%d were refused in all", refused.Load())
		}
	})
}
