package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registrytest"
	"github.com/ollamamax/ollamamax/internal/models/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// weights is a blob that no two places of are equal.
func weights(n int) []byte {
	data := make([]byte, n)
	x := uint32(1)
	for i := range data {
		x = x*1664525 + 1013904223
		data[i] = byte(x >> 24)
	}
	return data
}

// world is a registry with one model, and a client that knows it as its mirror.
type world struct {
	*registrytest.Registry
	client *upstream.Client
	blob   []byte
	digest string
	text   []byte // the manifest
}

// inWorld runs a test in a bubble with a registry.
func inWorld(t *testing.T, test func(*testing.T, *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{Registry: registrytest.New(t.TempDir()), blob: weights(300_000)}
		w.digest = manifest.DigestOf(w.blob)
		var err error
		if w.text, err = w.Add("Some/Model.x:1B", w.blob, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		network := registrytest.NewNetwork(80)
		server := &http.Server{Handler: w}
		served := make(chan error, 1)
		go func() { served <- server.Serve(network) }()
		transport := &http.Transport{DialContext: network.DialContext}
		cfg := upstream.Default()
		cfg.Mirror = "http://mirror"
		if w.client, err = upstream.New(cfg, transport); err != nil {
			t.Fatal(err)
		}
		test(t, w)
		transport.CloseIdleConnections()
		server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

func (w *world) remote(t *testing.T, text string) *upstream.Remote {
	t.Helper()
	name, err := manifest.ParseName(text)
	if err != nil {
		t.Fatal(err)
	}
	return w.client.Remote(name, false)
}

func (w *world) read(t *testing.T, offset, length int64) ([]byte, error) {
	t.Helper()
	r, err := w.remote(t, "Some/Model.x:1B").Open(t.Context(), w.digest, offset, length)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestManifestAndBlobComeAsTheyAreWithAndWithoutATokenAndARedirection(t *testing.T) {
	for what, faults := range map[string]registrytest.Faults{
		"plainly":         {},
		"with a token":    {Token: "abc.def"},
		"from elsewhere":  {Redirect: true},
		"both":            {Token: "abc.def", Redirect: true},
		"when it is slow": {BytesPerSecond: 20_000},
	} {
		t.Run(what, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.Set(faults)
				for _, name := range []string{"Some/Model.x:1B", "http://other:5000/Some/Model.x:1B"} {
					text, err := w.remote(t, name).Manifest(t.Context())
					if err != nil || !bytes.Equal(text, w.text) {
						t.Errorf("%s: %q %v", name, text, err)
					}
				}
				for _, span := range [][2]int64{{0, 300_000}, {1000, 250_000}, {299_999, 1}, {5, 0}} {
					data, err := w.read(t, span[0], span[1])
					if err != nil || !bytes.Equal(data, w.blob[span[0]:span[0]+span[1]]) {
						t.Errorf("%v: %d bytes, %v", span, len(data), err)
					}
				}
				if sent := w.Sent(w.digest); sent != 550_001 {
					t.Errorf("%d bytes were sent", sent)
				}
			})
		})
	}
}

func TestReadGoesOnWhereItBroke(t *testing.T) {
	for what, faults := range map[string]registrytest.Faults{
		"breaks":         {BreakAfter: 70_000},
		"stalls":         {StallAfter: 70_000},
		"out of order":   {Status: 503, Times: 4},
		"says nothing":   {Silent: true, Times: 4},
		"many too many":  {Status: 429, Times: 4},
		"breaks and is ": {BreakAfter: 10_000, BytesPerSecond: 50_000},
	} {
		t.Run(what, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.Set(faults)
				data, err := w.read(t, 0, 300_000)
				if err != nil || !bytes.Equal(data, w.blob) {
					t.Errorf("%d bytes, %v", len(data), err)
				}
				if sent := w.Sent(w.digest); sent != 300_000 {
					t.Errorf("%d bytes were sent for 300000", sent)
				}
			})
		})
	}
}

func TestRegistryThatMisbehavesIsOneClearErrorAfterABound(t *testing.T) {
	for what, c := range map[string]struct {
		faults registrytest.Faults
		is     error
		text   string
		within time.Duration
	}{
		"silence":         {registrytest.Faults{Silent: true}, upstream.ErrStalled, "6 times: registry is silent: no byte for 30s", 6*30*time.Second + time.Minute},
		"always 500":      {registrytest.Faults{Status: 500}, nil, "6 times: registry answers 500 Internal Server Error: out of order", time.Minute},
		"gone":            {registrytest.Faults{Status: 404}, upstream.ErrNoModel, "404", 0},
		"forbidden":       {registrytest.Faults{Status: 403}, upstream.ErrDenied, "403", 0},
		"another part":    {registrytest.Faults{Elsewhere: true}, nil, "sends other bytes", 0},
		"no parts at all": {registrytest.Faults{Whole: true}, nil, "cannot send a part", 0},
	} {
		t.Run(what, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.Set(c.faults)
				begun := time.Now()
				_, err := w.read(t, 1000, 1000)
				if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) ||
					!strings.HasPrefix(err.Error(), "read blob "+w.digest+" of Some/Model.x:1B from mirror: ") {
					t.Errorf("%v", err)
				}
				if took := time.Since(begun); took > c.within {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestManifestOfAnotherKindIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		if _, err := w.remote(t, "nothing").Manifest(t.Context()); !errors.Is(err, upstream.ErrNoModel) {
			t.Errorf("no model: %v", err)
		}
		for what, answer := range map[string]string{"a page": "<html>", "no layers": "{}", "too much": strings.Repeat(" ", manifest.MaxSize+1)} {
			transport := tripper(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(answer)), Header: http.Header{}, Request: r}, nil
			})
			client, err := upstream.New(upstream.Default(), transport)
			if err != nil {
				t.Fatal(err)
			}
			if text, err := client.Remote(manifest.Name{Host: "h", Namespace: "n", Model: "m", Tag: "t"}, false).Manifest(t.Context()); err == nil {
				t.Errorf("%s: %q", what, text[:min(20, len(text))])
			}
		}
	})
}

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestTokenGoesToNoOtherHostAndTLSIsNotGivenUp(t *testing.T) {
	for what, c := range map[string]struct {
		realm, redirect, fails string
	}{
		"a realm without TLS":       {realm: "http://registry/token", fails: "sends to"},
		"a realm that is no URL":    {realm: "%zz", fails: "sends to"},
		"a redirection without TLS": {realm: "https://registry/token", redirect: "http://registry/x", fails: "https to http"},
		"a redirection to another":  {realm: "https://auth/token", redirect: "https://cdn/x"},
	} {
		t.Run(what, func(t *testing.T) {
			transport := tripper(func(r *http.Request) (*http.Response, error) {
				resp := &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, Body: io.NopCloser(strings.NewReader("x"))}
				has := r.Header.Get("Authorization") != ""
				switch {
				case r.URL.Scheme != "https":
					t.Errorf("asked %s", r.URL)
				case r.URL.Path == "/token":
					resp.Body = io.NopCloser(strings.NewReader(`{"access_token":"secret"}`))
				case r.URL.Host != "registry":
					if has {
						t.Errorf("the token went to %s", r.URL)
					}
				case !has:
					resp.StatusCode = 401
					resp.Header.Set("Www-Authenticate", `Bearer realm="`+c.realm+`",service="s",scope="a b"`)
				default:
					resp.StatusCode = 307
					resp.Header.Set("Location", c.redirect)
				}
				return resp, nil
			})
			cfg := upstream.Default()
			cfg.Mirror = "https://registry"
			client, err := upstream.New(cfg, transport)
			if err != nil {
				t.Fatal(err)
			}
			name, _ := manifest.ParseName("m")
			synctest.Test(t, func(t *testing.T) {
				r, err := client.Remote(name, true).Open(t.Context(), strings.Repeat("0", 64), 0, 1)
				if c.fails == "" {
					if err != nil {
						t.Fatal(err)
					}
					data, err := io.ReadAll(r)
					if string(data) != "x" || err != nil {
						t.Errorf("%q %v", data, err)
					}
					r.Close()
				} else if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%v", err)
				}
			})
		})
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.Set(registrytest.Faults{StallAfter: 1000})
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		r, err := w.remote(t, "Some/Model.x:1B").Open(ctx, w.digest, 0, 300_000)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		time.AfterFunc(5*time.Second, func() { cancel(cause) })
		if data, err := io.ReadAll(r); !errors.Is(err, cause) || !bytes.Equal(data, w.blob[:1000]) {
			t.Errorf("%d bytes, %v", len(data), err)
		}
	})
}

func TestBadMirrorIsRefused(t *testing.T) {
	for _, mirror := range []string{"", "registry", "ftp://x", "https://user:secret@x", "https://"} {
		cfg := upstream.Default()
		if cfg.Mirror = mirror; cfg.Validate() == nil {
			t.Errorf("%q passes", mirror)
		}
	}
	if err := upstream.Default().Validate(); err != nil {
		t.Error(err)
	}
}
