// Package engine is the inference server beside this node: it finds or supervises it, learns what
// it holds, and carries requests to it.
//
// It never changes a request or an answer, keeps no queue and chooses no node: that is the
// gateway's and the scheduler's. Its Status is an immutable value, replaced whole.
//
// Start reading at Engine, then probeOllama and probeV1 (what an engine tells) and supervise (one
// that is ours).
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/roundtrip"
	"github.com/ollamamax/ollamamax/internal/socket"
)

// DefaultURL is where an Ollama listens that nobody configured.
const DefaultURL = "http://127.0.0.1:11434"

// llamaServerURL is where a llama-server listens that nobody configured.
const llamaServerURL = "http://127.0.0.1:8080"

const (
	probeInterval  = time.Second
	fullProbeEvery = 5
	probeTimeout   = 3 * time.Second
	dialTimeout    = 2 * time.Second
)

// Config says which engine is beside the node. Every field needs a restart.
type Config struct {
	// Kind of the server: ollama (the default), llama-server, or openai for any other that speaks
	// OpenAI's /v1. The last two take /v1 routes only.
	Kind cluster.EngineKind `yaml:"kind"`
	// URL of a running engine to attach to. When neither it nor Command is set: for ollama
	// http://127.0.0.1:11434, for llama-server http://127.0.0.1:8080; openai has no default.
	URL string `yaml:"url"`
	// Command is the path of an ollama or a llama-server to supervise on a private port, instead of
	// attaching.
	Command string `yaml:"command"`
	// ModelsDir is the supervised engine's model folder; empty: "models" in the node's data directory.
	// A llama-server's holds the models as *.gguf: the only one is loaded at once, of several each
	// when it is asked for.
	ModelsDir string `yaml:"models_dir"`
	// Slots is how many requests the engine serves at once; 0: what it says itself, if it does.
	Slots int `yaml:"slots"`
	// Env is added to the supervised engine's environment.
	Env map[string]string `yaml:"env"`
	// APIKey is sent to the engine as a bearer token, in place of what the client sent; empty: none.
	APIKey APIKey `yaml:"api_key"`
}

// APIKey is a secret: printed or marshalled it is a mask.
type APIKey string

// String returns a mask, or "" for no key.
func (k APIKey) String() string {
	if k == "" {
		return ""
	}
	return "********"
}

// GoString returns what String does.
func (k APIKey) GoString() string { return k.String() }

// MarshalText returns what String does.
func (k APIKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Validate returns what is wrong with the configuration, for an operator.
func (c Config) Validate() error {
	switch c.Kind {
	case "", cluster.Ollama, cluster.LlamaServer:
	case cluster.OpenAI:
		if c.Command != "" {
			return errors.New("engine.kind is openai, whose command nobody knows how to start: run the server yourself and give its address with --engine-url")
		}
		if c.URL == "" {
			return errors.New("engine.kind is openai, which has no usual address: give it with --engine-url")
		}
	default:
		return fmt.Errorf("engine.kind is %q: use ollama, llama-server or openai", c.Kind)
	}
	if c.URL != "" && c.Command != "" {
		return errors.New("engine.url and engine.command are both set: attach to a running engine with the one, or supervise one with the other")
	}
	if c.Slots < 0 {
		return fmt.Errorf("engine.slots is %d: give the number of requests the engine serves at once, or 0 if unknown", c.Slots)
	}
	if c.URL != "" {
		if u, err := url.Parse(c.URL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("engine.url is %q: write it like %s", c.URL, DefaultURL)
		}
	}
	return nil
}

// Deps is what an Engine needs of its node.
type Deps struct {
	Log *slog.Logger
	// DataDir holds the supervised engine's record and, by default, its models.
	DataDir string
	// Environ is the environment a supervised engine starts from, as os.Environ gives it.
	Environ []string
	// Changed is called after every change of Status. It must not block.
	Changed func()
	// Hidden tells which names nobody is to see. Nil: none.
	Hidden func(name string) bool
}

// Status is what is known of the engine at one moment. The slices are never changed again.
type Status struct {
	Engine cluster.Engine
	Models []cluster.Model
	Loaded []cluster.Loaded
	Slots  int // how many requests it serves at once; 0: unknown
}

// Engine is the inference server beside this node.
type Engine struct {
	cfg       Config
	deps      Deps
	transport *http.Transport         // for what streams to the engine, and what is not plain HTTP
	exchanges *roundtrip.Client       // for all else
	base      atomic.Pointer[url.URL] // nil while there is nothing to talk to
	status    atomic.Pointer[Status]
	probing   chan struct{} // a lock that a context can give up on
	last      inventory     // guarded by probing
	busy      atomic.Int64
	ended     atomic.Pointer[string] // why the supervised engine ended last; nil: it did not
	again     chan struct{}          // told to begin anew
	reloading chan struct{}          // a lock, as probing is
	runs      atomic.Int64           // how often the supervised engine's folder was looked at for a new start
	router    atomic.Bool            // it is a llama-server with several models
}

// ErrDown is returned for a request while there is no engine to send it to.
var ErrDown = errors.New("engine is not running")

// New returns an engine that is described by cfg and not yet looked for.
func New(cfg Config, deps Deps) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Kind == "" {
		cfg.Kind = cluster.Ollama
	}
	if cfg.URL == "" && cfg.Command == "" {
		cfg.URL = DefaultURL
		if cfg.Kind == cluster.LlamaServer {
			cfg.URL = llamaServerURL
		}
	}
	if deps.Hidden == nil {
		deps.Hidden = func(string) bool { return false }
	}
	e := &Engine{
		cfg:       cfg,
		deps:      deps,
		probing:   make(chan struct{}, 1),
		again:     make(chan struct{}, 1),
		reloading: make(chan struct{}, 1),
		transport: &http.Transport{
			DialContext:        (&net.Dialer{Timeout: dialTimeout}).DialContext,
			DisableCompression: true, // bytes go through as they came
			// A llama-server promises to keep a connection and closes it after each stream; a request
			// that is just being written there would be lost.
			DisableKeepAlives:   cfg.Kind != cluster.Ollama,
			MaxIdleConns:        1024,
			MaxIdleConnsPerHost: 1024,
			IdleConnTimeout:     90 * time.Second,
			TLSHandshakeTimeout: 5 * time.Second,
		},
	}
	idle := 1024
	if cfg.Kind != cluster.Ollama {
		idle = 0 // as above
	}
	e.exchanges = roundtrip.New(roundtrip.Config{MaxIdle: idle, IdleTimeout: 90 * time.Second,
		Dial: func(ctx context.Context, host string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", withPort(host))
			if err != nil {
				return nil, err
			}
			return socket.Direct(conn), nil
		}})
	condition := cluster.EngineDown
	why := "not yet reached"
	if cfg.Command != "" {
		condition, why = cluster.EngineStarting, "starting"
	} else {
		text := strings.TrimSuffix(cfg.URL, "/")
		if cfg.Kind != cluster.Ollama {
			text = strings.TrimSuffix(text, "/v1") // such an API's address is often written with it
		}
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("parse engine.url: %w", err)
		}
		e.base.Store(u)
	}
	e.status.Store(&Status{Engine: cluster.Engine{Kind: cfg.Kind, Condition: condition, Why: why, Folder: e.Folder() != ""}, Models: []cluster.Model{}, Loaded: []cluster.Loaded{}})
	return e, nil
}

// Run keeps the engine's status current and, with engine.command, the engine running, until ctx
// ends. It returns after a supervised engine and all its children have ended.
func (e *Engine) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if e.cfg.Command != "" {
		group.Go(func() error { return e.supervise(ctx) })
	}
	group.Go(func() error {
		ticker := time.NewTicker(probeInterval)
		defer ticker.Stop()
		for i := 0; ; i++ {
			e.look(ctx, i%fullProbeEvery == 0)
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	})
	err := group.Wait()
	e.transport.CloseIdleConnections()
	e.exchanges.CloseIdleConnections()
	return err
}

// Status returns what is known of the engine now. It is never nil.
func (e *Engine) Status() *Status { return e.status.Load() }

// Slots is the number of requests the engine serves at once, as configured or else as it says; 0 if
// unknown.
func (e *Engine) Slots() int { return cmp.Or(e.cfg.Slots, e.Status().Slots) }

// Where says for a person where the engine is: its URL, or the command that is supervised.
func (e *Engine) Where() string {
	if e.cfg.Command != "" {
		return e.cfg.Command
	}
	return e.cfg.URL
}

// Refresh asks the engine what it holds and returns when Status says so, or ctx ends: after a
// request that changed it. Run looks by itself for what others change: every second for what is
// loaded, every fifth for all.
func (e *Engine) Refresh(ctx context.Context) { e.look(ctx, true) }

// look asks for everything, or only for what is loaded, which says as well that the engine lives.
func (e *Engine) look(ctx context.Context, full bool) {
	select {
	case e.probing <- struct{}{}:
		defer func() { <-e.probing }()
	case <-ctx.Done():
		return
	}
	probing, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	next, err := e.probe(probing, full)
	if at, limited := ctx.Deadline(); ctx.Err() != nil || limited && !time.Now().Before(at) { // a dial may know before the context does
		return // the caller left, or we are stopping; the engine is not to blame
	}
	previous := e.Status()
	if err != nil {
		// What it held it holds still: prompts for it are to wait or fail, not to be told that there
		// is no such model.
		next = &Status{Engine: previous.Engine, Models: previous.Models, Loaded: previous.Loaded, Slots: previous.Slots}
		next.Engine.Condition, next.Engine.Why = cluster.EngineDown, err.Error()
		switch ended := e.ended.Load(); {
		case errors.Is(err, errLoading):
			next.Engine.Condition = cluster.EngineStarting
		case e.cfg.Command != "" && neverSent(err): // not there, or not listening yet
			next.Engine.Condition, next.Engine.Why = cluster.EngineStarting, "starting"
			if ended != nil {
				next.Engine.Why = "starting again: " + *ended
			}
		}
		e.last = inventory{}
		if dir := e.Folder(); dir != "" {
			next.Models = slices.DeleteFunc(slices.Clone(next.Models), func(m cluster.Model) bool { return !isThere(dir, m.Name) })
		}
		if reflect.DeepEqual(next.Engine, previous.Engine) && len(next.Models) == len(previous.Models) {
			next = previous
		}
	}
	if next != previous {
		e.status.Store(next)
		if a, b := next.Engine, previous.Engine; a.Condition != b.Condition || a.Version != b.Version || a.Why != b.Why {
			e.deps.Log.Info("engine changed", "where", e.Where(), "condition", next.Engine.Condition,
				"version", next.Engine.Version, "why", next.Engine.Why)
		}
		e.deps.Changed()
	}
}

// neverSent tells whether a request failed before anything of it was sent.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// ModelsDir is the folder in which the engine keeps its models, as far as it is known without asking; else "".
func (e *Engine) ModelsDir() string {
	if e.cfg.ModelsDir == "" && e.cfg.Command != "" {
		return filepath.Join(e.deps.DataDir, "models")
	}
	return e.cfg.ModelsDir
}

// Own carries requests of the node's own to the engine, which are no client's: they do not make it busy.
func (e *Engine) Own() http.RoundTripper { return own{e} }

type own struct{ *Engine }

// RoundTrip sends a request to the engine.
func (o own) RoundTrip(r *http.Request) (*http.Response, error) { return o.send(r) }

// Busy is how many requests the engine is serving for this node.
func (e *Engine) Busy() int { return int(e.busy.Load()) }

// RoundTrip sends a client's request to the engine and counts it as busy until the answer's body is
// closed. The request's URL needs a path and a query only. While there is no engine it fails as a
// dial does, with ErrDown: nothing was sent.
func (e *Engine) RoundTrip(r *http.Request) (*http.Response, error) {
	e.busy.Add(1)
	resp, err := e.send(r)
	if err != nil {
		e.busy.Add(-1)
		return nil, err
	}
	// What it says of web pages is meant for its own address; the node's door has its own word.
	for key := range resp.Header {
		if strings.HasPrefix(key, "Access-Control-") {
			delete(resp.Header, key)
		}
	}
	resp.Body = &countedBody{ReadCloser: resp.Body, done: sync.OnceFunc(func() { e.busy.Add(-1) })}
	return resp, nil
}

type countedBody struct {
	io.ReadCloser
	done func()
}

func (b *countedBody) Close() error {
	b.done()
	return b.ReadCloser.Close()
}

// send sends a request with the engine's own Host and without an Origin, since an Ollama on
// loopback answers 403 to others.
func (e *Engine) send(r *http.Request) (*http.Response, error) {
	base := e.base.Load()
	if base == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ErrDown}
	}
	r.URL.Scheme, r.URL.Host, r.Host = base.Scheme, base.Host, base.Host
	r.URL.Path = base.Path + r.URL.Path
	if r.URL.RawPath != "" {
		r.URL.RawPath = base.EscapedPath() + r.URL.RawPath
	}
	r.Header.Del("Origin")
	if e.cfg.APIKey != "" {
		r.Header.Set("Authorization", "Bearer "+string(e.cfg.APIKey))
	}
	if base.Scheme == "http" && (r.Body == nil || r.GetBody != nil) {
		return e.exchanges.RoundTrip(r)
	}
	return e.transport.RoundTrip(r)
}

// withPort returns HOST:PORT for a URL's host, which may leave the port of its scheme out.
func withPort(host string) string {
	if _, _, err := net.SplitHostPort(host); err != nil {
		return net.JoinHostPort(strings.Trim(host, "[]"), "80")
	}
	return host
}
