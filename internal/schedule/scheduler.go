// Package schedule chooses the node that serves a request.
//
// It keeps nothing but the count of what this gateway has under way on each node; everything else
// it reads from one View. It sends nothing and waits for nothing.
//
// Start reading at Scheduler.Pick; rank is the order of preference.
package schedule

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Scheduler picks nodes and counts what is under way on each. It is safe for concurrent use.
type Scheduler struct {
	inFlight sync.Map // cluster.NodeID to *atomic.Int64
}

// New returns a Scheduler that has nothing under way.
func New() *Scheduler { return &Scheduler{} }

// Pick returns the node to send the request to, leaving out those already tried, and a function
// that gives its slot back, to be called once. It returns nil when no node is left.
//
// Nodes that hold the model come first; among them those whose condition is sure, whose context has
// room for the prompt, and that have the model loaded; among the equal, the one with less under
// way of two drawn at random, since views are a second old and all gateways would else choose the
// same (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001). A model that
// nobody holds goes to the viewer's own engine, else to the first: the engine says what it has to say.
// Only engines that have the request's route are asked; only an Ollama reaches Ollama's cloud.
func (s *Scheduler) Pick(v *cluster.View, r cluster.Request, tried []cluster.NodeID) (*cluster.Node, func()) {
	candidates := s.best(v, r, tried)
	if len(candidates) == 0 {
		return nil, nil
	}
	first := rand.IntN(len(candidates))
	node := candidates[first]
	if len(candidates) > 1 {
		other := candidates[(first+1+rand.IntN(len(candidates)-1))%len(candidates)]
		if s.underWay(other) < s.underWay(node) {
			node = other
		}
	}
	count := s.counter(node.ID)
	count.Add(1)
	return node, sync.OnceFunc(func() { count.Add(-1) })
}

// best returns the candidates of the highest rank.
func (s *Scheduler) best(v *cluster.View, r cluster.Request, tried []cluster.NodeID) []*cluster.Node {
	replicas := v.Replicas(r.Model)
	if cloud := cluster.CloudModel(r.Model); len(replicas) == 0 || cloud {
		able := func(n *cluster.Node) bool {
			return n.Serves() && n.Engine.Has(r.Path) && (!cloud || n.Engine.Kind == cluster.Ollama) && !slices.Contains(tried, n.ID)
		}
		if self := v.SelfNode(); self != nil && able(self) {
			return []*cluster.Node{self}
		}
		if self := v.SelfNode(); r.Model == "" && self != nil && self.Engine.Has(r.Path) && self.Engine.Condition == cluster.EngineStarting {
			return nil // what was meant for this engine must not end up in another
		}
		// Blobs and the create that needs them must find the same engine: no draw.
		for _, n := range v.Nodes {
			if able(n) {
				return []*cluster.Node{n}
			}
		}
		return nil
	}
	var best []*cluster.Node
	highest := -1
	chosen, _ := v.Chosen(r.Model, r.Path)
	for _, replica := range replicas {
		n := replica.Node
		if !n.Serves() || !n.Engine.Has(r.Path) || slices.Contains(tried, n.ID) {
			continue
		}
		if replica.Model.Digest != chosen.Digest {
			continue // another model of the same name
		}
		switch k := rank(replica, r); {
		case k > highest:
			best, highest = append(best[:0], n), k
		case k == highest:
			best = append(best, n)
		}
	}
	return best
}

// rank orders candidates: each property outweighs all that follow it.
func rank(replica cluster.Replica, r cluster.Request) (k int) {
	if replica.Node.Condition == cluster.Alive {
		k += 4
	}
	loaded := replica.Loaded
	if loaded == nil || loaded.ContextLength == 0 || fits(loaded.ContextLength, r) {
		k += 2
	}
	if loaded != nil {
		k++
	}
	return k
}

// bytesPerToken is a cautious guess: few texts have so many bytes a token, so that a node is put
// behind the others only when the prompt surely does not fit.
const bytesPerToken = 8

func fits(contextLength int, r cluster.Request) bool {
	if r.NumCtx > 0 {
		return true // the engine loads the model anew if it has to
	}
	return r.PromptBytes/bytesPerToken <= contextLength
}

// underWay is the requests on a node: what it told, or what this gateway has sent there since, if
// that is more.
func (s *Scheduler) underWay(n *cluster.Node) int64 {
	return max(s.counter(n.ID).Load(), int64(n.Slots.Busy))
}

func (s *Scheduler) counter(id cluster.NodeID) *atomic.Int64 {
	if c, ok := s.inFlight.Load(id); ok {
		return c.(*atomic.Int64)
	}
	c, _ := s.inFlight.LoadOrStore(id, new(atomic.Int64))
	return c.(*atomic.Int64)
}
