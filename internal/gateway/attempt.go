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
func (g *Gateway) attempts(x *exchange, req *request) {
	ctx := x.r.Context()
	x.model = req.Model
	var tried []cluster.NodeID
	var last error
	for {
		node, release := g.deps.Pick(req.Request, tried)
		if node == nil {
			g.fail(x, noneLeft(last, len(tried)))
			return
		}
		tried = append(tried, node.ID)
		x.attempts++
		err := g.attempt(ctx, x, req, node)
		release()
		if err == nil {
			g.metrics.attempts.WithLabelValues("answered").Inc()
			return
		}
		if ctx.Err() != nil {
			g.metrics.attempts.WithLabelValues("abandoned").Inc()
			g.fail(x, ctx.Err())
			return
		}
		g.metrics.attempts.WithLabelValues("failed").Inc()
		last = fmt.Errorf("node %s: %w", node.Name, err)
		if !mayTryNext(req, err) {
			g.fail(x, &refusal{status: http.StatusBadGateway, message: last.Error()})
			return
		}
	}
}

// mayTryNext tells whether a failed request may be sent to another node: one that was never sent
// always, one that changes an engine or whose body streamed past us never else.
func mayTryNext(req *request, err error) bool {
	var op *net.OpError
	neverSent := errors.As(err, &op) && op.Op == "dial"
	return neverSent || !req.route.changes && !req.upload
}

func noneLeft(last error, tried int) error {
	if last == nil {
		return &refusal{status: http.StatusServiceUnavailable, message: "no node can serve this: no engine is running; see `ollamamax status`"}
	}
	return &refusal{status: http.StatusServiceUnavailable, message: fmt.Sprintf("all %d nodes that could serve this failed; the last: %v", tried, last)}
}

// attempt has one node serve the request and copies its answer to the client. An error means that
// no byte has reached the client. An answer that breaks off later aborts the client's connection,
// so that it cannot be taken for whole.
func (g *Gateway) attempt(ctx context.Context, x *exchange, req *request, node *cluster.Node) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // stops the engine's work when the client left
	resp, err := g.deps.Engine.RoundTrip(g.outgoing(ctx, x, req))
	if err != nil {
		return err
	}
	defer resp.Body.Close()

	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	first, err := firstPiece(resp.Body, *buf, req.stream)
	if err != nil && err != io.EOF {
		return fmt.Errorf("read answer: %w", err)
	}
	x.node = node.Name
	if err == io.EOF {
		g.refresh(ctx, req, node)
	}
	header := x.w.Header()
	copyHeader(header, resp.Header)
	header.Set("X-Ollamamax-Node", node.Name)
	header.Set("X-Request-Id", x.id)
	x.start(resp.StatusCode)
	g.copy(x, req, resp, node, *buf, first, err)
	return nil
}

// start sends the status; from here on no other node may answer.
func (x *exchange) start(status int) {
	x.status, x.first = status, time.Now()
	x.w.WriteHeader(status)
}

// copy passes the answer on as it comes. The first n bytes of buf, and perhaps the end, are read already.
func (g *Gateway) copy(x *exchange, req *request, resp *http.Response, node *cluster.Node, buf []byte, n int, err error) {
	control := http.NewResponseController(x.w)
	flush := resp.ContentLength < 0
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
			if flush && err == nil {
				if control.Flush() != nil {
					return
				}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			if x.r.Context().Err() == nil {
				x.cut = true
			}
			panic(http.ErrAbortHandler)
		}
		n, err = resp.Body.Read(buf)
		if err == io.EOF {
			g.refresh(x.r.Context(), req, node)
		}
	}
}

// refresh reads anew what the engine holds, if this request changed it, before the client sees the
// end of the answer, so that it finds what it changed: a model made or deleted, loaded or unloaded.
func (g *Gateway) refresh(ctx context.Context, req *request, node *cluster.Node) {
	_, loaded := node.LoadedModel(cluster.CanonicalModel(req.Model))
	if req.route.changes || req.unload || req.route.infers && !loaded {
		g.deps.Refresh(ctx)
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
	case req.upload:
		out.Body, out.ContentLength = x.r.Body, x.r.ContentLength
	case len(req.body) > 0:
		out.ContentLength = int64(len(req.body))
		out.Body = io.NopCloser(bytes.NewReader(req.body))
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(req.body)), nil }
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
	x.w.Header().Set("Content-Type", contentType)
	x.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	x.start(status)
	n, _ := x.w.Write(body) // a client that is gone has no use for it
	x.bytes += int64(n)
}
