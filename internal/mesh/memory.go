package mesh

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Memory is the mesh's twin for tests: a network within one process whose nodes are Transports
// with the same gate, which can be cut, frozen and killed. It works in testing/synctest bubbles:
// everything waits on sync.Cond and time. Information, be it bytes, an end or a reset, crosses
// a link only while the link is whole and neither side is frozen; until then it waits, as in TCP.
type Memory struct {
	mu    sync.Mutex
	calm  *sync.Cond // a link or a node has changed: for Dial
	nodes map[cluster.NodeID]*MemoryNode
	links map[[2]cluster.NodeID]*memoryLink // by both ids, the smaller first

	events  []func() // of watchers, in order
	telling bool
}

// memoryLink is a pair of nodes, [0] being the one with the smaller id.
type memoryLink struct {
	ends     [2]*MemoryNode
	cut      bool
	up       [2]bool // whether the end believes that there is a connection
	streams  map[*memoryStream]bool
	arriving []func() // what the other end has not seen yet: streams that open, connections that go
}

// MemoryNode is a node of a Memory.
type MemoryNode struct {
	network *Memory
	id      cluster.NodeID
	gate    *gate
	watched *watchers
	frozen  bool
	dead    bool
}

var _ Transport = (*MemoryNode)(nil)

var (
	errBroken    = errors.New("connection broken")
	errNoAddress = errors.New("no known address")
	errNobody    = errors.New("connection refused")
)

// NewMemory makes a network without nodes.
func NewMemory() *Memory {
	m := &Memory{nodes: make(map[cluster.NodeID]*MemoryNode), links: make(map[[2]cluster.NodeID]*memoryLink)}
	m.calm = sync.NewCond(&m.mu)
	return m
}

// Node adds a node. One that was there with the same id is killed first: a restart.
func (m *Memory) Node(id cluster.NodeID, deps Deps) *MemoryNode {
	m.Kill(id)
	trusting := newRoster()
	trusting.all = true
	n := &MemoryNode{network: m, id: id, watched: newWatchers(),
		gate: newGate(id, deps, Limits{}.withDefaults(), trusting)}
	m.change(func() {
		for _, l := range m.links {
			for end, other := range l.ends {
				if other.id == id {
					l.ends[end] = n
				}
			}
		}
		m.nodes[id] = n
	})
	return n
}

// Cut makes the link between two nodes swallow everything, without an error.
func (m *Memory) Cut(a, b cluster.NodeID) { m.change(func() { m.link(a, b).cut = true }) }

// Heal mends a cut link. What waited goes on.
func (m *Memory) Heal(a, b cluster.NodeID) { m.change(func() { m.link(a, b).cut = false }) }

// Freeze makes a node silent: nothing from it or to it is delivered, and nothing fails.
func (m *Memory) Freeze(id cluster.NodeID) { m.change(func() { m.nodes[id].frozen = true }) }

// Thaw ends a Freeze.
func (m *Memory) Thaw(id cluster.NodeID) { m.change(func() { m.nodes[id].frozen = false }) }

// Kill ends a node as the death of its process does: its connections break at once, its
// listeners close, and dialing it is refused. Killing an unknown or dead node does nothing.
func (m *Memory) Kill(id cluster.NodeID) {
	var gate *gate
	m.change(func() {
		n := m.nodes[id]
		if n == nil || n.dead {
			return
		}
		n.dead, n.frozen = true, false
		gate = n.gate
		for _, l := range m.links {
			if l.ends[0] == n || l.ends[1] == n {
				m.breakLink(l, n)
			}
		}
	})
	if gate != nil {
		gate.close()
	}
}

// link finds or makes the link of two nodes, which must exist.
func (m *Memory) link(a, b cluster.NodeID) *memoryLink {
	key := [2]cluster.NodeID{min(a, b), max(a, b)}
	l := m.links[key]
	if l == nil {
		l = &memoryLink{ends: [2]*MemoryNode{m.nodes[key[0]], m.nodes[key[1]]}, streams: make(map[*memoryStream]bool)}
		m.links[key] = l
	}
	return l
}

func (l *memoryLink) blocked() bool { return l.cut || l.ends[0].frozen || l.ends[1].frozen }

// change runs fn under the lock, wakes all that may wait for what it changed, delivers what
// waited for it, and tells the watchers.
func (m *Memory) change(fn func()) {
	m.mu.Lock()
	fn()
	for _, l := range m.links {
		if l.blocked() {
			continue
		}
		for _, arrive := range l.arriving {
			arrive()
		}
		l.arriving = nil
		for s := range l.streams {
			s.wake.Broadcast()
		}
	}
	m.calm.Broadcast()
	m.tell()
}

// tell runs the queued events in order, without the lock, and unlocks. A nested or concurrent
// call leaves them to the one that is at it.
func (m *Memory) tell() {
	if !m.telling {
		m.telling = true
		for len(m.events) > 0 {
			event := m.events[0]
			m.events = m.events[1:]
			m.mu.Unlock()
			event()
			m.mu.Lock()
		}
		m.telling = false
	}
	m.mu.Unlock()
}

// breakLink closes the connection as n sees it now, and as the other end sees it when it hears.
func (m *Memory) breakLink(l *memoryLink, n *MemoryNode) {
	mine, other := 0, 1
	if l.ends[1] == n {
		mine, other = 1, 0
	}
	for s := range l.streams {
		if s.local == n.id {
			s.fail()
		}
	}
	m.setUp(l, mine, false)
	far := l.ends[other]
	l.arriving = append(l.arriving, func() {
		for s := range l.streams {
			if s.local == far.id && s.in.broken {
				s.fail()
			}
		}
		m.setUp(l, other, false)
	})
}

// setUp notes whether an end sees a connection.
func (m *Memory) setUp(l *memoryLink, end int, up bool) {
	if l.up[end] == up {
		return
	}
	l.up[end] = up
	w, peer := l.ends[end].watched, l.ends[1-end].id
	if up {
		m.events = append(m.events, func() { w.connected(peer) })
	} else {
		m.events = append(m.events, func() { w.disconnected(peer) })
	}
}

// ID is the own node.
func (n *MemoryNode) ID() cluster.NodeID { return n.id }

// Close kills the node, unless another has taken its place.
func (n *MemoryNode) Close() error {
	n.network.mu.Lock()
	current := n.network.nodes[n.id] == n
	n.network.mu.Unlock()
	if current {
		n.network.Kill(n.id)
	}
	return nil
}

// Listen is Transport's.
func (n *MemoryNode) Listen(protocol string) (net.Listener, error) {
	return n.gate.listen(protocol, false)
}

// ListenOpen is Transport's.
func (n *MemoryNode) ListenOpen(protocol string) (net.Listener, error) {
	return n.gate.listen(protocol, true)
}

// ClearBackoff does nothing: there is no back-off here.
func (n *MemoryNode) ClearBackoff(cluster.NodeID) {}

// Watch is Transport's.
func (n *MemoryNode) Watch(fn func(id cluster.NodeID, connected bool)) (stop func()) {
	return n.watched.watch(fn)
}

// Disconnect is Transport's.
func (n *MemoryNode) Disconnect(id cluster.NodeID) {
	m := n.network
	m.change(func() {
		if m.nodes[id] != nil && id != n.id {
			m.breakLink(m.link(n.id, id), n)
		}
	})
}

// Dial is Transport's. With a connection it is immediate, as in libp2p, even if the link is cut;
// without one it waits for the link to be whole.
func (n *MemoryNode) Dial(ctx context.Context, id cluster.NodeID, protocol string) (net.Conn, error) {
	if err := checkProtocol(protocol); err != nil {
		return nil, &DialError{Peer: id, Err: err}
	}
	preamble, err := n.gate.preamble(protocol)
	if err != nil {
		return nil, &DialError{Peer: id, Err: err}
	}
	ctx, cancel := withDialTimeout(ctx)
	defer cancel()
	s, err := n.connect(ctx, id)
	if err != nil {
		return nil, err
	}
	if _, err := s.Write(preamble); err != nil {
		return nil, &DialError{Peer: id, Err: err}
	}
	return n.gate.newConn(s, id, protocol, func() {}), nil
}

// connect makes a stream, and a connection first if there is none.
func (n *MemoryNode) connect(ctx context.Context, id cluster.NodeID) (*memoryStream, error) {
	m := n.network
	defer context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.calm.Broadcast()
	})()
	m.mu.Lock()
	if m.nodes[id] == nil || id == n.id {
		m.mu.Unlock()
		return nil, &DialError{Peer: id, Err: errNoAddress}
	}
	l, mine := m.link(n.id, id), 0
	if id < n.id {
		mine = 1
	}
	for l.blocked() && !l.up[mine] && ctx.Err() == nil && !n.dead {
		m.calm.Wait()
	}
	peer := l.ends[1-mine]
	switch {
	case n.dead:
		m.mu.Unlock()
		return nil, &DialError{Peer: id, Err: net.ErrClosed}
	case ctx.Err() != nil:
		m.mu.Unlock()
		return nil, &DialError{Peer: id, Err: ctx.Err(), TimedOut: IsTimeout(ctx.Err())}
	case peer.dead && !l.blocked():
		m.mu.Unlock()
		return nil, &DialError{Peer: id, Err: errNobody, Refused: true}
	}
	near, far := m.pipe(l, n.id, id)
	m.mu.Unlock()
	m.change(func() {
		m.setUp(l, mine, true)
		l.arriving = append(l.arriving, func() {
			if peer.dead {
				far.fail()
				return
			}
			m.setUp(l, 1-mine, true)
			go peer.gate.serve(far, n.id)
		})
	})
	return near, nil
}
