package gateway

import "sync"

// budget bounds retries after answers of 5xx to a share of the requests, so that an overload does
// not feed itself: each request earns a fifth of a retry, up to a small reserve, from which a
// gateway with little traffic may spend at once.
type budget struct {
	mu    sync.Mutex
	saved float64
}

const (
	earnedPerRequest = 0.2
	mostSaved        = 10
)

func newBudget() *budget { return &budget{saved: mostSaved} }

func (b *budget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.saved = min(b.saved+earnedPerRequest, mostSaved)
}

func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.saved < 1 {
		return false
	}
	b.saved--
	return true
}
