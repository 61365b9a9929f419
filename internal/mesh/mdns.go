package mesh

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// mdnsService is the same for all clusters: who belongs to which is not told to the network.
const mdnsService = "_ollamamax._udp"

// runMDNS shows our addresses on the local network and reports others' until ctx ends. A machine
// without multicast still has a working mesh, so a failure is only logged.
func (h *Host) runMDNS(ctx context.Context) {
	service := mdns.NewMdnsService(h.p2p, mdnsService, mdnsListener(h.found))
	if err := service.Start(); err != nil {
		h.log.Warn("mDNS does not work here; members are found by their known addresses only", "err", err)
		service.Close()
		return
	}
	<-ctx.Done()
	service.Close()
}

type mdnsListener func(cluster.NodeID, []string)

// HandlePeerFound is called in a goroutine of its own.
func (found mdnsListener) HandlePeerFound(info peer.AddrInfo) {
	addrs := make([]string, 0, min(len(info.Addrs), maxAddrs))
	for _, a := range info.Addrs[:min(len(info.Addrs), maxAddrs)] {
		addrs = append(addrs, a.String())
	}
	found(cluster.NodeID(info.ID.String()), addrs)
}
