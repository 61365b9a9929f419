// Package schedule chooses the node that serves a request, and who waits while none has room.
//
// A choice compares what each candidate would cost in time to the first token: waiting for a slot,
// loading the model, reading the part of the prompt that its engine has not cached, the link; weighed
// by its risk (score.go). What a node told is read from one View; what answers have shown is kept here, a
// pair of node and model each (pair.go): speeds, the prompts that its engine has just read, how many
// requests it really takes at once, and a breaker. Who finds no room waits in one fair queue
// (queue.go).
//
// It sends nothing. Invariants: a slot is given back once; a request passes nobody who waits for the
// same model, but through its caller's share; the queue is bounded; breakers never shut out more than
// half of the candidates; a request that finds room takes no lock that all requests share.
//
// Start reading at Scheduler.Acquire, then place.
package schedule

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Policy names a way to choose among the nodes that can serve a request.
type Policy string

// The policies.
const (
	TTFT        Policy = "ttft"         // the soonest first token
	LeastLoaded Policy = "least-loaded" // the less busy of two drawn at random
	RoundRobin  Policy = "round-robin"  // one after the other
	Weighted    Policy = "weighted"     // at random, by schedule.weights
)

// Config says how nodes are chosen.
type Config struct {
	// Policy among the nodes that can serve a request. Default ttft. Needs a restart, as all below.
	Policy Policy `yaml:"policy"`
	// Affinity sends a follow-up turn to the node that has its conversation cached, unless waiting
	// there costs more than reading it elsewhere. Default true.
	Affinity bool `yaml:"affinity"`
	// Ceiling gives an engine fewer requests at once than it takes, for a while, after it has not begun some
	// in time. Default true.
	Ceiling bool `yaml:"ceiling"`
	// Weights of nodes by name, for the policy weighted. A node that is not named has 1; 0 is none,
	// but for answers that broke elsewhere.
	Weights map[string]float64 `yaml:"weights"`
	// Aliases are names that clients may use for a model, each with the models to try in this order.
	Aliases map[string][]string `yaml:"aliases"`
}

// Default returns the defaults.
func Default() Config { return Config{Policy: TTFT, Affinity: true, Ceiling: true} }

// Validate returns what is wrong with the configuration, for an operator.
func (c Config) Validate() error {
	if !slices.Contains([]Policy{TTFT, LeastLoaded, RoundRobin, Weighted}, c.Policy) {
		return fmt.Errorf("schedule.policy is %q: use ttft, least-loaded, round-robin or weighted", c.Policy)
	}
	for node, w := range c.Weights {
		if w < 0 {
			return fmt.Errorf("schedule.weights.%s is %v: give 0 for none, or more", node, w)
		}
	}
	for alias, models := range c.Aliases {
		if alias == "" || len(models) == 0 || slices.Contains(models, "") {
			return fmt.Errorf("schedule.aliases.%s names no model: write it like %q", alias, "gpt-4o: [qwen3:30b, llama3.2]")
		}
	}
	return nil
}

// Deps is what a Scheduler needs of its node.
type Deps struct {
	// View returns the present picture of the cluster; never nil.
	View func() *cluster.View
	// Busy returns how many requests the own engine is serving now.
	Busy func() int
	// RTT returns the time to a peer and back; 0 if it is not known.
	RTT func(cluster.NodeID) time.Duration
}

// Scheduler chooses nodes and keeps the queue. It is safe for concurrent use.
type Scheduler struct {
	cfg     Config
	stall   Stall
	deps    Deps
	aliases map[string][]string // by canonical name
	nodes   table[cluster.NodeID, *nodeState]
	turn    atomic.Uint64 // of round-robin, and of the requests that look around
	queue   queue
}

// New returns a Scheduler that has nothing under way.
func New(cfg Config, queueing Queue, stall Stall, deps Deps) (*Scheduler, error) {
	if err := errors.Join(cfg.Validate(), queueing.Validate(), stall.Validate()); err != nil {
		return nil, err
	}
	s := &Scheduler{cfg: cfg, stall: stall, deps: deps, aliases: map[string][]string{}}
	for alias, models := range cfg.Aliases {
		s.aliases[cluster.CanonicalModel(alias)] = models
	}
	s.queue = newQueue(queueing)
	return s, nil
}

// Resolve returns the models to try for a name that a client wrote: nil when it is no alias, else those
// of its models that some node has, or the last one alone, which is then said not to be there. An
// alias never hides a model of the same name that a node holds.
func (s *Scheduler) Resolve(model string) []string {
	if len(s.aliases) == 0 {
		return nil
	}
	v := s.deps.View()
	chain, ok := s.aliases[cluster.CanonicalModel(model)]
	if !ok || len(v.Replicas(model)) > 0 {
		return nil
	}
	there := slices.DeleteFunc(slices.Clone(chain), func(m string) bool { return len(v.Replicas(m)) == 0 && !cluster.CloudModel(m) })
	if len(there) == 0 {
		return chain[len(chain)-1:]
	}
	return there
}

// Acquire lends a slot of the node that should serve the request, leaving out those already tried.
// When all that could serve it are busy, it waits its turn. It returns cluster.ErrNobody, a
// *cluster.NoRoomError when waiting is hopeless, or the context's error.
func (s *Scheduler) Acquire(ctx context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	if s.queue.empty() || !r.Infers || r.Urgent {
		lease, verdict := s.place(r, tried, 0)
		switch {
		case lease != nil:
			return lease, nil
		case verdict == nobody:
			return nil, cluster.ErrNobody
		}
	}
	return s.wait(ctx, r, tried)
}

// Try is Acquire without waiting: nil when no node is left or, but for what is urgent, none has room.
func (s *Scheduler) Try(r *cluster.Request, tried []cluster.NodeID) *cluster.Lease {
	lease, _ := s.place(r, tried, 0)
	return lease
}

// verdict is why place lends nothing.
type verdict int8

const (
	placed verdict = iota
	full           // there are candidates; the best of them has no room
	nobody
)

// place lends a slot of the best candidate, if it has room; ahead is how many wait before the request.
// Of those that are nearly as good it takes the less busy of two drawn at random, since views are a
// second old and all gateways would else choose the same (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
func (s *Scheduler) place(r *cluster.Request, tried []cluster.NodeID, ahead int) (*cluster.Lease, verdict) {
	var space [8]candidate
	v := s.deps.View()
	candidates, starting := s.candidates(v, r, tried, ahead, space[:0])
	if len(candidates) == 0 {
		if starting && r.Infers && !r.Urgent {
			return nil, full
		}
		return nil, nobody
	}
	for {
		c := s.choose(candidates, r)
		if !r.Infers || c.pair == nil {
			return &cluster.Lease{Node: c.node, Done: func(cluster.Outcome) {},
				Stall: cluster.Stall{First: s.stall.FirstCeiling, Whole: s.stall.FirstCeiling, Floor: s.stall.Floor, Ceiling: s.stall.Ceiling}}, placed
		}
		if c.state.take(c, r.Urgent) {
			return s.lend(c, r), placed
		}
		if !c.room {
			return nil, full
		}
		for i := range candidates { // somebody else was faster
			candidates[i].room = s.room(&candidates[i])
		}
	}
}

// lend makes the lease of a slot that was taken.
func (s *Scheduler) lend(c *candidate, r *cluster.Request) *cluster.Lease {
	state, pair := c.state, c.pair
	started := time.Now()
	pair.breaker.enter(started)
	l := &cluster.Lease{Node: c.node}
	l.Stall = s.bounds(c, r)
	concurrent, crowd, told := int(pair.inFlight.Load())+state.others(), state.occupied(c), c.node.Slots.Total > 0
	cold := c.terms.Load > 0
	if cold {
		pair.loading.CompareAndSwap(0, started.UnixNano())
	}
	ended := pair.ended.Load()
	proven := false
	l.Began = func() {
		proven = pair.ended.Load() == ended
		if pair.began(concurrent, ended) {
			s.Notify()
		}
	}
	done := false
	l.Done = func(o cluster.Outcome) {
		if done {
			return
		}
		done = true
		if o.Result == cluster.Silent && !s.cfg.Ceiling {
			o.Result = cluster.Overloaded
		}
		crowd := max(crowd, state.taken(pair, told)) // many may have come after it
		s.queue.release(func() { state.give(pair) })
		pair.learn(r, o, concurrent, crowd, proven, cold, time.Since(started))
		s.queue.settle(r, o)
		s.Notify()
	}
	return l
}

// choose returns the candidate that the policy prefers. There is at least one.
func (s *Scheduler) choose(candidates []candidate, r *cluster.Request) *candidate {
	if len(candidates) == 1 {
		return &candidates[0]
	}
	switch s.cfg.Policy {
	case RoundRobin:
		return roomy(candidates, int(s.turn.Add(1)%uint64(len(candidates))))
	case Weighted:
		return roomy(candidates, s.draw(candidates))
	case LeastLoaded:
		return lessBusy(withRoom(candidates))
	}
	best := &candidates[0]
	for i := range candidates {
		if candidates[i].score < best.score {
			best = &candidates[i]
		}
	}
	if !best.room || !r.Infers {
		return best
	}
	limit := best.score + best.score/10 + sameWithin
	look := best.terms.Cached == 0 && s.turn.Add(1)%looksEvery == 0
	return lessBusy(slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool {
		return !c.room || c.score > limit && !(look && c.terms.Risk == 0 && c.score <= 2*best.score+looksWithin)
	}))
}

const (
	// sameWithin is the difference in time to the first token below which two nodes are as good.
	sameWithin = 2 * time.Millisecond
	// One request in looksEvery may go to a node that is thought to be up to twice as slow, or slower by
	// looksWithin: a few hiccups would else keep it out until its speed is doubted, minutes later. A
	// conversation stays with its cache.
	looksEvery  = 50
	looksWithin = 10 * time.Millisecond
)

// lessBusy draws two and returns the less busy one, for its number of slots.
func lessBusy(candidates []candidate) *candidate {
	first := rand.IntN(len(candidates))
	a := &candidates[first]
	if len(candidates) > 1 {
		b := &candidates[(first+1+rand.IntN(len(candidates)-1))%len(candidates)]
		if b.busy*max(a.limit, 1) < a.busy*max(b.limit, 1) {
			return b
		}
	}
	return a
}

// withRoom returns the candidates that have room, all if none has.
func withRoom(candidates []candidate) []candidate {
	roomy := slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool { return !c.room })
	if len(roomy) == 0 {
		return candidates
	}
	return roomy
}

// roomy returns the first candidate from i on that has room, the i-th if none has.
func roomy(candidates []candidate, i int) *candidate {
	for n := range candidates {
		if c := &candidates[(i+n)%len(candidates)]; c.room {
			return c
		}
	}
	return &candidates[i]
}

// draw returns the index of a candidate, at random by weight.
func (s *Scheduler) draw(candidates []candidate) int {
	sum := 0.0
	for i := range candidates {
		sum += s.weight(candidates[i].node)
	}
	at := rand.Float64() * sum
	for i := range candidates {
		if at -= s.weight(candidates[i].node); at < 0 {
			return i
		}
	}
	return len(candidates) - 1
}

func (s *Scheduler) weight(n *cluster.Node) float64 {
	if w, ok := s.cfg.Weights[n.Name]; ok {
		return w
	}
	return 1
}

// Heard tells that a node has just said how many requests its engine serves. What it counts beyond
// what this gateway has sent there is others'.
func (s *Scheduler) Heard(id cluster.NodeID, busy int) {
	state := s.node(id)
	state.foreign.Store(max(0, int64(busy)-state.inFlight.Load()))
	s.Notify()
}

// Notify looks whether somebody who waits can go on: after a change of the View.
func (s *Scheduler) Notify() {
	if !s.queue.empty() {
		s.dispatch()
	}
}

func (s *Scheduler) node(id cluster.NodeID) *nodeState {
	return s.nodes.get(id, func() *nodeState { return &nodeState{} })
}
