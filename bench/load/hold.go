package load

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Held are streams that are open at once.
type Held struct {
	lines   atomic.Int64
	first   atomic.Int64 // how many have had their first byte
	open    open
	running sync.WaitGroup

	mu      sync.Mutex
	ended   int
	failure error
}

// Hold opens n streams, evenly over ramp, and returns when each has had its first byte, or an error
// within limit.
func (p *Pool) Hold(ctx context.Context, n int, ramp, limit time.Duration) (*Held, error) {
	h := &Held{}
	began := time.Now()
	for i := range n {
		h.running.Go(func() {
			if !wait(ctx, time.Until(began.Add(ramp*time.Duration(i)/time.Duration(n)))) {
				return
			}
			h.stream(ctx, p)
		})
	}
	for end := began.Add(ramp + limit); h.first.Load() < int64(n); {
		if err := h.Err(); err != nil {
			h.Close()
			return nil, err
		}
		if !wait(ctx, 10*time.Millisecond) {
			h.Close()
			return nil, ctx.Err()
		}
		if time.Now().After(end) {
			h.Close()
			return nil, fmt.Errorf("open streams: only %d of %d had a first byte within %v", h.first.Load(), n, ramp+limit)
		}
	}
	return h, nil
}

func (h *Held) stream(ctx context.Context, p *Pool) {
	err := func() error {
		c, err := p.dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if !h.open.hold(c) {
			return nil
		}
		defer h.open.drop(c)
		c.lines = &h.lines
		c.first = func() { h.first.Add(1) }
		if _, err := c.Write(p.Request); err != nil {
			return fmt.Errorf("send request: %w", err)
		}
		a, err := c.Receive(nil)
		if err != nil {
			return err
		}
		return fmt.Errorf("the stream ended with status %d after %d lines", a.Status, a.Lines)
	}()
	if err == nil || h.open.isCut() || ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended++
	if h.failure == nil {
		h.failure = err
	}
}

// Err returns an error if a stream has ended.
func (h *Held) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended == 0 {
		return nil
	}
	return fmt.Errorf("hold streams: %d ended, the first: %w", h.ended, h.failure)
}

// Lines returns how many lines have come on all streams together.
func (h *Held) Lines() int64 { return h.lines.Load() }

// Close cuts all streams off and waits for their goroutines.
func (h *Held) Close() {
	h.open.cutAll()
	h.running.Wait()
}
