package cluster

import (
	"cmp"
	"slices"
	"time"
)

// View is an immutable picture of the cluster. Decisions read one View from beginning to end and
// take no lock; the next View replaces it.
type View struct {
	Self  NodeID
	Nodes []*Node // sorted by name, then id
	At    time.Time

	ClusterID string
	Leader    NodeID // "" while none is known
	Term      uint64
	Quorum    bool // what is proposed now would be agreed
	Voters    int

	byID     map[NodeID]*Node
	replicas map[string][]Replica
}

// Replica is a model on one node.
type Replica struct {
	Node   *Node
	Model  Model
	Loaded *Loaded // nil while it is only stored
}

// NewView takes over the nodes and indexes them. The caller may fill in the other fields before it
// publishes the View.
func NewView(self NodeID, at time.Time, nodes []*Node) *View {
	v := &View{Self: self, At: at, Nodes: nodes, byID: make(map[NodeID]*Node, len(nodes)), replicas: map[string][]Replica{}}
	slices.SortFunc(nodes, func(a, b *Node) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	for _, n := range nodes {
		v.byID[n.ID] = n
		loaded := make(map[string]*Loaded, len(n.Loaded))
		for i := range n.Loaded {
			loaded[CanonicalModel(n.Loaded[i].Name)] = &n.Loaded[i]
		}
		for _, m := range n.Models {
			key := CanonicalModel(m.Name)
			if held := v.replicas[key]; len(held) == 0 || held[len(held)-1].Node != n { // one a node
				v.replicas[key] = append(held, Replica{n, m, loaded[key]})
			}
		}
	}
	return v
}

// choose returns the replica that stands for a name on a route: of the nodes whose engines have the
// route, the one with the digest that the viewer holds, else the most frequent one, else the newest.
// Dead nodes count only where nobody else holds the model.
func (v *View) choose(replicas []Replica, path string) (Model, bool) {
	type candidate struct {
		model Model
		own   int
		alive int
		count int
	}
	var candidates []*candidate
	for _, r := range replicas {
		n, m := r.Node, r.Model
		if !n.Engine.Has(path) {
			continue
		}
		i := slices.IndexFunc(candidates, func(c *candidate) bool { return c.model.Digest == m.Digest })
		if i < 0 {
			i = len(candidates)
			candidates = append(candidates, &candidate{model: m})
		}
		c := candidates[i]
		if n.ID == v.Self {
			c.model, c.own = m, 1
		}
		if n.Condition != Dead {
			c.alive = 1
			c.count++
		}
	}
	if len(candidates) == 0 {
		return Model{}, false
	}
	return slices.MaxFunc(candidates, func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(a.own, b.own), cmp.Compare(a.alive, b.alive), cmp.Compare(a.count, b.count),
			a.model.ModifiedAt.Compare(b.model.ModifiedAt), cmp.Compare(a.model.Digest, b.model.Digest))
	}).model, true
}

// Node returns the node with that id, or nil.
func (v *View) Node(id NodeID) *Node { return v.byID[id] }

// SelfNode returns the viewer's own node, or nil before it has told of itself.
func (v *View) SelfNode() *Node { return v.byID[v.Self] }

// Find returns the node with that name or id, or nil.
func (v *View) Find(nameOrID string) *Node {
	for _, n := range v.Nodes {
		if n.Name == nameOrID || string(n.ID) == nameOrID {
			return n
		}
	}
	return nil
}

// Replicas returns the replicas of the model, one a node, in the order of Nodes, whatever the nodes'
// condition. The slice belongs to the View.
func (v *View) Replicas(model string) []Replica { return v.replicas[CanonicalModel(model)] }

// Models returns one replica for each name that an engine with the route holds, newest first: for
// /api/tags those of Ollamas, for /v1/models all.
func (v *View) Models(path string) []Model {
	models := make([]Model, 0, len(v.replicas))
	for _, replicas := range v.replicas {
		if m, ok := v.choose(replicas, path); ok {
			models = append(models, m)
		}
	}
	slices.SortFunc(models, func(a, b Model) int {
		return cmp.Or(b.ModifiedAt.Compare(a.ModifiedAt), cmp.Compare(a.Name, b.Name))
	})
	return models
}

// Chosen returns the replica that stands for the model's name on a client's route. Until a digest
// is agreed, requests for the name go to nodes that hold this one's digest: two digests are two
// models, and so are one with a digest and one without.
func (v *View) Chosen(model, path string) (Model, bool) {
	return v.choose(v.Replicas(model), path)
}
