// Package registry is the door through which models reach the engine beside this node, and leave it: a
// registry of the /v2/ form on a loopback port, which an Ollama pulls from and pushes to.
//
// What is pulled is called omx/MODEL, MODEL being the digest of the manifest. It comes from a Source, whose
// reads may block until the bytes are there, since they come from other nodes meanwhile. Ollama begins a part
// anew that is silent for 30 s, and forgets what it had of it: so the last bytes that came are held back, and
// are sent one by one while no others come. And it gives a blob up after six failures of a part, however much
// came between: so a read that fails is tried again here, and Ollama sees a failure only if it is final.
// Since all that it then says is "max retries exceeded", Follow tells the cause.
//
// What is pushed is called omx/out-MODEL, and is taken only if somebody called Receive: the registry says of
// each blob that nobody wants that it has it, so that Ollama does not send it.
//
// Only programs on this machine are served, and no web pages. Manifests are served as they are and checked;
// the bytes of pulled blobs are checked by Ollama, those of pushed ones here. Nothing is stored.
//
// Start reading at New, then serveBlob, send and Receipt.
package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// Config bounds what clients may take. Needs a restart.
type Config struct {
	// MaxRequests is how many requests are served at once; more are answered with 503. An Ollama has 16
	// for each model that it pulls. Default 256.
	MaxRequests int
	// IdleTimeout is how long a client may take nothing of what there is for it, or send nothing of what
	// it announced. Default 2m.
	IdleTimeout time.Duration
	// Patience is how long a blob's source may fail without giving a byte before that is final; a source
	// that blocks does not fail. Default 2m.
	Patience time.Duration
}

// Default returns the defaults.
func Default() Config {
	return Config{MaxRequests: 256, IdleTimeout: 2 * time.Minute, Patience: 2 * time.Minute}
}

// Source is where pulled models come from. Its methods may block; they return when their context ends. An
// error that is ErrNotHeld is final, others are tried again.
type Source interface {
	// Manifest returns the bytes whose digest is model.
	Manifest(ctx context.Context, model string) ([]byte, error)
	// Size returns how many bytes a blob of the model has.
	Size(ctx context.Context, model, blob string) (int64, error)
	// Open returns length bytes of the blob, from offset on. A read of it blocks until there is a byte or
	// ctx ends.
	Open(ctx context.Context, model, blob string, offset, length int64) (io.ReadCloser, error)
}

// ErrNotHeld is what a Source returns for what it has not and will not have.
var ErrNotHeld = errors.New("nobody holds it")

// Deps is what a Registry needs of its node.
type Deps struct {
	Log    *slog.Logger
	Source Source
}

// Registry is the loopback registry. It is safe for concurrent use.
type Registry struct {
	cfg     Config
	deps    Deps
	handler http.Handler
	running chan struct{} // a place for each request

	mu       sync.Mutex
	follower map[string]map[*context.CancelCauseFunc]struct{} // of a repository
	receipts map[string]*Receipt                              // of a repository
}

// New returns a Registry that nobody talks to yet.
func New(cfg Config, deps Deps) *Registry {
	r := &Registry{
		cfg: cfg, deps: deps,
		running:  make(chan struct{}, cfg.MaxRequests),
		follower: map[string]map[*context.CancelCauseFunc]struct{}{},
		receipts: map[string]*Receipt{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}\n") })
	mux.HandleFunc("GET /v2/{namespace}/{repository}/manifests/{reference}", r.serveManifest)
	mux.HandleFunc("GET /v2/{namespace}/{repository}/blobs/{digest}", r.serveBlob)
	mux.HandleFunc("PUT /v2/{namespace}/{repository}/manifests/{reference}", r.takeManifest)
	mux.HandleFunc("POST /v2/{namespace}/{repository}/blobs/uploads/{$}", r.beginUpload)
	mux.HandleFunc("PATCH /v2/{namespace}/{repository}/blobs/uploads/{digest}", r.takeBytes)
	mux.HandleFunc("PUT /v2/{namespace}/{repository}/blobs/uploads/{digest}", r.endUpload)
	r.handler = mux
	return r
}

// ServeHTTP serves a program on this machine.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !local(req) {
		refuse(w, req, http.StatusForbidden, "DENIED", "this registry is for the programs of its own machine")
		return
	}
	select {
	case r.running <- struct{}{}:
		defer func() { <-r.running }()
	default:
		refuse(w, req, http.StatusServiceUnavailable, "TOOMANYREQUESTS", "too many requests at once")
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	r.handler.ServeHTTP(w, req)
}

// local tells whether a request comes from a program on this machine: from a loopback address, not from a
// web page, and not to a name that somebody made point here.
func local(req *http.Request) bool {
	from, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil || !from.Addr().IsLoopback() || req.Header.Get("Origin") != "" {
		return false
	}
	host := req.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	to, err := netip.ParseAddr(host)
	return err == nil && to.IsLoopback()
}

// Serve answers who connects to a listener on an address of 127/8, until ctx ends and the last request with
// it.
func (r *Registry) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           r,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       r.cfg.IdleTimeout,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(r.deps.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(listener)
	// Close does not wait for handlers; each of them ends with ctx.
	for range cap(r.running) {
		r.running <- struct{}{}
	}
	for range cap(r.running) {
		<-r.running
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Follow returns a context that ends, with the cause, when something of the repository cannot be had or
// cannot be taken for good: an Ollama in the middle of it need not be waited for. The caller cancels it.
func (r *Registry) Follow(ctx context.Context, repository string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.follower[repository]
	if all == nil {
		all = map[*context.CancelCauseFunc]struct{}{}
		r.follower[repository] = all
	}
	all[&cancel] = struct{}{}
	return ctx, func() {
		cancel(nil)
		r.mu.Lock()
		defer r.mu.Unlock()
		if delete(all, &cancel); len(all) == 0 {
			delete(r.follower, repository)
		}
	}
}

// fail tells those who follow the repository that it came to an end.
func (r *Registry) fail(repository string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for cancel := range r.follower[repository] {
		(*cancel)(err)
	}
}

// repository is the model's part of the request's path, if the rest of it is right.
func repository(req *http.Request) (string, bool) {
	name := manifest.Name{Host: "127.", Namespace: req.PathValue("namespace"), Model: req.PathValue("repository")}
	return name.Model, name.IsPassing()
}

// refuse answers with an error in the form that registries have. Who asks for a range gets no words: an Ollama
// does not look at the status and would take them for bytes of the blob.
func refuse(w http.ResponseWriter, req *http.Request, status int, code, message string) {
	if req.Header.Get("Range") != "" {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"errors":[{"code":`+quote(code)+`,"message":`+quote(message)+"}]}\n")
}
