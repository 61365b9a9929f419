package mesh

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// stream is what conn and gate need of a libp2p stream or of its in-memory twin.
type stream interface {
	io.ReadWriteCloser
	CloseWrite() error
	Reset() error
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// conn is a stream as a net.Conn. Its errors are the standard library's where there is one:
// os.ErrDeadlineExceeded, net.ErrClosed, io.EOF.
type conn struct {
	s             stream
	local, remote Addr
	onClose       func()
	closed        atomic.Bool

	// The peer's answer to our preamble, which the first Read consumes. An accepted conn has
	// none. A Read that times out within it goes on there the next time.
	answered atomic.Bool
	mu       sync.Mutex
	echo     []byte // what a peer that speaks our protocol sends first
	head     []byte // what has come
	refusal  error
}

// Addr is a node's id as a net.Addr.
type Addr struct{ ID cluster.NodeID }

// Network is "mesh".
func (Addr) Network() string { return "mesh" }

// String is the node's id.
func (a Addr) String() string { return string(a.ID) }

func (c *conn) Read(b []byte) (int, error) {
	if !c.answered.Load() {
		if err := c.readAnswer(); err != nil {
			return 0, c.plain(err)
		}
	}
	n, err := c.s.Read(b)
	return n, c.plain(err)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.s.Write(b)
	return n, c.plain(err)
}

// CloseWrite tells the peer that nothing more comes; reading goes on.
func (c *conn) CloseWrite() error { return c.plain(c.s.CloseWrite()) }

// Close ends both directions, after what was written. Over QUIC a dialer that has read nothing
// yet may lose what it wrote.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.onClose()
	return c.s.Close()
}

func (c *conn) LocalAddr() net.Addr                { return c.local }
func (c *conn) RemoteAddr() net.Addr               { return c.remote }
func (c *conn) SetDeadline(t time.Time) error      { return c.plain(c.s.SetDeadline(t)) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.plain(c.s.SetReadDeadline(t)) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.plain(c.s.SetWriteDeadline(t)) }

// plain turns an error of the stream into the standard library's.
func (c *conn) plain(err error) error {
	var ne net.Error
	switch {
	case err == nil || err == io.EOF:
		return err
	case c.closed.Load():
		return net.ErrClosed
	case errors.As(err, &ne) && ne.Timeout():
		return os.ErrDeadlineExceeded
	}
	return err
}

func (c *conn) readAnswer() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.refusal == nil {
		need, err := parseAnswer(c.echo, c.head, c.remote.ID)
		if err != nil {
			c.refusal = err
			break
		}
		if need == 0 {
			c.answered.Store(true)
			return nil
		}
		buf := make([]byte, need)
		n, err := c.s.Read(buf)
		c.head = append(c.head, buf[:n]...)
		if n == 0 && err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return c.refusal
}

// The answer to a preamble: one of these, answerRefused followed by a length byte and a reason.
const (
	answerOK byte = iota
	answerRefused
	answerNoListener
)

// parseAnswer says how many more bytes of an answer to read, 0 when we are admitted, or the
// error that the answer means.
func parseAnswer(echo, head []byte, from cluster.NodeID) (need int, err error) {
	if len(head) < len(echo) {
		// A peer that does not know the protocol sends less, and then waits.
		if !bytes.HasPrefix(echo, head) {
			return 0, ErrForeign
		}
		if first := 1 + int(echo[0]) + 1; len(head) < first {
			return first - len(head), nil
		}
		return len(echo) - len(head), nil
	}
	if !bytes.HasPrefix(head, echo) {
		return 0, ErrForeign
	}
	answer := head[len(echo):]
	if len(answer) == 0 {
		return 1, nil
	}
	switch answer[0] {
	case answerOK:
		return 0, nil
	case answerNoListener:
		return 0, ErrNoListener
	case answerRefused:
		if len(answer) == 1 {
			return 1, nil
		}
		if missing := 2 + int(answer[1]) - len(answer); missing > 0 {
			return missing, nil
		}
		return 0, &RefusedError{Peer: from, Reason: strings.ToValidUTF8(string(answer[2:]), "?")}
	}
	return 0, ErrForeign
}
