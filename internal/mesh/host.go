package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Host is the Transport over libp2p: TLS (or Noise) and yamux over TCP, or QUIC.
type Host struct {
	config  Config
	log     *slog.Logger
	found   func(cluster.NodeID, []string)
	p2p     host.Host
	id      cluster.NodeID
	roster  *roster
	gate    *gate
	watched *watchers

	mu    sync.Mutex
	addrs map[cluster.NodeID][]string // of AddAddrs, newest first

	closing sync.Once
	closed  error
}

var _ Transport = (*Host)(nil)

// frame is the most that one stream sends before others get their turn. Up to 64 frames wait
// in yamux's one queue: with its own 64 KiB, 4 MiB stand before a heartbeat.
const frame = 16 << 10

// Open listens and lets peers in. Nil log means none.
func Open(config Config, key crypto.PrivKey, log *slog.Logger, deps Deps) (*Host, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("open mesh: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	config.Limits = config.Limits.withDefaults()
	id, err := NodeID(key)
	if err != nil {
		return nil, fmt.Errorf("open mesh: %w", err)
	}
	h := &Host{
		config: config, log: log, found: deps.Found, id: id, roster: newRoster(),
		watched: newWatchers(), addrs: make(map[cluster.NodeID][]string),
	}
	h.gate = newGate(id, deps, config.Limits, h.roster)
	if h.p2p, err = h.open(key); err != nil {
		return nil, fmt.Errorf("open mesh: %w", err)
	}
	h.p2p.SetStreamHandler(streamProtocol, func(s network.Stream) {
		h.gate.serve(s, cluster.NodeID(s.Conn().RemotePeer().String()))
	})
	h.p2p.Network().Notify(&network.NotifyBundle{
		ConnectedF: func(_ network.Network, c network.Conn) {
			h.watched.connected(cluster.NodeID(c.RemotePeer().String()))
		},
		DisconnectedF: func(n network.Network, c network.Conn) {
			id := cluster.NodeID(c.RemotePeer().String())
			if n.Connectedness(c.RemotePeer()) != network.Connected {
				h.roster.dismiss(id)
			}
			h.watched.disconnected(id)
		},
	})
	for _, addr := range config.Listen {
		if err := h.listenAddr(addr); err != nil {
			h.Close()
			return nil, fmt.Errorf("open mesh: %w", err)
		}
	}
	return h, nil
}

// open makes a libp2p host that does not listen yet.
func (h *Host) open(key crypto.PrivKey) (host.Host, error) {
	limits := h.config.Limits
	manager, err := newResourceManager(limits, h.roster)
	if err != nil {
		return nil, err
	}
	trimmer, err := connmgr.NewConnManager(limits.Connections*3/4, limits.Connections*9/10)
	if err != nil {
		manager.Close()
		return nil, err
	}
	muxer := *yamux.DefaultTransport
	muxer.MaxMessageSize = frame
	p2p, err := libp2p.New(
		libp2p.Identity(key),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, &muxer),
		libp2p.Transport(newTCP),
		libp2p.Transport(quic.NewTransport),
		libp2p.NoListenAddrs,
		libp2p.ResourceManager(manager),
		libp2p.ConnectionManager(trimmer),
		libp2p.ConnectionGater(doorkeeper{h}),
		libp2p.AddrsFactory(h.announce),
		libp2p.SwarmOpts(swarm.WithDialRanker(rankDials)),
		libp2p.DisableRelay(),
		libp2p.ForceReachabilityPrivate(), // no AutoNAT
		libp2p.DisableIdentifyAddressDiscovery(),
		// Detectors that stop all dialing over UDP or IPv6 when some dead members do not answer.
		libp2p.UDPBlackHoleSuccessCounter(nil),
		libp2p.IPv6BlackHoleSuccessCounter(nil),
		libp2p.DisableMetrics(), // global variables; see Stats
		libp2p.UserAgent("ollamamax"),
	)
	if err != nil {
		trimmer.Close()
		manager.Close()
		return nil, err
	}
	return p2p, nil
}

func (h *Host) listenAddr(addr string) error {
	m, err := ma.NewMultiaddr(addr)
	if err != nil {
		return err
	}
	// Listen of network.Network flattens the cause to text, and is content with one of many.
	err = h.p2p.Network().(*swarm.Swarm).AddListenAddr(m)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, wsaeaddrinuse):
		return fmt.Errorf("listen on %s: the port is in use; stop the other program (another ollamamax?) "+
			"or set p2p.listen or --p2p-listen to another port: %w", addr, err)
	}
	return fmt.Errorf("listen on %s: %w", addr, err)
}

// Run closes strangers' connections that last too long and, with Config.MDNS, looks for members
// on the local network. It returns nil when ctx ends. Streams work without it.
func (h *Host) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	if h.config.MDNS && h.found != nil {
		work.Go(func() { h.runMDNS(ctx) })
	}
	sweep := time.NewTicker(h.config.Limits.StrangerLifetime / 4)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-sweep.C:
			h.sweep(now)
		}
	}
}

func (h *Host) sweep(now time.Time) {
	for _, c := range h.p2p.Network().Conns() {
		stat := c.Stat()
		if stat.Direction == network.DirInbound && !h.trusts(c.RemotePeer()) &&
			now.Sub(stat.Opened) > h.config.Limits.StrangerLifetime {
			c.Close()
		}
	}
}

// Close ends every connection and listener. It is idempotent.
func (h *Host) Close() error {
	h.closing.Do(func() {
		h.closed = h.p2p.Close()
		h.gate.close()
	})
	return h.closed
}

// ID is the own node.
func (h *Host) ID() cluster.NodeID { return h.id }

// Listen is Transport's.
func (h *Host) Listen(protocol string) (net.Listener, error) { return h.gate.listen(protocol, false) }

// ListenOpen is Transport's.
func (h *Host) ListenOpen(protocol string) (net.Listener, error) {
	return h.gate.listen(protocol, true)
}

// Watch is Transport's.
func (h *Host) Watch(fn func(id cluster.NodeID, connected bool)) (stop func()) {
	return h.watched.watch(fn)
}

// Disconnect is Transport's.
func (h *Host) Disconnect(id cluster.NodeID) {
	if p, err := peer.Decode(string(id)); err == nil {
		h.roster.dismiss(id)
		h.p2p.Network().ClosePeer(p) // an error of closing a socket tells nothing
	}
}

// Protect says who are members, all of them: they get members' limits, and their connections
// are never trimmed. It does not admit anybody.
func (h *Host) Protect(members []cluster.NodeID) {
	came, went := h.roster.setMembers(members)
	for _, id := range came {
		if p, err := peer.Decode(string(id)); err == nil {
			h.p2p.ConnManager().Protect(p, "member")
		}
	}
	for _, id := range went {
		if p, err := peer.Decode(string(id)); err == nil {
			h.p2p.ConnManager().Unprotect(p, "member")
		}
	}
}

func (h *Host) trusts(p peer.ID) bool { return h.roster.trusts(cluster.NodeID(p.String())) }
