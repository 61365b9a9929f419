package models

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/mesh"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

// shelf is an Ollama that has files only: it pulls what it lacks, and deletes a blob with the last name that uses it.
type shelf struct {
	t   *testing.T
	dir string

	mu     sync.Mutex
	node   *Models
	asked  []string // what deletes, unloads and installs
	before func(ask string)
	after  func(ask string)
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{t: t, dir: t.TempDir()}
	for _, sub := range []string{"manifests", "blobs"} {
		if err := os.MkdirAll(filepath.Join(s.dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// put adds a model.
func (s *shelf) put(name string, blobs ...[]byte) (digest string) {
	s.t.Helper()
	data, err := registrytest.New(s.dir).Add(name, blobs...)
	if err != nil {
		s.t.Fatal(err)
	}
	return manifest.DigestOf(data)
}

// names are the names that there are, with their digests.
func (s *shelf) names() map[string]string {
	names := map[string]string{}
	files, _ := filepath.Glob(filepath.Join(s.dir, "manifests", "*", "*", "*", "*"))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was deleted just now
		}
		if err != nil {
			s.t.Error(err)
		}
		part := strings.Split(file, "/")
		name, err := manifest.ParseName(strings.Join(part[len(part)-4:len(part)-1], "/") + ":" + part[len(part)-1])
		if err != nil {
			s.t.Error(err)
		}
		names[name.String()] = manifest.DigestOf(data)
	}
	return names
}

func (s *shelf) file(n manifest.Name) string {
	return filepath.Join(s.dir, "manifests", n.Host, n.Namespace, n.Model, n.Tag)
}

func (s *shelf) blob(digest string) string { return filepath.Join(s.dir, "blobs", "sha256-"+digest) }

// models are those that the engine lists.
func (s *shelf) models() (models []cluster.Model) {
	for name, digest := range s.names() {
		if parsed, err := manifest.ParseName(name); err != nil || parsed.IsPassing() {
			continue
		}
		models = append(models, cluster.Model{Name: name, Digest: digest})
	}
	slices.SortFunc(models, func(a, b cluster.Model) int { return strings.Compare(a.Name, b.Name) })
	return models
}

// RoundTrip answers as an Ollama does.
func (s *shelf) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Context().Err() != nil {
		return nil, r.Context().Err()
	}
	var body struct{ Model, Source, Destination string }
	if data, err := io.ReadAll(r.Body); err != nil || len(data) > 0 && json.Unmarshal(data, &body) != nil {
		return nil, fmt.Errorf("bad body of %s", r.URL)
	}
	w := httptest.NewRecorder()
	ask := ""
	switch r.URL.Path {
	case "/api/generate":
		ask = "unload " + body.Model
	case "/api/delete":
		ask = "delete " + body.Model
	case "/api/copy":
		ask = "copy to " + body.Destination
	}
	if from, err := manifest.ParseName(cmp.Or(body.Model, body.Destination)); err != nil || from.IsPassing() {
		ask = ""
	}
	s.mu.Lock()
	before, after := s.before, s.after
	s.mu.Unlock()
	if before != nil && ask != "" {
		before(ask)
	}
	status := 0
	switch r.URL.Path {
	case "/api/tags":
		var list []map[string]string
		for name, digest := range s.names() {
			list = append(list, map[string]string{"name": name, "digest": digest})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"models": list})
	case "/api/generate":
		fmt.Fprint(w, `{"done":true}`)
	case "/api/pull":
		if before != nil {
			before("pull")
		}
		if err := s.pull(r.Context(), body.Model); err != nil {
			_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
			break
		}
		fmt.Fprint(w, "{\"status\":\"success\"}\n")
	case "/api/copy":
		status = s.rename(body.Source, body.Destination)
	case "/api/delete":
		status = s.drop(body.Model)
	default:
		status = http.StatusNotFound
	}
	if ask != "" {
		s.mu.Lock()
		s.asked = append(s.asked, ask)
		s.mu.Unlock()
		if after != nil {
			after(ask)
		}
	}
	resp := w.Result()
	if status != 0 {
		resp.StatusCode = status
	}
	return resp, nil
}

// hook has functions called before and after each delete, unload and copy to a name of its own, and before each pull.
func (s *shelf) hook(before, after func(ask string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.after = before, after
}

func (s *shelf) log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// pull gets what is not there from the node's registry, and looks at what it got, as Ollama does.
func (s *shelf) pull(ctx context.Context, text string) error {
	name, err := manifest.ParseName(text)
	if err != nil {
		return err
	}
	s.mu.Lock()
	from := source{s.node}
	s.mu.Unlock()
	data, err := from.Manifest(ctx, name.Model)
	if err != nil {
		return err
	}
	m, err := manifest.Parse(data)
	if err != nil {
		return err
	}
	for _, b := range m.Blobs {
		if _, err := os.Stat(s.blob(b.Digest)); err == nil {
			continue
		}
		r, err := from.Open(ctx, name.Model, b.Digest, 0, b.Size)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		if manifest.DigestOf(got) != b.Digest {
			return fmt.Errorf("digest mismatch of %s", b.Digest)
		}
		if err := os.WriteFile(s.blob(b.Digest), got, 0o644); err != nil {
			return err
		}
	}
	file := s.file(name)
	return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, 0o644))
}

func (s *shelf) rename(from, to string) int {
	a, _ := manifest.ParseName(from)
	b, _ := manifest.ParseName(to)
	data, err := os.ReadFile(s.file(a))
	if err != nil {
		return http.StatusNotFound
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(s.file(b)), 0o755), os.WriteFile(s.file(b), data, 0o644)); err != nil {
		s.t.Error(err)
	}
	return 0
}

func (s *shelf) drop(text string) int {
	name, _ := manifest.ParseName(text)
	data, err := os.ReadFile(s.file(name))
	if err != nil {
		return http.StatusNotFound
	}
	gone, err := manifest.Parse(data)
	if err := errors.Join(err, os.Remove(s.file(name))); err != nil {
		s.t.Error(err)
	}
	used := map[string]bool{}
	files, _ := filepath.Glob(filepath.Join(s.dir, "manifests", "*", "*", "*", "*"))
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			if m, err := manifest.Parse(data); err == nil {
				for _, b := range m.Blobs {
					used[b.Digest] = true
				}
			}
		}
	}
	for _, b := range gone.Blobs {
		if !used[b.Digest] {
			_ = os.Remove(s.blob(b.Digest))
		}
	}
	return 0
}

// flip changes a byte of a blob's file.
func (s *shelf) flip(digest string) {
	s.t.Helper()
	data, err := os.ReadFile(s.blob(digest))
	if err != nil {
		s.t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(s.blob(digest), data, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// right tells whether a blob's file is there and has its digest.
func (s *shelf) right(digest string) bool {
	data, err := os.ReadFile(s.blob(digest))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Error(err)
	}
	return err == nil && manifest.DigestOf(data) == digest
}

// stores is nodes with an engine each, node a being the leader.
type stores struct {
	t    *testing.T
	mesh *mesh.Memory

	mu    sync.Mutex
	state *cluster.State
	nodes map[cluster.NodeID]*stored
}

// stored is one of them.
type stored struct {
	*Models
	shelf *shelf
	dying context.Context
	stop  func() // as the death of its process
	ended bool
}

func newStores(t *testing.T) *stores {
	state := cluster.NewState()
	state.ClusterID = "c"
	return &stores{t: t, mesh: mesh.NewMemory(), state: state, nodes: map[cluster.NodeID]*stored{}}
}

func (w *stores) place(name, digest string, replicas cluster.Replicas) {
	w.t.Helper()
	if err := w.apply(w.t.Context(), cluster.Command{At: time.Now(), Place: &cluster.Place{Model: name, Digest: &digest, Replicas: &replicas}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *stores) apply(_ context.Context, c cluster.Command) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	next, err := w.state.Apply(c)
	w.state = next
	return err
}

func (w *stores) view() *cluster.View {
	w.mu.Lock()
	defer w.mu.Unlock()
	var nodes []*cluster.Node
	for id, n := range w.nodes {
		node := &cluster.Node{ID: id, Name: string(id), Boot: 1, Condition: cluster.Alive, State: cluster.Active,
			Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady}}
		if n.ended {
			node.Condition = cluster.Dead
		}
		told := n.Told()
		node.Blobs, node.Fetches, node.Models = told.Blobs, told.Fetches, n.shelf.models()
		for i := range node.Models {
			node.Models[i].Damaged = told.Damaged[node.Models[i].Digest]
		}
		nodes = append(nodes, node)
	}
	v := cluster.NewView("", time.Now(), nodes)
	v.Leader, v.Quorum = "a", true
	return v
}

// RoundTrip carries a request to the node that its host names. Who asks does not matter here.
func (w *stores) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	n := w.nodes[cluster.NodeID(r.URL.Host)]
	gone := n == nil || n.ended
	w.mu.Unlock()
	if gone {
		return nil, errors.New("nobody there")
	}
	mux := http.NewServeMux()
	n.RegisterPeers(mux)
	recorder := httptest.NewRecorder()
	mux.ServeHTTP(recorder, r)
	return recorder.Result(), nil
}

// node starts a node; one with the same folder goes on where an earlier one was.
func (w *stores) node(id cluster.NodeID, s *shelf, dataDir string, upstream http.Handler, change ...func(*Config)) *stored {
	w.t.Helper()
	cfg := Default()
	cfg.DiskReserveBytes = 0
	for _, c := range change {
		c(&cfg)
	}
	m, err := Open(cfg, Deps{
		Log: slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})), DataDir: dataDir, Self: id, View: w.view,
		State: func() *cluster.State { w.mu.Lock(); defer w.mu.Unlock(); return w.state }, Apply: w.apply,
		Engine: s, EngineModels: func() ([]cluster.Model, bool) { return s.models(), true }, ModelsDir: s.dir,
		Refresh: func(context.Context) {}, Changed: func() {}, Peers: w, Busy: func() bool { return false },
		Mesh: w.mesh.Node(id, mesh.Deps{Admit: func(cluster.NodeID, []byte) error { return nil }}),
		Upstream: roundTrip(func(r *http.Request) (*http.Response, error) {
			if upstream == nil {
				return nil, errors.New("no way out")
			}
			recorder := httptest.NewRecorder()
			upstream.ServeHTTP(recorder, r)
			return recorder.Result(), nil
		}),
		Now: time.Now,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	s.mu.Lock()
	s.node = m
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	m.run = ctx
	n := &stored{Models: m, shelf: s, dying: ctx}
	w.mu.Lock()
	w.nodes[id] = n
	w.mu.Unlock()
	var running sync.WaitGroup
	running.Go(func() { _ = m.exchange.Run(ctx) })
	running.Go(func() { m.watch(ctx) })
	running.Go(func() { m.check(ctx) })
	running.Go(func() { m.keepRepairing(ctx) })
	n.stop = func() {
		w.mu.Lock()
		was := n.ended
		n.ended = true
		w.mu.Unlock()
		if was {
			return
		}
		cancel()
		w.mesh.Kill(id)
		running.Wait()
		m.mu.Lock()
		m.run = nil
		m.mu.Unlock()
		m.work.Wait()
		if err := m.Close(); err != nil {
			w.t.Error(err)
		}
	}
	w.t.Cleanup(n.stop)
	return n
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// random are bytes that no other seed gives.
func random(seed byte, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// tells is how a node tells a blob.
func (n *stored) tells(digest string) cluster.BlobState {
	for _, b := range n.Told().Blobs {
		if b.Digest == digest {
			return b.State
		}
	}
	return ""
}

// isSynced tells whether a blob in the spool outlives a loss of power: its state file says of each piece that it does.
func (n *stored) isSynced(hex string) bool {
	n.shelf.t.Helper()
	p, err := n.spool.Get(n.dying, digest(hex))
	if err != nil {
		n.shelf.t.Fatal(err)
	}
	state, err := os.ReadFile(filepath.Join(n.deps.DataDir, spoolDir, blobsDir, hex+".state"))
	if err != nil {
		n.shelf.t.Fatal(err)
	}
	const synced = 2
	pieces := state[len(state)-p.List().Len():]
	return !slices.ContainsFunc(pieces, func(state byte) bool { return state != synced })
}
