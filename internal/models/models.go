// Package models brings models to the nodes that are to have them.
//
// Each node runs one Models. It tells what its engine holds (inventory), serves that to others (Exchange,
// offer), and brings a model into its engine when it is asked to (fetch): the manifest from a member, each blob from
// members that have it, or from the registry that the name means, by one node of the cluster. The engine itself
// pulls from the loopback registry, whose Source is this package. A llama-server of the node's own is given the weights as a
// file (files.go).
//
// What is wanted is agreed (cluster.State.Models). The node that leads compares it with what is there and has
// the difference made (lead); what a client asks for is first agreed and then made by the same way (pull).
//
// Blobs of the engine's are looked through slowly for bytes that have changed (check). A model with such a blob is out of
// service where another node has a good one, and is installed anew (repair).
//
// It decides nothing about where a model goes: package placement does.
//
// Start reading at Models.Pull, then fetch and supply.
package models

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/exchange"
	"github.com/ollamamax/ollamamax/internal/models/folder"
	"github.com/ollamamax/ollamamax/internal/models/install"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registry"
	"github.com/ollamamax/ollamamax/internal/models/upstream"
)

// Config says how many replicas there are, and how models travel. Every field needs a restart.
type Config struct {
	// Replicas is how many nodes hold a model that is pulled or created through the cluster, unless the
	// caller says otherwise; "all": every node that can. Where fewer can, as many as can. Default 2.
	Replicas cluster.Replicas `yaml:"replicas"`
	// Preload names models that this node keeps loaded whenever it holds them. Default none.
	Preload []string `yaml:"preload"`
	// RegistryListen is the address of the registry that the engine on this machine pulls from: HOST:PORT, of
	// 127.0.0.0/8. Default: a free port of 127.0.0.1, chosen once and kept.
	RegistryListen string `yaml:"registry_listen"`
	// Mirror is the URL of the registry that names without a host mean. Default: Ollama's own.
	Mirror string `yaml:"mirror"`
	// Bandwidth is the most bytes a second that go to other nodes, and as much the other way; 0 (the default): no
	// limit. While the engine answers prompts a quarter of it is used.
	Bandwidth int64 `yaml:"bandwidth"`
	// DiskReserveBytes of the disk stay free: a model that would need them is refused. Default 1 GiB.
	DiskReserveBytes int64 `yaml:"disk_reserve_bytes"`
	// CheckRate is how many bytes a second of the engine's blobs are read to find those that have changed on the disk; while
	// the engine answers prompts a quarter of it. Default 20 MB/s; 0: never.
	CheckRate int64 `yaml:"check_rate"`
	// CheckEvery is how long after a check of a blob the next one is due. Default 24h.
	CheckEvery time.Duration `yaml:"check_every"`
}

// Default returns the defaults.
func Default() Config {
	return Config{Replicas: 2, Mirror: upstream.Default().Mirror, DiskReserveBytes: 1 << 30,
		CheckRate: 20e6, CheckEvery: 24 * time.Hour}
}

// Validate returns what is wrong with the configuration, for an operator.
func (c Config) Validate() error {
	if c.Replicas != cluster.EveryNode && c.Replicas < 1 {
		return fmt.Errorf("models.replicas is %d: give a number from 1 on, or all", c.Replicas)
	}
	if c.Bandwidth < 0 || c.Bandwidth > 0 && c.Bandwidth < 64<<10 {
		return fmt.Errorf("models.bandwidth is %d: give bytes a second, at least 65536, or 0 for no limit", c.Bandwidth)
	}
	if c.DiskReserveBytes < 0 {
		return fmt.Errorf("models.disk_reserve_bytes is %d: give bytes, or 0", c.DiskReserveBytes)
	}
	if c.CheckRate < 0 || c.CheckRate > 0 && c.CheckRate < 64<<10 {
		return fmt.Errorf("models.check_rate is %d: give bytes a second, at least 65536, or 0 for no checks", c.CheckRate)
	}
	if c.CheckRate > 0 && c.CheckEvery < time.Second {
		return fmt.Errorf("models.check_every is %v: give a duration of at least 1s, such as 24h", c.CheckEvery)
	}
	for _, name := range c.Preload {
		if parsed, err := manifest.ParseName(name); err != nil || parsed.IsPassing() {
			return fmt.Errorf("models.preload has %q, which is no model's name: write it like llama3.2:1b", name)
		}
	}
	if c.RegistryListen != "" {
		host, _, err := net.SplitHostPort(c.RegistryListen)
		if ip := net.ParseIP(host).To4(); err != nil || ip == nil || ip[0] != 127 {
			return fmt.Errorf("models.registry_listen is %q: write HOST:PORT with an address of 127.0.0.0/8, such as 127.0.0.1:11437", c.RegistryListen)
		}
	}
	return c.upstream().Validate()
}

func (c Config) upstream() upstream.Config {
	u := upstream.Default()
	u.Mirror = cmp.Or(c.Mirror, u.Mirror)
	return u
}

// Deps is what Models needs of its node. All functions may be called from many goroutines.
type Deps struct {
	Log     *slog.Logger
	DataDir string
	Self    cluster.NodeID
	View    func() *cluster.View
	State   func() *cluster.State
	// Apply has a command agreed, by whichever node leads.
	Apply func(context.Context, cluster.Command) error
	// Engine sends a request to the own engine, which does not count as a client's. Its URL has a path only.
	Engine http.RoundTripper
	// EngineModels is what the own engine holds, as it said last; false: it is no Ollama, and none of this
	// package's business.
	EngineModels func() ([]cluster.Model, bool)
	// ModelsDir is the engine's model folder, if it is known without asking.
	ModelsDir string
	// OwnFolder tells that the folder is the node's, whose engine it runs: blobs may be put there.
	OwnFolder bool
	// Files is the own engine, if it is a llama-server into whose folder models are put; else nil.
	Files *Files
	// Refresh reads anew what the engine holds, and publishes it.
	Refresh func(context.Context)
	// Seen reads anew what another node tells, so that the View shows what that node has just done.
	Seen func(context.Context, cluster.NodeID)
	// Changed is called when Told may say something else. It must not block.
	Changed func()
	// Peers carries requests to other nodes' RegisterPeers: the URL's host is the node's id.
	Peers http.RoundTripper
	// Mesh carries blobs.
	Mesh exchange.Transport
	// Busy tells whether the engine answers prompts now.
	Busy func() bool
	// Upstream carries requests to registries.
	Upstream http.RoundTripper
	// Now tells the time.
	Now func() time.Time
}

// Models is one node's part in it.
type Models struct {
	cfg      Config
	deps     Deps
	spool    *blob.Spool
	lists    *blob.Lists // of blobs that the engine has, which outlive the spool's
	exchange *exchange.Exchange
	registry *registry.Registry
	listener net.Listener
	install  *install.Installer
	upstream *upstream.Client
	preload  []string // as configured, by cluster.CanonicalModel

	nudge chan struct{} // told to look at the engine
	clean chan struct{} // closed when nothing is left over of an earlier run
	slots chan struct{} // jobs that are under way

	exporting chan struct{} // a push that is under way
	taking    chan struct{} // a look into the engine's folder, one at a time: an old one does not undo a new one
	making    chan struct{} // lists that are being made
	filing    chan struct{} // a change of the folder of Files that is under way

	admitting sync.Mutex // a job for which room is looked for: not two see the same

	mu         sync.Mutex
	run        context.Context // what jobs live in; nil: not running
	work       sync.WaitGroup  // jobs
	numbered   int             // jobs so far
	jobs       map[job]*running
	supplies   map[string]*supply      // by a blob's digest
	wrong      map[wrongBlob]time.Time // blobs that the registry has wrong, and when they came
	hashing    map[string]*hashingBlob // by a blob's digest
	used       map[string]time.Time    // blobs in the spool: when somebody needed them last
	serving    map[string]int          // and how many peers get them now
	folder     *folder.Folder          // the engine's; nil: not known, or not to be read
	locked     bool                    // it is known, and cannot be read
	held       map[string]int64        // blobs in the folder, with their sizes
	manifests  map[string]known        // of what the engine holds, by the model's digest
	footprints map[string]*cluster.Footprint
	damaged    map[string]fs.FileInfo // blobs whose bytes are not what they were, with the files that were seen so
	repairs    repairs
	placed     map[string]placed // what was put into the folder of Files, by the model's canonical name
	told       Told
	telling    bool // somebody makes told anew
	tellAgain  bool // and it may be old by then

	// Of the leader.
	leading context.Context // nil: this node does not lead
	actions map[about]*acting
	leases  map[string]lease // who asks the registry for a blob, by its digest
	hearing time.Time        // until then it hears of leases that the last leader gave, and gives none
}

// Told is what this node tells the others of its models.
type Told struct {
	Blobs      []cluster.Blob
	Fetches    []cluster.Fetch
	Footprints map[string]*cluster.Footprint // by a model's digest
	Damaged    map[string]bool               // digests of models with a damaged blob
	// Files are the models that a llama-server lists by the names of files which this node put into its folder. One
	// without a name is not to be told: it is on its way in or out.
	Files map[string]cluster.Model
}

// The folders in the data directory's "spool".
const (
	spoolDir    = "spool"
	blobsDir    = "blobs"
	listsDir    = "lists"
	manifestDir = "manifests"
	placedFile  = "placed.json"
)

// Open takes the spool in the data directory and the registry's port.
func Open(cfg Config, deps Deps) (_ *Models, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Models{
		cfg: cfg, deps: deps, nudge: make(chan struct{}, 1), clean: make(chan struct{}), slots: make(chan struct{}, maxJobs), exporting: make(chan struct{}, 1),
		taking: make(chan struct{}, 1), making: make(chan struct{}, maxMaking), filing: make(chan struct{}, 1),
		jobs: map[job]*running{}, supplies: map[string]*supply{}, wrong: map[wrongBlob]time.Time{}, hashing: map[string]*hashingBlob{}, used: map[string]time.Time{}, serving: map[string]int{},
		held: map[string]int64{}, manifests: map[string]known{}, footprints: map[string]*cluster.Footprint{}, damaged: map[string]fs.FileInfo{},
		actions: map[about]*acting{}, leases: map[string]lease{}, repairs: newRepairs(), preload: canonicals(cfg.Preload),
	}
	dir := filepath.Join(deps.DataDir, spoolDir)
	if err := os.MkdirAll(filepath.Join(dir, manifestDir), 0o700); err != nil {
		return nil, fmt.Errorf("make folder for models: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if err := m.loadPlaced(); err != nil {
		return nil, err
	}
	if m.spool, err = blob.OpenSpool(filepath.Join(dir, blobsDir)); err != nil {
		return nil, err
	}
	if m.lists, err = blob.OpenLists(filepath.Join(dir, listsDir)); err != nil {
		return nil, err
	}
	if err := m.loadAway(); err != nil {
		return nil, err
	}
	if m.upstream, err = upstream.New(cfg.upstream(), deps.Upstream); err != nil {
		return nil, err
	}
	if m.listener, err = listenRegistry(cfg.RegistryListen, filepath.Join(dir, "registry.addr")); err != nil {
		return nil, err
	}
	m.registry = registry.New(registry.Default(), registry.Deps{Log: deps.Log, Source: source{m}})
	m.install = install.New(install.Deps{
		Log: deps.Log, Engine: deps.Engine, Registry: registryName(m.listener.Addr()), Follow: m.registry.Follow,
		Receive: func(model string, wanted ...manifest.Wanted) (install.Receipt, error) {
			return m.registry.Receive(model, wanted...)
		},
	})
	m.exchange = exchange.New(exchange.Config{In: cfg.Bandwidth, Out: cfg.Bandwidth}, exchange.Deps{
		Transport: deps.Mesh, Hold: m.hold, Busy: deps.Busy,
		Blame: func(id cluster.NodeID, d blob.Digest, err error) {
			deps.Log.Warn("node sends wrong bytes of a blob; it is not asked again in this transfer", "peer", id, "blob", d, "err", err)
		},
	})
	return m, nil
}

// listenRegistry listens at the address, or at the one in the file, or at a free one, which it keeps there.
func listenRegistry(configured, file string) (net.Listener, error) {
	if configured != "" {
		l, err := net.Listen("tcp", configured)
		if err != nil {
			return nil, fmt.Errorf("listen on models.registry_listen %s: %w: choose another port, or leave it out", configured, err)
		}
		return l, nil
	}
	if kept, err := os.ReadFile(file); err == nil {
		if l, err := net.Listen("tcp", string(kept)); err == nil {
			return l, nil
		}
	}
	l, err := listenAnywhere()
	if err != nil {
		return nil, fmt.Errorf("listen for the own engine: %w", err)
	}
	if err := os.WriteFile(file, []byte(l.Addr().String()), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("keep the registry's address: %w", err), l.Close())
	}
	return l, nil
}

// registryName is an address as it stands in a model's name: without the port that it has anyway.
func registryName(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err == nil && port == "80" {
		return host
	}
	return addr.String()
}

// Close releases what Open took.
func (m *Models) Close() error {
	var errs []error
	if m.listener != nil {
		if err := m.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if m.spool != nil {
		errs = append(errs, m.spool.Close())
	}
	return errors.Join(errs...)
}

// Run serves blobs to the other nodes and the registry to the own engine, and runs what it is asked for, until ctx
// ends.
func (m *Models) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	m.mu.Lock()
	m.run = ctx
	m.mu.Unlock()
	group.Go(func() error { return m.exchange.Run(ctx) })
	group.Go(func() error { return m.registry.Serve(ctx, m.listener) })
	group.Go(func() error { m.watch(ctx); return nil })
	group.Go(func() error { m.check(ctx); return nil })
	group.Go(func() error { m.keepRepairing(ctx); return nil })
	group.Go(func() error { m.keepLoaded(ctx); return nil })
	err := group.Wait()
	m.mu.Lock()
	m.run = nil // no more work begins
	m.mu.Unlock()
	m.work.Wait()
	return err
}

// Told returns what is told now. It is never changed.
func (m *Models) Told() Told {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.told
}

// errStopping is returned for work while the node stops.
var errStopping = errors.New("node is stopping")

func digest(hex string) blob.Digest { return blob.Digest("sha256:" + hex) }

func short(digest string) string { return digest[:min(12, len(digest))] }
