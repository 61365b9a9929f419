// Package gateway is the clients' front door: every route of Ollama, OpenAI and Anthropic that an
// Ollama serves, for the whole cluster, with the bytes that the engine sent.
//
// It declares no copy of the engine's types: it reads a body once, takes from it what routing
// needs, and passes the bytes on as they came, but for a seed, a stream or an alias's model where they
// must be in it (request.go), and an engine's own word for the model (called.go). It does not choose the node (Deps.Scheduler does) and knows no peer but
// through a http.RoundTripper.
//
// Invariants: what reaches a client is one answer, whichever nodes it came from; what changes an engine
// (pull, push, create, copy, delete) is never sent twice; every answer ends once, and one that
// broke for good ends as broken, never as if it were whole.
//
// Start reading at routes, then attempts: a request, top to bottom.
package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/gateway/record"
)

// Config bounds what a client may ask of the gateway.
type Config struct {
	// MaxBodyBytes bounds a request's body, which is held in memory; blobs stream and are not
	// bounded. Default 128 MiB. Needs a restart.
	MaxBodyBytes int64 `yaml:"max_body_bytes"`
	// BodyBudgetBytes bounds the memory of all bodies together, beyond the first 64 KiB of each; what is
	// more is refused with 503. One body may always have MaxBodyBytes. Default 1 GiB. Needs a restart.
	BodyBudgetBytes int64 `yaml:"body_budget_bytes"`
	// Timeouts need a restart.
	Timeouts Timeouts `yaml:"timeouts"`
	// Retry bounds second attempts.
	Retry Retry `yaml:"retry"`
	// Resume says how broken streams go on.
	Resume Resume `yaml:"resume"`
}

// Timeouts bound how long the gateway waits for a client.
type Timeouts struct {
	// Header is the time for a request's header to arrive. Default 10s.
	Header time.Duration `yaml:"header"`
	// Read is the time for each next piece of a body to arrive; all of it may take that and a second for
	// each KiB. Default 60s.
	Read time.Duration `yaml:"read"`
	// Write is the time for a client to take each piece of an answer. Default 60s.
	Write time.Duration `yaml:"write"`
	// Idle is how long an idle connection is kept. Default 2m.
	Idle time.Duration `yaml:"idle"`
}

// Default returns the defaults.
func Default() Config {
	return Config{
		MaxBodyBytes:    128 << 20,
		BodyBudgetBytes: 1 << 30,
		Timeouts:        Timeouts{Header: 10 * time.Second, Read: time.Minute, Write: time.Minute, Idle: 2 * time.Minute},
		Retry:           Retry{Budget: 0.2, Floor: 1},
		Resume:          defaultResume(),
	}
}

// Validate returns what is wrong with the configuration, for an operator.
func (c Config) Validate() error {
	if c.MaxBodyBytes < 1024 {
		return fmt.Errorf("gateway.max_body_bytes is %d: give at least 1024", c.MaxBodyBytes)
	}
	if c.BodyBudgetBytes < 1024 {
		return fmt.Errorf("gateway.body_budget_bytes is %d: give at least 1024", c.BodyBudgetBytes)
	}
	for name, d := range map[string]time.Duration{"header": c.Timeouts.Header, "read": c.Timeouts.Read, "write": c.Timeouts.Write, "idle": c.Timeouts.Idle} {
		if d <= 0 {
			return fmt.Errorf("gateway.timeouts.%s is %v: give a duration above 0, such as 60s", name, d)
		}
	}
	return errors.Join(c.Retry.Validate(), c.Resume.Validate())
}

// Scheduler chooses the nodes for requests.
type Scheduler interface {
	// Acquire lends a slot of the node that should serve the request, leaving out those tried, and waits
	// for it if it must. It returns cluster.ErrNobody, a *cluster.NoRoomError or the context's error.
	Acquire(ctx context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error)
	// Try lends a slot at once; nil when no node is left or, but for what is urgent, none has room.
	Try(r *cluster.Request, tried []cluster.NodeID) *cluster.Lease
	// Resolve returns the models that stand for an alias, in the order to try them; nil for other names.
	Resolve(model string) []string
	// Explain tells what a choice for the request would be made of.
	Explain(r *cluster.Request) cluster.Explanation
}

// Deps is what the gateway needs of its node.
type Deps struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	// View returns the present picture of the cluster; never nil.
	View func() *cluster.View
	Scheduler
	// Waiting returns the place in the queue of every request that waits, by its id.
	Waiting func() map[string]int
	// Engine carries requests to the engine on this machine.
	Engine http.RoundTripper
	// Peers carries requests to the Local handlers of other nodes: the URL's host is the node's id.
	Peers http.RoundTripper
	// Refresh reads anew what a node's engine holds and returns when the View says so.
	Refresh func(context.Context, *cluster.Node)
	// Models has models where they are wanted; nil: each engine is its own affair.
	Models Models
	// Stopping tells whether the node serves nothing new because it is about to end.
	Stopping func() bool
}

// Gateway serves clients.
type Gateway struct {
	cfg      Config
	deps     Deps
	metrics  *metrics
	budget   *budget
	bodies   bodies
	requests *requests
	drains   drains
	demand   demand
	shown    sync.Map     // digest to resume.Facts: what an engine has shown of a model
	seed     maphash.Seed // of digests that no other process sees
}

// New returns a gateway.
func New(cfg Config, deps Deps) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Gateway{cfg: cfg, deps: deps, metrics: newMetrics(deps.Registry), budget: newBudget(cfg.Retry), bodies: bodies{max: cfg.BodyBudgetBytes}, requests: &requests{}, drains: newDrains(),
		demand: demand{means: map[string]*mean{}}, seed: maphash.MakeSeed()}, nil
}

// Register adds the clients' routes to a mux.
func (g *Gateway) Register(mux *http.ServeMux) {
	for _, rt := range routes() {
		mux.Handle(rt.path, g.handler(rt))
	}
}

// exchange is one request and its answer, as far as they got.
type exchange struct {
	w      http.ResponseWriter
	r      *http.Request
	ctx    context.Context // ends with the client, its deadline, or an operator's word
	cancel context.CancelCauseFunc
	route  *route
	id     string // X-Request-Id

	counts   *counts
	priority cluster.Priority
	began    time.Time
	first    time.Time // of the first byte that went to the client; zero until then
	status   int       // 0 until a status went to the client
	bytes    int64
	held     int64  // of its body, as far as that is counted
	node     string // the name of the node that answered
	model    string
	attempts int
	cut      bool // the answer broke off after its first byte
	local    bool // another node's gateway asks
	progress progress
	patience time.Duration  // for the client to take each piece of an answer
	running  sync.WaitGroup // attempts that nobody waits for any more

	shard      *shard // of requests, and its neighbours there
	next, prev *exchange
}

func (g *Gateway) handler(rt *route) http.Handler {
	allow := strings.Join(rt.methods, ", ")
	counts := g.metrics.of(rt)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(rt.methods, r.Method) {
			w.Header().Set("Allow", allow)
			http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
			return
		}
		if rt.as != "" {
			r.URL.Path, r.URL.RawPath = rt.as, ""
		}
		x := &exchange{w: w, r: r, route: rt, id: requestID(r), began: time.Now(), counts: counts, patience: g.cfg.Timeouts.Write}
		w.Header()["X-Request-Id"] = []string{x.id}
		at, err := deadline(r, x.began)
		if err == nil {
			x.priority, err = priority(r)
		}
		x.ctx, x.cancel = withDeadline(r.Context(), at)
		defer x.running.Wait()
		defer x.cancel(nil)
		g.metrics.inFlight.Inc()
		g.requests.add(x) // what others read of it does not change from here on, but for its progress
		defer g.finish(x) // also when the answer is aborted by a panic
		if err != nil {
			g.fail(x, err)
			return
		}
		rt.serve(g, x)
	})
}

// finish counts an exchange and logs it in one line.
func (g *Gateway) finish(x *exchange) {
	took := time.Since(x.began)
	g.requests.remove(x)
	g.bodies.letGo(x)
	g.metrics.inFlight.Dec()
	g.metrics.observe(x, took)
	level := slog.LevelDebug
	if x.status >= 500 || x.cut {
		level = slog.LevelWarn
	}
	if !g.deps.Log.Enabled(x.ctx, level) {
		return
	}
	g.deps.Log.Log(x.ctx, level, "request", "id", x.id, "method", x.r.Method, "route", x.route.path,
		"model", x.model, "node", x.node, "status", x.status, "bytes", x.bytes, "attempts", x.attempts,
		"resumes", x.progress.resumes.Load(), "took", took, "cut", x.cut)
}

// requestID returns the client's own id for the request, if it is one that can be logged.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return rand.Text()
	}
	return id
}

// deadline reads X-Deadline, the time that the client gives its request; the zero time for none.
func deadline(r *http.Request, now time.Time) (time.Time, error) {
	text := r.Header.Get("X-Deadline")
	if text == "" {
		return time.Time{}, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return time.Time{}, badRequest(fmt.Sprintf("X-Deadline is %q: write a duration such as 30s", text))
	}
	return now.Add(d), nil
}

// priority reads X-Priority.
func priority(r *http.Request) (cluster.Priority, error) {
	switch text := r.Header.Get("X-Priority"); text {
	case "", "normal":
		return cluster.Normal, nil
	case "high":
		return cluster.High, nil
	case "low":
		return cluster.Low, nil
	default:
		return cluster.Normal, badRequest(fmt.Sprintf("X-Priority is %q: write high, normal or low", text))
	}
}

// read reads and parses the body; on failure it has answered and returns nil.
func (g *Gateway) read(x *exchange) *request {
	req := &request{route: x.route, local: x.local}
	req.Path, req.ID, req.Infers, req.Priority = x.r.URL.Path, x.id, x.route.infers, x.priority
	_, generates := record.FormOf(req.Path)
	req.Reads = req.Infers && !generates && !x.route.multipart
	if x.r.Method == http.MethodGet {
		return req
	}
	body, err := g.readBody(x)
	if err == nil {
		err = req.parse(x.r, body)
	}
	if err == nil && req.Infers && !req.local {
		req.Caller = g.caller(x.r)
		req.Deadline, _ = x.ctx.Deadline()
		req.Prefix = g.prefix(req)
		req.Labels, err = requiredLabels(x.r)
		g.prepare(req)
	}
	if more := len(req.text); err == nil && more > 0 && &req.text[0] != &body[0] { // decompressed, or given a seed
		err = g.bodies.hold(x, int64(len(body)+more))
	}
	if err != nil {
		g.fail(x, err)
		return nil
	}
	x.called(req.Model)
	return req
}

// called notes which model is asked for.
func (x *exchange) called(model string) {
	x.model = model
	x.progress.model.Store(&model)
}

// requiredLabels reads X-Require-Label: key=value, several with commas between them.
func requiredLabels(r *http.Request) (map[string]string, error) {
	values := r.Header["X-Require-Label"]
	if len(values) == 0 {
		return nil, nil
	}
	labels := map[string]string{}
	for field := range strings.SplitSeq(strings.Join(values, ","), ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(field), "=")
		if !ok || key == "" {
			return nil, badRequest(fmt.Sprintf("X-Require-Label is %q: write key=value, such as zone=cellar", field))
		}
		labels[key] = value
	}
	return labels, nil
}

// caller returns who asks, as far as that can be told without identities: the bearer of a key, else
// the machine.
func (g *Gateway) caller(r *http.Request) string {
	for _, key := range [...]string{"Authorization", "X-Api-Key"} {
		if values := r.Header[key]; len(values) > 0 && values[0] != "" {
			return "key " + strconv.FormatUint(maphash.String(g.seed, values[0]), 36)
		}
	}
	if i := strings.LastIndexByte(r.RemoteAddr, ':'); i > 0 {
		return r.RemoteAddr[:i]
	}
	return r.RemoteAddr
}
