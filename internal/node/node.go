// Package node builds a node from its rooms, runs it and stops it.
//
// It is the only package that knows all the others: what one room needs of another it declares
// itself, and is introduced here. `serve` and every test with several nodes use this same wiring,
// so nothing here is global to the process.
//
// Start reading at Open, then Run: the order of stopping is there, with its reasons.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/ollamamax/ollamamax/internal/access"
	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/config"
	"github.com/ollamamax/ollamamax/internal/control"
	"github.com/ollamamax/ollamamax/internal/engine"
	"github.com/ollamamax/ollamamax/internal/gateway"
	"github.com/ollamamax/ollamamax/internal/schedule"
	"github.com/ollamamax/ollamamax/internal/telemetry"
)

// StopGrace is how long running answers may take to end once the node is told to stop.
const StopGrace = 30 * time.Second

// Node is one OllamaMax node.
type Node struct {
	cfg      config.Config
	version  string
	log      *slog.Logger
	listener net.Listener
	server   *http.Server
	engine   *engine.Engine

	view     atomic.Pointer[cluster.View]
	building sync.Mutex    // one View is built at a time, so that none replaces a newer one
	changed  chan struct{} // told that the View is old
	stopping atomic.Bool
}

// Open takes the node's data directory and its port. On error nothing stays taken.
func Open(cfg config.Config, version string, log *slog.Logger) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := writable(cfg.Node.DataDir); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, version: version, log: log.With("node", cfg.Node.Name), changed: make(chan struct{}, 1)}
	n.engine, err = engine.New(cfg.Engine, engine.Deps{
		Log: n.log, DataDir: cfg.Node.DataDir, Environ: os.Environ(), Changed: n.touch,
	})
	if err != nil {
		return nil, err
	}
	n.rebuild()

	registry := telemetry.NewRegistry(version)
	scheduler := schedule.New()
	front, err := gateway.New(cfg.Gateway, gateway.Deps{
		Log: n.log, Registry: registry, View: n.View, Engine: n.engine,
		Pick: func(r cluster.Request, tried []cluster.NodeID) (*cluster.Node, func()) {
			return scheduler.Pick(n.View(), r, tried)
		},
		Refresh: func(ctx context.Context) { n.engine.Refresh(ctx); n.rebuild() },
	})
	if err != nil {
		return nil, err
	}
	operators := control.New(control.Deps{
		Log: n.log, Gatherer: registry, View: n.View, Stopping: n.stopping.Load, Now: time.Now,
	})
	mux := http.NewServeMux()
	front.Register(mux)
	operators.Register(mux)
	n.server = &http.Server{
		Handler:           access.Door(cfg.API.CORS, cfg.LoopbackOnly(), mux),
		ReadHeaderTimeout: cfg.Gateway.Timeouts.Header,
		IdleTimeout:       cfg.Gateway.Timeouts.Idle,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}

	listener, err := net.Listen("tcp", cfg.API.Listen)
	if err != nil {
		return nil, listenError(cfg.API.Listen, err)
	}
	n.listener = netutil.LimitListener(listener, cfg.API.MaxConnections)
	if err := n.notOurselves(); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return n, nil
}

// Addr is the address that clients reach the node at.
func (n *Node) Addr() string { return n.listener.Addr().String() }

// View returns the present picture of the cluster.
func (n *Node) View() *cluster.View { return n.view.Load() }

// Run serves until ctx ends, then stops in this order: readiness falls, so that nothing new is sent
// here; running answers end, StopGrace at most; and only then the engine, which they need.
func (n *Node) Run(ctx context.Context) error {
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEngine()
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.engine.Run(engineCtx) })
	group.Go(func() error { n.keepView(engineCtx); return nil })
	group.Go(func() error {
		if err := n.server.Serve(n.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", n.Addr(), err)
		}
		return nil
	})
	n.log.Info("serving", "api", "http://"+n.Addr(), "engine", n.engine.Where(), "data_dir", n.cfg.Node.DataDir, "version", n.version)

	<-groupCtx.Done()
	n.stopping.Store(true)
	n.log.Info("stopping", "grace", StopGrace)
	graceCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), StopGrace)
	defer cancel()
	if err := n.server.Shutdown(graceCtx); err != nil {
		n.log.Warn("answers were still running at the end of the grace; they are cut", "grace", StopGrace)
		_ = n.server.Close() // its only error is that of closing sockets that are gone
	}
	stopEngine()
	return group.Wait()
}

// touch asks for a new View; it never blocks.
func (n *Node) touch() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// keepView builds a new View after each change and once a second.
func (n *Node) keepView(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		n.rebuild()
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-ticker.C:
		}
	}
}

// rebuild publishes a new View of what is known now.
func (n *Node) rebuild() {
	n.building.Lock()
	defer n.building.Unlock()
	now := time.Now()
	status := n.engine.Status()
	engineNow := status.Engine
	self := &cluster.Node{
		ID: cluster.NodeID(n.cfg.Node.Name), Name: n.cfg.Node.Name, Version: n.version, APIAddr: n.cfg.API.Listen,
		Condition: cluster.Alive, State: cluster.Active, LastSeen: now.UTC(),
		Engine: &engineNow, Models: status.Models, Loaded: status.Loaded,
		Slots: cluster.Slots{Total: n.engine.Slots()},
	}
	n.view.Store(cluster.NewView(self.ID, now, []*cluster.Node{self}))
}

// notOurselves refuses an engine URL that is this very node, whose requests would go round for ever.
func (n *Node) notOurselves() error {
	u, err := url.Parse(n.cfg.Engine.URL)
	if err != nil || n.cfg.Engine.URL == "" || u.Host != n.Addr() {
		return nil
	}
	return fmt.Errorf("engine.url is %s, which is this node itself: name the Ollama beside it, usually %s", n.cfg.Engine.URL, engine.DefaultURL)
}

// writable makes the data directory and tries to write there, so that a node fails at its start
// and not at the first thing that it has to keep.
func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w: name another with --data-dir", err)
	}
	f, err := os.CreateTemp(dir, ".writable-")
	if err != nil {
		return fmt.Errorf("write to data directory: %w: make it writable, or name another with --data-dir", err)
	}
	_, err = io.WriteString(f, "x")
	err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	if err != nil {
		return fmt.Errorf("write to data directory: %w: is the disk full?", err)
	}
	return nil
}

// listenError says what an operator can do about a port.
func listenError(addr string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen on %s: the port is in use: end the program that has it (another ollamamax?), or choose another with --listen", addr)
	}
	return fmt.Errorf("listen on %s: %w: choose another address with --listen", addr, err)
}
