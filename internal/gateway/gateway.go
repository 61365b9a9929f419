// Package gateway is the clients' front door: every route of Ollama, OpenAI and Anthropic that an
// Ollama serves, for the whole cluster, with the bytes that the engine sent.
//
// It declares no copy of the engine's types: it reads a body once, takes from it what routing
// needs, and passes the bytes on as they came. It does not choose the node (Deps.Pick does) and
// knows no peer but through a http.RoundTripper.
//
// Invariants: a client gets the answer of one attempt only; nothing is sent again once a byte has
// reached the client; what changes an engine (pull, push, create, copy, delete) is never sent twice;
// a stream that broke ends as broken, never as if it were whole.
//
// Start reading at routes, then attempts: a request, top to bottom.
package gateway

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Config bounds what a client may ask of the gateway.
type Config struct {
	// MaxBodyBytes bounds a request's body, which is held in memory; blobs stream and are not
	// bounded. Default 128 MiB. Needs a restart.
	MaxBodyBytes int64 `yaml:"max_body_bytes"`
	// Timeouts need a restart.
	Timeouts Timeouts `yaml:"timeouts"`
}

// Timeouts bound how long the gateway waits for a client.
type Timeouts struct {
	// Header is the time for a request's header to arrive. Default 10s.
	Header time.Duration `yaml:"header"`
	// Read is the time for each next piece of a body to arrive. Default 60s.
	Read time.Duration `yaml:"read"`
	// Write is the time for a client to take each piece of an answer. Default 60s.
	Write time.Duration `yaml:"write"`
	// Idle is how long an idle connection is kept. Default 2m.
	Idle time.Duration `yaml:"idle"`
}

// Default returns the defaults.
func Default() Config {
	return Config{
		MaxBodyBytes: 128 << 20,
		Timeouts:     Timeouts{Header: 10 * time.Second, Read: time.Minute, Write: time.Minute, Idle: 2 * time.Minute},
	}
}

// Validate returns what is wrong with the configuration, for an operator.
func (c Config) Validate() error {
	if c.MaxBodyBytes < 1024 {
		return fmt.Errorf("gateway.max_body_bytes is %d: give at least 1024", c.MaxBodyBytes)
	}
	for name, d := range map[string]time.Duration{"header": c.Timeouts.Header, "read": c.Timeouts.Read, "write": c.Timeouts.Write, "idle": c.Timeouts.Idle} {
		if d <= 0 {
			return fmt.Errorf("gateway.timeouts.%s is %v: give a duration above 0, such as 60s", name, d)
		}
	}
	return nil
}

// Deps is what the gateway needs of its node.
type Deps struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	// View returns the present picture of the cluster; never nil.
	View func() *cluster.View
	// Pick chooses the node for a request, leaving out those tried, and returns how to give its
	// slot back; nil when none is left.
	Pick func(r cluster.Request, tried []cluster.NodeID) (*cluster.Node, func())
	// Engine carries requests to the engine on this machine.
	Engine http.RoundTripper
	// Peers carries requests to the Local handlers of other nodes: the URL's host is the node's id.
	Peers http.RoundTripper
	// Refresh reads anew what a node's engine holds and returns when the View says so.
	Refresh func(context.Context, *cluster.Node)
	// Stopping tells whether the node serves nothing new because it is about to end.
	Stopping func() bool
}

// Gateway serves clients.
type Gateway struct {
	cfg     Config
	deps    Deps
	metrics *metrics
	budget  *budget
}

// New returns a gateway.
func New(cfg Config, deps Deps) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Gateway{cfg: cfg, deps: deps, metrics: newMetrics(deps.Registry), budget: newBudget()}, nil
}

// Register adds the clients' routes to a mux.
func (g *Gateway) Register(mux *http.ServeMux) {
	for _, rt := range routes() {
		mux.Handle(rt.path, g.handler(rt))
	}
}

// exchange is one request and its answer, as far as they got.
type exchange struct {
	w     http.ResponseWriter
	r     *http.Request
	route *route
	id    string // X-Request-Id

	began    time.Time
	first    time.Time // of the first byte that went to the client; zero until then
	status   int       // 0 until a status went to the client
	bytes    int64
	node     string // the name of the node that answered
	model    string
	attempts int
	cut      bool // the answer broke off after its first byte
}

func (g *Gateway) handler(rt *route) http.Handler {
	allow := strings.Join(rt.methods, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(rt.methods, r.Method) {
			w.Header().Set("Allow", allow)
			http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
			return
		}
		if rt.as != "" {
			r.URL.Path, r.URL.RawPath = rt.as, ""
		}
		x := &exchange{w: w, r: r, route: rt, id: requestID(r), began: time.Now()}
		w.Header().Set("X-Request-Id", x.id)
		g.metrics.inFlight.Inc()
		defer g.finish(x) // also when the answer is aborted by a panic
		ctx, cancel, err := deadline(r)
		if err != nil {
			g.fail(x, err)
			return
		}
		defer cancel()
		x.r = r.WithContext(ctx)
		rt.serve(g, x)
	})
}

// finish counts an exchange and logs it in one line.
func (g *Gateway) finish(x *exchange) {
	took := time.Since(x.began)
	g.metrics.inFlight.Dec()
	g.metrics.observe(x, took)
	level := slog.LevelDebug
	if x.status >= 500 || x.cut {
		level = slog.LevelWarn
	}
	g.deps.Log.Log(x.r.Context(), level, "request", "id", x.id, "method", x.r.Method, "route", x.route.path,
		"model", x.model, "node", x.node, "status", x.status, "bytes", x.bytes, "attempts", x.attempts,
		"took", took, "cut", x.cut)
}

// requestID returns the client's own id for the request, if it is one that can be logged.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return rand.Text()
	}
	return id
}

// deadline applies X-Deadline, the time that the client gives its request.
func deadline(r *http.Request) (context.Context, context.CancelFunc, error) {
	text := r.Header.Get("X-Deadline")
	if text == "" {
		return r.Context(), func() {}, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return nil, nil, badRequest(fmt.Sprintf("X-Deadline is %q: write a duration such as 30s", text))
	}
	ctx, cancel := context.WithTimeout(r.Context(), d)
	return ctx, cancel, nil
}

// read reads and parses the body; on failure it has answered and returns nil.
func (g *Gateway) read(x *exchange) *request {
	if x.r.Method == http.MethodGet {
		return &request{Request: cluster.Request{Path: x.r.URL.Path}, route: x.route}
	}
	body, err := readBody(x.w, x.r, g.cfg.MaxBodyBytes, g.cfg.Timeouts.Read)
	if err != nil {
		g.fail(x, err)
		return nil
	}
	req, err := parse(x.route, x.r, body)
	if err != nil {
		g.fail(x, err)
		return nil
	}
	x.model = req.Model
	return req
}
