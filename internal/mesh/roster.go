package mesh

import (
	"sync"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// roster knows who gets a member's limits: those whom Host.Protect names, and while they are
// connected those whom the gate has admitted (a member that we have not heard of yet). It decides
// about resources only; what a peer may do the gate decides anew at each stream.
type roster struct {
	all bool // trust everybody

	mu       sync.RWMutex
	members  map[cluster.NodeID]bool
	admitted map[cluster.NodeID]bool
}

func newRoster() *roster {
	return &roster{members: make(map[cluster.NodeID]bool), admitted: make(map[cluster.NodeID]bool)}
}

func (r *roster) trusts(id cluster.NodeID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.all || r.members[id] || r.admitted[id]
}

// setMembers replaces the members and tells who came and who went.
func (r *roster) setMembers(ids []cluster.NodeID) (came, went []cluster.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.members
	r.members = make(map[cluster.NodeID]bool, len(ids))
	for _, id := range ids {
		if !old[id] && !r.members[id] {
			came = append(came, id)
		}
		r.members[id] = true
	}
	for id := range old {
		if !r.members[id] {
			went = append(went, id)
		}
	}
	return came, went
}

func (r *roster) admit(id cluster.NodeID) {
	r.mu.RLock()
	known := r.admitted[id]
	r.mu.RUnlock()
	if known {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.admitted[id] = true
}

// dismiss forgets that a peer was admitted: it is gone, or was refused.
func (r *roster) dismiss(id cluster.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.admitted, id)
}
