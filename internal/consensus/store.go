package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// lockTimeout is how long another process may take to let go of the store.
const lockTimeout = time.Second

// cachedLogs is how many of the last log entries are kept in memory besides.
const cachedLogs = 64

// keyApplied holds the index of the last command that was applied, so that a restarted node shows
// the State again before it has found a leader.
const keyApplied = "OllamamaxApplied"

// store is raft's log, its few stable values and its snapshots.
type store struct {
	raft.LogStore
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	close     func() error
	log       *slog.Logger
	applied   uint64 // what keyApplied says; after Open only the fsm's goroutine uses it
}

// openStore opens dir, or memory if dir is "". On an error nothing stays open.
func openStore(dir string, log *slog.Logger) (_ *store, err error) {
	if dir == "" {
		mem := raft.NewInmemStore()
		return &store{
			LogStore: mem, stable: mem, snapshots: raft.NewInmemSnapshotStore(),
			close: func() error { return nil }, log: log,
		}, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open agreed state: %w", err)
	}
	bolt, err := openBolt(dir)
	if err != nil {
		return nil, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, raftLog{to: log})
	if err != nil {
		_ = bolt.Close()
		return nil, fmt.Errorf("open agreed state in %s: %w", dir, err)
	}
	cached, err := raft.NewLogCache(cachedLogs, bolt) // the leader reads the last entry with every message
	if err != nil {
		_ = bolt.Close()
		return nil, err
	}
	return &store{LogStore: cached, stable: bolt, snapshots: snapshots, close: bolt.Close, log: log}, nil
}

// HasState reports whether dir holds the agreed state of a cluster that this node once founded or
// heard from. Another process that uses dir is an error.
func HasState(dir string) (bool, error) {
	info, err := os.Stat(filepath.Join(dir, "raft.db"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for agreed state: %w", err)
	case info.Size() == 0: // a process died while it made the file
		return false, nil
	}
	s, err := openStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return false, err
	}
	defer s.close()
	has, err := raft.HasExistingState(s, s.stable, s.snapshots)
	if err != nil {
		return false, fmt.Errorf("look for agreed state in %s: %w", dir, err)
	}
	return has, nil
}

// StoreLogs says so when the disk refuses, because raft itself only tries again.
func (s *store) StoreLogs(logs []*raft.Log) error {
	err := s.LogStore.StoreLogs(logs)
	if err != nil {
		s.log.Error("cannot write the agreed log; this node cannot take part until its disk can be written", "err", err)
	}
	return err
}

// StoreLog is StoreLogs of one.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// replay returns the State as of the last command that this node applied, without raft.
//
// Raft 1.8 has a setting for this (RestoreCommittedLogs), but it forgets the configuration changes
// in what it restores, and the node with them.
func (s *store) replay() (*cluster.State, error) {
	state, from, err := s.lastSnapshot()
	if err != nil {
		return nil, err
	}
	applied, err := s.stable.GetUint64([]byte(keyApplied))
	if err != nil && err.Error() != raftboltdb.ErrKeyNotFound.Error() { // raft's stores share only the text
		return nil, fmt.Errorf("read applied index: %w", err)
	}
	s.applied = applied
	for i := from + 1; i <= applied; i++ {
		var l raft.Log
		err := s.GetLog(i, &l)
		switch {
		case errors.Is(err, raft.ErrLogNotFound):
			return state, nil // a newer State was received whole and lost: what we have is older, not wrong
		case err != nil:
			return nil, fmt.Errorf("read agreed log: %w", err)
		case l.Type != raft.LogCommand:
			continue
		}
		if command, err := cluster.DecodeCommand(l.Data); err == nil {
			state, _ = state.Apply(command) // a refused command changes nothing, as it did then
		}
	}
	return state, nil
}

func (s *store) lastSnapshot() (*cluster.State, uint64, error) {
	list, err := s.snapshots.List()
	if err != nil {
		return nil, 0, fmt.Errorf("list snapshots: %w", err)
	}
	if len(list) == 0 {
		return cluster.NewState(), 0, nil
	}
	_, r, err := s.snapshots.Open(list[0].ID)
	if err != nil {
		return nil, 0, fmt.Errorf("open snapshot %s: %w", list[0].ID, err)
	}
	defer r.Close()
	state, err := readState(r)
	if err != nil {
		return nil, 0, fmt.Errorf("read snapshot %s: %w", list[0].ID, err)
	}
	return state, list[0].Index, nil
}

// setApplied remembers a committed index. Failing to costs only that State is older after a
// restart, until a leader is found.
func (s *store) setApplied(index uint64) {
	if index <= s.applied {
		return // raft is replaying its log
	}
	s.applied = index
	if err := s.stable.SetUint64([]byte(keyApplied), index); err != nil {
		s.log.Warn("cannot remember the applied index", "err", err)
	}
}

// openBolt opens dir/raft.db and reads all of it once, so that damage is told at the start and in
// words, instead of by a crash later.
func openBolt(dir string) (_ *raftboltdb.BoltStore, err error) {
	path := filepath.Join(dir, "raft.db")
	var bolt *raftboltdb.BoltStore
	damaged := func(cause any) error {
		return fmt.Errorf("open agreed state: %s is damaged (%v); restore a backup into %s, "+
			"or empty the data directory and join the cluster again", path, cause, dir)
	}
	err = findDamage(path)
	for tries := 1; err != nil && tries < 3; tries++ { // another process may have been writing
		err = findDamage(path)
	}
	if err != nil {
		return nil, damaged(err)
	}
	// A file that was cut short is a fault in mapped memory; make it a panic, and the panic an error.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			// Closing may wait for ever now, so the file stays locked until this process ends; the
			// operator has to act before anyone can open it anyhow.
			err = damaged(r)
		}
	}()
	bolt, err = raftboltdb.New(raftboltdb.Options{
		Path:        path,
		BoltOptions: &bbolt.Options{Timeout: lockTimeout},
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("open agreed state: another ollamamax is using %s; stop it, or give this one another --data-dir", dir)
	case errors.Is(err, fs.ErrPermission), errors.As(err, new(*fs.PathError)):
		return nil, fmt.Errorf("open agreed state in %s: %w", dir, err)
	case err != nil:
		return nil, damaged(err)
	}
	if err := readAll(bolt); err != nil {
		_ = bolt.Close()
		return nil, damaged(err)
	}
	return bolt, nil
}

func readAll(bolt *raftboltdb.BoltStore) error {
	first, err := bolt.FirstIndex()
	if err != nil {
		return err
	}
	last, err := bolt.LastIndex()
	if err != nil {
		return err
	}
	for i := first; i <= last && first > 0; i++ {
		var l raft.Log
		err := bolt.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			continue // a snapshot that was received leaves a gap
		}
		if err != nil {
			return fmt.Errorf("entry %d of %d to %d: %w", i, first, last, err)
		}
		if l.Index != i {
			return fmt.Errorf("entry %d calls itself %d", i, l.Index)
		}
	}
	return nil
}
