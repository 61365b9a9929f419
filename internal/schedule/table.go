package schedule

import (
	"maps"
	"sync"
	"sync/atomic"
)

// table is a map that is read without a lock and seldom grows. The zero value is empty.
type table[K comparable, V any] struct {
	now atomic.Pointer[map[K]V]
	mu  sync.Mutex // of those who add
}

// get returns the value of a key, made when there is none.
func (t *table[K, V]) get(key K, make func() V) V {
	if m := t.now.Load(); m != nil {
		if v, ok := (*m)[key]; ok {
			return v
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	grown := map[K]V{}
	if m := t.now.Load(); m != nil {
		if v, ok := (*m)[key]; ok {
			return v
		}
		grown = maps.Clone(*m)
	}
	v := make()
	grown[key] = v
	t.now.Store(&grown)
	return v
}
