package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/fault/health"
	"github.com/ollamamax/ollamamax/internal/mesh"
)

// judgeEvery is how often the conditions of the peers are judged anew.
const judgeEvery = 200 * time.Millisecond

// pauseAfter is how late that may be before this node doubts itself and not the others.
const pauseAfter = time.Second

// peer is what another node has told of itself.
type peer struct {
	boot, version uint64
	told          cluster.Node
	pulse         mesh.Pulse
}

// touch asks for a new View; it never blocks.
func (n *Node) touch() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// keepView builds a new View after each change, and whenever a peer's condition changes by the
// passing of time.
func (n *Node) keepView(ctx context.Context) {
	ticker := time.NewTicker(judgeEvery)
	defer ticker.Stop()
	last := time.Now()
	for {
		n.rebuild()
		n.disconnectDead()
		if n.scheduler != nil {
			n.scheduler.Notify() // what waited for a node may find it now
		}
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-ticker.C:
			last = n.sinceLook(last)
			for !n.looksOtherwise() {
				select {
				case <-ctx.Done():
					return
				case <-n.changed:
				case <-ticker.C:
					last = n.sinceLook(last)
					continue
				}
				break
			}
		}
	}
}

// sinceLook returns the time. If this process did not run since the last look, the peers' silence
// was its own deafness.
func (n *Node) sinceLook(last time.Time) time.Time {
	now := time.Now()
	if gap := now.Sub(last); gap > pauseAfter {
		n.mu.Lock()
		n.health.Paused(gap)
		n.mu.Unlock()
		n.log.Warn("this node did not run for a while; is the machine overloaded or was it suspended?", "for", gap)
	}
	return now
}

// looksOtherwise tells whether a peer's condition, how busy this node is, or what its clients ask for, is
// another than the View shows.
func (n *Node) looksOtherwise() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	for _, node := range n.View().Nodes {
		if node.ID == n.id {
			if node.Slots.Busy != n.engine.Busy() || node.Queue != n.scheduler.Length() || !slices.Equal(node.Demand, n.front.Demand()) {
				return true
			}
			continue
		}
		if condition, _, _ := n.health.Judge(node.ID, now); condition != node.Condition {
			return true
		}
	}
	return false
}

// disconnectDead closes what is open with the nodes that have just died, so that all that waits on
// it fails at once.
func (n *Node) disconnectDead() {
	for _, node := range n.View().Nodes {
		if node.ID == n.id {
			continue
		}
		was, known := n.conditions[node.ID]
		if known && was == node.Condition {
			continue
		}
		n.conditions[node.ID] = node.Condition
		if node.Condition == cluster.Dead {
			n.log.Warn("node is dead", "peer", node.Name, "why", node.Why)
			n.host.Disconnect(node.ID)
		} else if known {
			n.log.Info("node changed", "peer", node.Name, "condition", node.Condition, "why", node.Why)
		}
	}
}

// rebuild publishes a new View of what is known now, and tells the peers if this node has changed.
func (n *Node) rebuild() {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	state, agreed := n.state(), n.agreed()
	self := n.describe(state)
	nodes := []*cluster.Node{self}
	if self.State != cluster.Removed {
		for _, m := range state.Sorted() {
			if m.ID != n.id {
				nodes = append(nodes, n.describePeer(m, now))
			}
		}
	}
	self.PeerAddrs = map[cluster.NodeID][]string{}
	for _, node := range nodes[1:] {
		if node.Condition == cluster.Alive && len(node.P2PAddrs) > 0 {
			self.PeerAddrs[node.ID] = node.P2PAddrs
		}
	}
	for _, node := range nodes {
		node.Leader = node.ID == agreed.Leader && agreed.Leader != ""
		node.Role = cluster.Observer
		if slices.Contains(agreed.Voters, node.ID) {
			node.Role = cluster.Voter
		}
	}
	v := cluster.NewView(n.id, now, nodes)
	v.ClusterID, v.Leader, v.Term, v.Quorum, v.Voters = state.ClusterID, agreed.Leader, agreed.Term, agreed.Quorum, len(agreed.Voters)
	v.Wanted = make(map[string]string, len(state.Models))
	for key, w := range state.Models {
		v.Wanted[key] = w.Digest
	}
	n.view.Store(v)
	n.tell(*self)
}

// describe is this node as it sees itself.
func (n *Node) describe(state *cluster.State) *cluster.Node {
	status := n.engine.Status()
	engineNow := status.Engine
	self := &cluster.Node{
		ID: n.id, Name: n.cfg.Node.Name, Version: n.version, APIAddr: n.Addr(), P2PAddrs: n.addrs(),
		Condition: cluster.Alive, State: cluster.Active, LastSeen: time.Now().UTC(), Boot: n.boot,
		Labels: n.cfg.Node.Labels, Machine: *n.machine.Load(), Engine: &engineNow, Models: status.Models, Loaded: status.Loaded,
		Slots: cluster.Slots{Busy: n.engine.Busy(), Total: n.engine.Slots()},
	}
	if n.models != nil {
		n.describeModels(self)
	}
	if n.scheduler != nil {
		self.Queue = n.scheduler.Length()
	}
	if n.front != nil {
		self.Demand = n.front.Demand()
	}
	if out := n.out.Load(); out != nil {
		self.Unavailable = *out
	}
	if m, ok := state.Members[n.id]; ok {
		self.Name = m.Name
		if m.Draining {
			self.State = cluster.Draining
			if self.Slots.Busy == 0 {
				self.State = cluster.Drained
			}
		}
	}
	if removed := n.kept.read().Removed; removed != "" {
		self.State, self.Why = cluster.Removed, removed
	}
	return self
}

// describePeer is a peer as this node sees it: what is agreed, what it told, how it is judged.
func (n *Node) describePeer(m cluster.Member, now time.Time) *cluster.Node {
	n.health.Expect(m.ID, now)
	node := &cluster.Node{State: cluster.Active}
	var pulse mesh.Pulse
	if p := n.peers[m.ID]; p != nil {
		told := p.told
		node, pulse = &told, p.pulse
	}
	node.ID, node.Name = m.ID, m.Name
	node.Slots, node.Queue = cluster.Slots{Busy: pulse.Busy, Total: pulse.Total}, pulse.Queue
	switch {
	case pulse.Leaving:
		node.State = cluster.Draining
	case !m.Draining:
		node.State = cluster.Active
	case node.State == cluster.Active:
		node.State = cluster.Draining // agreed, and not yet told by itself
	}
	node.Condition, node.Why, node.LastSeen = n.health.Judge(m.ID, now)
	node.LastSeen = node.LastSeen.UTC()
	return node
}

// tell makes the own entry anew, without what changes all the time and what only others can say.
func (n *Node) tell(self cluster.Node) {
	self.Slots, self.Queue, self.LastSeen, self.Leader, self.Role, self.Condition = cluster.Slots{}, 0, time.Time{}, false, "", ""
	data, err := json.Marshal(self)
	if err != nil {
		panic(err) // our own types always marshal
	}
	if !bytes.Equal(data, n.entry) {
		n.entry = data
		n.entryVersion++
		if n.heartbeats != nil {
			n.heartbeats.Notify()
		}
	}
}

// heartbeatDeps joins the heartbeats to what this node knows.
func (n *Node) heartbeatDeps() mesh.HeartbeatDeps {
	return mesh.HeartbeatDeps{
		Members: func() []cluster.NodeID {
			if n.kept.read().Removed != "" {
				return nil
			}
			return slices.Collect(maps.Keys(n.state().Members))
		},
		Pulse: func() mesh.Pulse {
			return mesh.Pulse{Busy: n.engine.Busy(), Total: n.engine.Slots(), Queue: n.scheduler.Length(), Leaving: n.stopping.Load()}
		},
		Entry: func() (uint64, []byte) {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.entryVersion, n.entry
		},
		Heard:         n.heard,
		EntryReceived: n.entryReceived,
		Closed:        n.lost,
	}
}

func (n *Node) heard(id cluster.NodeID, pulse mesh.Pulse, at time.Time) {
	n.scheduler.Heard(id, pulse.Busy)
	n.mu.Lock()
	defer n.mu.Unlock()
	condition, _, _ := n.health.Judge(id, at)
	n.health.Heard(id, pulse.Leaving, at)
	p := n.peers[id]
	if p == nil {
		p = &peer{}
		n.peers[id] = p
	}
	if p.pulse != pulse || condition != cluster.Alive {
		p.pulse = pulse
		n.touch()
	}
}

func (n *Node) entryReceived(id cluster.NodeID, boot, version uint64, data []byte) {
	var told cluster.Node
	if err := json.Unmarshal(data, &told); err != nil {
		n.log.Warn("cannot read what a peer tells; is it of another version?", "peer", id, "err", err)
		return
	}
	told.Models = told.Models[:min(len(told.Models), maxModels)]
	told.Loaded = told.Loaded[:min(len(told.Loaded), maxModels)]
	told.Blobs = told.Blobs[:min(len(told.Blobs), maxModels)]
	told.Fetches = told.Fetches[:min(len(told.Fetches), maxModels)]
	told.Demand = told.Demand[:min(len(told.Demand), maxModels)]
	told.Preload = told.Preload[:min(len(told.Preload), maxModels)]
	told.P2PAddrs = told.P2PAddrs[:min(len(told.P2PAddrs), maxAddrs)]
	n.mu.Lock()
	p := n.peers[id]
	if p == nil {
		p = &peer{}
		n.peers[id] = p
	}
	newer := boot > p.boot || boot == p.boot && version > p.version
	if newer {
		told.Boot = boot
		p.boot, p.version, p.told = boot, version, told
	}
	n.mu.Unlock()
	if newer {
		n.remember(id, told.P2PAddrs)
		n.hearsay(told.PeerAddrs)
		n.touch()
	}
}

// hearsay takes from a member where it reaches members that this node does not reach.
func (n *Node) hearsay(addrs map[cluster.NodeID][]string) {
	v, members := n.View(), n.state().Members
	for id, at := range addrs {
		node := v.Node(id)
		if _, member := members[id]; id == n.id || !member || node != nil && node.Condition == cluster.Alive {
			continue
		}
		n.host.AddAddrs(id, at[:min(len(at), maxAddrs)])
		n.host.ClearBackoff(id)
		n.heartbeats.Notify()
	}
}

// maxModels and maxAddrs bound what is taken from one peer.
const (
	maxModels = 10_000
	maxAddrs  = 16
)

// lost hears that a peer cannot be reached, and why.
func (n *Node) lost(id cluster.NodeID, err error) {
	var refused *mesh.RefusedError
	if errors.As(err, &refused) {
		// One member's word is not enough while a majority is heard: it may be the one that is apart.
		if errors.Is(admissionError(refused.Reason), cluster.ErrBarred) && n.state().Members[id].ID == id && !n.agreed().Quorum {
			n.removed("removed from the cluster, as its member " + n.state().Members[id].Name + " says")
		}
	}
	var dial *mesh.DialError
	gone := errors.As(err, &dial) && dial.Refused
	n.mu.Lock()
	defer n.mu.Unlock()
	first := n.health.Broke(id, gone, reason(err, gone), time.Now())
	n.touch()
	if first && !gone {
		select {
		case n.knocks <- id:
		default: // many broke at once; time will tell
		}
	}
}

// reason says in a few words why a peer cannot be reached.
func reason(err error, gone bool) string {
	switch {
	case gone:
		return "connection refused: its process is gone"
	case errors.Is(err, io.EOF):
		return "it closed the connection"
	case mesh.IsTimeout(err):
		return "no answer"
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text[:min(len(text), maxReason)]
}

const maxReason = 120

// knockAtBroken looks after the peers whose connections broke, until ctx ends.
func (n *Node) knockAtBroken(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-n.knocks:
			n.handlers.Go(func() { n.knock(ctx, id) })
		}
	}
}

// knock looks at once, and a few times more, whether a peer whose connection broke is still there: a
// process that is gone refuses, and need not be waited for.
func (n *Node) knock(ctx context.Context, id cluster.NodeID) {
	ctx, cancel := context.WithTimeout(ctx, health.DeadAfterBreak)
	defer cancel()
	ticker := time.NewTicker(knockEvery)
	defer ticker.Stop()
	for {
		n.host.ClearBackoff(id)
		conn, err := n.host.Dial(ctx, id, httpProtocol)
		if err == nil {
			_ = conn.Close() // it was only to see who answers
		}
		var dial *mesh.DialError
		if errors.As(err, &dial) && dial.Refused {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.health.Broke(id, true, reason(err, true), time.Now())
			n.touch()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

const knockEvery = 50 * time.Millisecond

// remember keeps where a peer can be reached, for this run and the next.
func (n *Node) remember(id cluster.NodeID, addrs []string) {
	if len(addrs) == 0 || slices.Equal(n.kept.read().Addrs[id], addrs) {
		return
	}
	n.host.AddAddrs(id, addrs)
	err := n.kept.change(func(m *membership) {
		m.Addrs = maps.Clone(m.Addrs)
		if m.Addrs == nil {
			m.Addrs = map[cluster.NodeID][]string{}
		}
		m.Addrs[id] = addrs
	})
	if err != nil {
		n.log.Warn("cannot keep a peer's address", "err", err)
	}
}
