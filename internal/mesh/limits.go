package mesh

import (
	"math"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// newResourceManager bounds what libp2p may use. Its own defaults allow about 70 inbound streams
// a peer, members or not; ours bound the whole and the strangers, and leave members to MemberStreams.
func newResourceManager(l Limits, r *roster) (network.ResourceManager, error) {
	fixed := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: limit(l.Connections), ConnsInbound: limit(l.Connections), ConnsOutbound: limit(l.Connections),
			FD: limit(l.Connections), Memory: rcmgr.LimitVal64(l.Memory),
		},
		// Connections before their handshake, streams before their protocol.
		Transient: rcmgr.ResourceLimits{
			Conns: limit(l.Connections / 4), ConnsInbound: limit(l.Connections / 4),
			Streams: limit(l.MemberStreams), StreamsInbound: limit(l.MemberStreams),
			Memory: rcmgr.LimitVal64(l.Memory / 4),
		},
	}.Build(rcmgr.InfiniteLimits)
	perIP := func(bits int) rcmgr.ConnLimitPerSubnet {
		return rcmgr.ConnLimitPerSubnet{PrefixLength: bits, ConnCount: l.PerIP}
	}
	rateOf := func(bits int) rate.SubnetLimit {
		return rate.SubnetLimit{PrefixLength: bits, Limit: rate.Limit{RPS: float64(10 * l.PerIP), Burst: 10 * l.PerIP}}
	}
	return rcmgr.NewResourceManager(limiter{Limiter: rcmgr.NewFixedLimiter(fixed), limits: l, roster: r},
		rcmgr.WithMetricsDisabled(), // its metrics are global variables; see Host.Stats
		rcmgr.WithLimitPerSubnet([]rcmgr.ConnLimitPerSubnet{perIP(32)}, []rcmgr.ConnLimitPerSubnet{perIP(56)}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{
				{Prefix: netip.MustParsePrefix("127.0.0.0/8")}, {Prefix: netip.MustParsePrefix("::1/128")},
			},
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{rateOf(32)}, IPv6SubnetLimits: []rate.SubnetLimit{rateOf(56)},
			},
		}))
}

func limit(n int) rcmgr.LimitVal { return rcmgr.LimitVal(n) }

// limiter gives fixed limits to all scopes but the peers'.
type limiter struct {
	rcmgr.Limiter
	limits Limits
	roster *roster
}

func (l limiter) GetPeerLimits(p peer.ID) rcmgr.Limit {
	return peerLimit{limits: l.limits, roster: l.roster, id: cluster.NodeID(p.String())}
}

// peerLimit is one peer's limit. It is asked at each reservation, so a stranger that becomes a
// member gets a member's limits on the connection it has.
type peerLimit struct {
	limits Limits
	roster *roster
	id     cluster.NodeID
}

const (
	memberConns   = 16 // both sides dial at once, over TCP and QUIC, and old ones linger
	strangerConns = 2
)

func (p peerLimit) member() bool { return p.roster.trusts(p.id) }

// GetMemoryLimit is what a stranger's streams start with, twice: no growth of windows.
func (p peerLimit) GetMemoryLimit() int64 {
	if p.member() {
		return math.MaxInt64
	}
	return int64(2*p.limits.StrangerStreams) * (256 << 10)
}

// GetStreamLimit bounds what the peer opens. What we open is our own decision.
func (p peerLimit) GetStreamLimit(dir network.Direction) int {
	if dir == network.DirOutbound || p.member() {
		return p.limits.MemberStreams
	}
	return p.limits.StrangerStreams
}

func (p peerLimit) GetStreamTotalLimit() int { return 2 * p.limits.MemberStreams }

func (p peerLimit) GetConnLimit(dir network.Direction) int {
	if dir == network.DirOutbound || p.member() {
		return memberConns
	}
	return strangerConns
}

func (p peerLimit) GetConnTotalLimit() int { return 2 * memberConns }
func (p peerLimit) GetFDLimit() int        { return 2 * memberConns }
