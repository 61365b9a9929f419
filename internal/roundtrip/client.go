// Package roundtrip carries HTTP/1.1 requests over kept connections in the goroutine of their caller: a
// http.RoundTripper for the request path, where net/http's two goroutines a connection and the hand-overs
// between them cost more than all else that a gateway does.
//
// It writes a request, then reads the answer; net/http parses it. It knows no proxies, no redirects, no
// HTTP/2, no TLS and no "100 Continue": whoever needs them uses net/http's Transport.
//
// Invariants: no goroutine is started; a connection is used again only after its answer was read to
// the end; a request is sent twice only if it can be, over a connection that had been kept and gave
// not one byte of an answer.
//
// Start reading at Client.RoundTrip.
package roundtrip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Config says how connections are made and kept.
type Config struct {
	// Dial connects to a host, which is the request's URL.Host as it stands.
	Dial func(ctx context.Context, host string) (net.Conn, error)
	// MaxIdle is how many connections are kept that nobody uses; 0: none, and the peer is told so.
	MaxIdle int
	// IdleTimeout is how long they are kept.
	IdleTimeout time.Duration
}

// Client sends requests. It is safe for concurrent use.
type Client struct {
	cfg  Config
	idle idle
}

// New returns a Client without connections.
func New(cfg Config) *Client {
	return &Client{cfg: cfg, idle: idle{max: cfg.MaxIdle / shards, timeout: cfg.IdleTimeout}}
}

// CloseIdleConnections closes what nobody uses.
func (c *Client) CloseIdleConnections() { c.idle.closeAll() }

// RoundTrip sends a request and returns its answer once the header is there. Closing the answer's body
// before its end breaks the connection, so that the other side stops. The request's context ends both.
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	conn := c.idle.take(r.URL.Host, time.Now().Add(-c.cfg.IdleTimeout))
	if conn != nil {
		resp, err := conn.roundTrip(r)
		var silent *silentError
		if err == nil || !errors.As(err, &silent) || r.Context().Err() != nil || !rewound(r) {
			return resp, err
		}
		// The other side had probably given the connection up while nobody used it.
	}
	raw, err := c.cfg.Dial(r.Context(), r.URL.Host)
	if err != nil {
		return nil, err
	}
	return (&connection{Conn: raw, client: c, host: r.URL.Host}).roundTrip(r)
}

// rewound makes a request ready to be sent again; false if it must not be: what has a body says with
// GetBody that it may, what has none by its method.
func rewound(r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return r.Body == nil || r.Body == http.NoBody
	}
	if r.GetBody == nil {
		return false
	}
	body, err := r.GetBody()
	if err != nil {
		return false
	}
	r.Body = body
	return true
}

// connection is one connection, of one request at a time.
type connection struct {
	net.Conn
	client *Client
	host   string
	reader *bufio.Reader    // borrowed while an answer is read
	limit  io.LimitedReader // under reader
	since  time.Time        // when it was given back
}

// silentError says that a connection broke before a byte of an answer came.
type silentError struct{ err error }

func (e *silentError) Error() string { return e.err.Error() }
func (e *silentError) Unwrap() error { return e.err }

// roundTrip is one exchange. On error the connection is closed.
func (c *connection) roundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	stop := context.AfterFunc(ctx, func() { _ = c.Conn.Close() }) // wakes whoever reads or writes
	fail := func(err error) error {
		stop()
		_ = c.Conn.Close() // it is of no use any more
		c.release()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	written := c.write(r)
	if r.Body != nil {
		_ = r.Body.Close() // it has been read as far as it will be
	}
	// A server may answer before it has read all, and close: what it says counts.
	c.reader = readers.Get().(*bufio.Reader)
	c.limit = io.LimitedReader{R: c.Conn, N: maxHeader}
	c.reader.Reset(&c.limit)
	if _, err := c.reader.Peek(1); err != nil {
		if written != nil {
			err = written
		}
		return nil, fail(&silentError{fmt.Errorf("send request: %w", unexpected(err))})
	}
	resp, err := c.response(r)
	if err != nil {
		return nil, fail(fmt.Errorf("read answer: %w", unexpected(err)))
	}
	c.limit.N = math.MaxInt64
	keep := written == nil && !resp.Close && c.client.cfg.MaxIdle > 0
	resp.Body = &body{from: resp.Body, conn: c, stop: stop, keep: keep}
	if resp.ContentLength == 0 || r.Method == http.MethodHead {
		resp.Body.(*body).end(true)
	}
	return resp, nil
}

// response reads the answer's header, past those that only announce it.
func (c *connection) response(r *http.Request) (*http.Response, error) {
	for range maxInformational {
		resp, err := http.ReadResponse(c.reader, r)
		if err != nil || resp.StatusCode >= 200 {
			return resp, err
		}
	}
	return nil, errors.New("too many informational answers")
}

const (
	maxInformational = 5
	// maxHeader bounds an answer's header.
	maxHeader = 1 << 20
)

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// write sends the request. Its header has been through net/http's own parser, or is ours.
func (c *connection) write(r *http.Request) error {
	w := writers.Get().(*bufio.Writer)
	w.Reset(c.Conn)
	defer func() { w.Reset(nil); writers.Put(w) }()
	line := func(parts ...string) {
		for _, part := range parts {
			_, _ = w.WriteString(part) // Flush returns the first error
		}
	}
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	line(r.Method, " ", r.URL.RequestURI(), " HTTP/1.1\r\nHost: ", host, "\r\n")
	for key, values := range r.Header {
		switch key {
		case "Host", "Content-Length", "Transfer-Encoding", "Connection":
			continue
		}
		for _, value := range values {
			if key == "User-Agent" && value == "" {
				continue
			}
			line(key, ": ", value, "\r\n")
		}
	}
	if c.client.cfg.MaxIdle == 0 {
		line("Connection: close\r\n")
	}
	chunked := false
	switch {
	case r.Body == nil || r.Body == http.NoBody:
		if r.Method == http.MethodPost || r.Method == http.MethodPut {
			line("Content-Length: 0\r\n")
		}
	case r.ContentLength >= 0:
		line("Content-Length: ", strconv.FormatInt(r.ContentLength, 10), "\r\n")
	default:
		chunked = true
		line("Transfer-Encoding: chunked\r\n")
	}
	line("\r\n")
	switch {
	case r.Body == nil || r.Body == http.NoBody:
	case chunked:
		if err := writeChunked(w, r.Body); err != nil {
			return err
		}
	default:
		n, err := io.Copy(w, io.LimitReader(r.Body, r.ContentLength))
		if err != nil {
			return err
		}
		if n < r.ContentLength {
			return fmt.Errorf("body has %d bytes of %d: %w", n, r.ContentLength, io.ErrUnexpectedEOF)
		}
	}
	return w.Flush()
}

func writeChunked(w *bufio.Writer, from io.Reader) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			_, _ = fmt.Fprintf(w, "%x\r\n", n) // Flush returns the first error
			_, _ = w.Write(buf[:n])
			_, _ = w.WriteString("\r\n")
			if err := w.Flush(); err != nil {
				return err
			}
		}
		if err == io.EOF {
			_, _ = w.WriteString("0\r\n\r\n")
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// release gives the reader back.
func (c *connection) release() {
	if c.reader != nil {
		c.reader.Reset(nil)
		readers.Put(c.reader)
		c.reader = nil
	}
}

// body is an answer's body, which gives its connection back.
type body struct {
	from  io.ReadCloser
	conn  *connection
	stop  func() bool
	keep  bool
	ended bool
	err   error // of a read that failed, for those that follow
}

func (b *body) Read(p []byte) (int, error) {
	if b.ended {
		if b.err != nil {
			return 0, b.err
		}
		return 0, io.EOF
	}
	n, err := b.from.Read(p)
	if err != nil {
		if err != io.EOF {
			b.err = err
		}
		b.end(err == io.EOF)
	}
	return n, err
}

func (b *body) Close() error {
	if !b.ended {
		b.err = http.ErrBodyReadAfterClose
		b.end(false)
	}
	return nil
}

// end keeps the connection if all of the answer has been read, else closes it.
func (b *body) end(whole bool) {
	b.ended = true
	alive := b.stop() // false: the context has ended, and the connection is being closed
	clean := whole && b.keep && alive && b.conn.reader.Buffered() == 0
	b.conn.release()
	if !clean || !b.conn.client.idle.put(b.conn) {
		_ = b.conn.Conn.Close() // nothing more is expected of it
	}
}

// Readers and writers are borrowed for an exchange: idle connections hold none.
var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4<<10) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 4<<10) }}
)
