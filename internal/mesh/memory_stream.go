package mesh

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// memoryWindow is how much a writer may be ahead of its reader: yamux's initial window.
const memoryWindow = 256 << 10

// memoryStream is one end of a stream of a Memory. All ends share the network's lock.
type memoryStream struct {
	link    *memoryLink
	mu      *sync.Mutex
	wake    *sync.Cond
	local   cluster.NodeID
	in, out *memoryHalf
	closed  bool
	broken  bool

	deadlines [2]time.Time // of Read and of Write
	timers    [2]*time.Timer
}

// memoryHalf is one direction, as its writer has left it. The reader sees it while the link is
// not blocked.
type memoryHalf struct {
	data     []byte
	ended    bool // by CloseWrite or Close
	broken   bool // by Reset
	unwanted bool // the reader has closed
}

// pipe makes both ends of a stream. The caller holds the lock.
func (m *Memory) pipe(l *memoryLink, a, b cluster.NodeID) (near, far *memoryStream) {
	ab, ba, wake := &memoryHalf{}, &memoryHalf{}, sync.NewCond(&m.mu)
	near = &memoryStream{link: l, mu: &m.mu, wake: wake, local: a, in: ba, out: ab}
	far = &memoryStream{link: l, mu: &m.mu, wake: wake, local: b, in: ab, out: ba}
	l.streams[near], l.streams[far] = true, true
	return near, far
}

func (s *memoryStream) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.state(0); err != nil {
			return 0, err
		}
		if !s.link.blocked() {
			switch {
			case s.in.broken:
				return 0, errBroken
			case len(s.in.data) > 0 || len(b) == 0:
				n := copy(b, s.in.data)
				s.in.data = s.in.data[n:]
				s.wake.Broadcast()
				return n, nil
			case s.in.ended:
				return 0, io.EOF
			}
		}
		s.wake.Wait()
	}
}

func (s *memoryStream) Write(b []byte) (written int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.state(1); err != nil {
			return written, err
		}
		if s.out.ended || !s.link.blocked() && (s.in.broken || s.out.unwanted) {
			return written, errBroken
		}
		if n := min(len(b), memoryWindow-len(s.out.data)); n > 0 {
			s.out.data = append(s.out.data, b[:n]...)
			b, written = b[n:], written+n
			s.wake.Broadcast()
		}
		if len(b) == 0 {
			return written, nil
		}
		s.wake.Wait()
	}
}

// state is why a Read (0) or a Write (1) must not go on.
func (s *memoryStream) state(direction int) error {
	switch d := s.deadlines[direction]; {
	case s.closed:
		return net.ErrClosed
	case s.broken:
		return errBroken
	case !d.IsZero() && !time.Now().Before(d):
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (s *memoryStream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.ended = true
	s.wake.Broadcast()
	return nil
}

func (s *memoryStream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.out.ended, s.in.unwanted = true, true, true
	s.end()
	return nil
}

func (s *memoryStream) Reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail()
	return nil
}

// fail fails this end now, and the other when it hears. The caller holds the lock.
func (s *memoryStream) fail() {
	s.broken, s.out.broken = true, true
	s.end()
}

func (s *memoryStream) end() {
	delete(s.link.streams, s)
	for _, t := range s.timers {
		if t != nil {
			t.Stop()
		}
	}
	s.wake.Broadcast()
}

func (s *memoryStream) SetDeadline(t time.Time) error { return s.setDeadline(t, 0, 1) }

func (s *memoryStream) SetReadDeadline(t time.Time) error { return s.setDeadline(t, 0) }

func (s *memoryStream) SetWriteDeadline(t time.Time) error { return s.setDeadline(t, 1) }

func (s *memoryStream) setDeadline(t time.Time, directions ...int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.broken {
		return net.ErrClosed
	}
	for _, d := range directions {
		if s.timers[d] != nil {
			s.timers[d].Stop()
			s.timers[d] = nil
		}
		s.deadlines[d] = t
		if !t.IsZero() {
			s.timers[d] = time.AfterFunc(time.Until(t), func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.wake.Broadcast()
			})
		}
	}
	s.wake.Broadcast()
	return nil
}
