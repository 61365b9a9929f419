package load

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// maxRateConns bounds the requests under way at once in an open loop.
const maxRateConns = 1024

// rateConn is a connection of an open loop, whose answers a goroutine of its own awaits.
type rateConn struct {
	*Conn
	due  atomic.Int64 // when its request was to be sent, in nanoseconds since the loop began
	dead atomic.Bool
}

// rateLoop is one run of Rate.
type rateLoop struct {
	*Pool
	w       window
	begin   time.Time
	open    open
	free    chan *rateConn
	readers sync.WaitGroup

	mu     sync.Mutex
	result Result
	under  int // requests under way that began in the window
}

// Rate sends requests at their times, whatever becomes of the others. The time to the first byte
// counts from the time that a request was to be sent at, and requests count that were to be sent in the
// window; Done are the answers that were whole within it. A request that has no answer a while after
// the window counts with the time until then.
func (p *Pool) Rate(ctx context.Context, perSecond int, ph Phases) Result {
	begin := time.Now()
	l := &rateLoop{
		Pool: p, begin: begin, free: make(chan *rateConn, maxRateConns),
		w:      window{from: begin.Add(ph.Warm), to: begin.Add(ph.Warm + ph.Window)},
		result: Result{Window: ph.Window},
	}
	marked := make(chan struct{})
	go func() { ph.mark(ctx, l.w); close(marked) }()
	l.send(ctx, time.Second/time.Duration(perSecond))
	<-marked

	for end := time.Now().Add(grace); l.late() > 0 && time.Now().Before(end) && wait(ctx, 5*time.Millisecond); {
	}
	l.open.cutAll()
	l.readers.Wait()
	return l.result
}

// late returns how many requests of the window have no answer yet.
func (l *rateLoop) late() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.under
}

// send sends the requests. It has a thread of its own: a goroutine's timers are up to a millisecond late.
func (l *rateLoop) send(ctx context.Context, interval time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for due := time.Duration(0); ; due += interval {
		at := l.begin.Add(due)
		if !at.Before(l.w.to) || ctx.Err() != nil {
			return
		}
		l.sleep(at)
		c, err := l.next(ctx)
		if err != nil {
			l.fail(err)
			continue
		}
		c.due.Store(int64(due))
		l.began(at)
		if _, err := c.Write(l.Request); err != nil {
			// Its reader sees the same end of the connection, and counts it.
			c.Close()
		}
	}
}

// next returns a connection with no request on it.
func (l *rateLoop) next(ctx context.Context) (*rateConn, error) {
	for {
		select {
		case c := <-l.free:
			if !c.dead.Load() {
				return c, nil
			}
			continue
		default:
		}
		l.open.mu.Lock()
		n := len(l.open.conns)
		l.open.mu.Unlock()
		if n < maxRateConns {
			break
		}
		select {
		case c := <-l.free:
			if !c.dead.Load() {
				return c, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	conn, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &rateConn{Conn: conn}
	c.due.Store(-1)
	l.open.hold(conn)
	l.readers.Go(func() { l.read(c) })
	return c, nil
}

// read awaits the answers on c.
func (l *rateLoop) read(c *rateConn) {
	defer func() {
		c.dead.Store(true)
		l.open.drop(c.Conn)
		c.Close()
	}()
	for {
		a, err := c.Receive(nil)
		due := time.Duration(c.due.Swap(-1))
		if err != nil {
			if due >= 0 {
				l.lost(l.begin.Add(due), err)
			}
			return // without a request on it: the server closed an idle connection
		}
		l.answered(l.begin.Add(due), a)
		if a.Close {
			return
		}
		l.free <- c
	}
}

// began counts a request that is under way.
func (l *rateLoop) began(at time.Time) {
	if !l.w.holds(at) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.under++
}

func (l *rateLoop) answered(at time.Time, a Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.check(a); err != nil {
		l.result.fail(err)
	}
	if l.w.holds(at) {
		l.under--
		l.result.First = append(l.result.First, a.First.Sub(at))
	}
	if l.w.holds(a.End) {
		l.result.Done++
	}
}

// lost counts a request without a whole answer.
func (l *rateLoop) lost(at time.Time, err error) {
	cut := l.open.isCut()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w.holds(at) {
		l.under--
	}
	switch {
	case !cut:
		l.result.fail(err)
	case l.w.holds(at):
		l.result.First = append(l.result.First, time.Since(at))
	}
}

func (l *rateLoop) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.fail(err)
}
