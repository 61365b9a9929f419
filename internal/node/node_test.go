package node

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/config"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
	"github.com/ollamamax/ollamamax/internal/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open starts a node of this process with a fake engine that holds a model named as the node.
func open(t *testing.T, name, token string) *Node {
	t.Helper()
	fake := httptest.NewServer(enginetest.New(enginetest.Config{Models: []enginetest.Model{{Name: name}}}))
	cfg := config.Default()
	cfg.Node.Name, cfg.Node.DataDir = name, filepath.Join(t.TempDir(), name)
	cfg.API.Listen, cfg.P2P.Listen, cfg.P2P.MDNS = "127.0.0.1:0", []string{"/ip4/127.0.0.1/tcp/0"}, false
	cfg.Engine.URL, cfg.Cluster.Join = fake.URL, token
	n, err := Open(t.Context(), cfg, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		fake.Close()
	})
	return n
}

// until waits for what other goroutines of this process bring about; the test's deadline ends it.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatal("not seen: ", what)
		}
	}
}

func TestNodesOfOneProcessAreAClusterAndLeaveNothingBehind(t *testing.T) {
	a := open(t, "a", "")
	token, command, err := cluster.NewToken(time.Now(), time.Hour, a.state().ClusterID, a.tokenAddrs())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.apply(t.Context(), command); err != nil {
		t.Fatal(err)
	}
	nodes := []*Node{a, open(t, "b", token.Text()), open(t, "c", token.Text())}
	for _, n := range nodes {
		until(t, "all nodes and their models, in every view", func() bool {
			v := n.View()
			return len(v.Nodes) == 3 && v.Quorum && v.Voters == 3 && len(v.Replicas("a"))+len(v.Replicas("b"))+len(v.Replicas("c")) == 3
		})
		for _, model := range []string{"a", "b", "c"} {
			resp, err := http.Post("http://"+n.Addr()+"/api/generate", "application/json", strings.NewReader(`{"model":"`+model+`","prompt":"x","stream":false}`))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("X-Ollamamax-Node") != model {
				t.Errorf("%s asked for %s: %d %s %v", n.View().SelfNode().Name, model, resp.StatusCode, text, err)
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestAMembersNonsenseIsRefused(t *testing.T) {
	n := open(t, "a", "")
	until(t, "the node's own view", func() bool { return n.View().Quorum })
	before := n.state().Version
	for _, body := range []string{"", "{", "null", "[]", `{"at":"x"}`, `{"join":{}}`, `{"remove":{"id":"nobody"}}`, `{"drain":{"id":""},"found":{}}`, strings.Repeat("[", 1<<16), "\x00\xff"} {
		for _, path := range []string{applyPath, transferPath, entryPath, "/api/chat", "/api/blobs/x", "/nowhere"} {
			for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodDelete} {
				w := httptest.NewRecorder()
				n.inner.Handler.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
			}
		}
		n.entryReceived("somebody", 1, 1, []byte(body))
		n.lost("somebody", &mesh.RefusedError{Peer: "somebody", Reason: body})
		n.found("somebody", []string{body})
		n.answerJoin(t.Context(), "somebody", joinRequest{TokenID: body, Secret: []byte(body), Name: body, Addrs: []string{body}})
	}
	n.entryReceived("somebody", 2, 1, []byte(`{"models":[{"name":""},{"name":"/:@"}],"p2p_addrs":["nonsense"],"peer_addrs":{"":["x"]},"engine":null}`))
	n.rebuild()
	if state := n.state(); state.Version != before || len(state.Members) != 1 || n.kept.read().Removed != "" {
		t.Errorf("nonsense changed what is agreed: %+v", state.Members)
	}
}

func TestANodeThatCannotOpenHoldsNothing(t *testing.T) {
	cfg := config.Default()
	cfg.Node.Name, cfg.Node.DataDir = "x", t.TempDir()
	cfg.API.Listen, cfg.P2P.Listen, cfg.P2P.MDNS = "127.0.0.1:0", []string{"/ip4/127.0.0.1/tcp/0"}, false
	cfg.Cluster.Join = "omx1-nonsense"
	log := slog.New(slog.DiscardHandler)
	if _, err := Open(t.Context(), cfg, "test", log); err == nil {
		t.Fatal("a token that is none was taken")
	}
	cfg.Cluster.Join = ""
	n, err := Open(t.Context(), cfg, "test", log) // the directory and the ports are free
	if err != nil {
		t.Fatal(err)
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
}

func TestWhatIsKeptIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	k, err := openKept(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = k.change(func(m *membership) { m.Trust.ClusterID, m.Removed = "c", "why" })
	if err != nil {
		t.Fatal(err)
	}
	again, err := openKept(dir)
	if err != nil || again.read().Trust.ClusterID != "c" || again.read().Removed != "why" {
		t.Errorf("%+v %v", again, err)
	}
	now := time.Now()
	first, err := nextBoot(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := nextBoot(dir, now.Add(-time.Hour)); err != nil || second <= first {
		t.Errorf("boot %d after %d: %v", second, first, err)
	}
	if err := writeFile(filepath.Join(dir, "membership.json"), []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := openKept(dir); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("half a file: %v", err)
	}
}
