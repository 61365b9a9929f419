// Package exchange moves blobs between nodes, piece by piece, over any Listen and Dial.
//
// An Exchange serves the blobs that its node holds, whole or in part, and runs Transfers, each of which
// gets one blob from all nodes that have some of it: the rarest piece first, so that nodes which fetch the
// same blob at the same time feed each other.
//
// It does not decide what is fetched or from whom (the caller names the nodes and the agreed root), where a blob
// lies (Deps.Hold), nor what becomes of it.
//
// Invariants:
//   - A piece is kept only if its hash is right; a node that sent another one is told to Deps.Blame and not
//     asked again in that transfer.
//   - What crosses the mesh twice is at most what was asked for and had not come when something broke.
//   - A frame has at most 64 KiB, so that heartbeats pass. Every queue and map that a peer fills is bounded in Config.
//   - A node that sends a byte now and then takes a part of Memory only, and for a time only.
//   - All transfers of a node share one rate each way, and give way while the node serves inference.
//
// Start reading at Transfer.Run; picker decides what is asked of whom, wire is what is said, conn the server's side.
package exchange

import (
	"cmp"
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// Protocol is the name under which an Exchange listens and dials.
const Protocol = "blobs/1"

// Transport is what an Exchange needs of the mesh. The RemoteAddr of what it accepts is a node's id.
type Transport interface {
	Listen(protocol string) (net.Listener, error)
	Dial(ctx context.Context, id cluster.NodeID, protocol string) (net.Conn, error)
}

// Holding is a blob that this node has, whole (blob.Whole) or in part (blob.Partial).
type Holding interface {
	List() *blob.List
	Have() blob.Map           // the caller may change it
	Changed() <-chan struct{} // closed when Have is another; nil: never
	ReadAt(b []byte, offset int64) (int, error)
}

// Deps are the functions that an Exchange asks. All may be called from many goroutines.
type Deps struct {
	Transport Transport

	// Hold finds a blob for a peer, or fails with fs.ErrNotExist. It is asked once a connection; release
	// gives the blob back.
	Hold func(ctx context.Context, d blob.Digest) (h Holding, release func(), err error)

	// Busy tells whether the node serves inference now. Nil: never.
	Busy func() bool

	// Blame is told of a node that sent what it should not have. Nil: nobody listens.
	Blame func(id cluster.NodeID, d blob.Digest, err error)
}

// Config bounds what transfers cost. Zero means the default.
type Config struct {
	// In and Out are the most bytes a second of all transfers together. Default 0: unlimited.
	In  int64 `yaml:"in"`
	Out int64 `yaml:"out"`

	// BusyShare is the part of the rate that remains while the node serves inference; of an
	// unlimited one, the part of the fastest second seen. Default 0.25.
	BusyShare float64 `yaml:"busy_share"`

	// Memory is the most bytes of pieces that are on their way into the spool. Default 128 MiB.
	Memory int64 `yaml:"memory"`

	// Sources is the most nodes that one transfer asks at a time. Default 16.
	Sources int `yaml:"sources"`

	// Depth is how many pieces one transfer asks of a node ahead, without those that have come and are being written. More
	// hide a longer round trip; what was asked for is lost when the node dies. Default 3.
	Depth int `yaml:"depth"`

	// Connections is the most connections served, each one blob. PeerConnections is the most with one peer, those that are
	// served and as many that fetch: so no peer takes all of Memory. More are refused, or wait. Defaults 128, 16.
	Connections     int `yaml:"connections"`
	PeerConnections int `yaml:"peer_connections"`

	// Idle is how long a connection may say nothing, Stall how long a node may owe a piece
	// without sending any of it. Defaults 1 minute, 10 s.
	Idle  time.Duration `yaml:"idle"`
	Stall time.Duration `yaml:"stall"`

	// Slow is how long a node may take to send a piece, or the list, without the time in which we do not read. One that takes
	// longer is not asked again in that transfer. Default 20 minutes: at 64 KiB a second, sixteen pieces at once take 17.
	Slow time.Duration `yaml:"slow"`

	// Patience is how long a transfer goes on that gets nothing from anybody. Default 1 minute.
	Patience time.Duration `yaml:"patience"`
}

func (c Config) withDefaults() Config {
	c.BusyShare = cmp.Or(c.BusyShare, 0.25)
	c.Memory = cmp.Or(c.Memory, 128<<20)
	c.Sources = cmp.Or(c.Sources, 16)
	c.Depth = cmp.Or(c.Depth, 3)
	c.Connections = cmp.Or(c.Connections, 128)
	c.PeerConnections = cmp.Or(c.PeerConnections, 16)
	c.Idle = cmp.Or(c.Idle, time.Minute)
	c.Stall = cmp.Or(c.Stall, 10*time.Second)
	c.Slow = cmp.Or(c.Slow, 20*time.Minute)
	c.Patience = cmp.Or(c.Patience, time.Minute)
	return c
}

// Validate checks the ranges.
func (c Config) Validate() error {
	switch {
	case c.In < 0 || c.Out < 0 || c.Memory < 0 || c.Sources < 0 || c.Depth < 0 || c.Connections < 0 || c.PeerConnections < 0 ||
		c.Idle < 0 || c.Stall < 0 || c.Slow < 0 || c.Patience < 0:
		return errors.New("models.transfer: nothing may be negative")
	case c.Depth > maxQueue:
		return errors.New("models.transfer.depth: at most 16")
	case c.BusyShare < 0 || c.BusyShare > 1:
		return errors.New("models.transfer.busy_share: want 0 to 1")
	case c.Memory != 0 && c.Memory < blob.PieceSize:
		return errors.New("models.transfer.memory: want at least 4 MiB, a piece")
	}
	return nil
}

// Exchange is a node's part in moving blobs.
type Exchange struct {
	config  Config
	deps    Deps
	in, out *pace
	memory  *semaphore.Weighted
	buffers buffers

	mu   sync.Mutex
	from map[cluster.NodeID]int // connections that fetch, by node
}

// New makes an Exchange of a valid Config. Run serves; Transfers may run without it.
func New(config Config, deps Deps) *Exchange {
	config = config.withDefaults()
	if deps.Busy == nil {
		deps.Busy = func() bool { return false }
	}
	if deps.Blame == nil {
		deps.Blame = func(cluster.NodeID, blob.Digest, error) {}
	}
	return &Exchange{
		config: config, deps: deps,
		in:     newPace(config.In, config.BusyShare, deps.Busy),
		out:    newPace(config.Out, config.BusyShare, deps.Busy),
		memory: semaphore.NewWeighted(config.Memory), buffers: newBuffers(),
		from: make(map[cluster.NodeID]int),
	}
}

// begin counts a connection that fetches from a node; false: there are as many as may be.
func (x *Exchange) begin(id cluster.NodeID) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.from[id] >= x.config.PeerConnections {
		return false
	}
	x.from[id]++
	return true
}

func (x *Exchange) end(id cluster.NodeID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.from[id]--; x.from[id] == 0 {
		delete(x.from, id)
	}
}
