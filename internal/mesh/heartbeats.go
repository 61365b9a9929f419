package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Heartbeats tells every member, once an interval and at once on a change, that this node lives,
// and hears the same from each. Directly, on one long-lived stream a pair; an entry that has
// changed is pulled by whoever hears of its new version.
type Heartbeats struct {
	config    HeartbeatConfig
	transport Transport
	deps      HeartbeatDeps

	seq         atomic.Uint64
	failedPulls atomic.Uint64
	stale       atomic.Uint64
	changed     chan struct{} // by Notify
	work        sync.WaitGroup

	mu    sync.Mutex
	peers map[cluster.NodeID]*heartbeatPeer
}

// HeartbeatConfig is given by the node, not by the operator.
type HeartbeatConfig struct {
	// Boot numbers this run of the node. It must be greater than that of every run before, or
	// the others take our beats for old ones: the greater of the last one + 1, as persisted,
	// and the clock in milliseconds, so that a restored backup does not mute the node.
	Boot uint64

	// Interval is the time between beats, 1 s by default. The other times follow from it:
	// redialing waits 1/4 to 2 intervals; the node with the greater id dials when 3 have passed
	// without a stream; a stream that has been silent for 15 is given up; a write may take 2, a
	// dial 5; changes are told at most every 1/20.
	Interval time.Duration
}

// HeartbeatDeps are asked and told. The functions that are told are called one after the other
// for each peer, for different peers at the same time; none may block or call Heartbeats but
// for Notify.
type HeartbeatDeps struct {
	// Members are the nodes to talk to; the own id among them is skipped. Asked at Notify and
	// every five intervals. Others that the gate admits are heard and answered, but not dialed.
	Members func() []cluster.NodeID

	// Pulse and Entry give the own state, at each beat: they must be cheap. version increases
	// with each change of data within a boot. data is not modified, and at most MaxEntry bytes.
	Pulse func() Pulse
	Entry func() (version uint64, data []byte)

	// Heard tells of a beat that came at a time.
	Heard func(id cluster.NodeID, pulse Pulse, at time.Time)

	// EntryReceived tells of a peer's entry: on connecting, and when it has changed.
	EntryReceived func(id cluster.NodeID, boot, version uint64, data []byte)

	// Closed tells that the last stream with a peer has ended, or that a dial without one has
	// failed; it is repeated at each attempt. io.EOF: the peer closed it. *RefusedError: its
	// gate does not admit us. *DialError with Refused: its process is gone. IsTimeout: nothing
	// but silence. Anything else: the connection broke.
	Closed func(id cluster.NodeID, err error)
}

const heartbeatProtocol = "heartbeat/1"

// NewHeartbeats makes Heartbeats over a Transport.
func NewHeartbeats(config HeartbeatConfig, transport Transport, deps HeartbeatDeps) (*Heartbeats, error) {
	if config.Boot == 0 || config.Interval < 0 {
		return nil, fmt.Errorf("make heartbeats: boot %d, interval %v: want both above 0", config.Boot, config.Interval)
	}
	config.Interval = cmp.Or(config.Interval, time.Second)
	return &Heartbeats{
		config: config, transport: transport, deps: deps,
		changed: make(chan struct{}, 1), peers: make(map[cluster.NodeID]*heartbeatPeer),
	}, nil
}

// Notify says that Members, Pulse or Entry have changed. It never blocks.
func (h *Heartbeats) Notify() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// Stats counts, since the start, beats that were dropped because a later one had come, and
// attempts to pull or serve an entry that failed.
func (h *Heartbeats) Stats() (stale, failedPulls uint64) {
	return h.stale.Load(), h.failedPulls.Load()
}

// Run beats until ctx ends; if the pulse then says Leaving, it is told once more. It runs once.
func (h *Heartbeats) Run(ctx context.Context) (err error) {
	beats, err := h.transport.Listen(heartbeatProtocol)
	if err != nil {
		return fmt.Errorf("run heartbeats: %w", err)
	}
	entries, err := h.transport.Listen(entryProtocol)
	if err != nil {
		return fmt.Errorf("run heartbeats: %w", errors.Join(err, beats.Close()))
	}
	defer h.work.Wait()
	defer h.transport.Watch(h.connection)()
	defer beats.Close()
	defer entries.Close()
	h.work.Go(func() { h.acceptBeats(ctx, beats) })
	h.work.Go(func() { h.answerPulls(entries) })

	look := time.NewTicker(5 * h.config.Interval)
	defer look.Stop()
	h.update(ctx, false)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.changed:
			h.update(ctx, true)
		case <-look.C:
			h.update(ctx, false)
		}
	}
}

// update talks to who is a member now, and with tell sends all a beat.
func (h *Heartbeats) update(ctx context.Context, tell bool) {
	members := make(map[cluster.NodeID]bool)
	for _, id := range h.deps.Members() {
		if id != h.transport.ID() {
			members[id] = true
			h.peer(ctx, id, true)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, p := range h.peers {
		if p.wanted.Swap(members[id]) != members[id] || tell {
			signal(p.changed)
		}
	}
}

// peer finds or starts the loop for a peer.
func (h *Heartbeats) peer(ctx context.Context, id cluster.NodeID, wanted bool) *heartbeatPeer {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[id]
	if p == nil {
		p = newHeartbeatPeer(h, id, wanted)
		h.peers[id] = p
		h.work.Go(func() { p.run(ctx) })
	}
	return p
}

func (h *Heartbeats) acceptBeats(ctx context.Context, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		for accepted := false; !accepted; {
			p := h.peer(ctx, cluster.NodeID(c.RemoteAddr().String()), false)
			select {
			case p.inbound <- c:
				accepted = true
			case <-p.gone: // and forgotten: ask for a new one
			case <-ctx.Done():
				c.Close()
				return
			}
		}
	}
}

func (h *Heartbeats) connection(id cluster.NodeID, connected bool) {
	if !connected {
		return // the streams say so
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.peers[id]; p != nil {
		signal(p.reachable)
	}
}

// now makes the beat to send.
func (h *Heartbeats) now() beat {
	version, _ := h.deps.Entry()
	return beat{boot: h.config.Boot, seq: h.seq.Add(1), version: version, pulse: h.deps.Pulse()}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
