package schedule

import (
	"math/bits"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// unloaded is what an engine takes at the least, of those that do not tell for how long a request has waited
// inside them: what is beyond it is the wait. So a limit can be found from times that are only measured
// (TCP Vegas: Brakmo, O'Malley and Peterson, "New Techniques for Congestion Detection and Avoidance", 1994;
// for requests: Netflix's concurrency-limits, from which the tolerance is).
//
// An engine that works on a batch slows all of it the more, the larger it is, and does more for it: that is
// no wait. So the time to the first token may be longer by as much as the time between two tokens is, and
// only what is beyond that counts.
type unloaded struct {
	now, before window
	turned      time.Time
}

// window holds the least of a time.
type window struct {
	first [32]least // by the prompt's length, in powers of two
	gap   time.Duration
}

// least is the shortest time to a first token, and of what prompt.
type least struct {
	time  time.Duration // 0: unknown
	bytes int
}

const (
	// remembersLeast is after how long the least is found anew, if there is any.
	remembersLeast = 5 * time.Minute
	// tolerated is by how much a first token may be later than expected.
	tolerated = 2
)

// wait returns for how long a request that has been answered waited inside the engine; false if that
// cannot be told. proven tells that no other ended between its sending and its first piece: whoever waits
// begins when another ends. Only such requests show the least, which would else grow with every wait that
// lasts. Where nothing is known of it, who is not proven has waited. cached tells that a part of the prompt
// may have been read before: it counts as if none had been.
func (u *unloaded) wait(now time.Time, r *cluster.Request, o cluster.Outcome, cached, proven bool) (time.Duration, bool) {
	if o.First == 0 || o.MeanGap == 0 || r.ImageBytes > 0 { // of an answer that came whole the first piece is the last
		return 0, false
	}
	if now.Sub(u.turned) > remembersLeast && u.now.gap > 0 { // never for nothing
		u.before, u.now, u.turned = u.now, window{}, now
	}
	if proven {
		u.now.gap = shorter(u.now.gap, o.MeanGap)
		size := &u.now.first[min(bits.Len(uint(r.PromptBytes)), len(u.now.first)-1)]
		if !cached && (size.time == 0 || o.First < size.time) {
			*size = least{o.First, r.PromptBytes}
		}
		return 0, true
	}
	expected := shorter(u.before.expected(r.PromptBytes), u.now.expected(r.PromptBytes))
	if gap := shorter(u.before.gap, u.now.gap); gap > 0 {
		expected = time.Duration(float64(expected) * max(1, float64(o.MeanGap)/float64(gap)))
	}
	return max(0, o.First-time.Duration(tolerated*float64(expected))), true
}

// expected is the least time to the first token of a prompt, from those of all lengths: that of a longer one
// is no shorter, and that of a shorter one is longer by no more than the prompt is. 0: unknown.
func (w *window) expected(bytes int) (expected time.Duration) {
	for _, l := range w.first {
		if l.time > 0 {
			expected = shorter(expected, time.Duration(float64(l.time)*max(1, float64(bytes)/float64(max(l.bytes, 1)))))
		}
	}
	return expected
}

// shorter returns the shorter of two times, of which 0 is unknown.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}
