package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/gateway/record"
)

// attempts sends the request to one node after the other, each at most once, until one answers; one
// that is the only one, and broke before it answered, once more.
// When nobody else is left, the last answer stands, whatever it is. Of an alias's models the next is
// tried when no node is left for one.
func (g *Gateway) attempts(x *exchange, req *request) {
	chain := g.deps.Resolve(req.Model)
	if len(chain) == 0 || req.route.changes { // an alias is to be asked, not to be deleted or pushed
		x.called(req.Model)
		if err := g.attemptsFor(x, req); err != nil {
			g.fail(x, err)
		}
		return
	}
	var err error
	for _, model := range chain {
		named := req.named(model)
		x.called(model)
		if err = g.attemptsFor(x, named); err == nil || x.ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		g.fail(x, err)
	}
}

// attemptsFor is attempts for one model. An error means that nothing has reached the client.
func (g *Gateway) attemptsFor(x *exchange, req *request) error {
	g.budget.earn()
	lease, err := g.acquire(x, req, nil)
	if err != nil {
		return g.noLease(x, req, err)
	}
	var tried []cluster.NodeID
	retried := false // after an answer of 5xx or none in time: once, so that an overload does not feed itself
	for {
		node := lease.Node
		if !slices.Contains(tried, node.ID) {
			tried = append(tried, node.ID)
		}
		x.attempts++
		x.progress.node.Store(&node.Name)
		a, err := g.hedged(x, req, lease, &tried)
		if over := ended(x.ctx); over != nil {
			a.close()
			g.metrics.abandoned.Inc()
			return over
		}
		var next *cluster.Lease
		if again, why := mayTryNext(req, a, err, retried); again {
			if next, retried = g.next(x, req, a, err, tried, retried); next != nil {
				err = why
			}
		}
		if next == nil && err == nil {
			g.metrics.answered.Inc()
			g.deliver(x, req, a)
			return nil
		}
		a.close()
		g.metrics.failed.Inc()
		if over := ended(x.ctx); over != nil { // while it waited for another
			if next != nil {
				next.Done(cluster.Outcome{})
			}
			return over
		}
		if next == nil {
			return noneLeft(err, node, len(tried))
		}
		g.deps.Log.Info("trying the next node", "id", x.id, "failed", node.Name, "why", err, "next", next.Node.Name)
		lease = next
	}
}

// bound is how long an engine has until the first piece of its answer, or all of one that does not stream;
// 0: as long as it takes.
func (req *request) bound(s cluster.Stall) time.Duration {
	switch {
	case req.local, req.upload != nil, req.route.streams && req.route.changes: // whoever asks looks after it, or it is long by nature
		return 0
	case !req.Infers:
		return quickWithin
	case req.stream:
		return s.First
	}
	return s.Whole
}

// quickWithin is how long an engine has for what needs no model: an engine that takes longer stands still.
const quickWithin = time.Minute

// ended returns why a context has ended, nil if it has not. A dial may know of a deadline before the
// context does; and a server whose reading ends by it takes that for the client's leaving.
func ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if at, limited := ctx.Deadline(); limited && (cause == nil || errors.Is(cause, context.Canceled)) && !time.Now().Before(at) {
		return context.DeadlineExceeded
	}
	return cause
}

// acquire lends a slot, unless there is nothing to choose, and says to those who look at it from outside that the request waits for it.
func (g *Gateway) acquire(x *exchange, req *request, tried []cluster.NodeID) (*cluster.Lease, error) {
	if req.only != nil {
		return &cluster.Lease{Node: req.only, Done: func(cluster.Outcome) {}}, nil
	}
	x.progress.waiting.Store(req.Infers)
	defer x.progress.waiting.Store(false)
	return g.deps.Acquire(x.ctx, &req.Request, tried)
}

// next lends the slot for another attempt; nil if there is to be none. After a node that did nothing
// the request waits for one again, before those who have not yet had their turn; if that was the only one, it is
// asked once more, within the budget; after one that is overloaded it is tried only where there is room, and within the budget.
func (g *Gateway) next(x *exchange, req *request, a *answer, err error, tried []cluster.NodeID, retried bool) (*cluster.Lease, bool) {
	if !overloaded(a) && !errors.Is(err, errFrozen) {
		req.Again = true
		lease, none := g.acquire(x, req, tried)
		if errors.Is(none, cluster.ErrNobody) && len(tried) == 1 && broke(a, err) && !retried && g.budget.spend() {
			return g.again(x, req), true
		}
		return lease, retried // if there is none, since nobody is left or has room in time, what the last one said stands
	}
	lease := g.deps.Try(&req.Request, tried)
	if lease == nil {
		return nil, true
	}
	if !g.budget.spend() {
		lease.Done(cluster.Outcome{})
		return nil, true
	}
	return lease, true
}

// again lends a slot of the only node, which did nothing, after a moment: its connection was reset, or its
// engine is being restarted.
func (g *Gateway) again(x *exchange, req *request) *cluster.Lease {
	select {
	case <-x.ctx.Done():
		return nil
	case <-time.After(againAfter):
	}
	lease, _ := g.acquire(x, req, nil) // if there is none, what was said before stands
	return lease
}

// againAfter is how long a node is left alone that is asked once more.
const againAfter = 250 * time.Millisecond

// broke tells whether a node broke before it answered: it did not refuse, nor say anything else.
func broke(a *answer, err error) bool {
	return a == nil && !errors.As(err, new(refusedError)) && !errors.As(err, new(saidError))
}

// noLease says why no node is asked.
func (g *Gateway) noLease(x *exchange, req *request, err error) error {
	var full *cluster.NoRoomError
	switch {
	case errors.Is(err, cluster.ErrNobody):
		return nobody(g.deps.View(), req)
	case errors.As(err, &full):
		return &refusal{status: http.StatusServiceUnavailable, message: full.Why, retryAfter: full.RetryAfter}
	}
	return context.Cause(x.ctx)
}

// mayTryNext tells whether another node may be asked, and why this one did not do: one that did
// nothing always; one that may have done something only for what changes nothing.
func mayTryNext(req *request, a *answer, err error, retried bool) (bool, error) {
	if req.only != nil || req.upload != nil && req.upload.begun() {
		return false, err
	}
	repeatable := !req.route.changes && req.upload == nil
	if err != nil {
		if errors.Is(err, errFrozen) {
			return repeatable && !retried, err
		}
		return repeatable || neverSent(err) || errors.As(err, new(refusedError)), err
	}
	status := a.resp.StatusCode
	switch {
	case status == http.StatusNotFound && repeatable && req.Model != "":
		_, held := a.node.Model(req.Key())
		return held, errors.New("does not hold the model any more")
	case overloaded(a) && repeatable && !retried:
		return true, fmt.Errorf("answered %d", status)
	}
	return false, nil
}

// overloaded tells whether an engine answered that it cannot now: another may, but all of them
// together must not be asked twice as much because they are asked too much.
func overloaded(a *answer) bool {
	return a != nil && a.resp.StatusCode >= 500 && a.resp.StatusCode != http.StatusNotImplemented
}

// neverSent tells whether a request failed before anything of it was sent.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

var noEngine = &refusal{status: http.StatusServiceUnavailable,
	message: "no node can serve this: no engine that could is running; see `ollamamax status`"}

// nobody says why no node can be asked: none is well, or those that hold the model have engines
// without this route, and nothing is translated between dialects.
func nobody(v *cluster.View, req *request) error {
	var engines []string
	var one *cluster.Engine
	for _, replica := range v.Replicas(req.Model) {
		n := replica.Node
		if n.Engine.Has(req.Path) {
			return noEngine
		}
		if n.Engine != nil {
			one = n.Engine
			engines = append(engines, fmt.Sprintf("%s on node %s", one.Kind, n.Name))
		}
	}
	if one == nil {
		return noEngine
	}
	instead := "they have " + strings.Join(one.Routes, ", ")
	if use := counterpart(req.Path); one.Has(use) {
		instead = "use " + use
	}
	return &refusal{status: http.StatusNotImplemented, message: fmt.Sprintf("model '%s' is held only by engines that have no %s (%s): %s",
		req.Model, req.Path, strings.Join(engines, ", "), instead)}
}

// counterpart returns the route by which every server of OpenAI's dialect does what another route
// does, "" if there is none.
func counterpart(path string) string {
	switch path {
	case "/api/chat", "/v1/messages", "/v1/responses":
		return "/v1/chat/completions"
	case "/api/generate":
		return "/v1/completions"
	case "/api/embed", "/api/embeddings":
		return "/v1/embeddings"
	case "/api/show":
		return "/v1/models"
	}
	return ""
}

func noneLeft(err error, node *cluster.Node, tried int) error {
	if tried == 1 {
		return &refusal{status: http.StatusBadGateway, message: fmt.Sprintf("node %s failed, and no other can serve this: %v", node.Name, err)}
	}
	return &refusal{status: http.StatusBadGateway, message: fmt.Sprintf("all %d nodes that can serve this failed; the last, %s: %v", tried, node.Name, err)}
}

// deliver passes an answer on to the client.
func (g *Gateway) deliver(x *exchange, req *request, a *answer) {
	defer a.close()
	a.watch.reading(false) // from here on only while the engine is waited for
	x.node = a.node.Name
	if a.err == io.EOF && !a.follows {
		g.refresh(x.ctx, req, a.node)
	}
	header := x.w.Header()
	copyHeader(header, a.resp.Header)
	header["X-Ollamamax-Node"] = []string{a.node.Name}
	header["X-Request-Id"] = []string{x.id}
	if a.follows {
		delete(header, "Content-Length") // a stream has what becomes of it
	}
	if req.folded && a.follows {
		header["Content-Type"] = []string{wholeType(a)}
		delete(header, "Cache-Control") // as streams have it
		g.follow(x, req, a)
		return
	}
	x.start(a.resp.StatusCode)
	if a.follows {
		g.follow(x, req, a)
		return
	}
	a.figures(req)
	g.copy(x, req, a)
}

// wholeType is what an engine calls its body that is no stream.
func wholeType(a *answer) string {
	if kind := a.node.Engine.Kind; kind == cluster.LlamaServer || a.form == record.Generate || a.form == record.Chat {
		return jsonType
	}
	return "application/json"
}

// start sends the status.
func (x *exchange) start(status int) {
	x.status, x.first = status, time.Now()
	x.w.WriteHeader(status)
}

// copy passes on an answer that is no stream of records, as it comes. One that breaks off aborts the
// client's connection, so that it cannot be taken for whole.
func (g *Gateway) copy(x *exchange, req *request, a *answer) {
	flush := a.resp.ContentLength < 0
	to := client{x: x, control: http.NewResponseController(x.w), timeout: g.cfg.Timeouts.Write}
	for {
		if a.n > 0 && to.write((*a.buf)[:a.n], flush && a.err == nil) != nil {
			a.outcome.Result = cluster.Abandoned
			return // the client is gone: nobody's fault
		}
		if a.err == io.EOF {
			return
		}
		if a.err != nil {
			a.outcome.Result = cluster.Abandoned
			if x.cut = x.ctx.Err() == nil; x.cut {
				a.outcome.Result = cluster.Failed
			}
			panic(http.ErrAbortHandler)
		}
		a.watch.reading(true)
		a.n, a.err = a.resp.Body.Read(*a.buf)
		a.watch.reading(false)
		if a.err == io.EOF {
			g.refresh(x.ctx, req, a.node)
		}
	}
}

// refresh reads anew what the engine holds, if this request changed it, before the client sees the
// end of the answer, so that it finds what it changed: a model made or deleted, loaded or unloaded.
func (g *Gateway) refresh(ctx context.Context, req *request, node *cluster.Node) {
	_, loaded := node.LoadedModel(req.Key())
	if req.route.changes || req.unload || req.route.infers && !loaded && !cluster.CloudModel(req.Key()) { // which is never loaded here
		g.deps.Refresh(ctx, node)
		g.made(ctx, req, node)
	}
}

// outgoing builds the request for one attempt.
func (g *Gateway) outgoing(ctx context.Context, x *exchange, req *request) *http.Request {
	u := &url.URL{Scheme: "http", Host: "node", Path: x.r.URL.Path, RawPath: x.r.URL.RawPath, RawQuery: x.r.URL.RawQuery}
	if req.derived {
		u = &url.URL{Scheme: "http", Host: "node", Path: req.Path}
	}
	out := (&http.Request{
		Method: x.r.Method, URL: u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, len(x.r.Header)),
	}).WithContext(ctx)
	copyHeader(out.Header, x.r.Header)
	out.Header["X-Request-Id"] = []string{x.id}
	if req.plain || req.derived {
		delete(out.Header, "Content-Encoding")
	}
	if req.Infers {
		delete(out.Header, "Accept-Encoding") // its records are read
	}
	switch {
	case req.upload != nil:
		out.Body, out.ContentLength = req.upload.attempt(), x.r.ContentLength
	case len(req.body) > 0:
		out.ContentLength = int64(len(req.body))
		out.Body = io.NopCloser(bytes.NewReader(req.body))
		if !req.route.changes { // else net/http itself might send it twice
			out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(req.body)), nil }
		}
	}
	if out.Header.Get("User-Agent") == "" {
		out.Header.Set("User-Agent", "") // keeps net/http from naming itself
	}
	return out
}

// copyHeader copies what is meant for the other end: not what belongs to one connection, and
// nothing internal, which only our own listeners may say.
func copyHeader(to, from http.Header) {
	for key, values := range from {
		switch key {
		case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
			"Proxy-Authenticate", "Proxy-Authorization":
			continue
		}
		if strings.HasPrefix(key, "X-Ollamamax-") {
			continue
		}
		to[key] = values
	}
	for _, field := range from["Connection"] {
		for name := range strings.SplitSeq(field, ",") {
			if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); name != "Content-Length" {
				delete(to, name)
			}
		}
	}
}

// fail is the one place that turns an error into a status and a body in the client's dialect.
func (g *Gateway) fail(x *exchange, err error) {
	status, message := http.StatusBadGateway, err.Error()
	var refused *refusal
	inner := false
	switch {
	case errors.As(err, &refused):
		if refused.elsewhere && x.local {
			refuse(x, refused.message)
			return
		}
		status, inner = refused.status, refused.inner
	case errors.Is(err, errCancelled):
		status = http.StatusServiceUnavailable
	case errors.Is(err, context.DeadlineExceeded):
		status, message = http.StatusGatewayTimeout, "the request's deadline passed before an answer began"
	case errors.Is(err, context.Canceled):
		return // the client is gone: there is nobody to tell
	}
	if status == http.StatusServiceUnavailable {
		after := time.Second
		if refused != nil {
			after = max(after, refused.retryAfter)
		}
		x.w.Header().Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	}
	d := dialectOf(x.r.URL.Path)
	body, contentType := d.body(status, message), jsonType
	if inner && d != ollama {
		body, contentType = append(body, '\n'), "application/json"
	}
	x.answer(status, contentType, body)
}

// answer sends a whole body of our own.
func (x *exchange) answer(status int, contentType string, body []byte) {
	if contentType != "" {
		x.w.Header().Set("Content-Type", contentType)
	}
	x.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	x.start(status)
	x.write(body)
}

// write sends a whole body, of which the client has its time to take each piece. One that is gone has no use
// for it.
func (x *exchange) write(body []byte) {
	to := client{x: x, control: http.NewResponseController(x.w), timeout: x.patience}
	for piece := range slices.Chunk(body, largeBuffer) {
		if to.write(piece, false) != nil {
			return
		}
	}
}
