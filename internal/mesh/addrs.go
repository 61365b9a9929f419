package mesh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// maxAddrs is how many addresses AddAddrs keeps of a peer.
const maxAddrs = 32

// Addrs are the multiaddrs at which others can dial us, each ending in /p2p/ and our id:
// Config.Announce, else those of the interfaces we listen on (loopback only if there is no other).
func (h *Host) Addrs() []string {
	found, err := h.p2p.Network().InterfaceListenAddresses()
	if err != nil { // the interfaces cannot be read now: say what we know
		found = h.p2p.Network().ListenAddresses()
	}
	var out []string
	for _, a := range h.announce(found) {
		out = append(out, a.String()+"/p2p/"+string(h.id))
	}
	return out
}

// announce chooses among the addresses that were found; identify tells others the same.
func (h *Host) announce(found []ma.Multiaddr) []ma.Multiaddr {
	if len(h.config.Announce) > 0 {
		var addrs []ma.Multiaddr
		for _, s := range h.config.Announce {
			if a, err := ma.NewMultiaddr(s); err == nil { // Validate has seen to it
				addrs = append(addrs, withoutPeer(a))
			}
		}
		return addrs
	}
	useful := slices.DeleteFunc(slices.Clone(found), func(a ma.Multiaddr) bool {
		return manet.IsIPLoopback(a) || manet.IsIP6LinkLocal(a)
	})
	if len(useful) == 0 {
		useful = slices.Clone(found)
	}
	slices.SortFunc(useful, func(a, b ma.Multiaddr) int { return strings.Compare(a.String(), b.String()) })
	return useful
}

// Connect dials peers at multiaddrs that end in /p2p/ and an id, all at the same time, and tells
// whom it reached. The error names those it did not reach; it is nil when all were reached.
func (h *Host) Connect(ctx context.Context, addrs []string) (reached []cluster.NodeID, err error) {
	var (
		mu   sync.Mutex
		work sync.WaitGroup
		errs []error
	)
	ctx, cancel := withDialTimeout(ctx)
	defer cancel()
	byPeer := make(map[peer.ID][]ma.Multiaddr)
	for _, s := range addrs {
		info, err := peer.AddrInfoFromString(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("connect to %q: want a multiaddr such as /ip4/192.0.2.1/tcp/11436/p2p/ID: %w", s, err))
			continue
		}
		byPeer[info.ID] = append(byPeer[info.ID], info.Addrs...)
	}
	delete(byPeer, h.p2p.ID())
	for p, addrs := range byPeer {
		work.Go(func() {
			id := cluster.NodeID(p.String())
			h.p2p.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
			_, err := h.p2p.Network().DialPeer(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("connect: %w", dialError(ctx, id, err)))
				return
			}
			reached = append(reached, id)
		})
	}
	work.Wait()
	return reached, errors.Join(errs...)
}

// AddAddrs tells where a peer may be reached: multiaddrs, with or without /p2p/ and its id. They
// are kept until 32 newer ones have come. What is no address, or names another peer, is skipped
// and counted in the result.
func (h *Host) AddAddrs(id cluster.NodeID, addrs []string) (skipped int) {
	p, err := peer.Decode(string(id))
	if err != nil {
		return len(addrs)
	}
	var good []string
	for _, s := range addrs {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			skipped++
			continue
		}
		if named, err := peer.IDFromP2PAddr(a); err == nil && named != p {
			skipped++
			continue
		}
		if a = withoutPeer(a); len(a) > 0 {
			good = append(good, a.String())
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	known := good
	for _, s := range h.addrs[id] {
		if !slices.Contains(known, s) {
			known = append(known, s)
		}
	}
	for i, s := range known {
		ttl := time.Duration(peerstore.PermanentAddrTTL)
		if i >= maxAddrs {
			ttl = 0
		}
		if a, err := ma.NewMultiaddr(s); err == nil {
			h.p2p.Peerstore().SetAddr(p, a, ttl)
		}
	}
	h.addrs[id] = slices.Clone(known[:min(len(known), maxAddrs)])
	return skipped
}

// ClearBackoff is Transport's. Without it libp2p refuses to dial a peer that did not answer for
// 5 s, growing to 5 min.
func (h *Host) ClearBackoff(id cluster.NodeID) {
	if p, err := peer.Decode(string(id)); err == nil {
		h.p2p.Network().(*swarm.Swarm).Backoff().Clear(p)
	}
}

func withoutPeer(a ma.Multiaddr) ma.Multiaddr {
	if _, err := peer.IDFromP2PAddr(a); err != nil {
		return a
	}
	a, _ = ma.SplitLast(a)
	return a
}

// rankDials prefers TCP to QUIC, unlike libp2p: on a LAN it is faster and costs less CPU. QUIC
// follows after 250 ms, in case TCP is blocked.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	var first, later []ma.Multiaddr
	for _, a := range addrs {
		if _, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			first = append(first, a)
		} else {
			later = append(later, a)
		}
	}
	ranked := swarm.DefaultDialRanker(first)
	var offset time.Duration
	if len(first) > 0 {
		offset = swarm.PublicTCPDelay
	}
	for _, d := range swarm.DefaultDialRanker(later) {
		d.Delay += offset
		ranked = append(ranked, d)
	}
	return ranked
}
