package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollama/ollama/x/transfer"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registry"
)

// pushed is a model that an engine pushes: one wanted blob and one that nobody wants.
type pushed struct {
	*source
	got     bytes.Buffer
	receipt *registry.Receipt
	base    string // URL of its repository
}

func receive(t *testing.T, b *bubble, s *source) *pushed {
	t.Helper()
	p := &pushed{source: s}
	var err error
	p.receipt, err = b.Receive(s.model(), manifest.Wanted{Blob: manifest.Blob{Digest: s.digest(), Size: int64(len(s.data))}, To: &p.got})
	if err != nil {
		t.Fatal(err)
	}
	p.base = "http://" + host + "/v2/omx/" + p.receipt.Repository()
	return p
}

// must sends a request that has to be answered with a status, and returns the answer.
func (b *bubble) must(t *testing.T, status int, method, url, body string, header ...string) *http.Response {
	t.Helper()
	resp, text, err := b.ask(t, method, url, body, header...)
	if err != nil || resp.StatusCode != status {
		t.Fatalf("%s %s: %v %v %q, not %d", method, url, err, resp, text, status)
	}
	return resp
}

func TestPushGivesTheWantedBlobAndTheManifest(t *testing.T) {
	s := newSource(data(250_000))
	s.text = append(s.text, '\n') // as Ollama writes it
	unwanted := strings.Repeat("5", 64)
	inBubble(t, nil, nil, func(t *testing.T, b *bubble) {
		p := receive(t, b, s)
		b.must(t, 200, "HEAD", p.base+"/blobs/sha256:"+unwanted, "")
		b.must(t, 404, "HEAD", p.base+"/blobs/sha256:"+s.digest(), "")
		at := b.must(t, 202, "POST", p.base+"/blobs/uploads/", "").Header.Get("Location")
		at = b.must(t, 202, "PATCH", at, string(s.data[:100_000]), "Content-Range", "0-99999").Header.Get("Location")
		// A connection broke, and Ollama sends the part again, and more of it.
		at = b.must(t, 202, "PATCH", at, string(s.data[50_000:200_000]), "Content-Range", "50000-199999").Header.Get("Location")
		b.must(t, 416, "PATCH", at, "x", "Content-Range", "249999-249999")
		b.must(t, 416, "PUT", at+"?digest=sha256:"+s.digest(), "")
		at = b.must(t, 202, "PATCH", at, string(s.data[200_000:]), "Content-Range", "200000-249999").Header.Get("Location")
		if _, err := p.receipt.Manifest(); err == nil {
			t.Error("the push has not ended and is whole")
		}
		b.must(t, 201, "PUT", at+"?etag=x&digest=sha256:"+s.digest(), "")
		b.must(t, 201, "PUT", p.base+"/manifests/omx", strings.TrimSpace(string(s.text)))
		if text, err := p.receipt.Manifest(); err != nil || !bytes.Equal(text, s.text) {
			t.Errorf("%q %v", text, err)
		}
		if !bytes.Equal(p.got.Bytes(), s.data) {
			t.Errorf("%d bytes came", p.got.Len())
		}
		if _, err := b.Receive(s.model()); !errors.Is(err, registry.ErrReceiving) {
			t.Errorf("twice at once: %v", err)
		}
		p.receipt.Close()
		b.must(t, 404, "HEAD", p.base+"/blobs/sha256:"+unwanted, "")
		b.must(t, 404, "POST", p.base+"/blobs/uploads/", "")
		p2 := receive(t, b, s)
		p.receipt.Close() // again: the other stays
		b.must(t, 200, "HEAD", p2.base+"/blobs/sha256:"+unwanted, "")
	})
}

func TestOllamasOtherWayToPushGivesTheBlob(t *testing.T) {
	s := newSource(data(250_000))
	inBubble(t, nil, nil, func(t *testing.T, b *bubble) {
		p := receive(t, b, s)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "sha256-"+s.digest()), s.data, 0o600); err != nil {
			t.Fatal(err)
		}
		err := transfer.Upload(t.Context(), transfer.UploadOptions{Client: b.client, BaseURL: "http://" + host, SrcDir: dir,
			Repository: "omx/" + p.receipt.Repository(), Manifest: s.text, ManifestRef: "omx",
			Blobs: []transfer.Blob{{Digest: "sha256:" + s.digest(), Size: 250_000}, {Digest: "sha256:" + strings.Repeat("5", 64), Size: 9}}})
		if err != nil {
			t.Fatal(err)
		}
		if text, err := p.receipt.Manifest(); err != nil || !bytes.Equal(text, s.text) || !bytes.Equal(p.got.Bytes(), s.data) {
			t.Errorf("%q %v, %d bytes", text, err, p.got.Len())
		}
	})
}

var errFull = errors.New("disk is full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestPushThatCannotBeTakenTellsWhoFollows(t *testing.T) {
	s := newSource(data(1000))
	all := string(s.data)
	for what, c := range map[string]struct {
		says string
		push func(t *testing.T, b *bubble, base, at string)
	}{
		"other bytes": {"its bytes have the digest", func(t *testing.T, b *bubble, base, at string) {
			b.must(t, 202, "PATCH", at, strings.Repeat("x", 1000), "Content-Range", "0-999")
			b.must(t, 400, "PUT", at+"?digest=sha256:"+s.digest(), "")
		}},
		"another blob": {"the engine sent", func(t *testing.T, b *bubble, base, at string) {
			b.must(t, 202, "PATCH", at, all, "Content-Range", "0-999")
			b.must(t, 400, "PUT", at+"?digest=sha256:"+strings.Repeat("5", 64), "")
		}},
		"another manifest": {"with other bytes", func(t *testing.T, b *bubble, base, at string) {
			b.must(t, 202, "PATCH", at, all, "Content-Range", "0-999")
			b.must(t, 201, "PUT", at+"?digest=sha256:"+s.digest(), "")
			b.must(t, 400, "PUT", base+"/manifests/omx", "{}")
		}},
		"no blob": {"did not send blob", func(t *testing.T, b *bubble, base, at string) {
			b.must(t, 400, "PUT", base+"/manifests/omx", string(s.text))
		}},
	} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, nil, nil, func(t *testing.T, b *bubble) {
				p := receive(t, b, s)
				ctx, cancel := b.Follow(t.Context(), p.receipt.Repository())
				defer cancel()
				b.must(t, 404, "HEAD", p.base+"/blobs/sha256:"+s.digest(), "")
				at := b.must(t, 202, "POST", p.base+"/blobs/uploads/", "").Header.Get("Location")
				c.push(t, b, p.base, at)
				_, err := p.receipt.Manifest()
				if err == nil || !strings.Contains(err.Error(), c.says) || context.Cause(ctx) != err {
					t.Errorf("%v, and who follows heard %v", err, context.Cause(ctx))
				}
			})
		})
	}
	t.Run("a full disk", func(t *testing.T) {
		inBubble(t, nil, nil, func(t *testing.T, b *bubble) {
			p, err := b.Receive(s.model(), manifest.Wanted{Blob: manifest.Blob{Digest: s.digest(), Size: 1000}, To: full{}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := b.Follow(t.Context(), p.Repository())
			defer cancel()
			at := fmt.Sprintf("http://%s/v2/omx/%s/blobs/uploads/sha256:%s", host, p.Repository(), s.digest())
			b.must(t, 507, "PATCH", at, all, "Content-Range", "0-999")
			if err := context.Cause(ctx); !errors.Is(err, errFull) {
				t.Error(err)
			}
		})
	})
}

func TestMoreThanWasAnnouncedIsNotTaken(t *testing.T) {
	s := newSource(data(1000))
	inBubble(t, nil, nil, func(t *testing.T, b *bubble) {
		p := receive(t, b, s)
		at := p.base + "/blobs/uploads/sha256:" + s.digest()
		for _, span := range []string{"", "0-1000", "1-10", "-5", "5-4", "0-9223372036854775807", "bytes 0-1000/5", "0--1", "+0-9"} {
			b.must(t, 416, "PATCH", at, "x", "Content-Range", span)
		}
		b.must(t, 400, "PATCH", at, string(s.data[:400]), "Content-Range", "0-499") // ends early
		b.must(t, 202, "PATCH", at, string(s.data[400:700])+"and more", "Content-Range", "bytes 400-699/1000")
		if !bytes.Equal(p.got.Bytes(), s.data[:700]) {
			t.Errorf("%d bytes came", p.got.Len())
		}
		b.must(t, 404, "PATCH", p.base+"/blobs/uploads/sha256:"+strings.Repeat("5", 64), "x", "Content-Range", "0-0")
		b.must(t, 400, "PUT", p.base+"/manifests/omx", strings.Repeat(" ", manifest.MaxSize+1))
	})
}

// silentBody announces bytes and sends none until it is closed.
type silentBody struct{ ctx context.Context }

func (s silentBody) Read([]byte) (int, error) { <-s.ctx.Done(); return 0, s.ctx.Err() }
func (s silentBody) Close() error             { return nil }

func TestPushThatSendsNothingIsLetGo(t *testing.T) {
	s := newSource(data(1000))
	inBubble(t, nil, func(c *registry.Config) { c.MaxRequests = 1 }, func(t *testing.T, b *bubble) {
		p := receive(t, b, s)
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "PATCH", p.base+"/blobs/uploads/sha256:"+s.digest(), silentBody{ctx})
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = 1000
		req.Header.Set("Content-Range", "0-999")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if resp, err := b.client.Do(req); err == nil {
				resp.Body.Close()
			}
		}()
		synctest.Wait()
		b.must(t, 503, "HEAD", p.base+"/blobs/sha256:"+s.digest(), "")
		time.Sleep(registry.Default().IdleTimeout + time.Second)
		b.must(t, 404, "HEAD", p.base+"/blobs/sha256:"+s.digest(), "")
		cancel()
		<-ended
	})
}
