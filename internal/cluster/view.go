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

	// Wanted are the digests that are agreed for names, by CanonicalModel; nil for none.
	Wanted map[string]string

	byID     map[NodeID]*Node
	replicas map[string][]Replica
}

// Replica is a model on one node.
type Replica struct {
	Node   *Node
	Model  Model
	Loaded *Loaded // nil while it is only stored
	// Spared: its files are damaged, and a node that serves holds good ones. No request goes to it.
	Spared bool
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
				v.replicas[key] = append(held, Replica{Node: n, Model: m, Loaded: loaded[key]})
			}
		}
	}
	for _, replicas := range v.replicas {
		spare(replicas)
	}
	return v
}

// spare marks the damaged replicas among those of a model that others can stand in for.
func spare(replicas []Replica) {
	for i, r := range replicas {
		replicas[i].Spared = r.Model.Damaged && slices.ContainsFunc(replicas, func(o Replica) bool {
			same := o.Model.Digest == r.Model.Digest || r.Model.Digest == ""
			return same && o.Model.Of() == r.Model.Of() && !o.Model.Damaged && o.Node.Serves()
		})
	}
}

// choose returns the replica that stands for a name on a route: of the nodes whose engines have the
// route, the one with the digest that is agreed, else the one that the viewer holds, else the most frequent one, else the newest.
// Dead nodes count only where nobody else holds the model.
func (v *View) choose(replicas []Replica, path string) (Model, bool) {
	type candidate struct {
		model Model
		want  int
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
		i := slices.IndexFunc(candidates, func(c *candidate) bool { return c.model.Of() == m.Of() })
		if i < 0 {
			i = len(candidates)
			candidates = append(candidates, &candidate{model: m})
			if m.Of() != "" && v.Wanted[CanonicalModel(m.Name)] == m.Of() {
				candidates[i].want = 1
			}
		}
		c := candidates[i]
		if c.model.Digest == "" && m.Digest != "" {
			c.model = m // the whole of it
		}
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
		return cmp.Or(cmp.Compare(a.want*a.alive, b.want*b.alive), cmp.Compare(a.own, b.own), cmp.Compare(a.alive, b.alive), cmp.Compare(a.count, b.count),
			a.model.ModifiedAt.Compare(b.model.ModifiedAt), cmp.Compare(a.model.Of(), b.model.Of()))
	}).model, true
}

// ChosenDigest returns the digest that stands for the model's name on a client's route; see Chosen.
func (v *View) ChosenDigest(model, path string) string {
	replicas := v.Replicas(model)
	first, one := -1, true
	for i, r := range replicas {
		if !r.Node.Engine.Has(path) {
			continue
		}
		if first < 0 {
			first = i
		}
		one = one && r.Model.Of() == replicas[first].Model.Of()
	}
	if first >= 0 && one { // as nearly always: nothing to choose
		return replicas[first].Model.Of()
	}
	m, _ := v.choose(replicas, path)
	return m.Of()
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
func (v *View) Replicas(model string) []Replica {
	if replicas, ok := v.replicas[model]; ok { // it is the one spelling, as nearly always
		return replicas
	}
	return v.replicas[CanonicalModel(model)]
}

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
// is agreed, and a living node holds it, requests for the name go to nodes that hold this one's digest: two digests are two
// models, and so are one with a digest and one without; but what was made of a model's weights is one of its replicas.
func (v *View) Chosen(model, path string) (Model, bool) {
	return v.choose(v.Replicas(model), path)
}
