package mesh

import (
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// doorkeeper bounds the connections of strangers in all. Anyone may connect; what a connection
// may be used for the gate decides, stream by stream. Two that come at once may both pass.
type doorkeeper struct{ h *Host }

func (d doorkeeper) InterceptSecured(dir network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	if dir == network.DirOutbound || d.h.trusts(p) {
		return true
	}
	strangers := 0
	for _, c := range d.h.p2p.Network().Conns() {
		if c.Stat().Direction == network.DirInbound && !d.h.trusts(c.RemotePeer()) {
			strangers++
		}
	}
	return strangers < d.h.config.Limits.Strangers
}

func (doorkeeper) InterceptPeerDial(peer.ID) bool               { return true }
func (doorkeeper) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }
func (doorkeeper) InterceptAccept(network.ConnMultiaddrs) bool  { return true }
func (doorkeeper) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) {
	return true, 0
}
