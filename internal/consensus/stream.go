package consensus

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// stream gives raft the mesh's connections, with node ids for addresses. Closing it closes every
// connection, so nothing of raft's stays behind in a read.
type stream struct {
	self     cluster.NodeID
	listener net.Listener
	dial     func(context.Context, cluster.NodeID) (net.Conn, error)
	done     lifetime

	mu     sync.Mutex
	conns  map[*conn]struct{}
	closed bool
}

func newStream(self cluster.NodeID, l net.Listener, dial func(context.Context, cluster.NodeID) (net.Conn, error)) *stream {
	return &stream{self: self, listener: l, dial: dial, done: make(lifetime), conns: map[*conn]struct{}{}}
}

func (s *stream) Accept() (net.Conn, error) {
	nc, err := s.listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.track(nc)
}

// Dial implements raft.StreamLayer, which passes no context: the dialling ends with the stream.
func (s *stream) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.done, timeout)
	defer cancel()
	nc, err := s.dial(ctx, cluster.NodeID(to))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	return s.track(nc)
}

func (s *stream) Addr() net.Addr { return nodeAddr(s.self) }

// Close also closes the listener; it may be called again.
func (s *stream) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()

	close(s.done)
	err := s.listener.Close()
	for c := range conns {
		_ = c.Conn.Close()
	}
	return err
}

func (s *stream) track(nc net.Conn) (net.Conn, error) {
	c := &conn{Conn: nc, of: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = nc.Close()
		return nil, net.ErrClosed
	}
	s.conns[c] = struct{}{}
	return c, nil
}

type conn struct {
	net.Conn
	of *stream
}

func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

type nodeAddr cluster.NodeID

func (nodeAddr) Network() string  { return "ollamamax" }
func (a nodeAddr) String() string { return string(a) }

// lifetime is the context of what raft asks for without giving one; closing it ends it.
type lifetime chan struct{}

func (lifetime) Deadline() (time.Time, bool) { return time.Time{}, false }
func (l lifetime) Done() <-chan struct{}     { return l }
func (lifetime) Value(any) any               { return nil }
func (l lifetime) Err() error {
	select {
	case <-l:
		return context.Canceled
	default:
		return nil
	}
}
