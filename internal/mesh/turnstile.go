package mesh

import (
	"errors"
	"sync"

	"golang.org/x/time/rate"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// turnstile bounds an open listener: streams at a time, and new ones a second, in all and a peer.
// A stranger can have as many ids as it likes, so the bound in all is the one that holds; the
// one a peer only keeps an honest but broken peer from using it up.
type turnstile struct {
	slots   chan struct{}
	all     *rate.Limiter
	perPeer rate.Limit

	mu    sync.Mutex
	peers map[cluster.NodeID]*rate.Limiter // at most maxTurnstilePeers
}

const maxTurnstilePeers = 1024

var errBusy = errors.New("too many requests; try again in a few seconds")

func newTurnstile(l Limits) *turnstile {
	return &turnstile{
		slots:   make(chan struct{}, l.OpenStreams),
		all:     rate.NewLimiter(rate.Limit(l.OpenPerSecond), burst(l.OpenPerSecond)),
		perPeer: rate.Limit(l.OpenPerPeer),
		peers:   make(map[cluster.NodeID]*rate.Limiter),
	}
}

// enter lets a stream pass, until leave is called once, or says why not.
func (t *turnstile) enter(id cluster.NodeID) (leave func(), err error) {
	if !t.peer(id).Allow() || !t.all.Allow() {
		return nil, errBusy
	}
	select {
	case t.slots <- struct{}{}:
		return func() { <-t.slots }, nil
	default:
		return nil, errBusy
	}
}

func (t *turnstile) peer(id cluster.NodeID) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil {
		if len(t.peers) >= maxTurnstilePeers {
			clear(t.peers) // forgetting is harmless: the bound in all holds
		}
		p = rate.NewLimiter(t.perPeer, burst(float64(t.perPeer)))
		t.peers[id] = p
	}
	return p
}

func burst(perSecond float64) int { return max(1, int(4*perSecond)) }
