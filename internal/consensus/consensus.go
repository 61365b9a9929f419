package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Deps is what the consensus needs of others. All are required.
type Deps struct {
	Self cluster.NodeID
	// Listener accepts raft's connections from members; Close closes it.
	Listener net.Listener
	// Dial connects to another member's Listener.
	Dial func(context.Context, cluster.NodeID) (net.Conn, error)
	// Forward has the leader run ApplyAsLeader and returns its answer. An error of the leader's
	// keeps its sentinel (cluster.ErrorCode and ErrorFromCode); any other error means that the
	// leader was not reached or its answer was lost, and Apply tries again.
	Forward func(ctx context.Context, leader cluster.NodeID, c cluster.Command) (version uint64, err error)
	// Healthy reports whether a node is thought to be alive. The leader asks it besides its own
	// experience with the node, so it may know better that a node is ill, not that it is well.
	Healthy func(cluster.NodeID) bool
	Log     *slog.Logger
}

// Consensus is a node's part in the agreement.
type Consensus struct {
	cfg  Config
	deps Deps
	log  *slog.Logger

	raft   *raft.Raft
	trans  *transport
	stream *stream
	store  *store
	fsm    *fsm

	changed  signal      // State, leader, or raft's configuration
	leaving  atomic.Bool // HandOver was called: vote away from this node
	observer *raft.Observer
	seen     chan raft.Observation
	watched  chan struct{} // closed when watch has ended
	closing  chan struct{}

	mu      sync.Mutex
	closed  bool           // nothing new is asked of raft
	pending sync.WaitGroup // what raft has yet to answer

	closeOnce sync.Once
	closeErr  error
}

// Open opens the agreed state in cfg.Dir and takes part in the agreement it belongs to. Without
// such state the node waits for Found, or for a leader to send it one (after it was made a member).
//
// A directory that another process uses, or that is damaged, gives an error that says so.
func Open(cfg Config, deps Deps) (_ *Consensus, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Self == "" || deps.Listener == nil || deps.Dial == nil || deps.Forward == nil || deps.Healthy == nil || deps.Log == nil {
		return nil, errors.New("open consensus: a dependency is missing")
	}
	c := &Consensus{
		cfg: cfg.withDefaults(), deps: deps, log: deps.Log,
		seen: make(chan raft.Observation, 1), watched: make(chan struct{}), closing: make(chan struct{}),
	}
	if c.store, err = openStore(cfg.Dir, c.log); err != nil {
		return nil, err
	}
	known, err := c.store.replay()
	if err != nil {
		_ = c.store.close()
		return nil, unreadable(cfg.Dir, err)
	}
	c.fsm = newFSM(c.store, known, &c.changed, c.log)
	c.stream = newStream(deps.Self, deps.Listener, deps.Dial)
	c.trans = newTransport(c.stream, c.cfg, raftLog{to: c.log})
	if c.raft, err = raft.NewRaft(c.raftConfig(), c.fsm, c.store, c.store.stable, c.store.snapshots, c.trans); err != nil {
		_ = c.trans.Close()
		_ = c.store.close()
		return nil, unreadable(cfg.Dir, err)
	}
	c.observer = raft.NewObserver(c.seen, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState, raft.PeerObservation:
			return true
		}
		return false
	})
	c.raft.RegisterObserver(c.observer)
	go c.watch()
	return c, nil
}

// Run does the work that goes on: it keeps raft's configuration in step with the members while
// this node leads, and raft's patience in step with the machine. It returns nil when ctx ends.
func (c *Consensus) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { c.watchClock(ctx) })
	err := c.WhileLeader(ctx, c.reconcile)
	wg.Wait()
	return err
}

// Close leaves the agreement without telling anyone (see HandOver) and releases everything. It
// may be called again.
func (c *Consensus) Close() error {
	c.closeOnce.Do(func() {
		_ = c.stream.Close() // first: no message holds up the rest, and a leader with peers steps down
		c.answered()
		c.raft.DeregisterObserver(c.observer)
		close(c.closing)
		<-c.watched
		down := c.raft.Shutdown()
		if err := down.Error(); err != nil {
			c.closeErr = fmt.Errorf("stop raft: %w", err)
		}
		c.trans.CloseStreams()
		if err := c.store.close(); err != nil {
			c.closeErr = errors.Join(c.closeErr, fmt.Errorf("close agreed state: %w", err))
		}
		c.changed.notify()
	})
	return c.closeErr
}

// ask has raft do something and returns its answer. Every question goes through here.
func (c *Consensus) ask(f func() raft.Future) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return raft.ErrRaftShutdown
	}
	c.pending.Add(1)
	c.mu.Unlock()
	defer c.pending.Done()
	return f().Error()
}

// answered ends the questions and waits for raft's answers, because a raft that is shut down owes
// some of them for ever. Cut off, it answers as soon as its lease has ended, unless its disk hangs.
func (c *Consensus) answered() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	done := make(chan struct{})
	go func() {
		c.pending.Wait()
		close(done)
	}()
	t := time.NewTimer(c.cfg.ApplyTimeout + c.cfg.IOTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		c.log.Warn("raft does not answer; stopping all the same")
	}
}

func (c *Consensus) raftConfig() *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.deps.Self)
	rc.HeartbeatTimeout = c.cfg.Heartbeat
	rc.ElectionTimeout = c.cfg.Election
	rc.LeaderLeaseTimeout = c.cfg.Lease
	// How long a follower waits to hear that a command was agreed; between commands it is also how
	// often the leader sends each of them nothing new, which is half of what a cluster costs at rest.
	rc.CommitTimeout = c.cfg.Heartbeat * 5 / 6
	rc.MaxAppendEntries = 512
	rc.SnapshotThreshold = c.cfg.SnapshotAfter
	rc.SnapshotInterval = c.cfg.SnapshotEvery
	rc.TrailingLogs = c.cfg.SnapshotAfter
	rc.ShutdownOnRemove = false // the node goes on serving, and says that it was removed
	rc.NoLegacyTelemetry = true
	rc.Logger = raftLog{to: c.log}
	return rc
}

func unreadable(dir string, err error) error {
	return fmt.Errorf("open agreed state in %s: %w; if this is not a matter of versions, restore a backup, "+
		"or empty the data directory and join the cluster again", dir, err)
}

// watch turns raft's observations into notifications. Only one need be pending: who is woken looks
// at everything.
func (c *Consensus) watch() {
	defer close(c.watched)
	for {
		select {
		case <-c.seen:
			c.changed.notify()
		case <-c.closing:
			return
		}
	}
}

// server returns the id and the address that raft knows a node by.
func server(id cluster.NodeID) (raft.ServerID, raft.ServerAddress) {
	return raft.ServerID(id), raft.ServerAddress(id)
}

// pause waits for a change, at most d, and reports whether ctx goes on.
func pause(ctx context.Context, changed <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
