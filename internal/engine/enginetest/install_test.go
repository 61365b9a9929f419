package enginetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/models/install"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registry"
	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

// stock is a source of what lies in a folder.
type stock struct{ dir string }

func (s stock) path(blob string) string { return filepath.Join(s.dir, "blobs", "sha256-"+blob) }

func (s stock) Manifest(_ context.Context, model string) ([]byte, error) {
	for _, m := range (&folder{dir: s.dir}).models() {
		if hexDigest(string(m.data)) == model {
			return m.data, nil
		}
	}
	return nil, registry.ErrNotHeld
}

func (s stock) Size(_ context.Context, _, blob string) (int64, error) {
	info, err := os.Stat(s.path(blob))
	if err != nil {
		return 0, registry.ErrNotHeld
	}
	return info.Size(), nil
}

func (s stock) Open(_ context.Context, _, blob string, offset, length int64) (io.ReadCloser, error) {
	data, err := os.ReadFile(s.path(blob))
	if err != nil {
		return nil, registry.ErrNotHeld
	}
	return io.NopCloser(bytes.NewReader(data[offset : offset+length])), nil
}

// node is a fake Ollama with what a node has beside it: a loopback registry and an Installer.
type node struct {
	*rig
	*install.Installer
	registry *registry.Registry
	dir      string
	breaks   atomic.Int64 // so many of the next parts that are pushed break off
}

func (n *node) transport(to http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPatch && n.breaks.Add(-1) >= 0 {
			r.Body = &broken{ReadCloser: r.Body, left: r.ContentLength / 2}
		}
		return to.RoundTrip(r)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// broken is a body that ends with an error.
type broken struct {
	io.ReadCloser
	left int64
}

func (b *broken) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errors.New("connection broken")
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// startNode serves a folder, beside a registry of what lies in another. Call it inside the bubble.
func startNode(t *testing.T, dir, from string) (*node, func()) {
	network := registrytest.NewNetwork(4711)
	dialer := &http.Transport{DialContext: network.DialContext}
	n := &node{dir: dir, registry: registry.New(registry.Default(), registry.Deps{Log: slog.New(slog.DiscardHandler), Source: stock{from}})}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- n.registry.Serve(ctx, network) }()
	rig, stop := startIn(t, dir, n.transport(dialer))
	n.rig = rig
	n.Installer = install.New(install.Deps{
		Log: slog.New(slog.DiscardHandler), Engine: rig, Registry: registryHost, Follow: n.registry.Follow,
		Receive: func(model string, wanted ...manifest.Wanted) (install.Receipt, error) {
			return n.registry.Receive(model, wanted...)
		},
	})
	return n, func() {
		stop()
		dialer.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second) // net/http lingers on a connection whose request it did not read to the end
	}
}

func (n *node) install(name, model string) error {
	n.t.Helper()
	return n.Install(n.t.Context(), parsed(n.t, name), model, func([]byte) error { return nil })
}

func parsed(t *testing.T, text string) manifest.Name {
	t.Helper()
	name, err := manifest.ParseName(text)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func listed(r *rig) map[string]string {
	out := map[string]string{}
	for _, m := range r.tags() {
		out[m.Name] = m.Digest
	}
	return out
}

func TestInstallerDoesWithTheFakeWhatItDoesWithAnOllama(t *testing.T) {
	source, dir := t.TempDir(), t.TempDir()
	first := mustWrite(t, source, "m", 300_000, 1)
	second := mustWrite(t, source, "next", 300_000, 2)
	synctest.Test(t, func(t *testing.T) {
		n, stop := startNode(t, dir, source)
		defer stop()
		for _, model := range []string{first, first, second} {
			if err := n.install("Some-One/M.v2:Q4", model); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]string{"Some-One/M.v2:Q4": model}, listed(n.rig)); diff != "" {
				t.Errorf("what is listed:\n%s", diff)
			}
			if blobs := blobFiles(t, dir); len(blobs) != 3 {
				t.Errorf("blobs %q", blobs)
			}
		}
		if err := n.install("other", strings.Repeat("0", 64)); !errors.Is(err, registry.ErrNotHeld) {
			t.Errorf("what nobody holds: %v", err)
		}
		// What a crash leaves.
		for _, left := range []manifest.Name{manifest.Incoming("127.0.0.1:9", second), manifest.Outgoing("127.0.0.1:9", second)} {
			n.post("/api/copy", `{"source":"some-one/m.v2:q4","destination":"`+left.String()+`"}`)
		}
		if len(n.tags()) != 3 {
			t.Errorf("it lists %+v", n.tags())
		}
		if err := n.Clean(t.Context(), true); err != nil || len(n.tags()) != 1 || len(blobFiles(t, dir)) != 3 {
			t.Errorf("cleaned: %v, %+v, blobs %q", err, n.tags(), blobFiles(t, dir))
		}
	})
}

func TestModelComesOutOfTheFakeByAPush(t *testing.T) {
	for _, row := range []struct {
		name   string
		breaks int64
		lie    bool
		want   string
	}{
		{"whole", 0, false, ""},
		{"over a connection that breaks", 5, false, ""},
		{"over one that breaks always", 1000, false, "max retries exceeded"},
		{"with wrong bytes", 0, true, "its bytes have the digest"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			model := mustWrite(t, dir, "m", 300_000, 1)
			synctest.Test(t, func(t *testing.T) {
				n, stop := startNode(t, dir, dir)
				defer stop()
				n.catalog.folder.minPart = 100_000
				text, err := n.Export(t.Context(), parsed(t, "m"), model)
				if err != nil || manifest.DigestOf(text) != model {
					t.Fatalf("the manifest: %q %v", text, err)
				}
				m, err := manifest.Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				path := stock{dir}.path(m.Blobs[0].Digest)
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if row.lie {
					wrong := slices.Clone(want)
					wrong[1000]++
					if err := os.WriteFile(path, wrong, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				n.breaks.Store(row.breaks)
				var got bytes.Buffer
				_, err = n.Export(t.Context(), parsed(t, "m"), model, manifest.Wanted{Blob: m.Blobs[0], To: &got})
				if row.want != "" {
					if err == nil || !strings.Contains(err.Error(), row.want) {
						t.Errorf("exported: %v", err)
					}
				} else if err != nil || !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%d bytes of %d, %v", got.Len(), len(want), err)
				}
				if diff := cmp.Diff(map[string]string{"m:latest": model}, listed(n.rig)); diff != "" {
					t.Errorf("what is listed:\n%s", diff)
				}
			})
		})
	}
}

func TestPushOfAPlainNameGoesNowhere(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir, "m", 1000, 1)
	beside(t, func(t *testing.T, u *upstream, to http.RoundTripper) {
		r, stop := startIn(t, dir, to)
		defer stop()
		rs := lines(t, r.post("/api/push", `{"model":"m","insecure":true}`))
		if last := rs[len(rs)-1]; last.Error != "unauthorized: access denied" || u.Requests() != 0 {
			t.Errorf("it said %+v after %d requests", rs, u.Requests())
		}
	})
}
