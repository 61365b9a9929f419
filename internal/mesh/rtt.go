package mesh

import (
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Ping measures the time to a peer and back, over the connection that there is.
func (h *Host) Ping(ctx context.Context, id cluster.NodeID) error {
	p, err := peer.Decode(string(id))
	if err != nil {
		return fmt.Errorf("ping %q: not a node id: %w", id, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer, ok := <-ping.Ping(ctx, h.p2p, p) // which keeps the mean
	switch {
	case !ok:
		return fmt.Errorf("ping %s: %w", id, ctx.Err())
	case answer.Error != nil:
		return fmt.Errorf("ping %s: %w", id, answer.Error)
	}
	return nil
}

// RTT returns the time to a peer and back, a mean of the last pings; 0 if it is not known.
func (h *Host) RTT(id cluster.NodeID) time.Duration {
	p, err := peer.Decode(string(id))
	if err != nil {
		return 0
	}
	return h.p2p.Peerstore().LatencyEWMA(p)
}
