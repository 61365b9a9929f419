// Package load is a lean load generator: a hand-written HTTP/1.1 client that stamps the first byte of
// an answer's body, a closed loop, an open loop at a fixed rate, and streams that are held open; and
// the few statistics that its figures need.
//
// It knows as much of HTTP as the servers under test send. It follows nothing, retries nothing and
// decodes nothing, so that what it costs is small, and the same for every server.
//
// Start reading at Target, then Closed.
package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"
)

// Target is a server and the one request that it is asked again and again.
type Target struct {
	// Addr is HOST:PORT.
	Addr string
	// Request is what goes over the wire, as NewRequest builds it.
	Request []byte
	// Lines is how many lines a whole answer has; 0: any number.
	Lines int
}

// NewRequest returns the bytes of a POST of JSON, whose answer may come on a connection that stays
// open.
func NewRequest(addr, path string, body []byte) []byte {
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", path, addr, len(body))
	return append([]byte(head), body...)
}

// Answer is what came back for one request.
type Answer struct {
	Status int
	Bytes  int       // of the body
	Lines  int       // newlines in the body
	First  time.Time // when the first byte of the body could be read; of an empty body, its end
	End    time.Time // when the body was whole
	Close  bool      // the server closes the connection now
	Text   string    // the body's beginning, if the status is not 200
}

// bufferSize holds the header and a few records.
const bufferSize = 4096

// Conn is a connection that carries one request at a time.
type Conn struct {
	net.Conn
	br    *bufio.Reader
	lines *atomic.Int64 // counts lines as they come; nil: nobody asks
	first func()        // called at the first byte of a body; nil: nobody asks
}

// Dial connects.
func Dial(ctx context.Context, addr string) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return NewConn(c), nil
}

// NewConn returns a client's side of an open connection.
func NewConn(c net.Conn) *Conn {
	return &Conn{Conn: c, br: bufio.NewReaderSize(c, bufferSize)}
}

// Receive reads one answer. The body goes to sink as well, unless that is nil. After an error the
// connection is of no more use.
func (c *Conn) Receive(sink io.Writer) (Answer, error) {
	var a Answer
	length, chunked, err := c.head(&a)
	if err != nil {
		return a, fmt.Errorf("read header: %w", err)
	}
	var refusal bytes.Buffer
	if a.Status != 200 && sink == nil {
		sink = &refusal
	}
	if chunked {
		err = c.chunks(&a, sink)
	} else {
		err = c.body(&a, length, sink)
	}
	a.Text = string(refusal.Bytes()[:min(refusal.Len(), 300)])
	if err != nil {
		return a, fmt.Errorf("read body after %d bytes: %w", a.Bytes, err)
	}
	a.End = time.Now()
	if a.First.IsZero() {
		a.First = a.End
	}
	return a, nil
}

// head reads the status line and the header.
func (c *Conn) head(a *Answer) (length int, chunked bool, err error) {
	line, err := c.line()
	if err != nil {
		return 0, false, err
	}
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return 0, false, fmt.Errorf("%q is no status line", line)
	}
	if a.Status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, false, fmt.Errorf("%q is no status line", line)
	}
	length = -1
	for {
		if line, err = c.line(); err != nil {
			return 0, false, err
		}
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil || length < 0 {
				return 0, false, fmt.Errorf("Content-Length is %q", value)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = bytes.EqualFold(value, []byte("chunked"))
		case bytes.EqualFold(name, []byte("Connection")):
			a.Close = bytes.EqualFold(value, []byte("close"))
		}
	}
	if length < 0 && !chunked {
		return 0, false, errors.New("neither Content-Length nor chunks")
	}
	return length, chunked, nil
}

// line reads a line without its end. It is valid until the next read.
func (c *Conn) line() ([]byte, error) {
	line, err := c.br.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	return bytes.TrimRight(line, "\r\n"), nil
}

// chunks reads a chunked body with its trailer.
func (c *Conn) chunks(a *Answer, sink io.Writer) error {
	for {
		line, err := c.line()
		if err != nil {
			return err
		}
		size, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseUint(string(size), 16, 31)
		if err != nil {
			return fmt.Errorf("%q is no chunk's size", line)
		}
		if n == 0 {
			break
		}
		if err := c.body(a, int(n), sink); err != nil {
			return err
		}
		if line, err = c.line(); err != nil {
			return err
		}
		if len(line) > 0 {
			return fmt.Errorf("%q follows a chunk", line)
		}
	}
	for {
		line, err := c.line()
		if err != nil || len(line) == 0 {
			return err
		}
	}
}

// body reads n bytes.
func (c *Conn) body(a *Answer, n int, sink io.Writer) error {
	for n > 0 {
		if _, err := c.br.Peek(1); err != nil {
			return err
		}
		if a.First.IsZero() {
			a.First = time.Now()
			if c.first != nil {
				c.first()
			}
		}
		piece, err := c.br.Peek(min(n, c.br.Buffered()))
		if err != nil {
			return err
		}
		lines := bytes.Count(piece, []byte{'\n'})
		if c.lines != nil {
			c.lines.Add(int64(lines))
		}
		if sink != nil {
			if _, err := sink.Write(piece); err != nil {
				return err
			}
		}
		a.Bytes += len(piece)
		a.Lines += lines
		n -= len(piece)
		if _, err := c.br.Discard(len(piece)); err != nil {
			return err
		}
	}
	return nil
}

// check returns what is wrong with a whole answer.
func (t Target) check(a Answer) error {
	if a.Status != 200 {
		return fmt.Errorf("status %d %s", a.Status, a.Text)
	}
	if t.Lines > 0 && a.Lines != t.Lines {
		return fmt.Errorf("%d lines in an answer, want %d", a.Lines, t.Lines)
	}
	return nil
}

// Ask sends the request once and returns the answer's body.
func (t Target) Ask(ctx context.Context) ([]byte, error) {
	c, err := Dial(ctx, t.Addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := c.Write(t.Request); err != nil {
		return nil, fmt.Errorf("send request: %w", err)
	}
	var body bytes.Buffer
	a, err := c.Receive(&body)
	if err != nil {
		return nil, err
	}
	if err := t.check(a); err != nil {
		return nil, fmt.Errorf("%w: %.300s", err, body.Bytes())
	}
	return body.Bytes(), nil
}
