package models

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
	"github.com/ollamamax/ollamamax/internal/mesh"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

// group is nodes of one process in a mesh of memory, each with a fake Ollama that keeps files, and a registry that they may
// ask. What is agreed and told is seen by all at once.
type group struct {
	t        *testing.T
	mesh     *mesh.Memory
	registry *registrytest.Registry
	upstream *httptest.Server
	cfg      Config

	mu      sync.Mutex
	state   *cluster.State
	leader  cluster.NodeID
	members map[cluster.NodeID]*member
	logged  bytes.Buffer
}

// member is a node of the group.
type member struct {
	*Models
	g      *group
	id     cluster.NodeID
	data   string // the node's
	folder string // the engine's
	files  *Files // nil: it is an Ollama
	own    bool   // the engine's folder is the node's
	engine *httptest.Server
	http   *http.Transport
	stop   func()
	loses  atomic.Int32 // so many answers of other nodes are lost
	net    *mesh.MemoryNode

	// Under the group's lock.
	held []cluster.Model
	dead bool
}

func newGroup(t *testing.T, ids ...cluster.NodeID) *group {
	t.Helper()
	g := &group{t: t, mesh: mesh.NewMemory(), registry: registrytest.New(t.TempDir()), cfg: Default(), members: map[cluster.NodeID]*member{}}
	g.upstream = httptest.NewServer(g.registry)
	t.Cleanup(g.upstream.Close)
	g.cfg.Mirror = g.upstream.URL
	g.cfg.DiskReserveBytes = 0
	found, err := cluster.NewFound(time.Now(), ids[0], string(ids[0]), nil)
	if err != nil {
		t.Fatal(err)
	}
	if g.state, err = cluster.NewState().Apply(found); err != nil {
		t.Fatal(err)
	}
	g.state.Members = maps.Clone(g.state.Members)
	for _, id := range ids {
		g.state.Members[id] = cluster.Member{ID: id, Name: string(id)}
	}
	t.Cleanup(func() {
		if t.Failed() {
			g.mu.Lock()
			defer g.mu.Unlock()
			t.Log(g.logged.String())
		}
	})
	return g
}

// Write takes what the nodes log.
func (g *group) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.logged.Write(b)
}

// start starts all nodes; the first one leads. Before may change what they have.
func (g *group) start(before ...func(*member)) []*member {
	g.t.Helper()
	var all []*member
	for _, id := range slices.Sorted(maps.Keys(g.state.Members)) {
		n := &member{g: g, id: id, data: g.t.TempDir(), folder: g.t.TempDir()}
		for _, f := range before {
			f(n)
		}
		g.open(n)
		all = append(all, n)
	}
	g.lead(all[0])
	return all
}

// open starts a node, or starts it again.
func (g *group) open(n *member) {
	t := g.t
	t.Helper()
	n.engine = httptest.NewServer(enginetest.New(enginetest.Config{Folder: n.folder, Models: []enginetest.Model{}, Transport: &http.Transport{DisableKeepAlives: true}}))
	n.http = &http.Transport{DisableKeepAlives: true}
	in := g.mesh.Node(n.id, mesh.Deps{Admit: func(cluster.NodeID, []byte) error { return nil }})
	n.net = in
	peering, err := in.Listen("http/1")
	if err != nil {
		t.Fatal(err)
	}
	n.refresh(t.Context())
	peers := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return in.Dial(ctx, cluster.NodeID(host), "http/1")
	}}
	log := slog.New(slog.NewTextHandler(g, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", n.id)
	m, err := Open(g.cfg, Deps{
		Log: log, DataDir: n.data, Self: n.id, View: func() *cluster.View { return g.view(n.id) }, State: g.agreed, Apply: g.apply,
		Files: n.files, OwnFolder: n.own, ModelsDir: map[bool]string{true: n.folder}[n.own], Engine: n, EngineModels: func() ([]cluster.Model, bool) { g.mu.Lock(); defer g.mu.Unlock(); return n.held, true },
		Refresh: n.refresh, Seen: func(context.Context, cluster.NodeID) {}, Changed: func() {},
		Peers: losing{peers, &n.loses},
		Mesh:  in, Upstream: n.http, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	m.RegisterPeers(mux)
	server := &http.Server{Handler: mux}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var work sync.WaitGroup
	work.Go(func() {
		if err := m.Run(ctx); err != nil && !errors.Is(err, net.ErrClosed) { // killed
			t.Error(n.id, err)
		}
	})
	work.Go(func() { _ = server.Serve(peering) })
	g.mu.Lock()
	n.Models, n.dead = m, false
	g.members[n.id] = n
	g.mu.Unlock()
	n.stop = sync.OnceFunc(func() {
		g.mu.Lock()
		n.dead = true
		g.mu.Unlock()
		_ = in.Close()
		cancel()
		_ = server.Close()
		work.Wait()
		if err := m.Close(); err != nil {
			t.Error(n.id, err)
		}
		n.engine.CloseClientConnections()
		n.engine.Close()
	})
	t.Cleanup(func() { n.stop() })
}

// losing are the other nodes, some of whose answers are lost.
type losing struct {
	http.RoundTripper
	loses *atomic.Int32
}

func (l losing) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if err != nil || l.loses.Add(-1) < 0 {
		return resp, err
	}
	return nil, errors.Join(errors.New("the connection broke"), resp.Body.Close())
}

// lead makes a node the leader.
func (g *group) lead(n *member) {
	g.mu.Lock()
	g.leader = n.id
	g.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(g.t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Lead(ctx) }()
	until(g.t, "the leader leads", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.leading != nil })
	stop := n.stop
	n.stop = sync.OnceFunc(func() { cancel(); <-done; stop() })
}

func (g *group) agreed() *cluster.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state
}

func (g *group) apply(_ context.Context, c cluster.Command) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	next, err := g.state.Apply(c)
	if err == nil {
		g.state = next
	}
	return err
}

func (g *group) view(self cluster.NodeID) *cluster.View {
	g.mu.Lock()
	defer g.mu.Unlock()
	var nodes []*cluster.Node
	for id, n := range g.members {
		node := &cluster.Node{ID: id, Name: string(id), Condition: cluster.Alive, State: cluster.Active, Boot: 1, Models: n.held,
			Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady}}
		if n.dead {
			node.Condition = cluster.Dead
		}
		told := n.Told()
		node.Blobs, node.Fetches = told.Blobs, told.Fetches
		nodes = append(nodes, node)
	}
	v := cluster.NewView(self, time.Now(), nodes)
	v.Leader, v.Quorum = g.leader, true
	return v
}

// RoundTrip sends a request to the engine.
func (n *member) RoundTrip(r *http.Request) (*http.Response, error) {
	at, err := url.Parse(n.engine.URL + r.URL.RequestURI())
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.URL, r.Host = at, at.Host
	return n.http.RoundTrip(r)
}

// refresh reads what the engine holds.
func (n *member) refresh(ctx context.Context) {
	held, err := n.list(ctx)
	if err != nil {
		return // it is stopping
	}
	held = slices.DeleteFunc(held, func(m cluster.Model) bool {
		name, err := manifest.ParseName(m.Name)
		return err != nil || name.IsPassing()
	})
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	n.held = held
}

func (n *member) list(ctx context.Context) ([]cluster.Model, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/api/tags", nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var wire struct{ Models []cluster.Model }
	return wire.Models, json.NewDecoder(resp.Body).Decode(&wire)
}

// until waits for what other goroutines of this process bring about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatal("not seen: ", what)
		}
	}
}

// some are bytes that are like no others.
func some(size int, seed byte) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // it never fails
	return b
}

// publish puts a model into the registry and returns its manifest.
func (g *group) publish(name string, blobs ...[]byte) manifest.Manifest {
	g.t.Helper()
	data, err := g.registry.Add(name, blobs...)
	if err != nil {
		g.t.Fatal(err)
	}
	m, err := manifest.Parse(data)
	if err != nil {
		g.t.Fatal(err)
	}
	return m
}

// has is an error unless the node's engine has the model whole under the name, and nothing else is left of its way.
func (n *member) has(name string, m manifest.Manifest) error {
	models, err := n.list(n.g.t.Context())
	if err != nil {
		return err
	}
	found := false
	for _, is := range models {
		if parsed, err := manifest.ParseName(is.Name); err != nil || parsed.IsPassing() {
			return fmt.Errorf("%s: name %s is left", n.id, is.Name)
		}
		found = found || cluster.CanonicalModel(is.Name) == cluster.CanonicalModel(name) && is.Digest == m.Model
	}
	if !found {
		return fmt.Errorf("%s: no model %s of %s", n.id, name, m.Model)
	}
	for _, b := range m.Blobs {
		data, err := os.ReadFile(filepath.Join(n.folder, "blobs", "sha256-"+b.Digest))
		if err != nil {
			return err
		}
		if manifest.DigestOf(data) != b.Digest {
			return fmt.Errorf("%s: blob %s has other bytes", n.id, b.Digest)
		}
	}
	return n.tidy()
}

// hasSoon waits until the node has the model, and what the last readers of its way held is dropped.
func (n *member) hasSoon(name string, m manifest.Manifest) {
	n.g.t.Helper()
	var err error
	defer func() {
		if err != nil {
			n.g.t.Error(err)
		}
	}()
	until(n.g.t, "the model, and nothing else, on "+string(n.id), func() bool { err = n.has(name, m); return err == nil })
}

// tidy is an error if anything is in the spool.
func (n *member) tidy() error {
	files, err := os.ReadDir(filepath.Join(n.data, spoolDir, blobsDir))
	if err == nil && len(files) > 0 {
		err = fmt.Errorf("%s: %d files are left in the spool, the first is %s", n.id, len(files), files[0].Name())
	}
	return err
}

// pull pulls through a node, to so many replicas.
func (n *member) pull(name string, replicas cluster.Replicas) error {
	return n.Pull(n.g.t.Context(), Request{Name: name, Replicas: &replicas}, func([]byte) error { return nil })
}

// once is an error unless the registry sent each blob exactly once.
func (g *group) once(m manifest.Manifest) error {
	var errs []error
	for _, b := range m.Blobs {
		if sent := g.registry.Sent(b.Digest); sent != b.Size {
			errs = append(errs, fmt.Errorf("the registry sent %d bytes of a blob of %d", sent, b.Size))
		}
	}
	return errors.Join(errs...)
}

// log is what all nodes logged.
func (g *group) log() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.logged.String()
}

// write puts a model into the engine's folder.
func (n *member) write(name string, size int64, seed uint64) manifest.Manifest {
	n.g.t.Helper()
	if _, err := enginetest.WriteModel(n.folder, name, size, seed); err != nil {
		n.g.t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(n.folder, "manifests", manifest.DefaultHost, "library", name, "latest"))
	if err != nil {
		n.g.t.Fatal(err)
	}
	m, err := manifest.Parse(data)
	if err != nil {
		n.g.t.Fatal(err)
	}
	return m
}

// file puts a model of these blobs into the engine's folder, which has the registry's form.
func (n *member) file(name string, blobs ...[]byte) manifest.Manifest {
	n.g.t.Helper()
	data, err := registrytest.New(n.folder).Add(name, blobs...)
	if err != nil {
		n.g.t.Fatal(err)
	}
	m, err := manifest.Parse(data)
	if err != nil {
		n.g.t.Fatal(err)
	}
	return m
}

// flip changes a byte of a file.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}
