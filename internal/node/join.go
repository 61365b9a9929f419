package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/control"
)

// joinRequest and joinAnswer are the join protocol: one JSON value each way.
type joinRequest struct {
	TokenID string   `json:"token_id"`
	Secret  []byte   `json:"secret"`
	Name    string   `json:"name"`
	Addrs   []string `json:"addrs"`
}

type joinAnswer struct {
	Code        string                      `json:"code,omitempty"` // of Error, for errors.Is
	Error       string                      `json:"error,omitempty"`
	Trust       cluster.Trust               `json:"trust"`
	Certificate []byte                      `json:"certificate"`
	Addrs       map[cluster.NodeID][]string `json:"addrs"`
}

// redeem turns a token into a membership. Members that cannot agree now, or whose answer is lost, are asked again
// until joinTimeout: joining twice is joining once.
func (n *Node) redeem(ctx context.Context, token cluster.JoinToken) (*membership, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var before error // an answer that is lost, at the end of the time at the latest, tells less than a refusal
	for {
		m, err := n.redeemOnce(ctx, token)
		again := errors.Is(err, errJoinLost) || errors.Is(err, cluster.ErrNoQuorum) || errors.Is(err, cluster.ErrUncertain) || errors.Is(err, cluster.ErrNotLeader)
		switch {
		case err != nil && ctx.Err() != nil && before != nil:
			return nil, before
		case !again:
			return m, err
		}
		if before == nil || !errors.Is(err, errJoinLost) {
			before = err
		}
		select {
		case <-ctx.Done():
			return nil, before
		case <-time.After(joinAgain):
		}
	}
}

// errJoinLost: a member that was reached gave no answer.
var errJoinLost = errors.New("no answer")

// redeemOnce asks the members that the token names, one after the other, until one answers. A refusal changed nothing.
func (n *Node) redeemOnce(ctx context.Context, token cluster.JoinToken) (*membership, error) {
	connect, cancelConnect := context.WithTimeout(ctx, connectTimeout) // not all that it names need be up
	defer cancelConnect()
	reached, err := n.host.Connect(connect, token.Addrs)
	if len(reached) == 0 {
		return nil, fmt.Errorf("join: no member that the token names can be reached: %w: is one of them running, and its port open?", err)
	}
	var refused, lost error
	for _, id := range reached {
		a, err := n.askToJoin(ctx, id, token)
		if err != nil {
			lost = fmt.Errorf("%w: %w", errJoinLost, err)
			continue
		}
		if a.Error != "" { // another member may know better
			refused = cluster.ErrorFromCode(a.Code, a.Error)
			continue
		}
		certificate, err := cluster.ParseCertificate(a.Certificate)
		if err == nil && a.Trust.ClusterID != token.ClusterID {
			err = fmt.Errorf("the answer is of cluster %s", a.Trust.ClusterID)
		}
		if err == nil {
			err = certificate.Verify(a.Trust, n.id)
		}
		if err != nil {
			return nil, fmt.Errorf("join: member %s answers wrongly: %w", id, err)
		}
		for peer, addrs := range a.Addrs {
			n.host.AddAddrs(peer, addrs)
		}
		n.log.Info("joined", "cluster", a.Trust.ClusterID, "through", id)
		return &membership{Trust: a.Trust, Certificate: a.Certificate, Addrs: a.Addrs}, nil
	}
	return nil, fmt.Errorf("join: %w", notJoined(refused, lost))
}

// notJoined is why no member let us in: a refusal tells more than an answer that was lost. But a member that lags, or is cut off,
// does not know the token, and who gave no answer may.
func notJoined(refused, lost error) error {
	switch {
	case refused == nil:
		return lost
	case lost == nil || !errors.Is(refused, cluster.ErrTokenUnknown):
		return refused
	default:
		return fmt.Errorf("%w: %w", refused, lost)
	}
}

func (n *Node) askToJoin(ctx context.Context, id cluster.NodeID, token cluster.JoinToken) (*joinAnswer, error) {
	conn, err := n.host.Dial(ctx, id, joinProtocol)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // a stream that is gone fails at the write below
	}
	request := joinRequest{TokenID: token.ID, Secret: token.Secret, Name: n.cfg.Node.Name, Addrs: n.addrs()}
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		return nil, fmt.Errorf("ask member %s: %w", id, err)
	}
	var a joinAnswer
	if err := json.NewDecoder(io.LimitReader(conn, maxJoinAnswer)).Decode(&a); err != nil {
		return nil, fmt.Errorf("read answer of member %s: %w", id, err)
	}
	return &a, nil
}

// serveJoin answers strangers that bring a token.
func (n *Node) serveJoin(ctx context.Context, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() }) // its only error: closed already
	defer stop()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accept joins: %w", err)
		}
		n.handlers.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // nobody waits for a stranger
			defer stop()
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(joinTimeout)) // a stream that is gone fails below
			var r joinRequest
			if json.NewDecoder(io.LimitReader(conn, maxJoin)).Decode(&r) != nil {
				return // no newcomer of ours
			}
			a := n.answerJoin(ctx, cluster.NodeID(conn.RemoteAddr().String()), r)
			_ = json.NewEncoder(conn).Encode(a) // a newcomer that is gone asks again
		})
	}
}

func (n *Node) answerJoin(ctx context.Context, id cluster.NodeID, r joinRequest) joinAnswer {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	refuse := func(err error) joinAnswer {
		n.log.Warn("refused a newcomer", "peer", id, "name", cluster.CleanName(r.Name), "why", cluster.ErrorCode(err))
		return joinAnswer{Code: cluster.ErrorCode(err), Error: err.Error()}
	}
	if n.kept.read().Removed != "" {
		return refuse(cluster.ErrNotMember)
	}
	token := cluster.JoinToken{ID: r.TokenID, Secret: r.Secret}
	now := time.Now()
	if err := n.state().CheckToken(token.ID, token.Hash(), now); err != nil {
		return refuse(err)
	}
	err := n.apply(ctx, cluster.Command{At: now, Join: &cluster.Join{
		ID: id, Name: cluster.CleanName(r.Name), Addrs: r.Addrs, TokenID: token.ID, SecretHash: token.Hash(),
	}})
	if err != nil {
		return refuse(err)
	}
	state := n.state()
	certificate, err := state.Issue(id)
	if err != nil {
		return refuse(err)
	}
	n.host.AddAddrs(id, r.Addrs)
	a := joinAnswer{Trust: state.Trust(), Certificate: certificate.Marshal(), Addrs: map[cluster.NodeID][]string{}}
	for _, node := range n.View().Nodes {
		if node.ID != id {
			a.Addrs[node.ID] = node.P2PAddrs
		}
	}
	n.log.Info("admitted a newcomer", "peer", id, "name", state.Members[id].Name)
	return a
}

// joinOther makes a node that is alone a member of another cluster, without a restart.
func (n *Node) joinOther(ctx context.Context, text string) error {
	token, err := cluster.ParseToken(text)
	if err != nil {
		return err
	}
	reply := make(chan error, 1)
	select {
	case n.moves <- move{ctx, token, reply}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// alone returns control.ErrNotAlone unless this node's cluster has agreed on nothing but the node
// itself. A node that has not caught up with its cluster is not alone.
func (n *Node) alone() error {
	k, state := n.kept.read(), n.state()
	if k.Removed != "" || !state.Founded() || state.ClusterID != k.Trust.ClusterID ||
		len(state.Members) > 1 || len(state.Tokens) > 0 || len(state.Barred) > 0 || state.Members[n.id].Draining {
		return control.ErrNotAlone
	}
	return nil
}

// prepareMove redeems the token of a move; nil: the node belongs to that cluster already.
func (n *Node) prepareMove(m move) (*membership, error) {
	if k := n.kept.read(); k.Removed == "" && k.Trust.ClusterID == m.token.ClusterID {
		return nil, nil
	}
	if err := n.alone(); err != nil {
		return nil, err
	}
	next, err := n.redeem(m.ctx, m.token)
	if err != nil {
		return nil, err
	}
	return next, n.alone() // nothing was agreed meanwhile that would be lost
}

// move is a request to change to another cluster.
type move struct {
	ctx   context.Context
	token cluster.JoinToken
	reply chan error
}
