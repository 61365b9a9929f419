package consensus

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// transport is raft's own, and remembers what the leader's followers answered: raft knows it too
// but does not tell, and a vote must only go to a node that takes the log.
//
// It must be built without pipelining, whose answers would pass by it.
type transport struct {
	*raft.NetworkTransport

	mu    sync.Mutex
	peers map[raft.ServerID]answer
}

type answer struct {
	at    time.Time // of the last answer of any kind
	term  uint64    // of our leadership when match was learned
	match uint64    // our log and the peer's agree up to here
	told  uint64    // the peer knows that this was agreed
}

func newTransport(s *stream, cfg Config, log raftLog) *transport {
	return &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: s, MaxPool: 3, Timeout: cfg.IOTimeout, Logger: log,
			MaxRPCsInFlight: 1, // no pipelining
		}),
		peers: map[raft.ServerID]answer{},
	}
}

// AppendEntries sends entries or a heartbeat and notes the answer.
func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := t.NetworkTransport.AppendEntries(id, to, req, resp); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.peers[id]
	if a.term != req.Term {
		a = answer{term: req.Term}
	}
	a.at = time.Now()
	heartbeat := req.PrevLogEntry == 0 && len(req.Entries) == 0
	if resp.Success && !heartbeat {
		a.match = req.PrevLogEntry + uint64(len(req.Entries))
		a.told = min(a.match, req.LeaderCommitIndex)
	}
	t.peers[id] = a
	return nil
}

// follower returns what a peer has answered us as the leader of a term; zero if nothing.
func (t *transport) follower(id cluster.NodeID, term uint64) answer {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.peers[raft.ServerID(id)]; a.term == term {
		return a
	}
	return answer{}
}
