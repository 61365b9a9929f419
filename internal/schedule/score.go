package schedule

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// candidate is a node that can serve a request, and what that would cost.
type candidate struct {
	node    *cluster.Node
	replica cluster.Replica // without a Node for a model that nobody holds
	state   *nodeState
	pair    *pair // nil: nothing is known or bounded, for a model that nobody holds
	class   int
	busy    int
	limit   int // slots; 0: unbounded
	room    bool
	terms   terms
	score   time.Duration
	ejected time.Duration // for how long its breaker keeps it out; 0: it does not
}

// terms are the parts of a candidate's score.
type terms struct {
	Wait, Load, Prefill, Link time.Duration
	Cached                    int     // tokens of the prompt that its engine has read already
	Risk                      float64 // 0 sure; the score grows by this share
	Broken                    bool    // it fails always
}

func (t terms) total() time.Duration {
	sum := t.Wait + t.Load + t.Prefill + t.Link
	sum += time.Duration(float64(sum) * t.Risk)
	if t.Broken {
		sum += failureCosts
	}
	return sum
}

// failureCosts is what a failed attempt costs at the least, however short the prompt is: another attempt,
// which may not be allowed any more. It counts only for who fails always: who fails of too much work
// would else be relieved by those who have as much.
const failureCosts = 100 * time.Millisecond

// candidates appends the nodes among which to choose: those that can serve the request, of the
// highest class, without those whose breaker is open. starting tells, if there are none, that an
// engine that holds the model is about to serve.
func (s *Scheduler) candidates(v *cluster.View, r *cluster.Request, tried []cluster.NodeID, ahead int, to []candidate) (_ []candidate, starting bool) {
	replicas := v.Replicas(r.Key())
	if cloud := cluster.CloudModel(r.Key()); len(replicas) == 0 || cloud {
		if n := s.engineFor(v, r, tried, cloud); n != nil {
			to = append(to, candidate{node: n, room: true})
		}
		return to, false
	}
	digest := r.Digest
	if !r.Pinned {
		digest = v.ChosenDigest(r.Key(), r.Path)
	}
	highest, typical := -1, s.typical(replicas, r)
	for _, replica := range replicas {
		switch why := s.unfit(replica, r, tried, digest); why {
		case "":
		case notServing:
			starting = starting || replica.Node.Engine != nil && replica.Node.Engine.Condition == cluster.EngineStarting && replica.Node.Condition != cluster.Dead
			continue
		default:
			continue
		}
		c := s.weigh(v, replica, r, typical, ahead)
		if c.class > highest {
			to, highest = to[:0], c.class
		}
		if c.class == highest {
			to = append(to, c)
		}
	}
	return withoutEjected(to), starting
}

// Why a replica cannot serve a request, for explain; "" when it can.
const (
	notServing  = "not serving: down, draining, or its engine is not ready"
	noRoute     = "its engine has no such route"
	wasTried    = "tried already"
	otherDigest = "holds another digest of the model"
	damaged     = "its files of the model are damaged, and another node's are good"
	otherLabels = "lacks a required label"
	lessContext = "has less context for the model"
	noWeight    = "its weight is 0"
)

func (s *Scheduler) unfit(replica cluster.Replica, r *cluster.Request, tried []cluster.NodeID, digest string) string {
	n := replica.Node
	switch {
	case n.Engine != nil && !n.Engine.Has(r.Path):
		return noRoute
	case slices.Contains(tried, n.ID):
		return wasTried
	case r.Pinned && replica.Model.Kin() != r.Digest, !r.Pinned && replica.Model.Of() != digest:
		return otherDigest
	case replica.Spared:
		return damaged
	case !labelled(n, r.Labels):
		return otherLabels
	case r.MinContext > 0 && s.hasLess(replica, r):
		return lessContext
	case r.Infers && !r.Urgent && s.cfg.Policy == Weighted && s.weight(n) == 0: // a broken answer may go on there
		return noWeight
	case !n.Serves(): // last: it would be a candidate if it did
		return notServing
	}
	return ""
}

// hasLess tells whether a node has the model loaded with less context than a request must have, or would.
func (s *Scheduler) hasLess(replica cluster.Replica, r *cluster.Request) bool {
	p := s.node(replica.Node.ID).pair(r.Key())
	context := p.known.Load().context(replica.Loaded, r, int(p.context.Load()))
	return context > 0 && context < r.MinContext
}

func labelled(n *cluster.Node, labels map[string]string) bool {
	for key, value := range labels {
		if n.Labels[key] != value {
			return false
		}
	}
	return true
}

// engineFor returns the engine that is asked for a model that nobody holds, which says what it has to
// say, or for one of Ollama's cloud, which every Ollama reaches: the own one, else the first.
func (s *Scheduler) engineFor(v *cluster.View, r *cluster.Request, tried []cluster.NodeID, cloud bool) *cluster.Node {
	able := func(n *cluster.Node) bool {
		return n.Serves() && n.Engine.Has(r.Path) && (!cloud || n.Engine.Kind == cluster.Ollama) && !slices.Contains(tried, n.ID)
	}
	self := v.SelfNode()
	if self != nil && able(self) {
		return self
	}
	if r.Model == "" && self != nil && self.Engine.Has(r.Path) && self.Engine.Condition == cluster.EngineStarting {
		return nil // what was meant for this engine must not end up in another
	}
	// Blobs and the create that needs them must find the same engine: no draw.
	for _, n := range v.Nodes {
		if able(n) {
			return n
		}
	}
	return nil
}

// withoutEjected drops the candidates whose breakers are open, but never more than half of them: the
// last fit nodes are not shut out, however ill they look, since it is then probably not they. The
// ones that have been out longest stay.
func withoutEjected(candidates []candidate) []candidate {
	out := 0
	for i := range candidates {
		if candidates[i].ejected > 0 {
			out++
		}
	}
	for most := len(candidates) / 2; out > most; out-- {
		soonest := -1
		for i := range candidates {
			if candidates[i].ejected > 0 && (soonest < 0 || candidates[i].ejected < candidates[soonest].ejected) {
				soonest = i
			}
		}
		candidates[soonest].ejected = 0
	}
	return slices.DeleteFunc(candidates, func(c candidate) bool { return c.ejected > 0 })
}

// typical returns what is known best of a model's speed anywhere, which is what a node is thought to
// have that has not shown its own: else the first one to answer would get all the work.
func (s *Scheduler) typical(replicas []cluster.Replica, r *cluster.Request) (t known) {
	if len(replicas) < 2 || !r.Infers || s.cfg.Policy != TTFT {
		return t
	}
	model := r.Key()
	for _, replica := range replicas {
		k := s.node(replica.Node.ID).pair(model).known.Load()
		t.prefill, t.bytes = max(t.prefill, k.prefill), max(t.bytes, k.bytes)
		if k.load > 0 && (t.load == 0 || k.load < t.load) {
			t.load = k.load
		}
		if k.took > 0 && (t.took == 0 || k.took < t.took) {
			t.took = k.took
		}
	}
	return t
}

// or returns what is known, completed by what is typical. A speed below that is doubted the more, the
// longer ago it was seen: a node that is thought to be slow is asked seldom, and would else never show
// that it is not. The slower it was, the longer that takes.
func (k *known) or(typical known, now time.Time) *known {
	complete := k.prefill > 0 && k.bytes > 0 && k.load > 0 && k.took > 0 || typical.prefill == 0 && typical.bytes == 0 && typical.load == 0 && typical.took == 0
	sure := 1.0
	if k.prefill > 0 && k.prefill < typical.prefill {
		sure = k.sure(now)
	}
	if complete && sure == 1 {
		return k
	}
	both := *k
	both.prefill, both.bytes = cmp.Or(k.prefill, typical.prefill), cmp.Or(k.bytes, typical.bytes)
	both.load, both.took = cmp.Or(k.load, typical.load), cmp.Or(k.took, typical.took)
	if sure < 1 {
		both.prefill = typical.prefill * math.Pow(k.prefill/typical.prefill, sure)
	}
	return &both
}

// weigh estimates what a replica would cost a request.
func (s *Scheduler) weigh(v *cluster.View, replica cluster.Replica, r *cluster.Request, typical known, ahead int) candidate {
	n := replica.Node
	state := s.node(n.ID)
	p := state.pair(r.Key())
	now := time.Now()
	k := p.known.Load().or(typical, now)
	c := candidate{node: n, replica: replica, state: state, pair: p, ejected: p.breaker.ejectedFor(now)}
	if l := replica.Loaded; l != nil && k.numCtx == 0 && k.runner == 0 && p.context.Load() != int64(l.ContextLength) {
		p.context.Store(int64(l.ContextLength))
	}
	c.class = class(replica, k, r, int(p.context.Load()))
	if !r.Infers {
		c.room = true
		return c
	}
	if n.ID == v.Self && s.deps.Busy != nil {
		state.foreign.Store(max(0, int64(s.deps.Busy())-state.inFlight.Load()))
	}
	c.busy, c.limit = state.occupied(&c), limitOf(&c)
	c.room = s.room(&c)
	c.terms.Load = bounded(k.loadTime(&c, r))
	if s.cfg.Policy != TTFT {
		return c
	}
	c.terms.Cached = k.cached(r, s.cfg.Affinity)
	if !c.room {
		c.terms.Wait = k.service() * time.Duration(c.busy-c.limit+1+ahead) / time.Duration(max(c.limit, 1))
	}
	c.terms.Wait = bounded(c.terms.Wait + k.waits(now, c.busy))
	c.terms.Prefill = bounded(k.prefillTime(k.promptTokens(r) - c.terms.Cached))
	if n.ID != v.Self && s.deps.RTT != nil {
		c.terms.Link = s.deps.RTT(n.ID)
	}
	c.terms.Risk, c.terms.Broken = p.breaker.risk(now), p.breaker.broken(now)
	c.score = c.terms.total()
	return c
}

// longestTerm is more than anybody waits for. An engine may tell any figures, and sums of senseless ones overflow.
const longestTerm = 24 * time.Hour

func bounded(term time.Duration) time.Duration {
	if term < 0 || term > longestTerm {
		return longestTerm
	}
	return term
}

// class orders candidates by what outweighs any time: a node whose life is sure, then one whose
// context has room for prompt and answer.
func class(replica cluster.Replica, k *known, r *cluster.Request, usual int) (class int) {
	if replica.Node.Condition == cluster.Alive {
		class += 2
	}
	if k.fits(replica.Loaded, r, usual) {
		class++
	}
	return class
}

// room tells whether a candidate has a free slot. A gateway may always have one request on a node,
// however busy others keep it: their engine's own queue is fair between gateways.
func (s *Scheduler) room(c *candidate) bool {
	if c.pair == nil {
		return true
	}
	c.busy, c.limit = c.state.occupied(c), limitOf(c)
	return c.busy < c.limit || c.state.inFlight.Load() == 0
}

// limitOf is how many requests a candidate takes at once: what its node says, else what this gateway
// has learned of the model there, and no more than what was lately too much for it.
func limitOf(c *candidate) int {
	limit := c.node.Slots.Total
	if limit == 0 {
		limit = int(c.pair.limit.Load())
	}
	return c.pair.ceiling.of(limit)
}
