package gateway

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
)

// requests is what is being served, in shards, so that requests do not wait for each other here.
type requests struct {
	shards [16]shard
}

// shard is a ring of requests, which begins nowhere.
type shard struct {
	mu   sync.Mutex
	some *exchange
	_    [48]byte // a cache line of its own
}

func (r *requests) add(x *exchange) {
	s := &r.shards[uint64(x.began.UnixNano()>>8)%uint64(len(r.shards))]
	x.shard = s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.some == nil {
		x.next, x.prev = x, x
	} else {
		x.next, x.prev = s.some, s.some.prev
		x.next.prev, x.prev.next = x, x
	}
	s.some = x
}

func (r *requests) remove(x *exchange) {
	s := x.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.next == x {
		s.some = nil
		return
	}
	x.next.prev, x.prev.next = x.prev, x.next
	if s.some == x {
		s.some = x.next
	}
}

func (r *requests) each(f func(*exchange)) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		for x := s.some; x != nil; {
			f(x)
			if x = x.next; x == s.some {
				break
			}
		}
		s.mu.Unlock()
	}
}

// progress is how far a request has come, for those who look at it from outside.
type progress struct {
	model   atomic.Pointer[string]
	node    atomic.Pointer[string]
	waiting atomic.Bool
	pieces  atomic.Int64
	resumes atomic.Int32
	reading atomic.Pointer[http.ResponseController] // of the client's connection, while its body is read
	broke   atomic.Pointer[string]                  // how the stream broke that was last resumed
}

// errCancelled is why a request ends that an operator cancelled.
var errCancelled = errors.New("the request was cancelled by an operator")

// Requests lists what this gateway is serving, the oldest first.
func (g *Gateway) Requests() []api.Request {
	places := g.deps.Waiting()
	list := []api.Request{}
	g.requests.each(func(x *exchange) {
		r := api.Request{ID: x.id, Path: x.route.path, Priority: x.priority.String(), Since: x.began.UTC(),
			State: "running", Pieces: x.progress.pieces.Load(), Resumes: int(x.progress.resumes.Load())}
		if model := x.progress.model.Load(); model != nil {
			r.Model = *model
		}
		if node := x.progress.node.Load(); node != nil {
			r.Node = *node
		}
		if broke := x.progress.broke.Load(); broke != nil {
			r.Broke = *broke
		}
		if x.progress.waiting.Load() {
			r.State, r.Place = "waiting", places[x.id]
		}
		if at, ok := x.ctx.Deadline(); ok {
			at = at.UTC()
			r.Deadline = &at
		}
		list = append(list, r)
	})
	slices.SortFunc(list, func(a, b api.Request) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// Cancel ends the requests with that id; false if there is none.
func (g *Gateway) Cancel(id string) bool {
	found := false
	g.requests.each(func(x *exchange) {
		if x.id == id {
			found = true
			x.cancel(errCancelled)
			if control := x.progress.reading.Load(); control != nil {
				_ = control.SetReadDeadline(time.Now()) // servers that cannot set deadlines read on
			}
		}
	})
	return found
}

// withDeadline is context.WithDeadline of a context that can be cancelled with a cause.
func withDeadline(parent context.Context, at time.Time) (context.Context, context.CancelCauseFunc) {
	if at.IsZero() {
		return context.WithCancelCause(parent)
	}
	ctx, stop := context.WithDeadline(parent, at)
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, func(cause error) { cancel(cause); stop() }
}
