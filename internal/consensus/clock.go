package consensus

import (
	"context"
	"time"
)

const (
	// clockTick is how often our own lateness is measured.
	clockTick = 250 * time.Millisecond
	// maxPatience bounds how much longer a late node waits for its leader.
	maxPatience = 4
	// calmAfter is how many ticks in a row must be in time before patience shrinks by one.
	calmAfter = 20
	// leaderPatience is the factor of a leader, which waits for nobody: a tenth of its timeout, to
	// twice that, is the rhythm in which it sends. With 3 its followers hear from it at least once
	// within their own timeout, for half of what a cluster costs at rest.
	leaderPatience = 3
)

// patience is the factor on raft's timeouts for a node whose own clock ticks late: if we do not
// get to run, silence says more about us than about the leader. It grows at once and shrinks
// slowly (after memberlist's Lifeguard awareness).
type patience struct {
	factor int // 1..maxPatience
	calm   int
}

// tick takes how late a tick came, relative to the heartbeat timeout, and returns the factor.
func (p *patience) tick(late, heartbeat time.Duration) int {
	p.factor = max(p.factor, 1)
	// A quarter of the timeout lost to lateness doubles it, a half triples it, and so on.
	if need := min(1+int(4*late/heartbeat), maxPatience); need >= p.factor && need > 1 {
		p.factor, p.calm = need, 0
		return p.factor
	}
	if p.calm++; p.calm >= calmAfter {
		p.factor, p.calm = max(p.factor-1, 1), 0
	}
	return p.factor
}

// watchClock raises raft's timeouts while this node ticks late, but not a leader's: they are also
// the rhythm in which its followers hear from it.
func (c *Consensus) watchClock(ctx context.Context) {
	var p patience
	t := time.NewTicker(clockTick)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		factor := p.tick(now.Sub(last)-clockTick, c.cfg.Heartbeat)
		last = now
		if _, leads := c.leads(); leads {
			factor = leaderPatience
		}
		rc := c.raft.ReloadableConfig()
		if want := time.Duration(factor) * c.cfg.Heartbeat; rc.HeartbeatTimeout != want {
			c.log.Debug("changing raft's timeouts", "factor", factor)
			rc.HeartbeatTimeout, rc.ElectionTimeout = want, time.Duration(factor)*c.cfg.Election
			if err := c.raft.ReloadConfig(rc); err != nil {
				c.log.Warn("cannot change raft's timeouts", "err", err)
			}
		}
	}
}
