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

	byID    map[NodeID]*Node
	holders map[string][]*Node
}

// NewView takes over the nodes and indexes them. The caller does not change them afterwards.
func NewView(self NodeID, at time.Time, nodes []*Node) *View {
	v := &View{Self: self, At: at, Nodes: nodes, byID: make(map[NodeID]*Node, len(nodes)), holders: map[string][]*Node{}}
	slices.SortFunc(nodes, func(a, b *Node) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	for _, n := range nodes {
		v.byID[n.ID] = n
		for _, m := range n.Models {
			key := CanonicalModel(m.Name)
			if !slices.Contains(v.holders[key], n) {
				v.holders[key] = append(v.holders[key], n)
			}
		}
	}
	return v
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

// Holders returns the nodes that hold a replica of the model, in the order of Nodes, whatever
// their condition. The slice belongs to the View.
func (v *View) Holders(model string) []*Node { return v.holders[CanonicalModel(model)] }
