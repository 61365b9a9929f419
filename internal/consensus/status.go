package consensus

import (
	"slices"

	"github.com/hashicorp/raft"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Status is what a node knows of the agreement at one moment.
type Status struct {
	// Leader is "" while none is known. It is forgotten within twice Config.Heartbeat of the last
	// word from it.
	Leader cluster.NodeID
	// Term counts elections.
	Term uint64
	// Quorum: a command would be agreed now, as far as this node knows.
	Quorum bool
	// Voters and Observers are raft's servers, sorted. Members that the leader has not met yet are
	// in neither.
	Voters    []cluster.NodeID
	Observers []cluster.NodeID
	// Version is that of State.
	Version uint64
}

// State returns what is agreed, as far as this node has heard; never nil, never waits.
func (c *Consensus) State() *cluster.State { return c.fsm.latest() }

// Changed returns a channel that is closed when the State, the leader or the voters have changed.
// Take it before reading them, then no change is missed.
func (c *Consensus) Changed() <-chan struct{} { return c.changed.wait() }

// Status returns what this node knows; it never waits.
func (c *Consensus) Status() Status {
	st := Status{Term: c.raft.CurrentTerm(), Version: c.State().Version}
	switch c.raft.State() {
	case raft.Leader: // raft steps down when its lease ends
		st.Leader = c.deps.Self
	case raft.Follower:
		if _, id := c.raft.LeaderWithID(); id != raft.ServerID(c.deps.Self) {
			st.Leader = cluster.NodeID(id)
		}
	}
	st.Quorum = st.Leader != ""
	for _, s := range c.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			st.Voters = append(st.Voters, cluster.NodeID(s.ID))
		} else {
			st.Observers = append(st.Observers, cluster.NodeID(s.ID))
		}
	}
	slices.Sort(st.Voters)
	slices.Sort(st.Observers)
	return st
}
