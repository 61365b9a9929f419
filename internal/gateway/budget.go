package gateway

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Retry bounds second attempts after an engine could not in time: all of them together must not be
// asked twice as much because they are asked too much. Attempts at another node after
// one that did nothing at all cost nothing.
type Retry struct {
	// Budget is the share of requests that may be tried again. Default 0.2. Needs a restart, as all
	// below.
	Budget float64 `yaml:"budget"`
	// Floor is how many a second may be in any case. Default 1.
	Floor float64 `yaml:"floor"`
	// Hedge is after how long without a first piece a second node is asked as well, of which the first
	// to answer is passed on; within the budget, for prompts of up to 4 KiB. Default 0: never.
	Hedge time.Duration `yaml:"hedge"`
}

// Validate returns what is wrong with the budget, for an operator.
func (r Retry) Validate() error {
	if r.Budget < 0 || r.Budget > 1 || r.Floor < 0 || r.Hedge < 0 {
		return fmt.Errorf("gateway.retry is {budget: %v, floor: %v, hedge: %v}: give a share from 0 to 1, a number of retries a second, and a duration, each 0 for none", r.Budget, r.Floor, r.Hedge)
	}
	return nil
}

// budget counts what may be tried again: each request earns its share of a retry, up to a small
// reserve, and time earns the floor. It takes no lock.
type budget struct {
	earned int64 // by a request, in thousandths
	every  int64 // nanoseconds between two of the floor; 0: none
	saved  atomic.Int64
	floor  atomic.Int64 // when the floor was last used, in Unix nanoseconds
}

// mostSaved is the reserve, in retries.
const mostSaved = 10

func newBudget(r Retry) *budget {
	b := &budget{earned: int64(r.Budget * 1000)}
	if r.Floor > 0 {
		b.every = int64(float64(time.Second) / r.Floor)
	}
	if b.earned > 0 {
		b.saved.Store(mostSaved * 1000)
	}
	return b
}

func (b *budget) earn() {
	if b.saved.Load() < mostSaved*1000 {
		b.saved.Add(b.earned)
	}
}

func (b *budget) spend() bool {
	for saved := b.saved.Load(); saved >= 1000; saved = b.saved.Load() {
		if b.saved.CompareAndSwap(saved, saved-1000) {
			return true
		}
	}
	last, now := b.floor.Load(), time.Now().UnixNano()
	return b.every > 0 && now-last >= b.every && b.floor.CompareAndSwap(last, now)
}
