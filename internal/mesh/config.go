package mesh

import (
	"cmp"
	"fmt"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// Config is the part of the configuration tree under p2p. Every field needs a restart.
type Config struct {
	// Listen are the multiaddrs to listen on, TCP or QUIC. Every one must succeed.
	// Default /ip4/0.0.0.0/tcp/11436 and /ip4/0.0.0.0/udp/11436/quic-v1.
	Listen []string `yaml:"listen"`

	// Announce are the multiaddrs told to others instead of the own interfaces', for a node
	// behind a forwarded port. Default none.
	Announce []string `yaml:"announce"`

	// MDNS looks for the members' addresses on the local network, and shows ours. It admits
	// nobody. Default true.
	MDNS bool `yaml:"mdns"`

	Limits Limits `yaml:"limits"`
}

// Limits bound what peers can cost us. Zero means the default.
type Limits struct {
	// Connections is the most connections in all, members and strangers. Default 1024.
	Connections int `yaml:"connections"`

	// PerIP is the most connections with one IP address (an IPv6 /56), and ten times the most new ones a
	// second, both ways; loopback is not counted. Raise it when many nodes share an address.
	// Default 64 (libp2p's own 8, and one in five seconds, also stop a node that redials).
	PerIP int `yaml:"per_ip"`

	// MemberStreams is the most streams with one member in each direction. Default 4096.
	MemberStreams int `yaml:"member_streams"`

	// Memory bounds the receive windows that streams may fill, in bytes: 256 KiB each from the
	// start, up to 16 MiB each while less than half of Memory is promised. It is a promise,
	// used only where a reader is slower than its peer. Default 4 GiB.
	Memory int64 `yaml:"memory"`

	// Strangers is the most inbound connections of peers that are no members, 2 a peer, with
	// StrangerStreams inbound streams each. A stranger's connection is closed after StrangerLifetime.
	// Defaults 64, 16, 2 minutes.
	Strangers        int           `yaml:"strangers"`
	StrangerStreams  int           `yaml:"stranger_streams"`
	StrangerLifetime time.Duration `yaml:"stranger_lifetime"`

	// Pending is the most streams of members whose preamble has not come yet, PendingStrangers
	// the same for all strangers together. More are reset. Defaults 1024, 64.
	Pending          int `yaml:"pending"`
	PendingStrangers int `yaml:"pending_strangers"`

	// Preamble is the longest time that a preamble may take, and an admitted stream may wait
	// for Accept. Default 5 s.
	Preamble time.Duration `yaml:"preamble"`

	// Backlog is the number of admitted streams a listener that wait for Accept without a
	// goroutine each. Default 128.
	Backlog int `yaml:"backlog"`

	// OpenStreams is the most streams at a time on one open listener, OpenPerSecond the rate of
	// new ones (bursts of four times that), OpenPerPeer the same for one peer.
	// Defaults 32, 10, 1.
	OpenStreams   int     `yaml:"open_streams"`
	OpenPerSecond float64 `yaml:"open_per_second"`
	OpenPerPeer   float64 `yaml:"open_per_peer"`
}

// DefaultConfig gives the defaults, every limit written out.
func DefaultConfig() Config {
	return Config{
		Listen: []string{"/ip4/0.0.0.0/tcp/11436", "/ip4/0.0.0.0/udp/11436/quic-v1"},
		MDNS:   true,
		Limits: Limits{}.withDefaults(),
	}
}

// Validate checks what can be checked without listening.
func (c Config) Validate() error {
	if len(c.Listen) == 0 {
		return fmt.Errorf("p2p.listen: want at least one multiaddr, such as /ip4/0.0.0.0/tcp/11436")
	}
	for name, list := range map[string][]string{"listen": c.Listen, "announce": c.Announce} {
		for _, s := range list {
			if _, err := ma.NewMultiaddr(s); err != nil {
				return fmt.Errorf("p2p.%s %q: want a multiaddr, such as /ip4/192.0.2.1/tcp/11436: %w", name, s, err)
			}
		}
	}
	l := c.Limits
	for name, n := range map[string]float64{
		"connections": float64(l.Connections), "per_ip": float64(l.PerIP),
		"member_streams": float64(l.MemberStreams), "memory": float64(l.Memory),
		"strangers": float64(l.Strangers), "stranger_streams": float64(l.StrangerStreams),
		"stranger_lifetime": float64(l.StrangerLifetime), "pending": float64(l.Pending),
		"pending_strangers": float64(l.PendingStrangers), "preamble": float64(l.Preamble),
		"backlog": float64(l.Backlog), "open_streams": float64(l.OpenStreams),
		"open_per_second": l.OpenPerSecond, "open_per_peer": l.OpenPerPeer,
	} {
		if n < 0 {
			return fmt.Errorf("p2p.limits.%s: must not be negative", name)
		}
	}
	return nil
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Connections:      cmp.Or(l.Connections, 1024),
		PerIP:            cmp.Or(l.PerIP, 64),
		MemberStreams:    cmp.Or(l.MemberStreams, 4096),
		Memory:           cmp.Or(l.Memory, 4<<30),
		Strangers:        cmp.Or(l.Strangers, 64),
		StrangerStreams:  cmp.Or(l.StrangerStreams, 16),
		StrangerLifetime: cmp.Or(l.StrangerLifetime, 2*time.Minute),
		Pending:          cmp.Or(l.Pending, 1024),
		PendingStrangers: cmp.Or(l.PendingStrangers, 64),
		Preamble:         cmp.Or(l.Preamble, 5*time.Second),
		Backlog:          cmp.Or(l.Backlog, 128),
		OpenStreams:      cmp.Or(l.OpenStreams, 32),
		OpenPerSecond:    cmp.Or(l.OpenPerSecond, 10),
		OpenPerPeer:      cmp.Or(l.OpenPerPeer, 1),
	}
}
