package consensus

import (
	"fmt"
	"time"
)

// Config tells how a node takes part in the agreement. A zero field means its default. Every field
// needs a restart; Heartbeat and Election are raised and lowered by the node itself.
type Config struct {
	// Dir is where raft.db and snapshots/ live; "" keeps everything in memory, for tests.
	Dir string
	// Voters (cluster.voters) is how many nodes may vote at most, default 5. More voters survive
	// more failures at once ((n-1)/2) and make writes a little slower. An even number counts as the
	// odd one below.
	Voters int
	// Heartbeat is how long a follower waits for its leader before it asks for votes, default
	// 300 ms; raft draws each wait between this and twice this. The leader sends every tenth of it.
	Heartbeat time.Duration
	// Election is how long a candidate waits for votes, default Heartbeat. At least Heartbeat.
	Election time.Duration
	// Lease is how long a leader that hears from no majority stays one, default five sixths of Heartbeat.
	// At most Heartbeat.
	Lease time.Duration
	// IOTimeout bounds each message to a peer, connecting included, default 2 s. It is also how
	// long a stream that swallows everything can hold up heartbeats after the network is back.
	IOTimeout time.Duration
	// ApplyTimeout bounds Apply, waiting for a leader included, default 5 s.
	ApplyTimeout time.Duration
	// SteadyAfter is how long an observer must have been reachable before it may get a vote,
	// default 1 s.
	SteadyAfter time.Duration
	// ReplaceAfter is how long a voter must have been unreachable before its vote goes to an
	// observer, default 5 s. Shorter restores the margin sooner, longer moves votes less often.
	ReplaceAfter time.Duration
	// SnapshotAfter is how many commands are kept in the log before they are folded into a
	// snapshot, default 1024. The State is small, so this bounds the log, not the work.
	SnapshotAfter uint64
	// SnapshotEvery is how often the log's length is looked at, default 2 min.
	SnapshotEvery time.Duration
}

// reconcileEvery is how often the leader looks at its peers' health, which announces no change.
const reconcileEvery = 500 * time.Millisecond

func (c Config) withDefaults() Config {
	or := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	if c.Voters == 0 {
		c.Voters = 5
	}
	or(&c.Heartbeat, 300*time.Millisecond)
	or(&c.Election, c.Heartbeat)
	or(&c.Lease, c.Heartbeat*5/6)
	or(&c.IOTimeout, 2*time.Second)
	or(&c.ApplyTimeout, 5*time.Second)
	or(&c.SteadyAfter, time.Second)
	or(&c.ReplaceAfter, 5*time.Second)
	or(&c.SnapshotEvery, 2*time.Minute)
	if c.SnapshotAfter == 0 {
		c.SnapshotAfter = 1024
	}
	return c
}

// Validate says which field is out of range and what it may be.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Voters < 1 || c.Voters > 15:
		return fmt.Errorf("check consensus settings: cluster.voters is %d; give 1 to 15, best 3 or 5", c.Voters)
	case c.Heartbeat < 20*time.Millisecond:
		return fmt.Errorf("check consensus settings: a heartbeat of %s is too short; give at least 20ms", c.Heartbeat)
	case c.Election < c.Heartbeat:
		return fmt.Errorf("check consensus settings: the election timeout %s is shorter than the heartbeat timeout %s", c.Election, c.Heartbeat)
	case c.Lease > c.Heartbeat || c.Lease < 5*time.Millisecond:
		return fmt.Errorf("check consensus settings: a lease of %s must lie between 5ms and the heartbeat timeout %s", c.Lease, c.Heartbeat)
	case c.IOTimeout < 0 || c.ApplyTimeout < 0 || c.SteadyAfter < 0 || c.ReplaceAfter < 0 || c.SnapshotEvery < 5*time.Millisecond:
		return fmt.Errorf("check consensus settings: a duration is negative or too short")
	}
	return nil
}
