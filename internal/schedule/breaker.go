package schedule

import (
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// breaker keeps a model on a node out of the choice while its attempts fail. Once its time is over
// one request is let through, whose outcome decides (half-open). It is read without a lock; the
// pair's lock orders what it learns.
type breaker struct {
	until   atomic.Int64 // Unix nanoseconds until which it is open; 0: closed
	probing atomic.Int64 // until when an attempt decides; 0: none does
	share   atomic.Uint64
	counted atomic.Int64 // when share was, in Unix nanoseconds
	opened  atomic.Int64 // how often it has opened since the last success
	errors  atomic.Int64 // failures of another kind than too much work, without anything else between them
	streak  int          // failures without a success between them
}

const (
	// opensAfter is how many failures one after the other open a breaker; so does a share of failures
	// above mostFailures, of which the last five count for two thirds.
	opensAfter   = 3
	mostFailures = 0.5
	// A breaker opens for firstOut, then twice as long each time, up to longestOut: what a try each of these
	// costs is little, what a node costs that stays out after an overload is much. An engine itself may
	// ask for up to longestAsked.
	firstOut     = time.Second
	longestOut   = 5 * time.Second
	longestAsked = 30 * time.Second
	// probeWithin is how long an attempt that decides keeps others away.
	probeWithin = 30 * time.Second
	// mostRisk is the risk of a pair of which all attempts fail.
	mostRisk = 2
	// forgetsHalf is in what time half of a share of failures is forgotten: who looks ill is asked
	// seldom, and would else never show that it is well again.
	forgetsHalf = 3 * time.Second
)

// ejectedFor returns for how long the breaker keeps its pair out from now; 0: it does not.
func (b *breaker) ejectedFor(now time.Time) time.Duration {
	until := b.until.Load()
	if until == 0 {
		return 0
	}
	if probe := b.probing.Load(); probe > until {
		until = probe
	}
	return max(0, time.Duration(until-now.UnixNano()))
}

// enter notes that an attempt begins: of a breaker whose time is over, it decides.
func (b *breaker) enter(now time.Time) {
	if b.until.Load() != 0 {
		b.probing.Store(now.Add(probeWithin).UnixNano())
	}
}

// risk is by how much a pair's past failures make it look slower: at most twice, when all failed, and while
// its breaker is open. Of a breaker whose time is over none: whoever is let through decides.
func (b *breaker) risk(now time.Time) float64 {
	switch {
	case b.until.Load() == 0:
		return mostRisk * b.failing(now)
	case b.ejectedFor(now) > 0:
		return mostRisk
	}
	return 0
}

// broken tells whether a pair fails, and not of too much work.
func (b *breaker) broken(now time.Time) bool {
	return b.errors.Load() > opensAfter && b.ejectedFor(now) > 0
}

// failing is the share of attempts that failed lately.
func (b *breaker) failing(now time.Time) float64 {
	share := math.Float64frombits(b.share.Load())
	if share == 0 {
		return 0
	}
	return share * math.Exp2(-float64(now.UnixNano()-b.counted.Load())/float64(forgetsHalf))
}

func (b *breaker) count(now time.Time, failed float64) float64 {
	share := b.failing(now)
	share += (failed - share) / 5
	if share < 0.01 {
		share = 0
	}
	b.counted.Store(now.UnixNano())
	b.share.Store(math.Float64bits(share))
	return share
}

func (b *breaker) succeeded(now time.Time) {
	if b.until.Load() != 0 {
		b.share.Store(0) // it begins anew
	}
	b.count(now, 0)
	b.streak = 0
	b.errors.Store(0)
	b.opened.Store(0)
	b.until.Store(0)
	b.probing.Store(0)
}

// began closes a breaker whose time is over when the answer begins that decides: a long one would else
// keep all others out until its end. The next failure opens it again at once.
func (b *breaker) began(now time.Time) {
	if b.until.Load() <= now.UnixNano() {
		b.until.Store(0)
		b.probing.Store(0)
	}
}

// failed counts a failure, of too much work or another. after is how long the engine itself asked to be
// left alone.
func (b *breaker) failed(now time.Time, overload bool, after time.Duration) {
	if overload {
		b.errors.Store(0)
	} else {
		b.errors.Add(1)
	}
	share := b.count(now, 1)
	b.streak++
	until := b.until.Load()
	if until > now.UnixNano() && after == 0 {
		return // one of many that broke together: it is out already
	}
	wasOpen := until != 0
	b.probing.Store(0)
	if b.streak < opensAfter && share <= mostFailures && !wasOpen && after == 0 {
		return
	}
	out := min(firstOut<<min(b.opened.Load(), 10), longestOut)
	out += time.Duration(rand.Float64() * float64(out) / 4) // so that gateways do not all come back at once
	b.opened.Add(1)
	b.until.Store(now.Add(max(out, min(after, longestAsked))).UnixNano())
}

// abandoned forgets an attempt that decided nothing.
func (b *breaker) abandoned() { b.probing.Store(0) }
