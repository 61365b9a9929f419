package mesh

import (
	"net"
	"sync"
	"time"
)

// listener is one protocol's net.Listener behind the gate.
type listener struct {
	gate     *gate
	protocol string
	open     *turnstile // nil for members only
	queue    chan *conn
	done     chan struct{}
	once     sync.Once
}

func newListener(g *gate, protocol string, open bool) *listener {
	l := &listener{
		gate: g, protocol: protocol,
		queue: make(chan *conn, g.limits.Backlog),
		done:  make(chan struct{}),
	}
	if open {
		l.open = newTurnstile(g.limits)
	}
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close unblocks Accept and drops what waits for it; connections already accepted stay.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.gate.mu.Lock()
		delete(l.gate.listeners, l.protocol)
		l.gate.mu.Unlock()
		close(l.done)
	})
	for {
		select {
		case c := <-l.queue:
			l.drop(c)
		default:
			return nil
		}
	}
}

func (l *listener) Addr() net.Addr { return Addr{l.gate.local} }

// deliver hands a connection to Accept, or drops it when nobody accepts in time.
func (l *listener) deliver(c *conn) {
	timeout := time.NewTimer(l.gate.limits.Preamble)
	defer timeout.Stop()
	select {
	case l.queue <- c:
		select {
		case <-l.done: // closed meanwhile, perhaps after Close had emptied the queue
			l.Close()
		default:
		}
	case <-l.done:
		l.drop(c)
	case <-timeout.C:
		l.drop(c)
	}
}

func (l *listener) drop(c *conn) {
	l.gate.dropped.Add(1)
	c.s.Reset()
	c.Close()
}
