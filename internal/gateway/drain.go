package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/gateway/record"
	"github.com/ollamamax/ollamamax/internal/gateway/resume"
)

// drains is which nodes have been draining for longer than gateway.resume.drain_grace, and how many
// answers are just leaving them.
type drains struct {
	over   atomic.Pointer[[]cluster.NodeID] // nil: none, as nearly always
	moving chan struct{}
}

// movedAtOnce is how many answers one gateway moves at a time. Each has a prompt read anew, and waits at
// its new node before the next one comes.
const movedAtOnce = 8

func newDrains() drains { return drains{moving: make(chan struct{}, movedAtOnce)} }

// Run looks what clients ask for and which nodes are draining, until ctx ends. The grace begins when this gateway
// hears of the drain, so that no clocks are compared. A node that stops counts as well.
func (g *Gateway) Run(ctx context.Context) {
	ticker := time.NewTicker(looksAtDrains)
	defer ticker.Stop()
	since := map[cluster.NodeID]time.Time{}
	g.demand.looked = time.Now()
	for {
		now := time.Now()
		g.measureDemand(now)
		var over []cluster.NodeID
		for _, n := range g.deps.View().Nodes {
			if n.State != cluster.Draining && n.State != cluster.Drained {
				delete(since, n.ID)
				continue
			}
			if since[n.ID].IsZero() {
				since[n.ID] = now
			}
			if now.Sub(since[n.ID]) >= g.cfg.Resume.DrainGrace {
				over = append(over, n.ID)
			}
		}
		if over == nil {
			g.drains.over.Store(nil)
		} else {
			g.drains.over.Store(&over)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

const looksAtDrains = 250 * time.Millisecond

// leave has another node go on with the answer of one that has been draining for too long. The first is
// let go only when the other has begun: nil says that the answer stays where it is, and nothing is lost.
// What the client has is all that was followed.
func (s *stream) leave(a *answer) *breakError {
	over := s.g.drains.over.Load()
	if over == nil || s.fixed || s.half.bytes > 0 || !slices.Contains(*over, a.node.ID) {
		return nil
	}
	if s.g.cfg.Resume.Attempts == 0 || s.long || s.called || s.tracker.Finished() {
		s.fixed = true
		return nil
	}
	now := time.Now()
	if now.Before(s.settled) {
		return nil
	}
	select {
	case s.g.drains.moving <- struct{}{}:
	default: // its turn comes with one of the next records
		return nil
	}
	defer func() { <-s.g.drains.moving }()
	next, err := s.move(a)
	switch {
	case err != nil:
		s.settled = time.Now().Add(triedAgain << min(s.stayed, 10))
		s.stayed++
		s.g.metrics.resumes.WithLabelValues("drained", "stayed").Inc()
		s.g.deps.Log.Debug("stream stays on a drained node", "id", s.x.id, "node", a.node.Name, "why", err)
		return nil
	case next == nil:
		s.settled = time.Now().Add(looksAtDrains)
		return nil
	}
	return &breakError{kind: "drained", err: errors.New("node is drained"), next: next, since: now}
}

// triedAgain is after how long it is tried again to move an answer, and then twice as long each time: its
// client waits meanwhile.
const triedAgain = 10 * time.Second

// move asks other nodes for the rest of an answer, for as long as a broken one would wait; nil without an
// error when there is none that could be asked.
func (s *stream) move(a *answer) (*rest, error) {
	ctx, cancel := context.WithCancelCause(s.x.ctx) // the rest, if it comes, lives as long as the request
	wait := s.g.cfg.Resume.Wait
	p := patience{timer: time.AfterFunc(wait, func() { cancel(errLate) }), until: time.Now().Add(wait)}
	r := s.remainder(modelDigest(a.node, s.req.Key()), s.window(a.node))
	tried := []cluster.NodeID{a.node.ID}
	var last error
	for ctx.Err() == nil {
		lease := s.g.deps.Try(&r, tried)
		if lease == nil {
			break
		}
		again := s.onlyAgain
		next, err := s.takeOver(ctx, lease, p)
		if err == nil {
			return next, nil
		}
		last = fmt.Errorf("node %s: %w", lease.Node.Name, err)
		if s.fixed {
			break
		}
		if again == s.onlyAgain { // else it may still answer the request itself
			tried = append(tried, lease.Node.ID)
		}
	}
	p.timer.Stop()
	cancel(nil)
	return nil, last
}

// patience ends a move that takes too long.
type patience struct {
	timer *time.Timer
	until time.Time
}

// hold has the move not end for being late; an error if it is too late for that.
func (p patience) hold() error {
	if p.timer.Stop() {
		return nil
	}
	return errLate
}

func (p patience) letGo() { p.timer.Reset(time.Until(p.until)) }

// errLate says that no node could go on with an answer soon enough.
var errLate = errors.New("it would have taken too long")

var errDiverged = errors.New("it gives another answer to the same request")

// takeOver has a node go on with an answer that still comes from another, until it says what the client
// does not have; then it is not too late any more. If no other node could do it better, the answer is fixed.
func (s *stream) takeOver(ctx context.Context, lease *cluster.Lease, p patience) (*rest, error) {
	next, over, err := s.ask(ctx, lease)
	switch {
	case over:
		s.fixed = true
		return nil, errors.New("nothing is left to say")
	case err != nil:
		s.fixed = errors.As(err, new(*noWayError))
		return nil, err
	case next.method == resume.Replay:
		if err = s.catchUp(next, p); errors.Is(err, errDiverged) || ctx.Err() != nil {
			s.fixed = true // it says something else, or takes long for what the client has had long ago
		}
	default:
		err = p.hold()
	}
	if err != nil {
		next.outcome.Result = cluster.Abandoned
		next.close()
		return nil, err
	}
	return next, nil
}

// catchUp follows a replay until it has said all that the client has. What it says beyond that is taken
// in, so that it must not be too late afterwards.
func (s *stream) catchUp(r *rest, p patience) error {
	for !r.replay.CaughtUp() {
		rec := (*r.buf)[r.at:r.n]
		n := r.form.Split(rec)
		if n == 0 {
			if r.err != nil {
				return fmt.Errorf("ended early: %w", r.err)
			}
			r.out = r.at
			r.watch.within(s.patience(r.answer, &gaps{}))
			if err := r.read(); err != nil {
				return err
			}
			if r.err != nil && r.err != io.EOF {
				return r.err
			}
			continue
		}
		if err := p.hold(); err != nil {
			return err
		}
		b, e, verdict := r.replay.Append(nil, rec[:n])
		if verdict != record.Delivered {
			p.letGo()
		}
		switch {
		case e.Failed || e.Garbage:
			return brokenBy(e)
		case verdict == record.Diverged:
			return errDiverged
		}
		r.hear(e)
		s.count(&r.outcome, e)
		r.at += n
		if verdict == record.Delivered {
			s.emit(func(own []byte) []byte { return append(own, b...) })
			s.keep(e, 0)
			r.ended = e.Done
			return nil
		}
	}
	return p.hold()
}
