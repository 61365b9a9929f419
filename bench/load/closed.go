package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Phases are the times of one measurement: what happens in Warm is not counted, what ends within
// Window is.
type Phases struct {
	Warm, Window time.Duration
	// Mark is called when the window begins and when it ends; nil: nobody asks.
	Mark func(end bool)
}

// grace is how long requests under way at the end of the window may take before they are cut off.
// It is long enough for short answers to 2,000 clients, whose connections are then used again.
const grace = 1500 * time.Millisecond

// Result is what one measurement found in its window.
type Result struct {
	Window  time.Duration
	Done    int             // whole answers
	First   []time.Duration // of those, from the sending (of Rate: the time to send at) to the body's first byte
	Failed  int
	Failure error // the first
}

// PerSecond returns the whole answers a second.
func (r *Result) PerSecond() float64 { return float64(r.Done) / r.Window.Seconds() }

func (r *Result) fail(err error) {
	r.Failed++
	if r.Failure == nil {
		r.Failure = err
	}
}

func (r *Result) add(other *Result) {
	r.Done += other.Done
	r.First = append(r.First, other.First...)
	r.Failed += other.Failed
	if r.Failure == nil {
		r.Failure = other.Failure
	}
}

// Pool measures a target, whose connections it keeps between measurements.
type Pool struct {
	Target
	dial  func(context.Context) (*Conn, error)
	sleep func(time.Time) // until then, precisely

	mu   sync.Mutex
	idle []*Conn
}

// NewPool returns a pool without connections.
func NewPool(t Target) *Pool {
	return &Pool{Target: t, sleep: sleepUntil, dial: func(ctx context.Context) (*Conn, error) { return Dial(ctx, t.Addr) }}
}

// Close closes the idle connections.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
}

// take returns a connection that idled, or a new one.
func (p *Pool) take(ctx context.Context) (*Conn, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return c, c.SetDeadline(time.Time{}) // the end of the last measurement may have set one
	}
	p.mu.Unlock()
	return p.dial(ctx)
}

func (p *Pool) give(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, c)
}

// window tells where in a measurement a moment lies.
type window struct{ from, to time.Time }

func (w window) holds(t time.Time) bool { return !t.Before(w.from) && t.Before(w.to) }

// open are the connections in use, to be cut off all at once.
type open struct {
	mu    sync.Mutex
	cut   bool
	conns map[*Conn]bool
}

// hold adds c, unless everything has been cut off.
func (o *open) hold(c *Conn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cut {
		return false
	}
	if o.conns == nil {
		o.conns = map[*Conn]bool{}
	}
	o.conns[c] = true
	return true
}

func (o *open) drop(c *Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, c)
}

func (o *open) cutAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cut = true
	for c := range o.conns {
		_ = c.SetDeadline(time.Unix(1, 0)) // fails on a connection that is closed already
	}
}

// isCut tells whether an error may come from the cut.
func (o *open) isCut() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cut
}

// Closed has a number of clients send requests one after the other, each the next when it has the
// whole answer.
func (p *Pool) Closed(ctx context.Context, clients int, ph Phases) Result {
	begin := time.Now()
	w := window{from: begin.Add(ph.Warm), to: begin.Add(ph.Warm + ph.Window)}
	var o open
	dialing, stop := context.WithDeadline(ctx, w.to)
	defer stop()

	results := make([]Result, clients)
	var running sync.WaitGroup
	for i := range results {
		running.Go(func() { p.client(dialing, w, &o, &results[i]) })
	}
	all := make(chan struct{})
	go func() { running.Wait(); close(all) }()

	ph.mark(ctx, w)
	select {
	case <-all:
	case <-time.After(grace):
	case <-ctx.Done():
	}
	o.cutAll()
	<-all

	sum := Result{Window: ph.Window}
	for i := range results {
		sum.add(&results[i])
	}
	return sum
}

// mark waits for the ends of the window, or that ctx ends.
func (ph Phases) mark(ctx context.Context, w window) {
	for _, at := range []time.Time{w.from, w.to} {
		if !wait(ctx, time.Until(at)) {
			return
		}
		if ph.Mark != nil {
			ph.Mark(at == w.to)
		}
	}
}

// wait returns whether d passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// client is one of Closed's.
func (p *Pool) client(ctx context.Context, w window, o *open, r *Result) {
	var c *Conn
	defer func() {
		if c != nil {
			o.drop(c)
			p.give(c)
		}
	}()
	for ctx.Err() == nil {
		if c == nil {
			var err error
			if c, err = p.take(ctx); err != nil {
				if ctx.Err() == nil {
					r.fail(err)
					wait(ctx, failurePause)
				}
				continue
			}
			if !o.hold(c) {
				c.Close()
				c = nil
				return
			}
		}
		sent := time.Now()
		a, err := p.exchange(c)
		if err == nil && w.holds(a.End) {
			r.Done++
			r.First = append(r.First, a.First.Sub(sent))
		}
		if err != nil && !o.isCut() {
			r.fail(err)
			wait(ctx, failurePause)
		}
		if err != nil || a.Close {
			o.drop(c)
			c.Close()
			c = nil
		}
	}
}

// failurePause keeps a server that fails at once from being asked without a pause.
const failurePause = 10 * time.Millisecond

// exchange is one request and its whole answer.
func (p *Pool) exchange(c *Conn) (Answer, error) {
	if _, err := c.Write(p.Request); err != nil {
		return Answer{}, fmt.Errorf("send request: %w", err)
	}
	a, err := c.Receive(nil)
	if err != nil {
		return a, err
	}
	return a, p.check(a)
}

// Err returns an error if more than a thousandth of the requests failed, or nothing was answered.
func (r *Result) Err() error {
	switch {
	case r.Failed*1000 > r.Done:
		return fmt.Errorf("%d requests failed beside %d whole ones, the first: %w", r.Failed, r.Done, r.Failure)
	case r.Done == 0:
		return errors.New("no request was answered within the window")
	}
	return nil
}
