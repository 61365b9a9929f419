package schedule

import (
	"sync/atomic"
	"time"
)

// ceiling is how many requests an engine gets at once after it left some without a beginning for too long,
// whatever it says that it takes: it works on, for nobody, on what is given up, and that would never end.
// It halves with each round of those, doubles again up to half of what was too many, and then grows by one
// a round (as TCP's window: Jacobson, "Congestion Avoidance and Control", 1988). An engine that refuses needs
// none: that costs nobody anything. It is read without a lock; the pair's lock orders what it learns.
type ceiling struct {
	at     atomic.Int64 // 0: none
	enough int64        // up to here it doubles
	credit int64
	halved time.Time
}

// forgotten is after how long without a silence there is no ceiling any more.
const forgotten = 30 * time.Second

// of returns a limit under the ceiling.
func (c *ceiling) of(limit int) int {
	if at := int(c.at.Load()); at > 0 {
		return min(limit, at)
	}
	return limit
}

// tooMany learns that a request was not begun in time, which had been sent as one of so many. Those that
// were sent before the ceiling was halved say nothing new.
func (c *ceiling) tooMany(now, sent time.Time, concurrent int) {
	if concurrent <= 1 || sent.Before(c.halved) {
		return
	}
	half := max(1, int64(concurrent)/2)
	if at := c.at.Load(); at == 0 {
		c.enough = half
	} else {
		half = max(1, min(half, at/2))
		c.enough = max(half, min(c.enough, int64(concurrent)/2))
	}
	c.at.Store(half)
	c.halved, c.credit = now, 0
}

// answered learns that a request was answered that was one of so many.
func (c *ceiling) answered(now time.Time, concurrent int) {
	at := c.at.Load()
	switch {
	case at == 0:
		return
	case now.Sub(c.halved) > forgotten:
		c.at.Store(0)
		return
	case int64(concurrent) < at:
		return
	}
	if c.credit++; at < c.enough || c.credit >= at {
		c.credit = 0
		c.at.Store(min(at+1, mostLearned))
	}
}
