package enginetest

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// errQueueFull is Ollama's text, two spaces included.
var errQueueFull = errors.New("server busy, please try again.  maximum pending requests exceeded")

// slots are the places where generations run, the queue before them, and the model of a prompt
// cache: each slot remembers the whole last text that it evaluated.
type slots struct {
	queue int // how many may wait

	mu      sync.Mutex
	free    []*slot // the longest unused first
	waiting []*waiter
	running int
	peak    int
}

// slot is one place. Its fields belong to whoever holds it.
type slot struct {
	model string // digest of the model whose text it holds
	text  []byte
}

type waiter struct {
	turn  chan struct{}
	given *slot // set before turn is closed
}

func newSlots(n, queue int) *slots {
	s := &slots{queue: queue}
	for range n {
		s.free = append(s.free, new(slot))
	}
	return s
}

// take waits for a slot, in order of arrival, and returns of the free ones that which holds most
// of text already. It returns errQueueFull at once when too many wait.
func (s *slots) take(ctx context.Context, model, text string) (*slot, error) {
	s.mu.Lock()
	if len(s.free) > 0 {
		best, most := 0, -1
		for i, sl := range s.free {
			if n := sl.common(model, text); n > most {
				best, most = i, n
			}
		}
		sl := s.free[best]
		s.free = slices.Delete(s.free, best, best+1)
		s.started()
		s.mu.Unlock()
		return sl, nil
	}
	if len(s.waiting) >= s.queue {
		s.mu.Unlock()
		return nil, errQueueFull
	}
	w := &waiter{turn: make(chan struct{})}
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()

	select {
	case <-w.turn:
		return w.given, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	if i := slices.Index(s.waiting, w); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		s.mu.Unlock()
		return nil, ctx.Err()
	}
	s.mu.Unlock()
	s.give(w.given) // it became ours while we left
	return nil, ctx.Err()
}

// give returns a slot; the longest waiting request gets it.
func (s *slots) give(sl *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	if len(s.waiting) == 0 {
		s.free = append(s.free, sl)
		return
	}
	w := s.waiting[0]
	s.waiting = slices.Delete(s.waiting, 0, 1)
	w.given = sl
	s.started()
	close(w.turn)
}

func (s *slots) started() {
	s.running++
	s.peak = max(s.peak, s.running)
}

// load returns how many run and wait now, and the most that ever ran at once.
func (s *slots) load() (running, waiting, peak int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running, len(s.waiting), s.peak
}

// common returns the length in bytes of the longest common prefix of text and what sl holds.
func (sl *slot) common(model, text string) int {
	if sl.model != model {
		return 0
	}
	n, i := min(len(sl.text), len(text)), 0
	for i+64 <= n && string(sl.text[i:i+64]) == text[i:i+64] {
		i += 64
	}
	for i < n && sl.text[i] == text[i] {
		i++
	}
	return i
}

// prefill makes sl hold text and returns how many of its tokens had to be evaluated: those after
// the common prefix, and always the last, as in llama.cpp.
func (sl *slot) prefill(model, text string, total int) int {
	n := sl.common(model, text)
	cached := Tokens(text[:n])
	if cut := n < len(text) && !startsToken(text[n]) || n < len(sl.text) && !startsToken(sl.text[n]); cut && cached > 0 {
		cached-- // the prefix ends inside a token
	}
	sl.model = model
	sl.text = append(sl.text[:n], text[n:]...)
	return total - min(cached, max(total-1, 0))
}
