package placement

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// NoRoomError says that fewer nodes than wanted can hold a model.
type NoRoomError struct {
	Model  string
	Wanted cluster.Replicas
	Room   int // how many nodes can
	// Refusals are of the nodes that cannot, in the order of the View; of a model that only some nodes may hold, of those.
	Refusals []Refusal
}

// Refusal is why a node cannot hold a model.
type Refusal struct {
	Node cluster.NodeID
	Name string
	Why  string
}

// maxRefusals bounds what Error says; Refusals has them all.
const maxRefusals = 20

func (e *NoRoomError) Error() string {
	var b strings.Builder
	if e.Wanted == cluster.EveryNode {
		fmt.Fprintf(&b, "place model %s: no node can hold it", e.Model)
	} else {
		fmt.Fprintf(&b, "place model %s: replicas wanted: %d, nodes that can hold one: %d", e.Model, e.Wanted, e.Room)
	}
	for i, r := range e.Refusals {
		if i == maxRefusals {
			fmt.Fprintf(&b, "; and %d more", len(e.Refusals)-i)
			break
		}
		fmt.Fprintf(&b, "%s %s: %s", map[bool]string{true: ":", false: ";"}[i == 0], r.Name, r.Why)
	}
	return b.String()
}

// Choose returns all the nodes that should hold a model: those that do, then the best ones. Size (bytes) and footprint
// are what the caller knows of the digest, 0 and nil what the nodes tell. When they are fewer than wanted, the
// error is a *NoRoomError beside them; of a model for every node only when there is none. Of the Input it needs the View and what
// is Running.
func Choose(cfg Config, in Input, wanted cluster.Wanted, size int64, footprint *cluster.Footprint) ([]cluster.NodeID, error) {
	if in.View == nil {
		in.View = &cluster.View{}
	}
	s := look(cfg, in)
	f := s.fact(wanted.Digest)
	f.size = max(f.size, size)
	if footprint != nil {
		f.footprint = footprint
	}
	chosen, all := s.choose(cluster.CanonicalModel(wanted.Name), wanted)
	nodes := make([]cluster.NodeID, 0, len(chosen))
	for _, c := range chosen {
		nodes = append(nodes, c.node.ID)
	}
	if len(nodes) >= count(wanted) {
		return nodes, nil
	}
	e := &NoRoomError{Model: wanted.Name, Wanted: wanted.Replicas, Room: len(nodes)}
	for _, c := range all {
		if c.why != "" && (len(wanted.Nodes) == 0 || slices.Contains(wanted.Nodes, c.node.ID)) {
			e.Refusals = append(e.Refusals, Refusal{c.node.ID, cmp.Or(c.node.Name, string(c.node.ID)), c.why})
		}
	}
	for _, id := range wanted.Nodes {
		if in.View.Node(id) == nil {
			e.Refusals = append(e.Refusals, Refusal{id, string(id), "nothing has been heard of it"})
		}
	}
	return nodes, e
}

// count is how many replicas there must be at least.
func count(w cluster.Wanted) int {
	if w.Replicas == cluster.EveryNode {
		return 1
	}
	return max(1, int(w.Replicas))
}

// tier is how much of a model a node has, the most first.
type tier int

const (
	holds     tier = iota // the wanted digest under the name
	coming                // it is being fetched
	elsewhere             // the wanted digest under another name
	differs               // another digest under the name, or the wanted one with a damaged file
	nothing
)

// candidate is a node, and what speaks for it.
type candidate struct {
	node      *cluster.Node
	domain    domain
	tier      tier
	replica   *cluster.Replica // of the name, whatever its digest; nil: none
	why       string           // why it cannot hold the model; "" when it can
	misplaced bool             // only nodes or labels speak against it
	steady    int              // whether it can be relied on now
	merits    [5]int64         // in their order, more is better
}

// choose returns the nodes that should hold the model, the best first, and all nodes in the order of the View.
// Those that hold it come first; of the others those that need to get the least; then failure domains decide, then
// merits. More than wanted are returned only of a pinned model, whose other digests are all replaced.
func (s *survey) choose(key string, w cluster.Wanted) (chosen, all []*candidate) {
	all = s.candidates(key, w)
	var able []*candidate
	for _, c := range all {
		if c.why == "" {
			able = append(able, c)
		}
	}
	near := domains{}
	if w.Replicas == cluster.EveryNode {
		slices.SortFunc(able, near.compare)
		return able, all
	}
	for want := min(len(able), count(w)); len(chosen) < want; {
		best := slices.MinFunc(able, near.compare)
		near.add(best.domain)
		chosen = append(chosen, best)
		able = slices.DeleteFunc(able, func(c *candidate) bool { return c == best })
	}
	if w.Pin {
		for _, c := range able {
			if c.tier == differs {
				chosen = append(chosen, c)
			}
		}
	}
	return chosen, all
}

func (s *survey) candidates(key string, w cluster.Wanted) []*candidate {
	replicas := map[*cluster.Node]*cluster.Replica{}
	for _, r := range s.in.View.Replicas(key) {
		if managed(r) {
			replicas[r.Node] = &r
		}
	}
	other := map[*cluster.Node]bool{}
	if f := s.facts[w.Digest]; f != nil {
		for _, n := range f.holders {
			other[n] = true
		}
	}
	all := make([]*candidate, 0, len(s.in.View.Nodes))
	for _, n := range s.in.View.Nodes {
		c := &candidate{node: n, domain: domainOf(n), replica: replicas[n], tier: nothing}
		switch digest, fetching := s.fetching[pair{n.ID, key}]; {
		case c.replica != nil && c.replica.Model.Of() == w.Digest && !c.replica.Model.Damaged:
			c.tier = holds
		case fetching && digest == w.Digest:
			c.tier = coming
		case other[n]:
			c.tier = elsewhere
		case c.replica != nil:
			c.tier = differs
		}
		if c.why = barred(n, w); c.why != "" {
			c.misplaced = true
		} else {
			c.why = s.refusal(key, w, c)
		}
		if sound(n) && active(n) && n.Unavailable == "" {
			c.steady = 1
		}
		s.weigh(w.Digest, c)
		all = append(all, c)
	}
	return all
}

// barred says which of the wanted nodes and labels speak against a node. A llama-server answers in another way than an Ollama does
// for the same model: it gets one only from somebody who says so.
func barred(n *cluster.Node, w cluster.Wanted) string {
	if len(w.Nodes) > 0 && !slices.Contains(w.Nodes, n.ID) {
		return "is not one of the nodes that may hold it"
	}
	if filed(n) && !slices.Contains(w.Nodes, n.ID) {
		return "its engine is llama-server, which is given a model only where its node is named"
	}
	why := ""
	for k, v := range w.Labels {
		if has, ok := n.Labels[k]; (!ok || has != v) && (why == "" || k < why) {
			why = k
		}
	}
	if why == "" {
		return ""
	}
	if has, ok := n.Labels[why]; ok {
		return fmt.Sprintf("its label %s is %q, wanted is %q", why, has, w.Labels[why])
	}
	return fmt.Sprintf("has no label %s, wanted is %q", why, w.Labels[why])
}

// refusal says why a node that may hold the model cannot.
func (s *survey) refusal(key string, w cluster.Wanted, c *candidate) string {
	n, here := c.node, c.tier == holds || c.tier == coming
	switch {
	case n.Condition == cluster.Dead:
		return "is dead"
	case !active(n):
		return "is " + string(n.State)
	case n.Engine == nil:
		return "has no engine"
	case !ollama(n) && !filed(n):
		return fmt.Sprintf("its engine is %s, which takes no models", cmp.Or(string(n.Engine.Kind), "of an unknown kind"))
	case s.removing[pair{n.ID, key}]:
		return "is giving it up"
	case n.Engine.Condition != cluster.EngineReady && (!here || s.lost(n)) && !waits(n):
		return "its engine is " + cmp.Or(string(n.Engine.Condition), "not ready")
	case here:
		return ""
	case n.Unavailable != "":
		return "its owner keeps it: " + n.Unavailable
	case s.failed[attempt{pair{n.ID, key}, Fetch, w.Digest}]:
		return "failed to fetch it a moment ago"
	}
	if need, total := s.need(w.Digest), n.Memory.Total; total > 0 && need > total {
		return fmt.Sprintf("needs %s of memory, has %s", size(need), size(total))
	} else if keeps := total / memoryMargin; total > 0 && need > total-keeps {
		return fmt.Sprintf("needs %s of memory, has %s, of which %s are kept free", size(need), size(total), size(keeps))
	}
	if c.tier == elsewhere {
		return ""
	}
	return s.crowded(n, w.Digest)
}

// weigh fills in the merits: of a replica what speaks for keeping it, of another node what speaks for getting one.
// What changes all the time counts only roughly, or last.
func (s *survey) weigh(digest string, c *candidate) {
	n, need, room := c.node, s.need(digest), s.room(digest)
	if c.tier == holds {
		c.merits = [5]int64{relative(n.Memory.Total, need), 0, 0, n.Memory.Total, n.DiskFree}
		if n.DiskFree == 0 || n.DiskFree > s.cfg.Reserve {
			c.merits[1] = 1
		}
		if c.replica.Loaded != nil {
			c.merits[2] = 1
		}
		return
	}
	busy := int64(n.Slots.Busy) * 1000 / int64(max(1, n.Slots.Total))
	c.merits = [5]int64{relative(n.Memory.Free, need), relative(n.DiskFree, room), -int64(s.fetches[n.ID]), -busy, n.Memory.Free}
}

// relative is how many times more there is than needed, in powers of two up to 16; of an unknown need how much there is.
func relative(has, need int64) int64 {
	if need <= 0 {
		return int64(bits.Len64(uint64(max(has, 0))))
	}
	return int64(bits.Len64(uint64(min(max(has, 0)/max(need/2, 1), 32))))
}

// size writes bytes for a person.
func size(n int64) string {
	if n < 1e9 {
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}
