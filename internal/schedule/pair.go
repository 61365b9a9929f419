package schedule

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// nodeState is what this gateway keeps of a node.
type nodeState struct {
	inFlight atomic.Int64 // sent by this gateway and not yet ended
	foreign  atomic.Int64 // sent by others, as far as the last heartbeat told
	pairs    table[string, *pair]
}

func (n *nodeState) others() int { return int(n.foreign.Load()) }

func (n *nodeState) pair(model string) *pair {
	return n.pairs.get(model, func() *pair {
		p := &pair{}
		p.known.Store(&known{})
		p.limit.Store(firstLimit)
		p.slowStart = true
		return p
	})
}

// occupied is how many slots of the candidate are taken: of the node, when it says how many it has,
// else of the model there. What others have sent counts as sent to this model, since nobody tells.
func (n *nodeState) occupied(c *candidate) int { return n.taken(c.pair, c.node.Slots.Total > 0) }

func (n *nodeState) taken(p *pair, told bool) int {
	if told {
		return int(n.inFlight.Load()) + n.others()
	}
	return int(p.inFlight.Load()) + n.others()
}

// take takes a slot of a candidate, if one is free or the request is urgent.
func (n *nodeState) take(c *candidate, urgent bool) bool {
	count, other := &c.pair.inFlight, &n.inFlight
	if c.node.Slots.Total > 0 {
		count, other = other, count
	}
	for {
		have := count.Load()
		if !urgent && int(have)+n.others() >= limitOf(c) && n.inFlight.Load() > 0 {
			return false
		}
		if count.CompareAndSwap(have, have+1) {
			other.Add(1)
			return true
		}
	}
}

func (n *nodeState) give(p *pair) {
	p.ended.Add(1)
	p.inFlight.Add(-1)
	n.inFlight.Add(-1)
}

// pair is what answers have shown of one model on one node. What decisions read is atomic or
// immutable; mu is of those who learn.
type pair struct {
	inFlight atomic.Int64
	limit    atomic.Int64 // requests that the engine takes at once, as learned
	ended    atomic.Int64 // counts the requests that have ended
	loading  atomic.Int64 // when a request was sent that must load the model, in Unix nanoseconds; 0: none
	context  atomic.Int64 // context length of a request that asks for none; 0: unknown
	known    atomic.Pointer[known]
	breaker  breaker
	ceiling  ceiling

	mu        sync.Mutex
	slowStart bool // no request has yet waited inside the engine
	credit    float64
	unloaded  unloaded
}

const (
	// firstLimit is what an engine is thought to take at once that has not said and not shown it.
	firstLimit = 4
	// mostLearned bounds what is learned without being told.
	mostLearned = 4096
)

// learn takes an attempt's outcome in. concurrent is how many requests the engine had when this one
// was sent, itself included, and crowd how many of its slots they took; proven tells that none of them had
// ended when its answer began; cold, that it had to load the model.
func (p *pair) learn(r *cluster.Request, o cluster.Outcome, concurrent, crowd int, proven, cold bool, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if cold {
		p.loading.Store(0)
	}
	switch o.Result {
	case cluster.Abandoned:
		p.breaker.abandoned()
		return
	case cluster.Failed:
		p.breaker.failed(now, false, o.RetryAfter)
		return
	case cluster.Overloaded:
		p.breaker.failed(now, true, o.RetryAfter)
		return
	case cluster.Silent:
		p.breaker.failed(now, true, 0)
		p.ceiling.tooMany(now, now.Add(-took), crowd)
		return
	}
	p.breaker.succeeded(now)
	p.ceiling.answered(now, crowd)
	if o.First == 0 {
		return // refused for a reason of its own: it shows no speed
	}
	k := *p.known.Load()
	inside, writing, told := insideOf(o)
	shown, before := told, concurrent-1 // what went in before
	if !told && !cold {
		inside, shown = p.unloaded.wait(now, r, o, k.cached(r, true) > 0, proven)
		writing, before = took-o.First, max(before, int(p.limit.Load())-1) // one may be an error
	}
	k.learn(now, r, o, inside, concurrent, cold, took)
	if shown && !cold {
		p.learnLimit(inside, writing, concurrent, before)
	}
	p.known.Store(&k)
}

// began learns from an answer's first piece. If none of the others has ended since the request was
// sent, when ended had been counted, the engine works on all of them at once. It tells whether more may be
// sent there than before.
func (p *pair) began(concurrent int, ended int64) bool {
	if p.breaker.probing.Load() != 0 {
		p.mu.Lock()
		p.breaker.began(time.Now())
		p.mu.Unlock()
		return true
	}
	if p.ended.Load() != ended || int64(concurrent) < p.limit.Load() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	takes := int64(concurrent)
	if p.slowStart {
		takes++
	}
	if takes = min(takes, mostLearned); takes <= p.limit.Load() {
		return false
	}
	p.limit.Store(takes)
	return true
}

// insideOf returns how long a request has waited inside its engine and how long the answer was written,
// if the engine tells: the wait is what is left of a request's time besides loading, reading and writing.
func insideOf(o cluster.Outcome) (wait, writing time.Duration, told bool) {
	switch {
	case o.Total > 0:
		return max(0, min(o.Total-o.Load-o.Prefill-o.Eval, o.First-o.Load-o.Prefill)), o.Eval, true
	case o.Prefill > 0 && o.Eval > 0 && o.MeanGap > 0: // a llama-server's stream
		return max(0, o.First-o.Prefill), o.Eval, true
	case o.Prefill > 0 && o.Eval > 0:
		return max(0, o.First-o.Prefill-o.Eval), o.Eval, true
	}
	return 0, 0, false
}

// learnLimit learns how many requests the engine takes at once, from whether they wait inside it.
// Without a wait the limit grows while it is reached, doubling until the first wait and by one a round
// after it; with one it falls, to what went in before or by one where the wait is only measured (as TCP's
// congestion window: Jacobson, "Congestion Avoidance and Control", 1988).
func (p *pair) learnLimit(inside, writing time.Duration, concurrent, before int) {
	limit := p.limit.Load()
	switch waited := inside > waitedAtLeast && inside > writing/8; {
	case waited && concurrent > 1:
		p.slowStart, p.credit = false, 0
		p.limit.Store(max(1, min(limit, int64(before))))
	case !waited && int64(concurrent) >= limit && limit < mostLearned:
		if p.credit++; p.slowStart || p.credit >= float64(limit) {
			p.credit = 0
			p.limit.Store(limit + 1)
		}
	}
}

// waitedAtLeast is the time below which a request has not waited inside an engine.
const waitedAtLeast = 30 * time.Millisecond
