package consensus

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// network connects nodes in memory. A cut swallows what is sent, as a pulled cable does; a node
// that is down refuses and its connections end.
type network struct {
	mu        sync.Mutex
	listeners map[cluster.NodeID]*memListener
	cuts      map[[2]cluster.NodeID]bool
	conns     map[*memConn]bool
}

func newNetwork() *network {
	return &network{
		listeners: map[cluster.NodeID]*memListener{}, cuts: map[[2]cluster.NodeID]bool{}, conns: map[*memConn]bool{},
	}
}

func (n *network) listen(id cluster.NodeID) *memListener {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &memListener{id: id, conns: make(chan net.Conn, 64), done: make(chan struct{})}
	n.listeners[id] = l
	return l
}

func (n *network) dialer(from cluster.NodeID) func(context.Context, cluster.NodeID) (net.Conn, error) {
	return func(ctx context.Context, to cluster.NodeID) (net.Conn, error) {
		if n.isCut(from, to) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		l, up := n.listeners[to]
		if _, self := n.listeners[from]; !up || !self {
			return nil, errors.New("connection refused")
		}
		a, b := newHalf(), newHalf()
		near := &memConn{net: n, local: from, remote: to, in: a, out: b}
		far := &memConn{net: n, local: to, remote: from, in: b, out: a}
		n.conns[near], n.conns[far] = true, true
		l.conns <- far
		return near, nil
	}
}

// down ends a node's connections and refuses new ones.
func (n *network) down(id cluster.NodeID) {
	n.mu.Lock()
	delete(n.listeners, id)
	var ended []*memConn
	for c := range n.conns {
		if c.local == id || c.remote == id {
			ended = append(ended, c)
		}
	}
	n.mu.Unlock()
	for _, c := range ended {
		_ = c.Close()
	}
}

// cut parts some nodes from all others; heal ends all cuts.
func (n *network) cut(these ...cluster.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	in := map[cluster.NodeID]bool{}
	for _, id := range these {
		in[id] = true
	}
	for id := range n.listeners {
		for _, this := range these {
			if !in[id] {
				n.cuts[[2]cluster.NodeID{this, id}], n.cuts[[2]cluster.NodeID{id, this}] = true, true
			}
		}
	}
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
}

func (n *network) isCut(a, b cluster.NodeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts[[2]cluster.NodeID{a, b}]
}

func (n *network) reaches(a, b cluster.NodeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, up := n.listeners[b]
	return up && !n.cuts[[2]cluster.NodeID{a, b}]
}

type memListener struct {
	id    cluster.NodeID
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *memListener) Addr() net.Addr { return nodeAddr(l.id) }

type memConn struct {
	net           *network
	local, remote cluster.NodeID
	in, out       *half
}

func (c *memConn) Read(p []byte) (int, error) { return c.in.read(p) }

func (c *memConn) Write(p []byte) (int, error) {
	if c.net.isCut(c.local, c.remote) {
		return len(p), nil
	}
	return c.out.write(p)
}

func (c *memConn) Close() error {
	c.in.close()
	c.out.close()
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	delete(c.net.conns, c)
	return nil
}

func (c *memConn) LocalAddr() net.Addr               { return nodeAddr(c.local) }
func (c *memConn) RemoteAddr() net.Addr              { return nodeAddr(c.remote) }
func (c *memConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *memConn) SetReadDeadline(t time.Time) error { c.in.setDeadline(t); return nil }
func (c *memConn) SetWriteDeadline(time.Time) error  { return nil } // writes never block

// half is one direction of a connection: an unbounded buffer.
type half struct {
	mu       sync.Mutex
	buf      []byte
	closed   bool
	deadline time.Time
	wake     chan struct{}
}

func newHalf() *half { return &half{wake: make(chan struct{})} }

func (h *half) update(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.wake)
	h.wake = make(chan struct{})
}

func (h *half) close()                  { h.update(func() { h.closed = true }) }
func (h *half) setDeadline(t time.Time) { h.update(func() { h.deadline = t }) }

func (h *half) write(p []byte) (n int, err error) {
	h.update(func() {
		if h.closed {
			err = io.ErrClosedPipe
			return
		}
		n, h.buf = len(p), append(h.buf, p...)
	})
	return n, err
}

func (h *half) read(p []byte) (int, error) {
	for {
		h.mu.Lock()
		n := copy(p, h.buf)
		h.buf = h.buf[n:]
		closed, deadline, wake := h.closed, h.deadline, h.wake
		h.mu.Unlock()
		var late <-chan time.Time
		if !deadline.IsZero() {
			t := time.NewTimer(time.Until(deadline))
			defer t.Stop()
			late = t.C
		}
		switch {
		case n > 0:
			return n, nil
		case closed:
			return 0, io.EOF
		case !deadline.IsZero() && !time.Now().Before(deadline):
			return 0, os.ErrDeadlineExceeded
		}
		select {
		case <-wake:
		case <-late:
		}
	}
}
