package consensus

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// lagAllowed is how many entries an observer may be behind and still get a vote: a few are always
// on their way while commands are being agreed.
const lagAllowed = 64

// farewell is how long a former member is given to hear that it was removed.
const farewell = 2 * time.Second

// health is how long a server has been reachable, or has not, and been no member.
type health struct {
	ok    bool
	since time.Time

	gone      bool
	goneSince time.Time
	goneIndex uint64 // its removal was agreed by this index
}

// reconcile makes raft's configuration follow the members, one change after the other, for as long
// as this node leads.
func (c *Consensus) reconcile(ctx context.Context) error {
	seen := map[cluster.NodeID]health{}
	var failed change // said once, not at every attempt
	for {
		changed := c.Changed()
		p := c.picture(seen, time.Now())
		next, ok := nextChange(p)
		if ok {
			err := c.make(next)
			switch {
			case err == nil:
				c.log.Info("changed who takes part in the agreement", "do", string(next.do), "node", c.name(next.id), "id", next.id)
				failed = change{}
				if ctx.Err() == nil {
					continue
				}
			case ctx.Err() != nil: // the leadership was lost over it; the next leader decides anew
			case failed != next:
				c.log.Warn("cannot change who takes part in the agreement; trying again", "do", string(next.do), "node", c.name(next.id), "err", err)
				failed = next
			}
			changed = nil // a change that failed is not tried again before the next look
		}
		if !pause(ctx, changed, reconcileEvery) {
			return nil
		}
	}
}

// picture looks at everything that nextChange depends on, and keeps in seen since when.
func (c *Consensus) picture(seen map[cluster.NodeID]health, now time.Time) picture {
	p := picture{
		is: map[cluster.NodeID]condition{}, untold: map[cluster.NodeID]bool{}, self: c.deps.Self, leaving: c.leaving.Load(), want: c.cfg.Voters,
	}
	state := c.State()
	for _, m := range state.Sorted() {
		p.members = append(p.members, m.ID)
	}
	for _, s := range c.raft.GetConfiguration().Configuration().Servers {
		id := cluster.NodeID(s.ID)
		p.servers = append(p.servers, voter{id: id, votes: s.Suffrage == raft.Voter})
		a := c.trans.follower(id, c.raft.CurrentTerm())
		h := seen[id]
		h.look(c.deps.Healthy(id) && now.Sub(a.at) < leaderPatience*c.cfg.Election, now)
		if _, member := state.Members[id]; member {
			h.gone = false
		} else {
			h.leave(c.raft.CommitIndex(), now)
			p.untold[id] = h.ok && a.told < h.goneIndex && now.Sub(h.goneSince) < farewell
		}
		seen[id] = h
		p.is[id] = c.judge(h, a, s.Suffrage == raft.Voter, now)
	}
	for id := range seen {
		if _, ok := p.is[id]; !ok {
			delete(seen, id)
		}
	}
	return p
}

func (h *health) look(ok bool, now time.Time) {
	if h.since.IsZero() || h.ok != ok {
		h.ok, h.since = ok, now
	}
}

func (h *health) leave(index uint64, now time.Time) {
	if !h.gone {
		h.gone, h.goneSince, h.goneIndex = true, now, index
	}
}

// judge says how a server is doing.
func (c *Consensus) judge(h health, a answer, votes bool, now time.Time) condition {
	span := now.Sub(h.since)
	switch {
	case !h.ok && span >= c.cfg.ReplaceAfter:
		return lost
	case !h.ok:
		return unsteady
	case votes:
		return up
	case a.match == 0 || a.match+lagAllowed < c.raft.CommitIndex():
		return unsteady
	case span < c.cfg.SteadyAfter && !c.leaving.Load():
		return unsteady
	}
	return up
}

// make carries a change out and returns when it is agreed, or this node leads no longer.
func (c *Consensus) make(ch change) error {
	id, addr := server(ch.id)
	err := c.ask(func() raft.Future {
		switch ch.do {
		case observe:
			return c.raft.AddNonvoter(id, addr, 0, c.cfg.ApplyTimeout)
		case promote:
			return c.raft.AddVoter(id, addr, 0, c.cfg.ApplyTimeout)
		case demote:
			return c.raft.DemoteVoter(id, 0, c.cfg.ApplyTimeout)
		case drop:
			return c.raft.RemoveServer(id, 0, c.cfg.ApplyTimeout)
		default:
			return c.raft.LeadershipTransferToServer(id, addr)
		}
	})
	if err != nil {
		return fmt.Errorf("%s %s: %w", ch.do, ch.id, err)
	}
	return nil
}
