package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/consensus"
	"github.com/ollamamax/ollamamax/internal/engine"
	"github.com/ollamamax/ollamamax/internal/mesh"
)

const (
	raftProtocol = "raft/1"
	joinProtocol = "join/1"
	httpProtocol = "http/1"

	joinTimeout    = 15 * time.Second
	joinAgain      = 250 * time.Millisecond
	connectTimeout = 5 * time.Second
	maxJoin        = 64 << 10 // bytes of a newcomer's request
	maxJoinAnswer  = 4 << 20  // bytes of the answer, with the addresses of all members
)

// The data directory's files that more than one place names.
const (
	identityFile = "identity.key"
	raftFolder   = "raft"
)

func (n *Node) raftDir() string { return filepath.Join(n.cfg.Node.DataDir, raftFolder) }

// state is what is agreed, as far as this node has heard; never nil.
func (n *Node) state() *cluster.State {
	if c := n.consensus.Load(); c != nil {
		return c.State()
	}
	return cluster.NewState()
}

// agreed is what this node knows of the agreement.
func (n *Node) agreed() consensus.Status {
	if c := n.consensus.Load(); c != nil {
		return c.Status()
	}
	return consensus.Status{}
}

// admit decides whether a peer may use the members' protocols. The text is told to the peer, which
// finds the error in it again: see admissionError.
func (n *Node) admit(id cluster.NodeID, certificate []byte) error {
	err := cluster.Admit(n.state(), n.kept.read().Trust, id, certificate)
	if err != nil {
		return errors.New(cluster.ErrorCode(err) + ": " + err.Error())
	}
	return nil
}

// admissionError is the error that a peer's gate has told as text.
func admissionError(reason string) error {
	code, text, _ := strings.Cut(reason, ": ")
	return cluster.ErrorFromCode(code, text)
}

func (n *Node) certificate() []byte {
	if c := n.kept.read().Certificate; c != nil {
		return c
	}
	certificate, err := n.state().Issue(n.id)
	if err != nil {
		return nil // no member yet
	}
	return certificate.Marshal()
}

// openConsensus takes the node's part in the agreement that its data directory knows, or waits for one.
func (n *Node) openConsensus() error {
	listener, err := n.host.Listen(raftProtocol)
	if err != nil {
		return err
	}
	c, err := consensus.Open(consensus.Config{Dir: n.raftDir(), Voters: n.cfg.Cluster.Voters}, consensus.Deps{
		Self: n.id, Listener: listener,
		Dial: func(ctx context.Context, id cluster.NodeID) (net.Conn, error) {
			return n.host.Dial(ctx, id, raftProtocol)
		},
		Forward: n.forwardCommand,
		Healthy: func(id cluster.NodeID) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			if p := n.peers[id]; p != nil && p.pulse.Leaving {
				return false
			}
			condition, _, _ := n.health.Judge(id, time.Now())
			return condition != cluster.Dead
		},
		Log: n.log,
	})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	n.consensus.Store(c)
	return nil
}

// enter finds the node's cluster: the one that its data directory knows, the one that a token
// invites it to, or else a new one of itself.
func (n *Node) enter(ctx context.Context) error {
	k := n.kept.read()
	token := n.cfg.Cluster.Join
	known := k.Trust.ClusterID
	switch {
	case k.Removed != "":
		if token != "" {
			return fmt.Errorf("join: this node was a member of cluster %s (%s): join with an empty data directory, which gives it a new identity", known, k.Removed)
		}
		n.log.Warn("no member of a cluster any more; serving from the own engine alone", "why", k.Removed, "cluster", known)
		return nil
	case known != "":
		if token != "" {
			t, err := cluster.ParseToken(token)
			if err != nil {
				return fmt.Errorf("join: %w", err)
			}
			if t.ClusterID != known {
				return fmt.Errorf("join: %s belongs to cluster %s and the token invites to %s: give an empty --data-dir to join that one", n.cfg.Node.DataDir, known, t.ClusterID)
			}
			n.log.Info("the token is not needed: this node is a member already", "cluster", known)
		}
		if err := n.openConsensus(); err != nil {
			return err
		}
		if state := n.state(); state.Founded() && state.ClusterID != known { // it died while it changed clusters
			if err := n.changeSeat(); err != nil {
				return err
			}
		}
		n.log.Info("coming back to the cluster", "cluster", known)
	case token != "":
		if err := os.RemoveAll(n.raftDir()); err != nil { // of a cluster that was founded only by half
			return fmt.Errorf("join: %w", err)
		}
		t, err := cluster.ParseToken(token)
		if err != nil {
			return fmt.Errorf("join: %w", err)
		}
		next, err := n.redeem(ctx, t)
		if err != nil {
			return err
		}
		if err := n.kept.change(func(m *membership) { *m = *next }); err != nil {
			return err
		}
		return n.openConsensus()
	default:
		if err := n.openConsensus(); err != nil {
			return err
		}
		if err := n.foundCluster(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) foundCluster(ctx context.Context) error {
	c := n.consensus.Load()
	if !c.State().Founded() {
		command, err := cluster.NewFound(time.Now(), n.id, n.cfg.Node.Name, n.addrs())
		if err != nil {
			return fmt.Errorf("found a cluster: %w", err)
		}
		if err := c.Found(ctx, command); err != nil {
			return fmt.Errorf("found a cluster: %w", err)
		}
	}
	n.log.Info("founded a cluster of one; others join with a token of `ollamamax token create`", "cluster", c.State().ClusterID)
	return n.kept.change(func(m *membership) { m.Trust = c.State().Trust() })
}

// removed notes that this node is no member any more: it serves from its own engine alone from now on.
func (n *Node) removed(why string) {
	if n.kept.read().Removed != "" {
		return
	}
	n.log.Warn("no member of the cluster any more; serving from the own engine alone. To come back: a token, and an empty data directory", "why", why)
	if err := n.kept.change(func(m *membership) { m.Removed = why }); err != nil {
		n.log.Error("cannot keep that this node was removed", "err", err)
	}
	n.touch()
}

// apply has a command agreed.
func (n *Node) apply(ctx context.Context, c cluster.Command) error {
	agreement := n.consensus.Load()
	if agreement == nil || n.kept.read().Removed != "" {
		return fmt.Errorf("%w: this node belongs to no cluster any more", cluster.ErrNotMember)
	}
	itself := c.Remove != nil && c.Remove.ID == n.id
	if itself {
		if err := n.standAside(ctx, agreement); err != nil {
			agreement.Stay()
			return err
		}
	}
	if err := agreement.Apply(ctx, c); err != nil {
		if itself {
			agreement.Stay()
		}
		return err
	}
	n.rebuild() // whoever asked sees what it did
	return nil
}

// standAside hands the leadership over before this node is removed: the others bar it from then
// on, and could not take it over any more.
func (n *Node) standAside(ctx context.Context, agreement *consensus.Consensus) error {
	if agreement.Status().Leader != n.id || len(agreement.State().Members) < 2 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handOverGrace)
	defer cancel()
	if err := agreement.HandOver(ctx); err != nil {
		return fmt.Errorf("hand over before leaving: %w", err)
	}
	if agreement.Status().Leader == n.id {
		return fmt.Errorf("%w: no other node is up to lead the cluster without this one: start one, or remove those that are gone first", cluster.ErrNoQuorum)
	}
	return nil
}

// takePart takes part in the agreement until ctx ends, and changes to another one when asked to.
func (n *Node) takePart(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := n.takeSeat(ctx); err != nil {
			return err
		}
	}
	return nil
}

// takeSeat takes part in one agreement, until ctx ends or the node has moved to another.
func (n *Node) takeSeat(ctx context.Context) error {
	seat, leave := context.WithCancel(ctx)
	defer leave()
	done := make(chan error, 1)
	if c := n.consensus.Load(); c != nil {
		go func() { done <- n.sit(seat, c) }()
	} else {
		context.AfterFunc(seat, func() { done <- nil })
	}
	for {
		select {
		case err := <-done:
			return err
		case m := <-n.moves:
			next, err := n.prepareMove(m)
			if err != nil || next == nil {
				m.reply <- err
				continue
			}
			leave()
			err = <-done
			if err == nil {
				err = n.kept.change(func(k *membership) { *k = *next })
			}
			if err == nil {
				err = n.changeSeat()
			}
			m.reply <- err
			return nil
		}
	}
}

// changeSeat forgets the agreement of the cluster of one and takes the part in the new one.
func (n *Node) changeSeat() error {
	if c := n.consensus.Swap(nil); c != nil {
		if err := c.Close(); err != nil {
			return fmt.Errorf("leave the cluster of one: %w", err)
		}
	}
	if err := os.RemoveAll(n.raftDir()); err != nil {
		return fmt.Errorf("leave the cluster of one: %w", err)
	}
	return n.openConsensus()
}

// sit does the work of a member: it runs the agreement and follows what it says of the members.
func (n *Node) sit(ctx context.Context, c *consensus.Consensus) error {
	done := make(chan error, 2)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var leading sync.WaitGroup
	defer leading.Wait()
	defer stop()
	leading.Go(func() {
		if err := c.WhileLeader(ctx, n.models.Lead); err != nil {
			n.log.Error("cannot lead", "err", err)
		}
	})
	go func() { done <- c.Run(ctx) }()
	for {
		changed := c.Changed()
		n.follow(ctx, c.State())
		select {
		case <-changed:
		case err := <-done:
			return err
		}
	}
}

// follow acts on a new State.
func (n *Node) follow(ctx context.Context, state *cluster.State) {
	if bar, ok := state.Barred[n.id]; ok {
		n.removed(bar.Why)
		return
	}
	members := make([]cluster.NodeID, 0, len(state.Members))
	for id, m := range state.Members {
		members = append(members, id)
		if id != n.id {
			n.host.AddAddrs(id, m.Addrs)
		}
	}
	n.host.Protect(members)
	n.mu.Lock()
	for id := range state.Barred { // others may be members that this State has not heard of yet
		if n.peers[id] != nil {
			delete(n.peers, id)
			n.health.Forget(id)
			n.handlers.Go(func() { n.expel(ctx, id) })
		}
	}
	n.mu.Unlock()
	n.touch()
	n.heartbeats.Notify()
	if m, ok := state.Members[n.id]; ok && n.announced.CompareAndSwap(false, true) {
		n.handlers.Go(func() { n.announce(ctx, m) })
	}
}

// expel closes what is still open with a node that was removed, once it has had the time to hear of it.
func (n *Node) expel(ctx context.Context, id cluster.NodeID) {
	select {
	case <-ctx.Done():
	case <-time.After(farewell):
		n.host.Disconnect(id)
	}
}

const farewell = 5 * time.Second

// announce tells the cluster where this node is now, if that has changed since it was last here.
func (n *Node) announce(ctx context.Context, m cluster.Member) {
	addrs := n.addrs()
	if slices.Equal(addrs, m.Addrs) {
		return
	}
	ticker := time.NewTicker(announceEvery)
	defer ticker.Stop()
	for {
		err := n.apply(ctx, cluster.Command{At: time.Now(), Update: &cluster.Update{ID: n.id, Addrs: &addrs}})
		if err == nil || ctx.Err() != nil || errors.Is(err, cluster.ErrNotMember) || errors.Is(err, cluster.ErrBarred) {
			return
		}
		n.log.Debug("cannot tell the cluster the own addresses yet", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

const announceEvery = time.Second

// Recover makes the node of a data directory, which must not be running, the only voter of its
// cluster: for a majority that is lost for good.
func Recover(dataDir string, log *slog.Logger) error {
	known, err := openKept(dataDir)
	if err != nil {
		return err
	}
	if known.read().Trust.ClusterID == "" {
		return fmt.Errorf("recover: %s belongs to no cluster: name the folder of a member with --data-dir", dataDir)
	}
	if removed := known.read().Removed; removed != "" {
		return fmt.Errorf("recover: this node is no member any more (%s): recover on one that is", removed)
	}
	key, err := mesh.LoadIdentity(filepath.Join(dataDir, identityFile))
	if err != nil {
		return err
	}
	id, err := mesh.NodeID(key)
	if err != nil {
		return err
	}
	return consensus.Recover(filepath.Join(dataDir, raftFolder), id, log)
}

// EndOrphan ends the engine that a killed node of a data directory has left behind, for one that is
// not started again.
func EndOrphan(dataDir string, log *slog.Logger) error { return engine.EndOrphan(dataDir, log) }
