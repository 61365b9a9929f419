package consensus

import (
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// maxSnapshot bounds what is read as a snapshot.
const maxSnapshot = 256 << 20

// fsm holds the State for raft. Raft calls its methods from one goroutine.
type fsm struct {
	state   atomic.Pointer[cluster.State]
	known   *cluster.State // what this node knew when it was opened
	store   *store
	changed *signal
	log     *slog.Logger
}

func newFSM(s *store, known *cluster.State, changed *signal, log *slog.Logger) *fsm {
	f := &fsm{known: known, store: s, changed: changed, log: log}
	f.state.Store(cluster.NewState())
	return f
}

// latest returns the newest State known: raft learns only from a leader how much of the log was
// agreed, and begins again from the last snapshot.
func (f *fsm) latest() *cluster.State {
	if s := f.state.Load(); s.Version >= f.known.Version {
		return s
	}
	return f.known
}

// Apply returns nil or the error of the command, for the proposer.
func (f *fsm) Apply(l *raft.Log) any {
	err := f.apply(l.Data)
	f.store.setApplied(l.Index)
	f.changed.notify()
	return err
}

func (f *fsm) apply(data []byte) error {
	command, err := cluster.DecodeCommand(data)
	if err != nil {
		// Every command is checked before it is proposed, so the proposer was a newer version. The
		// node goes on with what it understands: refusing to serve would help nobody.
		f.log.Error("a command was agreed that this version does not know; upgrade ollamamax on this node", "err", err)
		return err
	}
	next, err := f.state.Load().Apply(command)
	f.state.Store(next)
	return err
}

// StoreConfiguration tells of a committed change of raft's configuration.
func (f *fsm) StoreConfiguration(uint64, raft.Configuration) { f.changed.notify() }

func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.state.Load()}, nil }

func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	s, err := readState(r)
	if err != nil {
		return err
	}
	f.state.Store(s)
	f.changed.notify()
	return nil
}

func readState(r io.Reader) (*cluster.State, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSnapshot))
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return cluster.DecodeState(b)
}

type snapshot struct{ state *cluster.State }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	b, err := s.state.Encode()
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		_ = sink.Cancel()
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}

func (snapshot) Release() {}
