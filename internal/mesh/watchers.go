package mesh

import (
	"sync"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// watchers counts each peer's connections and tells its functions of the first and the last.
type watchers struct {
	mu    sync.Mutex // held while the functions run, so that each sees the events in order
	conns map[cluster.NodeID]int
	next  int
	fns   map[int]func(cluster.NodeID, bool)
}

func newWatchers() *watchers {
	return &watchers{conns: make(map[cluster.NodeID]int), fns: make(map[int]func(cluster.NodeID, bool))}
}

func (w *watchers) watch(fn func(id cluster.NodeID, connected bool)) (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := w.next
	w.next++
	w.fns[key] = fn
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.fns, key)
	}
}

func (w *watchers) connected(id cluster.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns[id]++; w.conns[id] == 1 {
		w.tell(id, true)
	}
}

func (w *watchers) disconnected(id cluster.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns[id]--; w.conns[id] == 0 {
		delete(w.conns, id)
		w.tell(id, false)
	}
}

func (w *watchers) tell(id cluster.NodeID, connected bool) {
	for _, fn := range w.fns {
		fn(id, connected)
	}
}
