package consensus

import (
	"fmt"
	"log/slog"

	"github.com/hashicorp/raft"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Recover makes self the only voter of the cluster whose agreed state lies in dir, and keeps that
// State with all its members. It is for a cluster that has lost a majority of its voters for good;
// no process may be using dir. What had been proposed but not agreed counts as agreed.
//
// The lost voters must not come back with their old data: they would be a second cluster of the
// same name. Nodes that were observers may stay; the recovered node takes them up again.
func Recover(dir string, self cluster.NodeID, log *slog.Logger) error {
	s, err := openStore(dir, log)
	if err != nil {
		return err
	}
	defer s.close()
	has, err := raft.HasExistingState(s, s.stable, s.snapshots)
	if err != nil {
		return fmt.Errorf("recover agreed state in %s: %w", dir, err)
	}
	if !has {
		return fmt.Errorf("recover agreed state in %s: there is none; run this on a node that was a member", dir)
	}
	known, err := s.replay()
	if err != nil {
		return fmt.Errorf("recover agreed state in %s: %w", dir, err)
	}
	if _, ok := known.Members[self]; !ok {
		return fmt.Errorf("recover agreed state in %s: this node (%s) is no member of it; run this on a member", dir, self)
	}
	c := &Consensus{cfg: Config{Dir: dir}.withDefaults(), deps: Deps{Self: self}, log: log}
	id, addr := server(self)
	_, trans := raft.NewInmemTransport(addr)
	defer trans.Close()
	alone := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: id, Address: addr}}}
	fsm := newFSM(s, known, &signal{}, log)
	if err := raft.RecoverCluster(c.raftConfig(), fsm, s, s.stable, s.snapshots, trans, alone); err != nil {
		return fmt.Errorf("recover agreed state in %s: %w", dir, err)
	}
	return nil
}
