// Package node builds a node from its rooms, runs it and stops it.
//
// It is the only package that knows all the others: what one room needs of another it declares
// itself, and is introduced here. `serve` and every test with several nodes use this same wiring,
// so nothing here is global to the process.
//
// Start reading at Open, then Run: the order of stopping is there, with its reasons.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ollamamax/ollamamax/internal/access"
	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/config"
	"github.com/ollamamax/ollamamax/internal/consensus"
	"github.com/ollamamax/ollamamax/internal/control"
	"github.com/ollamamax/ollamamax/internal/engine"
	"github.com/ollamamax/ollamamax/internal/fault/health"
	"github.com/ollamamax/ollamamax/internal/gateway"
	"github.com/ollamamax/ollamamax/internal/mesh"
	"github.com/ollamamax/ollamamax/internal/models"
	"github.com/ollamamax/ollamamax/internal/schedule"
	"github.com/ollamamax/ollamamax/internal/socket"
	"github.com/ollamamax/ollamamax/internal/telemetry"
)

// StopGrace is how long running answers may take to end once the node is told to stop.
const StopGrace = 30 * time.Second

// handOverGrace is how long the leadership may take to be handed over after that.
const handOverGrace = 10 * time.Second

// Node is one OllamaMax node.
type Node struct {
	cfg     config.Config
	version string
	log     *slog.Logger
	id      cluster.NodeID
	boot    uint64

	listener net.Listener // of the API
	server   *http.Server
	join     net.Listener // of newcomers
	peering  net.Listener // of other nodes' HTTP
	inner    *http.Server
	toPeers  *peerTransport

	engine     *engine.Engine
	host       *mesh.Host
	heartbeats *mesh.Heartbeats
	consensus  atomic.Pointer[consensus.Consensus] // nil: no part in any agreement
	scheduler  *schedule.Scheduler
	front      *gateway.Gateway
	models     *models.Models
	kept       *kept
	moves      chan move
	knocks     chan cluster.NodeID // peers whose connections just broke

	view      atomic.Pointer[cluster.View]
	machine   atomic.Pointer[cluster.Machine]
	out       atomic.Pointer[string] // why the owner keeps the engine from the cluster; nil: nothing does
	changed   chan struct{}          // told that the View is old
	stopping  atomic.Bool
	announced atomic.Bool // the own addresses are agreed, or being told

	mu           sync.Mutex // guards what the View is built of
	peers        map[cluster.NodeID]*peer
	health       *health.Detector
	strangers    map[cluster.NodeID]api.Stranger // seen on the local network
	entry        []byte                          // what this node tells of itself
	entryVersion uint64
	conditions   map[cluster.NodeID]cluster.Condition // as logged; of keepView alone

	handlers sync.WaitGroup // short work that must end before Run returns
}

// Open takes the node's data directory and its ports, and finds its cluster: it comes back to the
// one it knows, joins with a token, or founds one. On error nothing stays taken.
func Open(ctx context.Context, cfg config.Config, version string, log *slog.Logger) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := writable(cfg.Node.DataDir); err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, version: version, log: log.With("node", cfg.Node.Name),
		changed: make(chan struct{}, 1), moves: make(chan move), knocks: make(chan cluster.NodeID, 64),
		peers: map[cluster.NodeID]*peer{}, health: health.New(), conditions: map[cluster.NodeID]cluster.Condition{}, strangers: map[cluster.NodeID]api.Stranger{},
	}
	if n.cfg.Node.Labels == nil {
		n.cfg.Node.Labels = map[string]string{} // a list, also on the wire
	}
	n.measure(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.kept, err = openKept(cfg.Node.DataDir); err != nil {
		return nil, err
	}
	if n.boot, err = nextBoot(cfg.Node.DataDir, time.Now()); err != nil {
		return nil, err
	}
	n.engine, err = engine.New(cfg.Engine, engine.Deps{
		Log: n.log, DataDir: cfg.Node.DataDir, Environ: os.Environ(), Changed: n.engineChanged, Hidden: passing,
	})
	if err != nil {
		return nil, err
	}
	if err := n.openMesh(); err != nil {
		return nil, err
	}
	if err := n.openModels(); err != nil {
		return nil, err
	}
	if err := n.openAPI(); err != nil {
		return nil, err
	}
	n.rebuild() // the agreement asks the View who is well
	if n.heartbeats, err = mesh.NewHeartbeats(mesh.HeartbeatConfig{Boot: n.boot}, n.host, n.heartbeatDeps()); err != nil {
		return nil, err
	}
	if err := n.enter(ctx); err != nil {
		return nil, err
	}
	n.rebuild()
	return n, nil
}

// openMesh takes the peers' ports.
func (n *Node) openMesh() error {
	key, err := mesh.LoadIdentity(filepath.Join(n.cfg.Node.DataDir, identityFile))
	if err != nil {
		return err
	}
	if n.id, err = mesh.NodeID(key); err != nil {
		return err
	}
	n.host, err = mesh.Open(n.cfg.P2P.Config, key, n.log, mesh.Deps{
		Certificate: n.certificate, Admit: n.admit,
		Found: n.found,
	})
	if err != nil {
		return err
	}
	for id, addrs := range n.kept.read().Addrs {
		n.host.AddAddrs(id, addrs)
	}
	if n.join, err = n.host.ListenOpen(joinProtocol); err != nil {
		return err
	}
	n.peering, err = n.host.Listen(httpProtocol)
	return err
}

// openAPI takes the clients' and operators' port and joins the rooms that serve there.
func (n *Node) openAPI() error {
	var err error
	if n.listener, err = net.Listen("tcp", n.cfg.API.Listen); err != nil {
		return listenError(n.cfg.API.Listen, err)
	}
	if err := n.notOurselves(); err != nil {
		return err
	}
	registry := telemetry.NewRegistry(n.version)
	n.registerMetrics(registry)
	if n.scheduler, err = schedule.New(n.cfg.Schedule.Config, n.cfg.Gateway.Queue, n.cfg.Gateway.Stall, schedule.Deps{
		View: n.View, Busy: n.engine.Busy, RTT: n.host.RTT,
	}); err != nil {
		return err
	}
	n.front, err = gateway.New(n.cfg.Gateway.Config, gateway.Deps{
		Log: n.log, Registry: registry, View: n.View, Engine: n.engine, Peers: n.toPeers,
		Scheduler: n.scheduler, Waiting: n.scheduler.Waiting,
		Refresh: n.refreshNode, Models: clientModels{n}, Stopping: n.stopping.Load,
	})
	if err != nil {
		return err
	}
	operators := control.New(control.Deps{
		Log: n.log, Gatherer: registry, View: n.View, State: n.state, Stopping: n.stopping.Load, Now: time.Now,
		Apply: n.apply, Transfer: n.transfer, Join: n.joinOther, Leave: n.leave, Addrs: n.tokenAddrs, Strangers: n.listStrangers,
		Requests: n.front.Requests, Cancel: n.front.Cancel,
		Pull: n.pullModel, Place: n.placeModel, Delete: n.deleteModel, Transfers: n.transfers, CancelTransfer: n.cancelTransfer,
	})
	mux := http.NewServeMux()
	n.front.Register(mux)
	operators.Register(mux)
	n.server = &http.Server{
		Handler:           n.impatient(access.Door(n.cfg.API.CORS, n.cfg.LoopbackOnly(), mux)),
		ConnState:         newConnections(n.cfg.API.MaxConnections).changed,
		ReadHeaderTimeout: n.cfg.Gateway.Timeouts.Header,
		IdleTimeout:       n.cfg.Gateway.Timeouts.Idle,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          n.httpLog(),
	}
	inner := http.NewServeMux()
	n.front.RegisterLocal(inner)
	n.models.RegisterPeers(inner)
	n.inner = n.peerServer(inner)
	return nil
}

// impatient gives a body that is announced a time to come, also where nobody reads it: before a
// server answers it waits for the rest of a body that it was promised. Who reads it gives every piece
// its own time.
func (n *Node) impatient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(n.cfg.Gateway.Timeouts.Read)) // a connection that cannot have one is closed
		}
		next.ServeHTTP(w, r)
	})
}

// registerMetrics tells of the cluster as this node sees it.
func (n *Node) registerMetrics(r prometheus.Registerer) {
	for _, condition := range []cluster.Condition{cluster.Alive, cluster.Suspect, cluster.Dead} {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ollamamax_nodes", Help: "Members of the cluster, by condition.", ConstLabels: prometheus.Labels{"condition": string(condition)},
		}, func() (count float64) {
			for _, node := range n.View().Nodes {
				if node.Condition == condition {
					count++
				}
			}
			return count
		}))
	}
	gauge := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge("ollamamax_quorum", "1 when what is proposed would be agreed, as far as this node knows.", func() float64 { return truth(n.View().Quorum) })
	gauge("ollamamax_leader", "1 when this node leads.", func() float64 { return truth(n.View().Leader == n.id) })
	gauge("ollamamax_term", "The number of the election that chose the leader.", func() float64 { return float64(n.View().Term) })
	gauge("ollamamax_engine_ready", "1 when the engine beside this node answers.", func() float64 {
		return truth(n.engine.Status().Engine.Condition == cluster.EngineReady)
	})
	gauge("ollamamax_engine_busy", "Requests that the engine beside this node is serving.", func() float64 { return float64(n.engine.Busy()) })
	gauge("ollamamax_requests_waiting", "Requests that wait at this gateway for a slot of an engine.", func() float64 { return float64(n.scheduler.Length()) })
	gauge("ollamamax_fetches", "Models that are on their way into the engine beside this node.", func() float64 { return float64(len(n.models.Told().Fetches)) })
	gauge("ollamamax_blobs_damaged", "Files of models in the engine beside this node whose bytes have changed.", func() (count float64) {
		for _, b := range n.models.Told().Blobs {
			if b.State == cluster.BlobDamaged {
				count++
			}
		}
		return count
	})
	gauge("ollamamax_models_short", "Models with fewer living replicas than are wanted.", func() float64 { return float64(short(n.state(), n.View())) })
	gauge("ollamamax_mesh_streams", "Streams open with other nodes.", func() (count float64) {
		for _, streams := range n.host.Stats().Streams {
			count += float64(streams)
		}
		return count
	})
}

// short counts the models with fewer living replicas than are wanted.
func short(state *cluster.State, view *cluster.View) (count int) {
	for key, w := range state.Models {
		living := 0
		for _, r := range view.Replicas(key) {
			if r.Model.Digest == w.Digest && r.Node.Condition != cluster.Dead {
				living++
			}
		}
		if w.Deleted == nil && living < max(1, int(w.Replicas)) {
			count++
		}
	}
	return count
}

// Addr is the address that clients reach the node at.
func (n *Node) Addr() string {
	if n.listener == nil {
		return n.cfg.API.Listen
	}
	return n.listener.Addr().String()
}

// View returns the present picture of the cluster.
func (n *Node) View() *cluster.View { return n.view.Load() }

// Run serves until ctx ends, then stops in this order. First the peers hear that this node is about
// to go, and readiness falls, so that nothing new is sent here. Then running answers end, clients'
// and peers', StopGrace at most. Then the leadership is handed over, which needs the peers; then
// the node falls silent; and last the engine stops, which the answers needed.
func (n *Node) Run(ctx context.Context) error {
	base, stopBase := context.WithCancel(context.WithoutCancel(ctx)) // what must outlive the answers
	defer stopBase()
	group, groupCtx := errgroup.WithContext(ctx)
	serve := func(s *http.Server, l net.Listener) func() error {
		return func() error {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		}
	}
	engineCtx, stopEngine := context.WithCancel(base)
	defer stopEngine()
	group.Go(func() error { return n.engine.Run(engineCtx) })
	group.Go(func() error { n.keepView(base); return nil })
	group.Go(func() error { return n.host.Run(base) })
	group.Go(func() error { return n.heartbeats.Run(base) })
	group.Go(func() error { return n.takePart(base) })
	group.Go(func() error { return n.serveJoin(base, n.join) })
	group.Go(func() error { n.bootstrap(base); return nil })
	group.Go(func() error { n.knockAtBroken(base); return nil })
	group.Go(func() error { n.keepMeasuring(base); return nil })
	group.Go(func() error { n.keepPinging(base); return nil })
	group.Go(func() error { n.keepAvailable(base); return nil })
	group.Go(func() error { n.front.Run(base); return nil })
	group.Go(func() error { return n.models.Run(base) })
	group.Go(serve(n.inner, n.peering))
	group.Go(serve(n.server, socket.Listen(n.listener)))
	n.log.Info("serving", "api", "http://"+n.Addr(), "engine", n.engine.Where(), "data_dir", n.cfg.Node.DataDir,
		"id", n.id, "version", n.version)

	<-groupCtx.Done()
	n.stopping.Store(true)
	n.heartbeats.Notify()
	n.log.Info("stopping", "grace", StopGrace)
	graceCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), StopGrace)
	var ending sync.WaitGroup
	for _, s := range []*http.Server{n.server, n.inner} {
		ending.Go(func() {
			if err := s.Shutdown(graceCtx); err != nil && graceCtx.Err() != nil {
				n.log.Warn("answers were still running at the end of the grace; they are cut", "grace", StopGrace)
				_ = s.Close() // its only error is that of closing sockets that are gone
			}
		})
	}
	ending.Wait()
	cancel()
	if c := n.consensus.Load(); c != nil {
		handOver, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOverGrace)
		if err := c.HandOver(handOver); err != nil {
			n.log.Warn("cannot hand over; the others may be unable to agree until this node is back", "err", err)
		}
		cancel()
	}
	stopBase()
	err := group.Wait()
	n.handlers.Wait()
	return errors.Join(err, n.close())
}

// close releases what Open took.
func (n *Node) close() error {
	var errs []error
	if c := n.consensus.Swap(nil); c != nil {
		errs = append(errs, c.Close())
	}
	if n.models != nil {
		errs = append(errs, n.models.Close())
	}
	if n.toPeers != nil {
		n.toPeers.exchanges.CloseIdleConnections()
	}
	if n.listener != nil {
		if err := n.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if n.host != nil {
		errs = append(errs, n.host.Close())
	}
	return errors.Join(errs...)
}

// bootstrap connects to the configured peers, for a node that has lost all remembered addresses.
func (n *Node) bootstrap(ctx context.Context) {
	if len(n.cfg.P2P.Bootstrap) == 0 {
		return
	}
	ticker := time.NewTicker(bootstrapEvery)
	defer ticker.Stop()
	for {
		if _, err := n.host.Connect(ctx, n.cfg.P2P.Bootstrap); err != nil {
			n.log.Debug("cannot reach every bootstrap address", "err", err)
		}
		n.heartbeats.Notify()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

const bootstrapEvery = 15 * time.Second

// addrs are where others can reach this node, as many as are agreed on.
func (n *Node) addrs() []string {
	addrs := n.host.Addrs()
	return addrs[:min(len(addrs), maxAddrs)]
}

// tokenAddrs are where a newcomer may find the cluster: this node first, then the others as far as
// they fit.
func (n *Node) tokenAddrs() []string {
	addrs := n.addrs()
	for _, m := range n.state().Sorted() {
		node := n.View().Node(m.ID)
		if m.ID != n.id && node != nil && node.Condition == cluster.Alive && len(addrs)+len(m.Addrs) <= maxTokenAddrs {
			addrs = append(addrs, m.Addrs...) // agreed, and so well-formed
		}
	}
	return addrs
}

const maxTokenAddrs = 32

// leave ends the node's membership: it serves from its own engine alone from then on.
func (n *Node) leave(ctx context.Context) error {
	if err := n.apply(ctx, cluster.Command{At: time.Now(), Remove: &cluster.Remove{ID: n.id, Why: "left by itself"}}); err != nil {
		return err
	}
	n.removed("left by itself")
	return nil
}

// httpLog takes what net/http has to say: handlers that panicked, above all.
func (n *Node) httpLog() *log.Logger { return slog.NewLogLogger(n.log.Handler(), slog.LevelWarn) }

// notOurselves refuses an engine URL that is this very node, whose requests would go round for ever.
func (n *Node) notOurselves() error {
	if n.cfg.Engine.Command != "" {
		return nil
	}
	where := cmp.Or(n.cfg.Engine.URL, engine.DefaultURL)
	u, err := url.Parse(where)
	if err != nil || strings.Replace(u.Host, "localhost:", "127.0.0.1:", 1) != n.Addr() {
		return nil
	}
	return fmt.Errorf("engine.url is %s, which is this node itself: name the Ollama beside it, or listen elsewhere", where)
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
