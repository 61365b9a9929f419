package mesh

import (
	"context"
	"net"
	"sync"
	"time"
)

// session is one heartbeat stream: a goroutine that writes our beats and one that reads the
// peer's. It ends when either fails.
type session struct {
	p       *heartbeatPeer
	conn    net.Conn
	changed chan struct{} // send a beat now
	stopped chan struct{}
	once    sync.Once
	reason  error // once stopped
}

func newSession(p *heartbeatPeer, c net.Conn) *session {
	return &session{p: p, conn: c, changed: make(chan struct{}, 1), stopped: make(chan struct{})}
}

// stop ends the session without waiting. The first reason counts.
func (s *session) stop(reason error) {
	s.once.Do(func() {
		s.reason = reason
		close(s.stopped)
		s.conn.Close()
	})
}

func (s *session) read(ctx context.Context) {
	for {
		s.conn.SetReadDeadline(time.Now().Add(15 * s.p.h.config.Interval))
		b, err := readBeat(s.conn)
		if err != nil {
			s.stop(err)
			report(ctx, s.p.gone, s.p.ended, endedSession{s, s.reason})
			return
		}
		if !report(ctx, s.p.gone, s.p.heard, heardBeat{b, time.Now()}) {
			s.stop(net.ErrClosed)
			return
		}
	}
}

// write sends a beat at once, then each interval and at each change. A peer that does not read
// holds up its own session only, and that for two intervals.
func (s *session) write(ctx context.Context) {
	interval := s.p.h.config.Interval
	tick := time.NewTicker(interval)
	defer tick.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		if err := s.send(2 * interval); err != nil {
			// The reader may find out why: a refusal, say.
			pause.Reset(interval)
			select {
			case <-s.stopped:
			case <-pause.C:
			case <-ctx.Done():
			}
			s.stop(err)
			return
		}
		pause.Reset(interval / 20) // so that many changes make few beats
		select {
		case <-pause.C:
		case <-s.stopped:
			return
		case <-ctx.Done():
		}
		select {
		case <-tick.C:
		case <-s.changed:
		case <-s.stopped:
			return
		case <-ctx.Done():
			if s.p.h.deps.Pulse().Leaving {
				s.send(interval / 2)
			}
			s.stop(net.ErrClosed)
			return
		}
	}
}

func (s *session) send(timeout time.Duration) error {
	s.conn.SetWriteDeadline(time.Now().Add(timeout))
	_, err := s.conn.Write(s.p.h.now().append(nil))
	return err
}
