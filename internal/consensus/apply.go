package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// retryEvery is how often Apply tries again when nothing announces that it should.
const retryEvery = 100 * time.Millisecond

// Apply has a command agreed, on this node if it leads, else through the leader, and returns when
// this node's own State shows it. It waits for a leader, and tries again when one is lost, within
// ctx and Config.ApplyTimeout.
//
// Errors wrap the sentinel of State.Apply when the command was refused; cluster.ErrNoQuorum when
// nothing could be agreed; cluster.ErrUncertain when it may or may not have been.
func (c *Consensus) Apply(ctx context.Context, command cluster.Command) error {
	if _, err := command.Encode(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ApplyTimeout)
	defer cancel()
	var last error     // of the last try that reached a leader, or almost
	uncertain := false // an earlier try may have taken effect
	for {
		changed := c.Changed()
		version, asked, err := c.try(ctx, command)
		switch {
		case err == nil:
			return c.caughtUp(ctx, version)
		case uncertain && command.RevokeToken != nil && errors.Is(err, cluster.ErrTokenUnknown):
			return nil // the earlier try did; every other command says so itself when repeated
		case !again(err):
			return err
		}
		if asked {
			last = err
			uncertain = uncertain || !errors.Is(err, cluster.ErrNotLeader) && !errors.Is(err, cluster.ErrNoQuorum)
		}
		if !pause(ctx, changed, retryEvery) {
			return c.gaveUp(command, last, uncertain)
		}
	}
}

// ApplyAsLeader has a command agreed by this node and returns the version of the State that shows
// it. It never forwards: a node that does not lead returns cluster.ErrNotLeader. It is what
// Deps.Forward runs on the leader.
func (c *Consensus) ApplyAsLeader(ctx context.Context, command cluster.Command) (version uint64, err error) {
	data, err := command.Encode()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ApplyTimeout)
	defer cancel()
	type answer struct {
		version uint64
		err     error
	}
	done := make(chan answer, 1)
	go func() { // ends before Close does; raft's futures know no context
		var f raft.ApplyFuture
		err := c.ask(func() raft.Future {
			f = c.raft.Apply(data, c.cfg.ApplyTimeout)
			return f
		})
		if err != nil {
			done <- answer{err: raftError("apply "+command.Kind(), err)}
			return
		}
		refused, _ := f.Response().(error)
		done <- answer{version: c.State().Version, err: refused}
	}()
	select {
	case a := <-done:
		return a.version, a.err
	case <-ctx.Done():
		return 0, fmt.Errorf("apply %s: %w: %w", command.Kind(), cluster.ErrUncertain, ctx.Err())
	}
}

// Found begins a cluster of this node alone: command is cluster.NewFound's. It returns
// cluster.ErrAlreadyFounded if the node belongs to a cluster.
func (c *Consensus) Found(ctx context.Context, command cluster.Command) error {
	if command.Found == nil || command.Found.ID != c.deps.Self {
		return fmt.Errorf("found cluster: the command founds none with this node: %w", cluster.ErrBadCommand)
	}
	if c.State().Founded() {
		return fmt.Errorf("found cluster: this node belongs to cluster %s: %w", c.State().ClusterID, cluster.ErrAlreadyFounded)
	}
	id, addr := server(c.deps.Self)
	alone := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: id, Address: addr}}}
	err := c.ask(func() raft.Future { return c.raft.BootstrapCluster(alone) })
	switch {
	case errors.Is(err, raft.ErrCantBootstrap):
		// Either an earlier attempt got this far and no further, or the node has another cluster's log.
		servers := c.raft.GetConfiguration().Configuration().Servers
		if len(servers) != 1 || servers[0] != alone.Servers[0] {
			return fmt.Errorf("found cluster: the data directory holds another cluster's log: %w", cluster.ErrAlreadyFounded)
		}
	case err != nil:
		return fmt.Errorf("found cluster: %w", err)
	}
	return c.Apply(ctx, command)
}

// try proposes once; asked tells that somebody was asked.
func (c *Consensus) try(ctx context.Context, command cluster.Command) (version uint64, asked bool, err error) {
	switch leader := c.Status().Leader; leader {
	case "":
		return 0, false, cluster.ErrNoQuorum
	case c.deps.Self:
		version, err = c.ApplyAsLeader(ctx, command)
	default:
		version, err = c.deps.Forward(ctx, leader, command)
		if err != nil {
			err = fmt.Errorf("ask leader %s to %s: %w", c.name(leader), command.Kind(), err)
		}
	}
	return version, true, err
}

// caughtUp waits until this node's State shows what was agreed.
func (c *Consensus) caughtUp(ctx context.Context, version uint64) error {
	for {
		changed := c.Changed()
		if c.State().Version >= version {
			return nil
		}
		if !pause(ctx, changed, time.Hour) {
			return fmt.Errorf("wait for this node to catch up: the change was agreed, but this node has not heard of it yet: %w", ctx.Err())
		}
	}
}

func (c *Consensus) gaveUp(command cluster.Command, last error, uncertain bool) error {
	if uncertain {
		return fmt.Errorf("apply %s: the leader was lost meanwhile; look whether it took effect before you repeat it: %w (last: %w)",
			command.Kind(), cluster.ErrUncertain, last)
	}
	st := c.Status()
	if len(st.Voters) == 0 {
		return fmt.Errorf("apply %s: no leader has reached this node yet: %w", command.Kind(), cluster.ErrNoQuorum)
	}
	need := len(st.Voters)/2 + 1
	names := make([]string, 0, len(st.Voters))
	for _, v := range st.Voters {
		names = append(names, c.name(v))
	}
	err := fmt.Errorf("apply %s: no leader: changing the cluster needs %d of its %d voters (%s), and this node reaches too few; "+
		"requests are served all the same. Start the missing nodes or mend the network; "+
		"if they are lost for good, stop this node and run `ollamamax recover` on it: %w",
		command.Kind(), need, len(st.Voters), strings.Join(names, ", "), cluster.ErrNoQuorum)
	if last != nil {
		err = fmt.Errorf("%w (last: %v)", err, last)
	}
	return err
}

// name returns a member's name, else its id.
func (c *Consensus) name(id cluster.NodeID) string {
	if m, ok := c.State().Members[id]; ok {
		return m.Name
	}
	return string(id)
}

// again reports whether an error leaves hope that another try succeeds: all but refusals.
func again(err error) bool {
	switch cluster.ErrorCode(err) {
	case "", cluster.ErrorCode(cluster.ErrNotLeader), cluster.ErrorCode(cluster.ErrNoQuorum), cluster.ErrorCode(cluster.ErrUncertain):
		return true
	}
	return false
}

// raftError gives raft's error the sentinel that tells what has become of the command.
func raftError(what string, err error) error {
	sentinel := cluster.ErrUncertain
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		sentinel = cluster.ErrNotLeader
	case errors.Is(err, raft.ErrEnqueueTimeout):
		sentinel = cluster.ErrNoQuorum
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%s: this node is stopping: %w", what, sentinel)
	}
	return fmt.Errorf("%s: %w: %w", what, sentinel, err)
}
