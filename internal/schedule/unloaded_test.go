package schedule

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// simulated is an engine that tells nothing of its times: it reads a byte of a prompt in perByte and says a
// token in perToken, with nothing else to do. How many run at once is bounded, or each of them slows all.
type simulated struct {
	perByte, perToken time.Duration
	batch             bool // what runs slows all by its share of slowing
	slowing           float64

	mu      sync.Mutex
	slots   int // 0: unbounded
	running int
	waiting []chan struct{}
}

func newSimulated(slots int) *simulated {
	return &simulated{perByte: 100 * time.Microsecond, perToken: 20 * time.Millisecond, slots: slots}
}

// change changes the engine and lets in who may run then, in the order of their coming.
func (e *simulated) change(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	for len(e.waiting) > 0 && (e.slots == 0 || e.running < e.slots) {
		e.running++
		close(e.waiting[0])
		e.waiting = e.waiting[1:]
	}
}

// step takes as long as a piece of work does beside all others, give or take a tenth.
func (e *simulated) step(bytes, tokens int) {
	e.mu.Lock()
	slow, alone := 1.0, time.Duration(bytes)*e.perByte+time.Duration(tokens)*e.perToken
	if e.batch {
		slow += e.slowing * float64(e.running-1)
	}
	e.mu.Unlock()
	time.Sleep(time.Duration(float64(alone) * slow * (0.9 + 0.2*rand.Float64())))
}

// serve answers a request and says what a gateway sees of it.
func (e *simulated) serve(r *cluster.Request, tokens int, began func()) (o cluster.Outcome) {
	sent := time.Now()
	turn := make(chan struct{})
	e.change(func() { e.waiting = append(e.waiting, turn) })
	<-turn
	for left := r.PromptBytes; left > 0; left -= 512 { // in pieces, so that what comes and goes counts
		e.step(min(left, 512), 0)
	}
	e.step(0, 1)
	o.Result, o.First = cluster.Answered, time.Since(sent)
	began()
	for range tokens - 1 {
		e.step(0, 1)
	}
	o.MeanGap = (time.Since(sent) - o.First) / time.Duration(tokens-1)
	e.change(func() { e.running-- })
	return o
}

// load has so many clients ask one after the other until ctx ends.
func load(ctx context.Context, t *testing.T, s *Scheduler, e *simulated, clients int, ask func() (*cluster.Request, int)) (answered func() int, wait func()) {
	var running sync.WaitGroup
	var mu sync.Mutex
	n := 0
	for range clients {
		running.Go(func() {
			for ctx.Err() == nil {
				r, tokens := ask()
				lease, err := s.Acquire(ctx, r, nil)
				if err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				lease.Done(e.serve(r, tokens, lease.Began))
				mu.Lock()
				n++
				mu.Unlock()
			}
		})
	}
	return func() int { mu.Lock(); defer mu.Unlock(); return n }, running.Wait
}

// limits is the mean, the least and the most of what is thought to be taken at once, over a time.
func limits(s *Scheduler, over time.Duration) (mean float64, least, most int64) {
	least = mostLearned
	looks := 0
	for began := time.Now(); time.Since(began) < over; time.Sleep(100 * time.Millisecond) {
		n := s.node("a").pair("m:latest").limit.Load()
		mean, least, most = mean+float64(n), min(least, n), max(most, n)
		looks++
	}
	return mean / float64(looks), least, most
}

// asks are prompts of many lengths, with short and long answers.
func asks() (*cluster.Request, int) {
	return prompt(20 << rand.IntN(9)), 20 + rand.IntN(100)
}

func TestHowManyRequestsAnEngineTakesIsLearnedOfOneThatTellsNothing(t *testing.T) {
	for _, n := range []int{1, 3, 8, 24} {
		synctest.Test(t, func(t *testing.T) {
			s, e := scheduler(t, Default(), loaded(ready("a", "m"), "m", 0)), newSimulated(n)
			ctx, cancel := context.WithCancel(t.Context())
			answered, wait := load(ctx, t, s, e, 4*n+8, asks)
			time.Sleep(2 * time.Minute)
			before, began := answered(), time.Now()
			mean, least, most := limits(s, 8*time.Minute)
			rate := float64(answered()-before) / time.Since(began).Seconds()
			capacity := float64(n) / (69.5*0.020 + 20*511/9.0*0.0001)
			t.Logf("%d slots: %.1f (%d to %d), %.0f %% of the capacity", n, mean, least, most, 100*rate/capacity)
			if mean < float64(n)-1 || mean > 1.15*float64(n)+1.5 || least < int64(n/2) || float64(most) > 1.3*float64(n)+2 || rate < 0.9*capacity {
				t.Errorf("%d slots are thought to be %.1f, from %d to %d; %.0f %% of the capacity", n, mean, least, most, 100*rate/capacity)
			}
			cancel()
			wait()
		})
	}
}

func TestWhatIsLearnedOfAnEngineThatTellsNothingFollowsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e := scheduler(t, Default(), loaded(ready("a", "m"), "m", 0)), newSimulated(12)
		ctx, cancel := context.WithCancel(t.Context())
		_, wait := load(ctx, t, s, e, 40, asks)
		for _, n := range []int{12, 3, 9, 1, 6} {
			e.change(func() { e.slots = n })
			time.Sleep(2 * time.Minute)
			if mean, least, most := limits(s, 5*time.Minute); mean < float64(n)-1 || mean > 1.15*float64(n)+1.5 {
				t.Errorf("%d slots are thought to be %.1f, from %d to %d", n, mean, least, most)
			}
		}
		// A machine that is three times as slow has as many slots.
		e.change(func() { e.perByte, e.perToken = 3*e.perByte, 3*e.perToken })
		time.Sleep(15 * time.Minute)
		if mean, least, most := limits(s, 10*time.Minute); mean < 5 || mean > 8.5 {
			t.Errorf("6 slots of a slower machine are thought to be %.1f, from %d to %d", mean, least, most)
		}
		cancel()
		wait()
	})
}

func TestAnEngineThatOnlySlowsDownIsNotHeldBack(t *testing.T) {
	const clients = 40
	for name, ask := range map[string]func() (*cluster.Request, int){
		"short prompts": func() (*cluster.Request, int) { return prompt(100), 60 },
		"long prompts":  func() (*cluster.Request, int) { return prompt(10_000), 60 },
		"all sorts":     asks,
	} {
		for _, slowing := range []float64{0, 0.2, 1} { // of the last the throughput does not rise any more
			synctest.Test(t, func(t *testing.T) {
				s, e := scheduler(t, Default(), loaded(ready("a", "m"), "m", 0)), newSimulated(0)
				e.batch, e.slowing = true, slowing
				ctx, cancel := context.WithCancel(t.Context())
				_, wait := load(ctx, t, s, e, clients, ask)
				time.Sleep(5 * time.Minute)
				mean, least, most := limits(s, 8*time.Minute)
				t.Logf("%s, each slows all by %v: %.1f (%d to %d)", name, slowing, mean, least, most)
				if slowing < 1 && (mean < 0.9*clients || least < clients/2) || slowing == 1 && mean < 4 {
					t.Errorf("%s, each slows all by %v: at most %.1f at once, from %d to %d", name, slowing, mean, least, most)
				}
				cancel()
				wait()
			})
		}
	}
}

func TestAWaitInsideAnEngineIsSeenAsFarAsItTells(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name string
		o    cluster.Outcome
		wait time.Duration
		told bool
	}{
		{"an Ollama's", cluster.Outcome{First: 700 * ms, Prefill: 100 * ms, Load: 50 * ms, Eval: 900 * ms, Total: 1500 * ms}, 450 * ms, true},
		{"a llama-server's stream", cluster.Outcome{First: 700 * ms, MeanGap: ms, Prefill: 100 * ms, Eval: 900 * ms}, 600 * ms, true},
		{"a llama-server's whole answer", cluster.Outcome{First: 1700 * ms, Prefill: 100 * ms, Eval: 900 * ms}, 700 * ms, true},
		{"of who tells nothing", cluster.Outcome{First: 700 * ms, MeanGap: ms}, 0, false},
	} {
		if wait, _, told := insideOf(tc.o); wait != tc.wait || told != tc.told {
			t.Errorf("%s: %v, %v", tc.name, wait, told)
		}
	}
	// Of pictures nobody knows what they cost, and of what comes whole the first piece is the last.
	var u unloaded
	for name, tc := range map[string]struct {
		r cluster.Request
		o cluster.Outcome
	}{
		"pictures": {cluster.Request{PromptBytes: 10, ImageBytes: 1000}, cluster.Outcome{First: time.Minute, MeanGap: ms}},
		"whole":    {cluster.Request{PromptBytes: 10}, cluster.Outcome{First: time.Minute}},
	} {
		if wait, told := u.wait(time.Now(), &tc.r, tc.o, false, false); told {
			t.Errorf("%s: a wait of %v", name, wait)
		}
	}
}
