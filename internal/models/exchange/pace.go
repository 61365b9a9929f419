package exchange

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// pace is one direction's rate, shared by all transfers.
type pace struct {
	full  rate.Limit // Inf: unlimited
	share float64
	busy  func() bool
	limit *rate.Limiter

	mu      sync.Mutex
	current rate.Limit
	began   time.Time // of the second that is counted
	bytes   int64
	gaveWay bool    // in that second
	fastest float64 // bytes of the fastest second that did not give way
}

// unmeasured is the fastest second of a pace that has not seen one, in bytes: a slow disk's, a Gigabit line's.
const unmeasured = 100e6

func newPace(bytesPerSecond int64, share float64, busy func() bool) *pace {
	p := &pace{full: rate.Limit(bytesPerSecond), share: share, busy: busy}
	if bytesPerSecond == 0 {
		p.full = rate.Inf
	}
	p.current = p.full
	p.limit = rate.NewLimiter(p.full, burst(p.full))
	return p
}

// burst is what a late timer may catch up: 10 ms, at least a frame.
func burst(l rate.Limit) int {
	if l == rate.Inf {
		return maxFrame
	}
	return max(maxFrame, int(l/100))
}

// wait waits until n bytes, a frame's at most, may pass.
func (p *pace) wait(ctx context.Context, n int) error {
	p.adjust(n, time.Now())
	return p.limit.WaitN(ctx, n)
}

func (p *pace) adjust(n int, now time.Time) {
	busy := p.busy()
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := now.Sub(p.began); d >= time.Second {
		if !p.gaveWay && d < 2*time.Second {
			p.fastest = max(p.fastest, float64(p.bytes)/d.Seconds())
		}
		p.began, p.bytes, p.gaveWay = now, 0, false
	}
	p.bytes += int64(n)
	p.gaveWay = p.gaveWay || busy
	want := p.full
	switch {
	case busy && p.full != rate.Inf:
		want = p.full * rate.Limit(p.share)
	case busy && p.fastest > 0:
		want = rate.Limit(p.fastest * p.share)
	case busy:
		want = rate.Limit(unmeasured * p.share)
	}
	if want != p.current {
		p.current = want
		p.limit.SetLimitAt(now, want)
		p.limit.SetBurstAt(now, burst(want))
	}
}
