package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// transferTries is how often a voter is asked to take the leadership.
const transferTries = 3

// errNoAnswer: a voter that should lead has not answered lately.
var errNoAnswer = errors.New("no answer")

// WhileLeader runs fn each time this node begins to lead, once its State shows everything that was
// agreed before. The context given to fn ends with the leadership. When fn returns early it is run
// again with the next leadership; an error of fn, other than after its context has ended, ends
// WhileLeader and is returned. WhileLeader returns nil when ctx ends, after fn has returned.
func (c *Consensus) WhileLeader(ctx context.Context, fn func(context.Context) error) error {
	for ctx.Err() == nil {
		changed := c.Changed()
		term, leads := c.leads()
		if !leads || c.ask(func() raft.Future { return c.raft.Barrier(c.cfg.ApplyTimeout) }) != nil {
			// Not leading is no error, and a barrier fails only when the leadership ends or stalls.
			pause(ctx, changed, time.Second)
			continue
		}
		if err := c.lead(ctx, term, fn); err != nil {
			return err
		}
	}
	return nil
}

// lead runs fn for one leadership and returns when both have ended.
func (c *Consensus) lead(ctx context.Context, term uint64, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	for {
		changed := c.Changed()
		if now, leads := c.leads(); !leads || now != term || ctx.Err() != nil {
			cancel()
			if done != nil {
				<-done // its error is of no interest any more
			}
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		case err := <-done:
			if err != nil && ctx.Err() == nil {
				return err
			}
			done = nil
		}
	}
}

// leads returns the term and whether this node leads in it.
func (c *Consensus) leads() (term uint64, leads bool) {
	term = c.raft.CurrentTerm()
	return term, c.raft.State() == raft.Leader && c.raft.CurrentTerm() == term
}

// Transfer hands the leadership from this node to another voter, to "" to any that is up, and
// returns when that one leads. It returns cluster.ErrNotLeader on a node that does not lead,
// cluster.ErrObserver when the other has no vote, cluster.ErrUnknownNode when it takes no part.
func (c *Consensus) Transfer(ctx context.Context, to cluster.NodeID) error {
	if to == c.deps.Self && c.Status().Leader == to {
		return nil
	}
	term, leads := c.leads()
	if !leads {
		return fmt.Errorf("hand leadership over: this node does not lead, %s does: %w", c.name(c.Status().Leader), cluster.ErrNotLeader)
	}
	asked := time.Now()
	heir, err := c.successor(to, term)
	for errors.Is(err, errNoAnswer) && time.Since(asked) < leaderPatience*c.cfg.Election && pause(ctx, c.Changed(), reconcileEvery/10) {
		heir, err = c.successor(to, term) // a new leader has heard from nobody for a moment
	}
	if err != nil {
		return err
	}
	to = heir
	id, addr := server(to)
	for try := 1; ; try++ {
		changed := c.Changed()
		err := c.ask(func() raft.Future { return c.raft.LeadershipTransferToServer(id, addr) })
		if err == nil {
			break
		}
		if now, leads := c.leads(); leads && now == term && try < transferTries && pause(ctx, changed, reconcileEvery/10) {
			continue // raft gives the other one an election timeout to take it
		}
		return fmt.Errorf("hand leadership to %s: it did not take it; this node still leads: %w", c.name(to), err)
	}
	for {
		changed := c.Changed()
		st := c.Status()
		if st.Leader == to {
			return nil
		}
		if st.Leader != "" && st.Leader != c.deps.Self {
			return fmt.Errorf("hand leadership to %s: %s was elected instead", c.name(to), c.name(st.Leader))
		}
		if !pause(ctx, changed, time.Hour) {
			return fmt.Errorf("hand leadership to %s: no new leader yet: %w", c.name(to), ctx.Err())
		}
	}
}

// HandOver makes it safe to stop this node: if it leads, another leads afterwards, and if the
// others could not agree without its vote, they get votes of their own first and this node gives
// up its own. Call it before Close and stop proposing; a node that was handed over stays so until
// Stay, or until it is opened again. It returns at once when there is nothing to hand over or nobody to take it,
// and an error when ctx ends first: the others may then be unable to agree until it is back.
func (c *Consensus) HandOver(ctx context.Context) error {
	if _, leads := c.leads(); !leads {
		return nil
	}
	c.leaving.Store(true)
	c.changed.notify()
	for {
		changed := c.Changed()
		if c.dispensable() {
			return nil
		}
		if !pause(ctx, changed, reconcileEvery) {
			return fmt.Errorf("hand over before stopping: the other nodes may be unable to change the cluster until this one is back: %w", ctx.Err())
		}
	}
}

// Stay takes a HandOver back: the node may lead and vote again.
func (c *Consensus) Stay() {
	c.leaving.Store(false)
	c.changed.notify()
}

// dispensable reports whether the others can agree without this node, or never will.
func (c *Consensus) dispensable() bool {
	st := c.Status()
	healthy, heard := 0, 0
	mine := false
	for _, id := range st.Voters {
		if id == c.deps.Self {
			mine = true
		} else if c.deps.Healthy(id) {
			healthy++
		}
	}
	for id := range c.State().Members {
		if id != c.deps.Self && c.deps.Healthy(id) {
			heard++
		}
	}
	switch {
	case heard == 0:
		return true
	case st.Leader == c.deps.Self || st.Leader == "":
		return false
	}
	return !mine || healthy >= len(st.Voters)/2+1
}

// successor checks or chooses who shall lead after this node.
func (c *Consensus) successor(to cluster.NodeID, term uint64) (cluster.NodeID, error) {
	st := c.Status()
	var best cluster.NodeID
	var most uint64
	for _, id := range st.Voters {
		a := c.trans.follower(id, term)
		alive := id != c.deps.Self && c.deps.Healthy(id) && time.Since(a.at) < leaderPatience*c.cfg.Election
		switch {
		case to == "" && alive && (best == "" || a.match > most):
			best, most = id, a.match
		case to == id && !alive:
			return "", fmt.Errorf("hand leadership to %s: %w; choose another node", c.name(to), errNoAnswer)
		case to == id:
			return to, nil
		}
	}
	if to == "" && best == "" {
		return "", fmt.Errorf("hand leadership over: %w from any other voter", errNoAnswer)
	}
	if to == "" {
		return best, nil
	}
	for _, id := range st.Observers {
		if id == to {
			return "", fmt.Errorf("hand leadership to %s: an observer has no vote and cannot lead; choose one of %d voters: %w",
				c.name(to), len(st.Voters), cluster.ErrObserver)
		}
	}
	return "", fmt.Errorf("hand leadership to %s: it takes no part in the agreement: %w", c.name(to), cluster.ErrUnknownNode)
}
