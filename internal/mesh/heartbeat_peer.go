package mesh

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// heartbeatPeer keeps a stream with one peer. All decisions are made in its loop; its streams,
// dials and pulls run beside it and report to it.
//
// The node with the smaller id dials; the other one dials too when it has had no stream for a
// while (it may be behind NAT). So there can be two streams for a moment: both count, and the
// node with the greater id closes the one that it dialed.
type heartbeatPeer struct {
	h  *Heartbeats
	id cluster.NodeID

	wanted    atomic.Bool   // a member: to be dialed
	changed   chan struct{} // by Heartbeats.update
	reachable chan struct{} // a connection has come
	inbound   chan net.Conn
	gone      chan struct{} // closed when the loop has ended

	heard  chan heardBeat
	ended  chan endedSession
	dialed chan dialedConn
	pulled chan pulled

	// Of the loop:
	fresh   bool // not yet given what it was made for
	in, out *session
	dialing bool
	backoff time.Duration
	last    beat // the newest heard
	pulling bool
	has     bool  // the entry, since connecting,
	have    stamp // of this stamp
	work    sync.WaitGroup
}

type (
	heardBeat struct {
		beat beat
		at   time.Time
	}
	endedSession struct {
		session *session
		err     error
	}
	dialedConn struct {
		conn net.Conn
		err  error
	}
)

func newHeartbeatPeer(h *Heartbeats, id cluster.NodeID, wanted bool) *heartbeatPeer {
	p := &heartbeatPeer{
		h: h, id: id, fresh: true, backoff: h.config.Interval / 4,
		changed: make(chan struct{}, 1), reachable: make(chan struct{}, 1),
		inbound: make(chan net.Conn), gone: make(chan struct{}),
		heard: make(chan heardBeat), ended: make(chan endedSession),
		dialed: make(chan dialedConn), pulled: make(chan pulled),
	}
	p.wanted.Store(wanted)
	return p
}

func (p *heartbeatPeer) run(ctx context.Context) {
	defer close(p.gone)
	ctx, cancel := context.WithCancel(ctx)
	defer p.work.Wait()
	defer cancel()
	redial := time.NewTimer(0)
	if !p.dials() {
		redial.Reset(p.wait())
	}
	defer redial.Stop()
	for {
		if p.forget() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-p.changed:
			p.fresh = false
			if !p.wanted.Load() && p.out != nil {
				p.out.stop(net.ErrClosed)
			}
			for _, s := range []*session{p.in, p.out} {
				if s != nil {
					signal(s.changed)
				}
			}
		case <-p.reachable:
			if p.dials() {
				redial.Reset(0)
			}
		case <-redial.C:
			p.dial(ctx)
			redial.Reset(3 * p.h.config.Interval) // sooner if that fails
		case c := <-p.inbound:
			p.accept(ctx, c)
		case d := <-p.dialed:
			p.dialing = false
			switch {
			case d.err == nil && p.in != nil && !p.dials():
				d.conn.Close()
			case d.err == nil:
				p.out = p.start(ctx, d.conn)
			default:
				if p.in == nil {
					p.h.deps.Closed(p.id, d.err)
				}
				redial.Reset(p.wait())
			}
		case e := <-p.ended:
			if p.end(e) {
				redial.Reset(p.wait())
			}
		case b := <-p.heard:
			p.hear(ctx, b)
		case r := <-p.pulled:
			p.receive(ctx, r)
		}
	}
}

// forget ends the loop of a peer that is no member and has no stream.
func (p *heartbeatPeer) forget() bool {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	if p.wanted.Load() || p.in != nil || p.out != nil || p.dialing || p.fresh {
		return false
	}
	delete(p.h.peers, p.id)
	return true
}

// dials says whether this side is the one to dial.
func (p *heartbeatPeer) dials() bool { return p.h.transport.ID() < p.id }

// wait is how long to wait before the next dial, after one that led to nothing.
func (p *heartbeatPeer) wait() time.Duration {
	if !p.dials() {
		return 3 * p.h.config.Interval
	}
	wait := p.backoff
	p.backoff = min(2*p.backoff, 2*p.h.config.Interval)
	return wait
}

// dial begins a dial, unless there is a stream or a dial already.
func (p *heartbeatPeer) dial(ctx context.Context) {
	if p.dialing || p.in != nil || p.out != nil || !p.wanted.Load() {
		return
	}
	p.dialing = true
	p.work.Go(func() {
		dialing, cancel := context.WithTimeout(ctx, 5*p.h.config.Interval)
		defer cancel()
		p.h.transport.ClearBackoff(p.id)
		c, err := p.h.transport.Dial(dialing, p.id, heartbeatProtocol)
		if !report(ctx, p.gone, p.dialed, dialedConn{c, err}) && err == nil {
			c.Close()
		}
	})
}

// accept takes the peer's stream. An older one from the peer must be dead, or it would not have
// dialed.
func (p *heartbeatPeer) accept(ctx context.Context, c net.Conn) {
	p.fresh = false
	if p.in != nil {
		p.in.stop(net.ErrClosed)
	}
	p.in = p.start(ctx, c)
	if p.out != nil && !p.dials() {
		p.out.stop(net.ErrClosed)
	}
}

func (p *heartbeatPeer) start(ctx context.Context, c net.Conn) *session {
	if p.in == nil && p.out == nil {
		p.has = false
	}
	s := newSession(p, c)
	p.work.Go(func() { s.write(ctx) })
	p.work.Go(func() { s.read(ctx) })
	return s
}

// end forgets a stream. It says whether it was the last one.
func (p *heartbeatPeer) end(e endedSession) bool {
	switch e.session {
	case p.in:
		p.in = nil
	case p.out:
		p.out = nil
	default: // one that has been replaced
		return false
	}
	if p.in != nil || p.out != nil {
		return false
	}
	p.h.deps.Closed(p.id, e.err)
	return true
}

func (p *heartbeatPeer) hear(ctx context.Context, b heardBeat) {
	if !(stamp{b.beat.boot, b.beat.seq}).newer(stamp{p.last.boot, p.last.seq}) {
		p.h.stale.Add(1)
		return
	}
	p.last = b.beat
	p.backoff = p.h.config.Interval / 4
	p.h.deps.Heard(p.id, b.beat.pulse, b.at)
	p.pull(ctx)
}

// pull begins to pull the entry if the peer has told of a newer one. It is tried at each beat.
func (p *heartbeatPeer) pull(ctx context.Context) {
	if p.pulling || p.has && !(stamp{p.last.boot, p.last.version}).newer(p.have) {
		return
	}
	p.pulling = true
	p.work.Go(func() { report(ctx, p.gone, p.pulled, p.h.pull(ctx, p.id)) })
}

func (p *heartbeatPeer) receive(ctx context.Context, r pulled) {
	p.pulling = false
	switch {
	case r.err != nil:
		p.h.failedPulls.Add(1) // the next beat tries again
	case !p.has || r.stamp.newer(p.have):
		p.has, p.have = true, r.stamp
		p.h.deps.EntryReceived(p.id, r.stamp.boot, r.stamp.version, r.data)
		p.pull(ctx) // it may have changed meanwhile
	}
}

// report hands something to the loop, unless that has ended or is about to.
func report[T any](ctx context.Context, gone chan struct{}, to chan T, value T) bool {
	select {
	case to <- value:
		return true
	case <-ctx.Done():
	case <-gone:
	}
	return false
}
