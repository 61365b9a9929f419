package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/folder"
	"github.com/ollamamax/ollamamax/internal/models/install"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registry"
)

// beside is a real Ollama with what a node has beside it: a loopback registry and an Installer.
type beside struct {
	url, models, addr string
	env               []string
	process           *program
	registry          *registry.Registry
	install           *install.Installer
}

// RoundTrip sends what has a path only to the Ollama.
func (b *beside) RoundTrip(r *http.Request) (*http.Response, error) {
	u, err := url.Parse(b.url)
	if err != nil {
		return nil, err
	}
	r.URL.Scheme, r.URL.Host = u.Scheme, u.Host
	return client.Transport.RoundTrip(r)
}

// startBeside runs an Ollama whose registry serves what source has.
func startBeside(t *testing.T, source registry.Source) *beside {
	t.Helper()
	home := t.TempDir()
	b := &beside{addr: freeAddr(t), models: filepath.Join(home, "models")}
	b.url = "http://" + b.addr
	b.env = []string{"HOME=" + home, "OLLAMA_MODELS=" + b.models, "OLLAMA_HOST=" + b.addr, "OLLAMA_NO_CLOUD=1"}
	b.run(t)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.registry = registry.New(registry.Default(), registry.Deps{Log: slog.New(slog.DiscardHandler), Source: source})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- b.registry.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	b.install = install.New(install.Deps{
		Log: slog.New(slog.DiscardHandler), Engine: b, Registry: listener.Addr().String(), Follow: b.registry.Follow,
		Receive: func(model string, wanted ...manifest.Wanted) (install.Receipt, error) {
			return b.registry.Receive(model, wanted...)
		},
	})
	return b
}

// run starts the Ollama, again with what it had.
func (b *beside) run(t *testing.T) {
	t.Helper()
	b.process = start(t, b.env, filepath.Join(engineDir(t), "bin", "ollama"), "serve")
	eventually(t, 30*time.Second, "Ollama answers", func() bool { return answers(b.url + "/api/version") })
}

// tags are the names that the Ollama lists, with their digests.
func (b *beside) tags(t *testing.T) map[string]string {
	t.Helper()
	var wire struct {
		Models []struct{ Name, Digest string }
	}
	_, text := ask(t, "GET", b.url+"/api/tags", "")
	if err := json.Unmarshal([]byte(text), &wire); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, m := range wire.Models {
		names[m.Name] = m.Digest
	}
	return names
}

// files are the files of the model folder: names, and blobs with their sizes.
func (b *beside) files(t *testing.T) (names, blobs []string) {
	t.Helper()
	for _, sub := range []string{"manifests", "blobs"} {
		err := filepath.WalkDir(filepath.Join(b.models, sub), func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // an Ollama deletes meanwhile, or has none
			}
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(filepath.Join(b.models, sub), path)
			if sub == "blobs" {
				blobs = append(blobs, rel)
			} else {
				names = append(names, filepath.ToSlash(rel))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(blobs)
	return names, blobs
}

// partial is how much the Ollama has written down that it has of the blobs that it was pulling.
func (b *beside) partial(t *testing.T) (completed int64) {
	t.Helper()
	parts, err := filepath.Glob(filepath.Join(b.models, "blobs", "*-partial-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		var wire struct{ Completed int64 }
		if data, err := os.ReadFile(part); err == nil && json.Unmarshal(data, &wire) == nil { // it is being written
			completed += wire.Completed
		}
	}
	return completed
}

// says is what the model answers at temperature 0.
func (b *beside) says(t *testing.T, model string) string {
	t.Helper()
	body, err := json.Marshal(map[string]any{"model": model, "prompt": "The same text", "stream": false,
		"options": map[string]any{"temperature": 0, "num_predict": 40, "seed": 1}})
	if err != nil {
		t.Fatal(err)
	}
	status, text := ask(t, "POST", b.url+"/api/generate", string(body))
	var wire struct{ Response string }
	if err := json.Unmarshal([]byte(text), &wire); err != nil || status != 200 || wire.Response == "" {
		t.Fatalf("generate: %d %s", status, text)
	}
	return wire.Response
}

// held is a Source: the models of some folders and whatever came out of a push.
type held struct {
	mu        sync.Mutex
	manifests map[string][]byte
	blobs     map[string][]byte
	sent      atomic.Int64
	hold      chan struct{} // blocks reads past half of a blob until it is closed; nil: nothing blocks
	holding   chan struct{} // told when a read blocks
}

func newHeld() *held { return &held{manifests: map[string][]byte{}, blobs: map[string][]byte{}} }

func (h *held) Manifest(_ context.Context, model string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	data, ok := h.manifests[model]
	if !ok {
		return nil, registry.ErrNotHeld
	}
	return data, nil
}

func (h *held) Size(_ context.Context, _, blob string) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	data, ok := h.blobs[blob]
	if !ok {
		return 0, registry.ErrNotHeld
	}
	return int64(len(data)), nil
}

func (h *held) Open(ctx context.Context, _, blob string, offset, length int64) (io.ReadCloser, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	data, ok := h.blobs[blob]
	if !ok {
		return nil, registry.ErrNotHeld
	}
	return &heldReader{ctx: ctx, held: h, data: data[offset : offset+length], half: len(data)/2 - int(offset)}, nil
}

type heldReader struct {
	ctx  context.Context
	held *held
	data []byte
	half int
}

func (r *heldReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	p = p[:min(len(p), 64<<10)]
	r.held.mu.Lock()
	hold, holding := r.held.hold, r.held.holding
	r.held.mu.Unlock()
	if hold != nil && r.half <= 0 {
		select {
		case holding <- struct{}{}:
		default:
		}
		select {
		case <-hold:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
	n := copy(p, r.data)
	r.data, r.half = r.data[n:], r.half-n
	r.held.sent.Add(int64(n))
	return n, nil
}

func (r *heldReader) Close() error { return nil }

// fromFolder takes a model from the folder of an Ollama, found through the Ollama itself.
func (h *held) fromFolder(t *testing.T, b *beside, name, model string) {
	t.Helper()
	n := parseName(t, name)
	dir, err := folder.Find(t.Context(), b, n)
	if err != nil {
		t.Fatal(err)
	}
	data, err := dir.Manifest(n, model)
	if err != nil {
		t.Fatal(err)
	}
	sizes, err := dir.Blobs()
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range h.add(t, data) {
		file, err := dir.OpenBlob(blob.Digest)
		if err != nil {
			t.Fatal(err)
		}
		h.blobs[blob.Digest], err = io.ReadAll(file)
		file.Close()
		if err != nil || sizes[blob.Digest] != blob.Size || int64(len(h.blobs[blob.Digest])) != blob.Size {
			t.Fatalf("blob %s: %v, %d listed, %d in the manifest", blob.Digest, err, sizes[blob.Digest], blob.Size)
		}
	}
}

// fromPush takes a model out of an Ollama without reading its folder: the manifest first, then the blobs.
func (h *held) fromPush(t *testing.T, b *beside, name, model string) {
	t.Helper()
	data, err := b.install.Export(t.Context(), parseName(t, name), model)
	if err != nil {
		t.Fatal(err)
	}
	var wanted []manifest.Wanted
	files := map[string]*strings.Builder{}
	for _, blob := range h.add(t, data) {
		files[blob.Digest] = &strings.Builder{}
		wanted = append(wanted, manifest.Wanted{Blob: blob, To: files[blob.Digest]})
	}
	if _, err := b.install.Export(t.Context(), parseName(t, name), model, wanted...); err != nil {
		t.Fatal(err)
	}
	for digest, file := range files {
		h.blobs[digest] = []byte(file.String())
	}
}

func (h *held) add(t *testing.T, data []byte) []manifest.Blob {
	t.Helper()
	m, err := manifest.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	h.manifests[m.Model] = data
	return m.Blobs
}

func parseName(t *testing.T, text string) manifest.Name {
	t.Helper()
	name, err := manifest.ParseName(text)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// createOf makes a model of a file and a system prompt. (An Ollama that creates leaves a blob that no model has.)
func (b *beside) createOf(t *testing.T, name, file, system string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(engineDir(t), file))
	if err != nil {
		t.Fatal(err)
	}
	digest := "sha256:" + manifest.DigestOf(data)
	if status, text := ask(t, "POST", b.url+"/api/blobs/"+digest, string(data)); status != http.StatusCreated && status != http.StatusOK {
		t.Fatalf("send blob: %d %s", status, text)
	}
	body, err := json.Marshal(map[string]any{"model": name, "files": map[string]string{"model.gguf": digest}, "system": system, "stream": false})
	if err != nil {
		t.Fatal(err)
	}
	if status, text := ask(t, "POST", b.url+"/api/create", string(body)); status != http.StatusOK || !strings.Contains(text, "success") {
		t.Fatalf("create %s: %d %s", name, status, text)
	}
	return b.tags(t)[parseName(t, name).String()]
}
