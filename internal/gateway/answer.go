package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/gateway/record"
)

// answer is what one node answers, read as far as the gateway can be sure of it: of a stream its
// first record, of a short answer all, so that another node can still answer if this one dies
// meanwhile.
type answer struct {
	lease   *cluster.Lease
	node    *cluster.Node
	resp    *http.Response
	ctx     context.Context
	cancel  context.CancelCauseFunc // stops the engine's work
	watch   watch
	sent    time.Time
	outcome cluster.Outcome

	form    record.Form
	follows bool // a stream of records of that form
	spoke   bool // it has said text
	buf     *[]byte
	n       int   // bytes of buf that were read
	at      int   // of them, records that were followed
	out     int   // of those, what was passed on
	err     error // how the body ended; io.EOF: the n bytes are the rest
}

// close gives back everything, the node's slot too. It may be called twice, and of nil.
func (a *answer) close() {
	if a == nil || a.cancel == nil {
		return
	}
	a.watch.stop()
	a.cancel(nil)
	a.cancel = nil
	if a.resp != nil {
		_ = a.resp.Body.Close()
	}
	if a.buf != nil {
		putBuffer(a.buf)
		a.buf = nil
	}
	a.lease.Done(a.outcome)
}

// cause is why the attempt was ended from our side; nil if it was not.
func (a *answer) cause() error { return context.Cause(a.ctx) }

// refusedHeader is how a node tells the gateway that asked it that it did nothing, and why.
const refusedHeader = "X-Ollamamax-Refused"

// brokeHeader is how a node tells that its engine failed before an answer began.
const brokeHeader = "X-Ollamamax-Broke"

// saidError is what an engine sent instead of an answer: asked again it would send the same.
type saidError string

func (e saidError) Error() string { return string(e) }

// refusedError is why a node did nothing.
type refusedError string

func (e refusedError) Error() string { return string(e) }

// errFrozen says that an engine was silent for too long.
var errFrozen = errors.New("frozen")

type frozenError struct{ silent time.Duration }

func (e *frozenError) Error() string {
	return fmt.Sprintf("engine has been silent for %v", e.silent.Round(time.Millisecond))
}

func (e *frozenError) Is(target error) bool { return target == errFrozen }

// attempt has one node serve the request and reads the first piece of its answer. An error means
// that there is no answer, and that the slot has been given back.
func (g *Gateway) attempt(ctx context.Context, x *exchange, req *request, lease *cluster.Lease) (*answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &answer{lease: lease, node: lease.Node, ctx: ctx, cancel: cancel, sent: time.Now()}
	a.watch.base = a.sent
	if bound := req.bound(lease.Stall); bound > 0 {
		if req.route.multipart { // a recording may last
			a.watch.while.Store(int64(longest))
		}
		a.watch.start(g, a.node.ID, bound, cancel)
	}
	err := g.begin(ctx, x, req, a)
	if err == nil {
		return a, nil
	}
	over := ended(ctx)
	if over != nil {
		err = over
	}
	if over == nil || errors.Is(err, errFrozen) {
		a.outcome.Result = cluster.Failed
		switch {
		case errors.Is(err, errFrozen):
			a.outcome.Result = cluster.Silent
		case errors.As(err, new(refusedError)):
			a.outcome.Result = cluster.Abandoned // it said so itself, and tells all others with its heartbeat
		}
	}
	a.close()
	return nil, err
}

// longest is how long a recording is listened to, by an engine that answers otherwise.
const longest = 12 * time.Hour

// begin sends the request and reads the first piece of the answer.
func (g *Gateway) begin(ctx context.Context, x *exchange, req *request, a *answer) (err error) {
	if a.resp, err = g.send(a.node, g.outgoing(ctx, x, g.asCalled(a.node, req))); err != nil {
		return err
	}
	if a.node.ID != g.deps.View().Self { // an engine is not to say what nodes do
		if why := a.resp.Header.Get(refusedHeader); why != "" {
			return refusedError(why)
		}
		if why := a.resp.Header.Get(brokeHeader); why != "" {
			return errors.New(why)
		}
	}
	form, generates := record.FormOf(req.Path)
	a.form = form
	a.follows = generates && !req.local && a.resp.StatusCode == http.StatusOK && streamed(a.resp.Header)
	a.buf = getBuffer(a.follows)
	switch {
	case a.follows:
		err = a.firstRecord()
	case req.Infers && !req.local:
		err = a.whole(g.cfg.Resume.MaxBytes, generates)
	default:
		a.n, a.err = firstPiece(a.resp.Body, *a.buf, req.stream)
	}
	if err == nil && a.err != nil && a.err != io.EOF {
		err = a.err
	}
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if !a.follows {
		a.outcome.First = time.Since(a.sent)
	}
	switch {
	case overloaded(a):
		a.outcome.Result, a.outcome.RetryAfter = cluster.Failed, retryAfter(a.resp.Header)
		if a.resp.StatusCode == http.StatusServiceUnavailable || a.resp.StatusCode == http.StatusGatewayTimeout {
			a.outcome.Result = cluster.Overloaded
		}
		a.outcome.First = 0
	default:
		a.outcome.Result = cluster.Answered
		if a.resp.StatusCode != http.StatusOK {
			a.outcome.First = 0
		}
	}
	return nil
}

// streamed tells whether an answer comes in records.
func streamed(h http.Header) bool {
	kind := h.Get("Content-Type")
	return strings.HasPrefix(kind, "text/event-stream") || strings.HasPrefix(kind, "application/x-ndjson")
}

// retryAfter reads the seconds that an engine asks to be left alone.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(min(seconds, 3600)) * time.Second
}

// firstRecord reads up to the end of the first record.
func (a *answer) firstRecord() error {
	for {
		n := a.form.Split((*a.buf)[:a.n])
		if a.err == io.EOF && n == 0 {
			n = a.n // a last line without its end
		}
		if n > 0 {
			e := record.NewTracker(a.form, false).Follow((*a.buf)[:n])
			switch {
			case e.Garbage:
				return saidError(fmt.Sprintf("engine sent what is no record of its route: %.80q", (*a.buf)[:n]))
			case e.Failed:
				return saidError("engine said: " + e.Message)
			}
			a.hear(e)
			return nil
		}
		if a.err != nil {
			if a.err == io.EOF {
				return io.ErrUnexpectedEOF
			}
			return a.err
		}
		if err := a.read(); err != nil {
			return err
		}
	}
}

// hear takes in whether a record has a part of the answer, with the first of which the answer begins. It
// returns how long that was waited for since the part before; 0 if it came together with it, or is the first.
func (a *answer) hear(e record.Event) (gap time.Duration) {
	if !e.Says() {
		return 0
	}
	gap = a.watch.heard()
	a.spoke = a.spoke || len(e.Text) > 0
	if a.outcome.First > 0 {
		return gap
	}
	a.outcome.First = max(1, time.Since(a.sent))
	if a.lease.Began != nil {
		a.lease.Began()
	}
	return 0
}

// read reads more of the body behind what is there and was not yet passed on.
func (a *answer) read() error {
	if a.out > 0 {
		copy(*a.buf, (*a.buf)[a.out:a.n])
		a.n, a.at, a.out = a.n-a.out, a.at-a.out, 0
	}
	if a.n == len(*a.buf) {
		if a.n >= maxRecord {
			return fmt.Errorf("a record is longer than %d bytes", maxRecord)
		}
		grow(a.buf, a.n)
	}
	a.watch.reading(true)
	n, err := a.resp.Body.Read((*a.buf)[a.n:])
	a.watch.reading(false)
	a.n += n
	a.err = err
	return nil
}

// terminate gives the last record the end that it lacks.
func (a *answer) terminate() {
	if len(*a.buf)-a.n < 2 {
		grow(a.buf, a.n)
	}
	a.n += copy((*a.buf)[a.n:], a.form.Terminator((*a.buf)[a.at:a.n]))
}

// maxRecord bounds one record of a stream: the last one of an answer may hold all of it.
const maxRecord = 4 << 20

// whole reads all of an answer that does not stream, up to max bytes: of a longer one the beginning.
// What generates answers in JSON, whatever the engine calls it: a page is none.
func (a *answer) whole(max int64, generates bool) error {
	for a.err == nil && int64(a.n) < max {
		if a.n == len(*a.buf) {
			grow(a.buf, a.n)
		}
		n, err := a.resp.Body.Read((*a.buf)[a.n:])
		a.n += n
		a.err = err
	}
	// A body without a length may end anywhere and look whole.
	if a.err == io.EOF && a.resp.StatusCode == http.StatusOK && (generates || strings.HasPrefix(a.resp.Header.Get("Content-Type"), "application/json")) &&
		!gjson.ValidBytes((*a.buf)[:a.n]) {
		return saidError(fmt.Sprintf("engine sent what is no whole answer: %d bytes that are no JSON", a.n))
	}
	return nil
}

// figures takes in what a whole answer says of its cost.
func (a *answer) figures(req *request) {
	if !req.Infers || req.local || a.err != io.EOF || a.resp.StatusCode != http.StatusOK {
		return
	}
	body := (*a.buf)[:a.n]
	if form, generates := record.FormOf(req.Path); generates {
		e := form.Whole(body)
		a.outcome.PromptTokens, a.outcome.OutputTokens = e.Prompt, e.Output
		a.outcome.Load, a.outcome.Prefill, a.outcome.Eval, a.outcome.Total = e.Load, e.Prefill, e.Eval, e.Total
		return
	}
	for _, path := range [...]string{"prompt_eval_count", "usage.prompt_tokens"} {
		if n := gjson.GetBytes(body, path).Int(); n > 0 {
			a.outcome.PromptTokens = int(n)
		}
	}
}

// firstPiece reads enough of an answer to be sure of it: of a stream the first bytes, of a short
// answer all.
func firstPiece(body io.Reader, buf []byte, stream bool) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := body.Read(buf[n:])
		n += m
		if err != nil || stream && n > 0 {
			return n, err
		}
	}
	return n, nil
}

// Buffers hold pieces of answers: small ones records, which come one by one and in great numbers,
// large ones what is copied.
const (
	smallBuffer = 4 << 10
	largeBuffer = 32 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}
)

func getBuffer(small bool) *[]byte {
	if small {
		return smallBuffers.Get().(*[]byte)
	}
	return largeBuffers.Get().(*[]byte)
}

func putBuffer(b *[]byte) {
	switch {
	case cap(*b) < largeBuffer:
		*b = (*b)[:cap(*b)]
		smallBuffers.Put(b)
	case cap(*b) <= 2*largeBuffer:
		*b = (*b)[:cap(*b)]
		largeBuffers.Put(b)
	} // larger ones are not kept
}

// grow doubles a buffer of which n bytes are used.
func grow(b *[]byte, n int) {
	larger := make([]byte, 2*len(*b))
	copy(larger, (*b)[:n])
	*b = larger
}

// watch ends an attempt whose engine is silent for too long: says nothing of its answer, whatever else it
// sends. The time that the client takes to read does not count. Following a record costs two stores; the
// timer looks, and looks again.
type watch struct {
	timer *time.Timer
	since atomic.Int64 // when the present silence began, in nanoseconds of base; 0: nobody is waiting
	doubt atomic.Int64 // when a silence was last found too long: one that began before is not looked at once more
	bound atomic.Int64
	while atomic.Int64 // how long a silence beyond bound may be while the engine answers otherwise; 0: no longer
	base  time.Time

	silent, from int64 // of whoever reads: the present silence up to this read, and when that began
}

func (w *watch) start(g *Gateway, node cluster.NodeID, bound time.Duration, cancel context.CancelCauseFunc) {
	w.bound.Store(int64(bound))
	w.since.Store(1)
	w.timer = time.AfterFunc(math.MaxInt64, func() {
		since, bound := w.since.Load(), time.Duration(w.bound.Load())
		if bound < 0 {
			return
		}
		now := int64(time.Since(w.base))
		silent := time.Duration(now - since)
		if since != 0 && silent >= bound {
			if int64(silent) < w.while.Load() && !g.stands(node) {
				w.timer.Reset(bound / 4)
				return
			}
			// If it was this machine that stood still, what came meanwhile is read now.
			if since > w.doubt.Swap(now) {
				w.timer.Reset(bound / 10)
				return
			}
			cancel(&frozenError{silent})
			return
		}
		if since == 0 {
			silent = 0
		}
		w.timer.Reset(bound - silent)
		if w.bound.Load() < 0 { // stopped meanwhile
			w.timer.Stop()
		}
	})
	w.timer.Reset(bound)
}

// reading says that the engine's next bytes are waited for, or no longer.
func (w *watch) reading(yes bool) {
	now := int64(time.Since(w.base))
	switch {
	case !yes:
		if w.since.Swap(0) != 0 { // else nobody waited
			w.silent += now - w.from
		}
	case w.since.Load() == 0: // else it is waited for since the request was sent
		w.from = now
		w.since.Store(max(1, now-w.silent))
	}
}

// heard says that the engine has said something, and returns how long that was waited for.
func (w *watch) heard() time.Duration {
	silent := w.silent
	w.silent = 0
	return time.Duration(silent)
}

// stands tells whether a node's engine answers nothing at all any more, as its node has told.
func (g *Gateway) stands(id cluster.NodeID) bool {
	n := g.deps.View().Node(id)
	return n == nil || n.Engine == nil || n.Engine.Condition == cluster.EngineDown
}

// within sets how long a silence may be from now on; up to while, if that is longer and the engine answers
// otherwise. A shorter bound takes effect at once.
func (w *watch) within(bound, while time.Duration) {
	w.while.Store(int64(while))
	if w.timer == nil || w.bound.Load() == int64(bound) {
		return
	}
	shorter := int64(bound) < w.bound.Load()
	w.bound.Store(int64(bound))
	if shorter {
		w.timer.Reset(bound)
	}
}

func (w *watch) stop() {
	if w.timer != nil {
		w.bound.Store(-1)
		w.timer.Stop()
	}
}

// send carries a request to the own engine, or through the mesh to a peer.
func (g *Gateway) send(node *cluster.Node, r *http.Request) (*http.Response, error) {
	if node.ID == g.deps.View().Self {
		return g.deps.Engine.RoundTrip(r)
	}
	r.URL.Host = string(node.ID)
	return g.deps.Peers.RoundTrip(r)
}
