package node

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

const (
	maxStrangers   = 64              // remembered at once: anybody can invent any number
	strangersFade  = 5 * time.Minute // since they were last seen
	strangersAddrs = 4               // shown of each
)

// found hears of a node on the local network. A member's new addresses are tried; anybody else is
// only remembered, for an operator to see: what is said there proves nothing, and admits nobody.
func (n *Node) found(id cluster.NodeID, addrs []string) {
	addrs = addrs[:min(len(addrs), maxAddrs)]
	if _, member := n.state().Members[id]; member {
		n.host.AddAddrs(id, addrs)
		n.host.ClearBackoff(id)
		n.heartbeats.Notify()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.strangers, func(_ cluster.NodeID, s api.Stranger) bool { return time.Since(s.LastSeen) > strangersFade })
	if _, known := n.strangers[id]; known || len(n.strangers) < maxStrangers {
		n.strangers[id] = api.Stranger{ID: id, Addrs: addrs[:min(len(addrs), strangersAddrs)], LastSeen: time.Now().UTC()}
	}
}

// listStrangers returns who was seen lately and is no member, by id.
func (n *Node) listStrangers() []api.Stranger {
	members := n.state().Members
	n.mu.Lock()
	defer n.mu.Unlock()
	list := []api.Stranger{}
	for id, s := range n.strangers {
		if _, member := members[id]; member || time.Since(s.LastSeen) > strangersFade {
			delete(n.strangers, id)
			continue
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b api.Stranger) int { return cmp.Compare(a.ID, b.ID) })
	return list
}
