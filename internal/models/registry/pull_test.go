package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollama/ollama/x/transfer"

	"github.com/ollamamax/ollamamax/internal/models/registry"
)

func TestModelIsServedInTheFormThatOllamaNeeds(t *testing.T) {
	s := newSource(data(500_000))
	inBubble(t, s, nil, func(t *testing.T, b *bubble) {
		resp, text, err := b.ask(t, "GET", manifestURL(s), "")
		if err != nil || resp.StatusCode != 200 || text != string(s.text) {
			t.Errorf("manifest: %v %v %q", err, resp, text)
		}
		resp, _, err = b.ask(t, "HEAD", blobURL(s), "")
		if err != nil || resp.StatusCode != 200 || resp.ContentLength != 500_000 {
			t.Errorf("head: %v %v", err, resp)
		}
		resp, text, err = b.ask(t, "GET", blobURL(s), "", "Range", "bytes=1000-400999")
		if err != nil || resp.StatusCode != 206 || text != string(s.data[1000:401_000]) || resp.Header.Get("Content-Range") != "bytes 1000-400999/500000" {
			t.Errorf("range: %v %v, %d bytes", err, resp, len(text))
		}
		resp, text, err = b.ask(t, "GET", blobURL(s), "", "Range", "bytes=500000-")
		if err != nil || resp.StatusCode != 416 || resp.Header.Get("Content-Range") != "bytes */500000" {
			t.Errorf("range behind the end: %v %v %q", err, resp, text)
		}
		resp, text, err = b.ask(t, "GET", blobURL(s), "")
		if err != nil || resp.StatusCode != 307 || text != "" {
			t.Fatalf("no range: %v %v, %d bytes", err, resp, len(text))
		}
		place := resp.Header.Get("Location")
		if !strings.HasPrefix(place, "http://[::ffff:127.0.0.1]:4711/v2/omx/") {
			t.Errorf("redirected to %s", place)
		}
		resp, text, err = b.ask(t, "GET", place, "")
		if err != nil || resp.StatusCode != 200 || text != string(s.data) {
			t.Errorf("there: %v %v, %d bytes", err, resp, len(text))
		}
		for _, path := range []string{"/v2/library/" + s.model() + "/manifests/omx", "/v2/omx/x/manifests/omx", "/v2/omx/" + s.model() + "/blobs/sha256:x",
			"/v2/omx/" + s.model() + "/blobs/sha256:" + strings.Repeat("0", 64), "/", "/v2/omx/out-" + s.model() + "/manifests/omx"} {
			if resp, text, err := b.ask(t, "GET", "http://"+host+path, ""); err != nil || resp.StatusCode != 404 {
				t.Errorf("%s: %v %v %q", path, err, resp, text)
			}
		}
	})
}

// Ollama takes models of many small blobs with another program than all others.
func TestOllamasOtherWayToPullGetsTheBlob(t *testing.T) {
	s := newSource(data(500_000))
	inBubble(t, s, nil, func(t *testing.T, b *bubble) {
		dir := t.TempDir()
		err := transfer.Download(t.Context(), transfer.DownloadOptions{Client: b.client, BaseURL: "http://" + host, DestDir: dir,
			Repository: "omx/" + s.model(), Blobs: []transfer.Blob{{Digest: "sha256:" + s.digest(), Size: 500_000}}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "sha256-"+s.digest()))
		if err != nil || !bytes.Equal(got, s.data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

func TestBytesThatComeLateAndSourcesThatFailForAWhileAreNoFailure(t *testing.T) {
	s := newSource(data(500_000))
	s.set(100_000, nil)
	inBubble(t, s, nil, func(t *testing.T, b *bubble) {
		go func() {
			time.Sleep(10 * time.Minute) // silent
			s.set(100_000, errors.New("a node died"))
			time.Sleep(time.Minute)
			s.set(300_000, nil)
			time.Sleep(time.Hour)
			s.set(300_000, errors.New("another died"))
			time.Sleep(time.Minute)
			s.set(500_000, nil)
		}()
		resp, text, err := b.ask(t, "GET", blobURL(s), "", "Range", "bytes=0-499999")
		if err != nil || resp.StatusCode != 206 || text != string(s.data) {
			t.Errorf("%v %v, %d bytes", err, resp, len(text))
		}
	})
}

// slowly tells the longest silence in a body after its first byte.
func slowly(body io.Reader) (data []byte, silence time.Duration, err error) {
	buffer := make([]byte, 32<<10)
	for last := (time.Time{}); ; {
		n, err := body.Read(buffer)
		if now := time.Now(); n > 0 {
			if !last.IsZero() {
				silence = max(silence, now.Sub(last))
			}
			last = now
		}
		data = append(data, buffer[:n]...)
		if err == io.EOF {
			return data, silence, nil
		}
		if err != nil {
			return data, silence, err
		}
	}
}

func TestAnswerIsNeverSilentForLongOnceItBegan(t *testing.T) {
	for what, there := range map[string]int{"much": 100_000, "little": 3_000, "less than is held back": 1_000} {
		t.Run(what, func(t *testing.T) {
			s := newSource(data(500_000))
			inBubble(t, s, nil, func(t *testing.T, b *bubble) {
				s.set(there, nil)
				time.AfterFunc(time.Hour, func() { s.set(500_000, nil) })
				req, err := http.NewRequestWithContext(t.Context(), "GET", blobURL(s), nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Range", "bytes=0-499999")
				resp, err := b.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				got, silence, err := slowly(resp.Body)
				if err != nil || !bytes.Equal(got, s.data) || silence > 6*time.Second {
					t.Errorf("%v, %d bytes, silent for %v", err, len(got), silence)
				}
				if n := s.opened.Load(); n != 1 {
					t.Errorf("the source was opened %d times", n)
				}
			})
		})
	}
}

func TestFailureForGoodEndsTheAnswerAndTellsWhoFollows(t *testing.T) {
	for what, c := range map[string]struct {
		err    error
		within time.Duration
	}{
		"nobody holds it":   {registry.ErrNotHeld, time.Second},
		"fails for minutes": {errors.New("a node died"), 3 * time.Minute},
	} {
		t.Run(what, func(t *testing.T) {
			s := newSource(data(500_000))
			s.set(100_000, nil)
			inBubble(t, s, nil, func(t *testing.T, b *bubble) {
				ctx, cancel := b.Follow(t.Context(), s.model())
				defer cancel()
				other, cancelOther := b.Follow(t.Context(), strings.Repeat("0", 64))
				defer cancelOther()
				time.AfterFunc(time.Second, func() { s.set(100_000, c.err) })
				begun := time.Now()
				_, text, err := b.ask(t, "GET", blobURL(s), "", "Range", "bytes=0-499999")
				if err == nil || text != string(s.data[:100_000]) {
					t.Errorf("%v, %d bytes", err, len(text))
				}
				synctest.Wait()
				if err := context.Cause(ctx); !errors.Is(err, c.err) || time.Since(begun) > c.within+time.Second || !strings.Contains(err.Error(), s.digest()) {
					t.Errorf("after %v: %v", time.Since(begun), err)
				}
				if other.Err() != nil {
					t.Error("who follows another model was told")
				}
				// From the first byte on: no words that Ollama would write into the blob.
				if _, text, err := b.ask(t, "GET", blobURL(s), "", "Range", "bytes=0-9"); err == nil && text != "" {
					t.Errorf("%v %q", err, text)
				}
			})
		})
	}
}

func TestManifestWithOtherBytesIsRefused(t *testing.T) {
	s := newSource(data(10))
	model := s.model()
	s.text = append(s.text, '\n')
	inBubble(t, s, nil, func(t *testing.T, b *bubble) {
		ctx, cancel := b.Follow(t.Context(), model)
		defer cancel()
		resp, text, err := b.ask(t, "GET", "http://"+host+"/v2/omx/"+model+"/manifests/omx", "")
		if err != nil || resp.StatusCode != 502 || !strings.Contains(text, "those of another") || ctx.Err() == nil {
			t.Errorf("%v %v %q", err, resp, text)
		}
	})
}

func TestOnlyProgramsOfThisMachineAreServed(t *testing.T) {
	s := newSource(data(10))
	r := registry.New(registry.Default(), registry.Deps{Log: slog.New(slog.DiscardHandler), Source: s})
	for what, c := range map[string]struct {
		from, host, origin string
		want               int
	}{
		"a program":                {"127.0.0.1:9", host, "", 200},
		"at the other name":        {"127.0.0.1:9", "[::ffff:127.0.0.1]:4711", "", 200},
		"on port 80":               {"127.0.0.1:9", "127.3.0.1", "", 200},
		"another machine":          {"192.168.1.2:9", host, "", 403},
		"another's name for us":    {"127.0.0.1:9", "evil.example:4711", "", 403},
		"a page":                   {"127.0.0.1:9", host, "http://evil.example", 403},
		"a page without an origin": {"127.0.0.1:9", host, "null", 403},
		"nobody":                   {"pipe", host, "", 403},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", manifestURL(s), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.RemoteAddr, req.Host = c.from, c.host
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		w := &recorder{header: http.Header{}, status: 200}
		r.ServeHTTP(w, req)
		if w.status != c.want {
			t.Errorf("%s: %d", what, w.status)
		}
	}
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }

func TestClientsThatHoldOnAreLetGo(t *testing.T) {
	s := newSource(data(5_000_000))
	inBubble(t, s, func(c *registry.Config) { c.MaxRequests = 1 }, func(t *testing.T, b *bubble) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", blobURL(s), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", "bytes=0-")
		resp, err := b.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp, _, err := b.ask(t, "HEAD", blobURL(s), ""); err != nil || resp.StatusCode != 503 {
			t.Errorf("one too many: %v %v", err, resp)
		}
		time.Sleep(registry.Default().IdleTimeout + time.Second)
		if resp, _, err := b.ask(t, "HEAD", blobURL(s), ""); err != nil || resp.StatusCode != 200 {
			t.Errorf("after it: %v %v", err, resp)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Errorf("who took nothing got %d bytes", n)
		}
	})
}
