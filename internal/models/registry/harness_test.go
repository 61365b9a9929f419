package registry_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registry"
	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is the loopback registry's address in a bubble.
const host = "127.0.0.1:4711"

// source is a Source of one blob, whose bytes are there up to a point that moves.
type source struct {
	mu     sync.Mutex
	moved  chan struct{} // closed when what follows changes
	text   []byte        // the manifest
	data   []byte
	there  int
	err    error // what reads and all else fail with
	opened atomic.Int64
}

func newSource(data []byte) *source {
	text := fmt.Sprintf(`{"layers":[{"digest":"sha256:%s","size":%d}]}`, manifest.DigestOf(data), len(data))
	return &source{moved: make(chan struct{}), text: []byte(text), data: data, there: len(data)}
}

func (s *source) model() string  { return manifest.DigestOf(s.text) }
func (s *source) digest() string { return manifest.DigestOf(s.data) }

// set moves the point to which bytes are there, and makes all fail; nil: nothing.
func (s *source) set(there int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.there, s.err = there, err
	close(s.moved)
	s.moved = make(chan struct{})
}

func (s *source) Manifest(context.Context, string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text, s.err
}

func (s *source) Size(_ context.Context, _, blob string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if blob != s.digest() {
		return 0, registry.ErrNotHeld
	}
	return int64(len(s.data)), s.err
}

func (s *source) Open(ctx context.Context, _, _ string, offset, length int64) (io.ReadCloser, error) {
	s.opened.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	return &reader{s, ctx, int(offset), int(offset + length)}, s.err
}

type reader struct {
	*source
	ctx     context.Context
	at, end int
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		r.mu.Lock()
		there, err, moved := r.there, r.err, r.moved
		r.mu.Unlock()
		switch {
		case err != nil:
			return 0, err
		case r.at == r.end:
			return 0, io.EOF
		case r.at < there:
			n := copy(p, r.data[r.at:min(there, r.end)])
			r.at += n
			return n, nil
		}
		select {
		case <-moved:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

func (r *reader) Close() error { return nil }

// bubble is a loopback registry in a synctest bubble.
type bubble struct {
	*registry.Registry
	client *http.Client // follows no redirection
}

func inBubble(t *testing.T, from registry.Source, change func(*registry.Config), test func(*testing.T, *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		if s, is := from.(*source); is {
			s.moved = make(chan struct{}) // one of this bubble
		}
		cfg := registry.Default()
		if change != nil {
			change(&cfg)
		}
		b := &bubble{Registry: registry.New(cfg, registry.Deps{Log: slog.New(slog.DiscardHandler), Source: from})}
		network := registrytest.NewNetwork(4711)
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- b.Serve(ctx, network) }()
		transport := &http.Transport{DialContext: network.DialContext, DisableCompression: true}
		b.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		test(t, b)
		transport.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second) // net/http lingers on a connection whose request it did not read to the end
	})
}

// ask sends a request and reads the answer.
func (b *bubble) ask(t *testing.T, method, url, body string, header ...string) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if req.Header.Set(header[i], header[i+1]); header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp, string(data), err
}

func data(n int) []byte {
	all := make([]byte, n)
	x := uint32(7)
	for i := range all {
		x = x*1664525 + 1013904223
		all[i] = byte(x >> 24)
	}
	return all
}

func blobURL(s *source) string {
	return "http://" + host + "/v2/omx/" + s.model() + "/blobs/sha256:" + s.digest()
}

func manifestURL(s *source) string {
	return "http://" + host + "/v2/omx/" + s.model() + "/manifests/omx"
}
