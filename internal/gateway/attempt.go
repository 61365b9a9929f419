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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// attempts sends the request to one node after the other, each at most once, until one answers.
// When nobody else is left, the last answer stands, whatever it is.
func (g *Gateway) attempts(x *exchange, req *request) {
	ctx := x.r.Context()
	x.model = req.Model
	g.budget.earn()
	var tried []cluster.NodeID
	retried := false // after an answer of 5xx: once, so that an overload does not feed itself
	node, release := g.deps.Pick(req.Request, tried)
	if node == nil {
		g.fail(x, nobody(g.deps.View(), req))
		return
	}
	for {
		tried = append(tried, node.ID)
		x.attempts++
		a, err := g.attempt(ctx, x, req, node)
		if ctx.Err() != nil {
			a.close()
			release()
			g.metrics.attempts.WithLabelValues("abandoned").Inc()
			g.fail(x, ctx.Err())
			return
		}
		var next *cluster.Node
		var releaseNext func()
		if again, why := mayTryNext(req, a, err, retried); again {
			next, releaseNext = g.deps.Pick(req.Request, tried)
			if next != nil && overloaded(a) {
				retried = true
				if !g.budget.spend() {
					releaseNext()
					next = nil
				}
			}
			if next != nil {
				err = why
			}
		}
		if next == nil && err == nil {
			g.metrics.attempts.WithLabelValues("answered").Inc()
			defer release()
			g.deliver(x, req, a)
			return
		}
		a.close()
		release()
		g.metrics.attempts.WithLabelValues("failed").Inc()
		if next == nil {
			g.fail(x, noneLeft(err, node, len(tried)))
			return
		}
		g.deps.Log.Info("trying the next node", "id", x.id, "failed", node.Name, "why", err, "next", next.Name)
		node, release = next, releaseNext
	}
}

// mayTryNext tells whether another node may be asked, and why this one did not do: one that did
// nothing always; one that may have done something only for what changes nothing.
func mayTryNext(req *request, a *answer, err error, retried bool) (bool, error) {
	if req.upload != nil && req.upload.begun() {
		return false, err
	}
	repeatable := !req.route.changes && req.upload == nil
	if err != nil {
		return repeatable || neverSent(err) || errors.As(err, new(refusedError)), err
	}
	status := a.resp.StatusCode
	switch {
	case status == http.StatusNotFound && repeatable && req.Model != "":
		_, held := a.node.Model(cluster.CanonicalModel(req.Model))
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

// answer is what one node answers, read as far as its first piece.
type answer struct {
	node   *cluster.Node
	resp   *http.Response
	buf    *[]byte
	n      int   // bytes of buf
	err    error // io.EOF: the n bytes are all
	cancel context.CancelFunc
}

func (a *answer) close() {
	if a == nil {
		return
	}
	a.cancel() // stops the engine's work
	_ = a.resp.Body.Close()
	buffers.Put(a.buf)
}

// refusedHeader is how a node tells the gateway that asked it that it did nothing, and why.
const refusedHeader = "X-Ollamamax-Refused"

// refusedError is why a node did nothing.
type refusedError string

func (e refusedError) Error() string { return string(e) }

// attempt has one node serve the request and reads the first piece of its answer. An error means
// that there is no answer.
func (g *Gateway) attempt(ctx context.Context, x *exchange, req *request, node *cluster.Node) (*answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	resp, err := g.send(node, g.outgoing(ctx, x, req))
	if err != nil {
		cancel()
		return nil, err
	}
	a := &answer{node: node, resp: resp, buf: buffers.Get().(*[]byte), cancel: cancel}
	a.n, a.err = firstPiece(resp.Body, *a.buf, req.stream)
	if why := resp.Header.Get(refusedHeader); why != "" {
		a.close()
		return nil, refusedError(why)
	}
	if a.err != nil && a.err != io.EOF {
		a.close()
		return nil, fmt.Errorf("read answer: %w", a.err)
	}
	return a, nil
}

// send carries a request to the own engine, or through the mesh to a peer.
func (g *Gateway) send(node *cluster.Node, r *http.Request) (*http.Response, error) {
	if node.ID == g.deps.View().Self {
		return g.deps.Engine.RoundTrip(r)
	}
	r.URL.Host = string(node.ID)
	return g.deps.Peers.RoundTrip(r)
}

// deliver passes an answer on to the client. One that breaks off later aborts the client's
// connection, so that it cannot be taken for whole.
func (g *Gateway) deliver(x *exchange, req *request, a *answer) {
	defer a.close()
	x.node = a.node.Name
	if a.err == io.EOF {
		g.refresh(x.r.Context(), req, a.node)
	}
	header := x.w.Header()
	copyHeader(header, a.resp.Header)
	header.Set("X-Ollamamax-Node", a.node.Name)
	header.Set("X-Request-Id", x.id)
	x.start(a.resp.StatusCode)
	g.copy(x, req, a)
}

// start sends the status; from here on no other node may answer.
func (x *exchange) start(status int) {
	x.status, x.first = status, time.Now()
	x.w.WriteHeader(status)
}

// copy passes the answer on as it comes.
func (g *Gateway) copy(x *exchange, req *request, a *answer) {
	control := http.NewResponseController(x.w)
	flush := a.resp.ContentLength < 0
	buf, n, err := *a.buf, a.n, a.err
	var armed time.Time
	for {
		if n > 0 {
			if now := time.Now(); now.Sub(armed) > time.Second {
				_ = control.SetWriteDeadline(now.Add(g.cfg.Timeouts.Write)) // servers that cannot set deadlines have none
				armed = now
			}
			written, werr := x.w.Write(buf[:n])
			x.bytes += int64(written)
			if werr != nil {
				return // the client is gone: nobody's fault
			}
			if flush && err == nil && control.Flush() != nil {
				return
			}
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			x.cut = x.r.Context().Err() == nil
			panic(http.ErrAbortHandler)
		}
		n, err = a.resp.Body.Read(buf)
		if err == io.EOF {
			g.refresh(x.r.Context(), req, a.node)
		}
	}
}

// refresh reads anew what the engine holds, if this request changed it, before the client sees the
// end of the answer, so that it finds what it changed: a model made or deleted, loaded or unloaded.
func (g *Gateway) refresh(ctx context.Context, req *request, node *cluster.Node) {
	_, loaded := node.LoadedModel(cluster.CanonicalModel(req.Model))
	if req.route.changes || req.unload || req.route.infers && !loaded {
		g.deps.Refresh(ctx, node)
	}
}

// firstPiece reads enough of an answer to be sure of it: of a stream the first bytes, of a short
// answer all, so that another node can still answer if this one dies meanwhile.
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

// buffers holds pieces of answers: 32 KiB, as net/http's own.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// outgoing builds the request for one attempt.
func (g *Gateway) outgoing(ctx context.Context, x *exchange, req *request) *http.Request {
	u := &url.URL{Scheme: "http", Host: "node", Path: x.r.URL.Path, RawPath: x.r.URL.RawPath, RawQuery: x.r.URL.RawQuery}
	out := (&http.Request{
		Method: x.r.Method, URL: u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, len(x.r.Header)),
	}).WithContext(ctx)
	copyHeader(out.Header, x.r.Header)
	out.Header.Set("X-Request-Id", x.id)
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
		status, inner = refused.status, refused.inner
	case errors.Is(err, context.DeadlineExceeded):
		status, message = http.StatusGatewayTimeout, "the request's deadline passed before an answer began"
	case errors.Is(err, context.Canceled):
		return // the client is gone: there is nobody to tell
	}
	if status == http.StatusServiceUnavailable {
		x.w.Header().Set("Retry-After", "1")
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
	n, _ := x.w.Write(body) // a client that is gone has no use for it
	x.bytes += int64(n)
}
