// Package health judges whether a node is alive, from the heartbeats that arrive and the
// connections that break. Plain so far: fixed times, one opinion, no notion of slowness.
//
// It has no clock and no goroutine of its own: every call brings its time, so that a decision can
// be replayed. It is not safe for concurrent use; its owner has a loop or a lock.
//
// Start reading at Detector.Judge.
package health

import (
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// The times of the plain detector. A heartbeat is due every second.
const (
	// SuspectAfter is the silence after which a node is suspect.
	SuspectAfter = 1500 * time.Millisecond
	// DeadAfter is the silence after which it is dead.
	DeadAfter = 3 * time.Second
	// DeadAfterBreak is the same once the connection with a node that was heard has broken: a process
	// that lives reconnects within that time. One that was never heard may still be starting.
	// A process that is gone is refused, and need not be waited for.
	DeadAfterBreak = 1500 * time.Millisecond
)

// Detector judges the nodes that it has been told of.
type Detector struct {
	nodes map[cluster.NodeID]*record
}

type record struct {
	heard   time.Time // the last heartbeat; at first, when we began to expect one
	ever    bool
	broken  time.Time // when the connection broke after the last heartbeat; zero: it did not
	gone    bool      // a dial since was refused: nothing listens there any more
	why     string
	leaving bool
}

// New returns a Detector that knows nobody.
func New() *Detector { return &Detector{nodes: map[cluster.NodeID]*record{}} }

// Expect begins to watch a node, from which nothing has been heard so far.
func (d *Detector) Expect(id cluster.NodeID, now time.Time) {
	if d.nodes[id] == nil {
		d.nodes[id] = &record{heard: now}
	}
}

// Forget ends watching a node.
func (d *Detector) Forget(id cluster.NodeID) { delete(d.nodes, id) }

// Heard tells of a heartbeat. A node that is leaving says so with its last ones.
func (d *Detector) Heard(id cluster.NodeID, leaving bool, now time.Time) {
	d.nodes[id] = &record{heard: now, ever: true, leaving: leaving}
}

// Broke tells that the connection with a node ended, or that it could not be reached. Refused means
// that its machine answered and said that nothing listens there. It returns whether this is the
// first such news since the node was last heard.
func (d *Detector) Broke(id cluster.NodeID, refused bool, why string, now time.Time) (first bool) {
	d.Expect(id, now)
	r := d.nodes[id]
	r.why = why
	if first = r.broken.IsZero(); first {
		r.broken = now
	}
	r.gone = r.gone || refused
	return first
}

// Paused tells that this process did not run for a while, in which it could hear nobody: that
// silence was its own.
func (d *Detector) Paused(gap time.Duration) {
	for _, r := range d.nodes {
		r.heard = r.heard.Add(gap)
		if !r.broken.IsZero() {
			r.broken = r.broken.Add(gap)
		}
	}
}

// Judge returns a node's condition, the reason for one other than alive, and when it was last
// heard; the zero time if never.
func (d *Detector) Judge(id cluster.NodeID, now time.Time) (cluster.Condition, string, time.Time) {
	r := d.nodes[id]
	if r == nil {
		return cluster.Suspect, "not heard yet", time.Time{}
	}
	var last time.Time
	if r.ever {
		last = r.heard
	}
	silence := now.Sub(r.heard)
	switch {
	case !r.broken.IsZero() && r.leaving:
		return cluster.Dead, "stopped", last
	case !r.broken.IsZero() && r.gone:
		return cluster.Dead, r.why, last
	case !r.broken.IsZero() && r.ever && now.Sub(r.broken) >= DeadAfterBreak:
		return cluster.Dead, r.why, last
	case silence >= DeadAfter:
		return cluster.Dead, "silent for " + silence.Truncate(time.Second).String(), last
	case !r.broken.IsZero():
		return cluster.Suspect, r.why, last
	case silence >= SuspectAfter:
		return cluster.Suspect, "silent", last
	case !r.ever:
		return cluster.Suspect, "not heard yet", last
	}
	return cluster.Alive, "", last
}
