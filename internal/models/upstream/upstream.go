// Package upstream reads models from the registries that people's names for models mean: manifests, and ranges of
// blobs.
//
// It stores nothing and checks no blob's bytes: who asked for them does. A read that breaks or is silent is
// taken up where it stopped, a few times, so that an error of this package is one that an operator should hear: it
// says which registry, and what it did. A registry is spoken to with TLS unless the name or the configuration says
// http, is never given a password, and its token goes to no other host.
//
// Start reading at Client.Remote and Remote.Open.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// Config says where models come from that no node has. Needs a restart.
type Config struct {
	// Mirror is the URL of the registry that names without a host mean; http:// for one without TLS.
	// Default: Ollama's own.
	Mirror string `yaml:"mirror"`
	// Stall is how long a registry may be silent before it is asked anew. Default 30s.
	Stall time.Duration `yaml:"stall"`
}

// Default returns the defaults.
func Default() Config {
	return Config{Mirror: "https://" + manifest.DefaultHost, Stall: 30 * time.Second}
}

// Validate returns what is wrong with the configuration, for an operator.
func (c Config) Validate() error {
	if u, err := url.Parse(c.Mirror); err != nil || u.Host == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("models.mirror is %q: write it like %s", c.Mirror, Default().Mirror)
	}
	if c.Stall <= 0 {
		return fmt.Errorf("models.stall is %v: give a time such as 30s", c.Stall)
	}
	return nil
}

// A registry is asked so often without a byte's progress, with pauses that double up to the longest.
const (
	attempts     = 6
	firstPause   = 500 * time.Millisecond
	longestPause = 30 * time.Second
)

// What registries did; errors.Is finds them in what a Remote returns.
var (
	ErrNoModel = errors.New("no such model")
	ErrDenied  = errors.New("registry wants a login, which a cluster has not")
	ErrStalled = errors.New("registry is silent")
)

// Client reads from registries. It is safe for concurrent use.
type Client struct {
	cfg    Config
	mirror *url.URL
	http   *http.Client
}

// New returns a Client that sends its requests with transport.
func New(cfg Config, transport http.RoundTripper) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	mirror, err := url.Parse(cfg.Mirror)
	if err != nil {
		return nil, fmt.Errorf("parse models.mirror: %w", err)
	}
	return &Client{cfg: cfg, mirror: mirror, http: &http.Client{Transport: transport, CheckRedirect: checkRedirect}}, nil
}

// checkRedirect lets a registry send its clients to where the bytes are, but not from TLS to none.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("registry redirects more than ten times")
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("registry redirects from https to http")
	}
	return nil
}

// Remote is a model at its registry.
type Remote struct {
	client *Client
	name   manifest.Name
	base   *url.URL

	mu    sync.Mutex
	token string
}

// Remote returns the model that a name means. Insecure asks a host that the name has without TLS.
func (c *Client) Remote(name manifest.Name, insecure bool) *Remote {
	base := c.mirror
	if !strings.EqualFold(name.Host, manifest.DefaultHost) {
		base = &url.URL{Scheme: "https", Host: name.Host}
		if insecure || name.Plain {
			base.Scheme = "http"
		}
	}
	return &Remote{client: c, name: name, base: base.JoinPath("v2", name.Namespace, name.Model)}
}

// Manifest returns the bytes of the model's manifest, which can be parsed.
func (r *Remote) Manifest(ctx context.Context) ([]byte, error) {
	var data []byte
	err := r.again(ctx, func() error {
		a, err := r.get(ctx, r.base.JoinPath("manifests", r.name.Tag), http.Header{
			"Accept": {"application/vnd.docker.distribution.manifest.v2+json"}})
		if err != nil {
			return err
		}
		defer a.Close()
		if a.resp.StatusCode != http.StatusOK {
			return statusError(a)
		}
		data, err = io.ReadAll(io.LimitReader(a, manifest.MaxSize+1))
		return err
	})
	if err == nil {
		_, err = manifest.Parse(data)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest of %s from %s: %w", r.name, r.base.Host, err)
	}
	return data, nil
}

// again calls try until it succeeds, or fails for good, or has failed some times.
func (r *Remote) again(ctx context.Context, try func() error) error {
	pause := firstPause
	for failed := 1; ; failed++ {
		err := try()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil || isFinal(err) {
			return err
		}
		if failed >= attempts {
			return fmt.Errorf("%d times: %w", failed, err)
		}
		wait := pause/2 + rand.N(pause/2)
		var said *StatusError
		if errors.As(err, &said) {
			wait = max(wait, min(said.retryAfter, longestPause))
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		pause = min(2*pause, longestPause)
	}
}

// StatusError is an answer that is none of those that are looked for.
type StatusError struct {
	Status int
	// Text is what the registry says, shortened.
	Text       string
	retryAfter time.Duration
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("registry answers %d %s", e.Status, http.StatusText(e.Status))
	if e.Text != "" {
		text += ": " + e.Text
	}
	return text
}

// Is tells what a status means.
func (e *StatusError) Is(target error) bool {
	switch target {
	case ErrNoModel:
		return e.Status == http.StatusNotFound
	case ErrDenied:
		return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
	}
	return false
}

// finalError is one that asking again does not mend.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func isFinal(err error) bool {
	var final finalError
	var said *StatusError
	if errors.As(err, &said) {
		return said.Status < 500 && said.Status != http.StatusTooManyRequests && said.Status != http.StatusRequestTimeout
	}
	return errors.As(err, &final)
}

// statusError reads what an answer says.
func statusError(a *answer) error {
	text, _ := io.ReadAll(io.LimitReader(a, 512)) // it explains, no more
	e := &StatusError{Status: a.resp.StatusCode, Text: printable(string(text))}
	if seconds, err := strconv.Atoi(a.resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.retryAfter = time.Duration(min(seconds, 3600)) * time.Second
	}
	return e
}

// printable is a text on one line.
func printable(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(c rune) bool { return c < ' ' || c == 0x7f || c == 0xfffd }), " ")
}
