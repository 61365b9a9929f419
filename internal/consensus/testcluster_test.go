package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testCluster runs nodes in one synctest bubble.
type testCluster struct {
	t    *testing.T
	net  *network
	cfg  Config
	dirs string // "" keeps everything in memory

	mu    sync.Mutex
	nodes map[cluster.NodeID]*testNode
	token cluster.JoinToken
}

type testNode struct {
	*Consensus
	id     cluster.NodeID
	cancel context.CancelFunc
	ran    chan error
}

func newTestCluster(t *testing.T, cfg Config) *testCluster {
	tc := &testCluster{t: t, net: newNetwork(), cfg: cfg, nodes: map[cluster.NodeID]*testNode{}}
	t.Cleanup(func() {
		for _, n := range tc.all() {
			tc.kill(n.id)
		}
	})
	return tc
}

// open starts a node that belongs to nothing yet, or comes back to its directory.
func (tc *testCluster) open(id cluster.NodeID) *testNode {
	tc.t.Helper()
	cfg := tc.cfg
	if tc.dirs != "" {
		cfg.Dir = tc.dirs + "/" + string(id)
	}
	c, err := Open(cfg, Deps{
		Self: id, Listener: tc.net.listen(id), Dial: tc.net.dialer(id),
		Forward: func(ctx context.Context, leader cluster.NodeID, cmd cluster.Command) (uint64, error) {
			n, ok := tc.node(leader)
			if !ok || !tc.net.reaches(id, leader) {
				return 0, errors.New("connection refused")
			}
			v, err := n.ApplyAsLeader(ctx, cmd)
			if err != nil { // as it comes over the wire
				err = cluster.ErrorFromCode(cluster.ErrorCode(err), err.Error())
			}
			return v, err
		},
		Healthy: func(peer cluster.NodeID) bool { return tc.net.reaches(id, peer) },
		Log:     slog.New(slog.NewTextHandler(testWriter{tc.t}, &slog.HandlerOptions{Level: slog.LevelInfo})).With("on", id),
	})
	if err != nil {
		tc.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tc.t.Context())
	n := &testNode{Consensus: c, id: id, cancel: cancel, ran: make(chan error, 1)}
	go func() { n.ran <- c.Run(ctx) }()
	tc.mu.Lock()
	defer tc.mu.Unlock()
	tc.nodes[id] = n
	return n
}

// found opens a node and lets it found the cluster.
func (tc *testCluster) found(id cluster.NodeID) *testNode {
	tc.t.Helper()
	n := tc.open(id)
	cmd, err := cluster.NewFound(time.Now(), id, "node-"+string(id), addrs(id))
	if err != nil {
		tc.t.Fatal(err)
	}
	if err := n.Found(tc.t.Context(), cmd); err != nil {
		tc.t.Fatal(err)
	}
	tok, create, err := cluster.NewToken(time.Now(), time.Hour, n.State().ClusterID, addrs(id))
	if err != nil {
		tc.t.Fatal(err)
	}
	if err := n.Apply(tc.t.Context(), create); err != nil {
		tc.t.Fatal(err)
	}
	tc.token = tok
	return n
}

// join opens a node and has it made a member through another one.
func (tc *testCluster) join(id cluster.NodeID, through *testNode) *testNode {
	tc.t.Helper()
	n := tc.open(id)
	if err := through.Apply(tc.t.Context(), tc.joinCommand(id)); err != nil {
		tc.t.Fatal(err)
	}
	tc.eventually("joined node sees itself", func() bool { _, ok := n.State().Members[id]; return ok })
	return n
}

func (tc *testCluster) joinCommand(id cluster.NodeID) cluster.Command {
	return cluster.Command{At: time.Now(), Join: &cluster.Join{
		ID: id, Name: "node-" + string(id), Addrs: addrs(id), TokenID: tc.token.ID, SecretHash: tc.token.Hash(),
	}}
}

// grow founds a cluster of these nodes and waits until as many vote as should.
func (tc *testCluster) grow(ids ...cluster.NodeID) []*testNode {
	tc.t.Helper()
	nodes := []*testNode{tc.found(ids[0])}
	for _, id := range ids[1:] {
		nodes = append(nodes, tc.join(id, nodes[0]))
	}
	want := min(len(ids), tc.cfg.withDefaults().Voters)
	want -= 1 - want%2
	for _, n := range nodes {
		tc.eventually(fmt.Sprintf("%s sees %d voters", n.id, want), func() bool {
			st := n.Status()
			return len(st.Voters) == want && len(st.Voters)+len(st.Observers) == len(ids) && st.Leader != ""
		})
	}
	return nodes
}

// kill ends a node as kill -9 and a dead network do.
func (tc *testCluster) kill(id cluster.NodeID) {
	tc.net.down(id)
	tc.mu.Lock()
	n := tc.nodes[id]
	delete(tc.nodes, id)
	tc.mu.Unlock()
	n.cancel()
	if err := n.Close(); err != nil {
		tc.t.Error(err)
	}
	if err := <-n.ran; err != nil {
		tc.t.Error(err)
	}
}

func (tc *testCluster) node(id cluster.NodeID) (*testNode, bool) {
	tc.mu.Lock()
	defer tc.mu.Unlock()
	n, ok := tc.nodes[id]
	return n, ok
}

func (tc *testCluster) all() []*testNode {
	tc.mu.Lock()
	defer tc.mu.Unlock()
	var all []*testNode
	for _, n := range tc.nodes {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b *testNode) int { return strings.Compare(string(a.id), string(b.id)) })
	return all
}

// leader waits until all these nodes agree on a leader among them that can write.
func (tc *testCluster) leader(among ...*testNode) *testNode {
	tc.t.Helper()
	var found *testNode
	tc.eventually("one leader", func() bool {
		found = nil
		for _, n := range among {
			st := n.Status()
			if l, ok := tc.node(st.Leader); !ok || !st.Quorum || found != nil && found != l || !slices.Contains(among, l) {
				return false
			} else {
				found = l
			}
		}
		return found != nil
	})
	return found
}

// eventually waits, in the bubble's time, for up to a minute.
func (tc *testCluster) eventually(what string, ok func() bool) {
	tc.t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond) // the bubble's time: costs nothing
	}
	for _, n := range tc.all() {
		tc.t.Logf("%s: %+v, members %d", n.id, n.Status(), len(n.State().Members))
	}
	tc.t.Fatalf("not within a minute: %s", what)
}

// drain is a write that is easy to see.
func (tc *testCluster) drain(through *testNode, id cluster.NodeID, on bool) error {
	return through.Apply(tc.t.Context(), cluster.Command{At: time.Now(), Drain: &cluster.Drain{ID: id, On: on}})
}

func addrs(id cluster.NodeID) []string { return []string{"/ip4/127.0.0.1/tcp/11436/p2p/" + string(id)} }

func voters(n *testNode) string {
	var ids []string
	for _, id := range n.Status().Voters {
		ids = append(ids, string(id))
	}
	return strings.Join(ids, "")
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}
