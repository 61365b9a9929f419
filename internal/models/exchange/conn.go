package exchange

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// newsEvery is how often at most a connection tells which pieces have come.
const newsEvery = 20 * time.Millisecond

// Run serves peers until the context ends, which is no error.
func (x *Exchange) Run(ctx context.Context) error {
	l, err := x.deps.Transport.Listen(Protocol)
	if err != nil {
		return fmt.Errorf("serve blobs: %w", err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	var work sync.WaitGroup
	defer work.Wait()
	var mu sync.Mutex
	all, peers := 0, make(map[string]int)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve blobs: %w", err)
		}
		peer := c.RemoteAddr().String()
		mu.Lock()
		room := all < x.config.Connections && peers[peer] < x.config.PeerConnections
		if room {
			all++
			peers[peer]++
		}
		mu.Unlock()
		if !room {
			// It fits into any window, and a peer that does not take it sees the end.
			c.SetWriteDeadline(time.Now().Add(time.Second))
			c.Write(no(busy))
			c.Close()
			continue
		}
		work.Go(func() {
			x.serve(ctx, c) // why it ended is the peer's to say: it asks elsewhere or again
			mu.Lock()
			defer mu.Unlock()
			all--
			if peers[peer]--; peers[peer] == 0 {
				delete(peers, peer)
			}
		})
	}
}

// busy is the reason of a node that serves as many connections as it may.
const busy = "too many connections"

func no(reason string) []byte {
	reason = reason[:min(len(reason), maxReason)]
	return append(head(nil, kindNo, len(reason)), reason...)
}

// conn is a connection that is served: one goroutine reads what is asked, another writes.
type conn struct {
	x    *Exchange
	net  net.Conn
	held Holding
	list *blob.List

	mu        sync.Mutex
	queue     []int // pieces asked for
	sending   int   // the piece that is being sent; -1: none
	cancelled bool  // it need not be
	wantsList bool
	wake      chan struct{}

	// The writer's.
	buf     []byte
	told    blob.Map
	changed <-chan struct{}
	next    time.Time // when news may be told again
}

func (x *Exchange) serve(ctx context.Context, nc net.Conn) error {
	defer nc.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	nc.SetReadDeadline(time.Now().Add(x.config.Idle))
	d, root, err := readWant(nc)
	if err != nil {
		return err
	}
	nc.SetWriteDeadline(time.Now().Add(x.config.Idle))
	held, release, err := x.deps.Hold(ctx, d)
	if err != nil {
		reason := "the blob cannot be read here"
		if errors.Is(err, fs.ErrNotExist) {
			reason = "the blob is not here"
		}
		nc.Write(no(reason))
		return err
	}
	defer release()
	c := &conn{x: x, net: nc, held: held, list: held.List(), sending: -1,
		wake: make(chan struct{}, 1), buf: make([]byte, maxFrame)}
	if c.list.Root() != root {
		_, err := nc.Write(no("the blob has another list of pieces here"))
		return err
	}
	var reading sync.WaitGroup
	defer reading.Wait()
	defer nc.Close() // ends the reader
	reading.Go(func() {
		defer cancel()
		c.read()
	})
	return c.write(ctx)
}

// read notes what the peer asks for until the connection fails or the peer asks for too much.
func (c *conn) read() error {
	for {
		c.net.SetReadDeadline(time.Now().Add(c.x.config.Idle))
		kind, n, err := readHead(c.net)
		if err != nil {
			return err
		}
		piece := 0
		if kind == kindAsk || kind == kindCancel {
			if piece, err = readPiece(c.net, c.list.Len()); err != nil {
				return err
			}
		} else if n != 0 {
			return nonsense("frame of kind %d from a peer that fetches", kind)
		}
		if err := c.note(kind, piece); err != nil {
			return err
		}
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

func (c *conn) note(kind byte, piece int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch kind {
	case kindPing:
	case kindList:
		c.wantsList = true
	case kindAsk:
		if len(c.queue) >= maxQueue {
			return nonsense("more than %d pieces asked for", maxQueue)
		}
		c.queue = append(c.queue, piece)
	case kindCancel:
		// What has not begun gets its lack in its turn: asks are answered in order.
		if c.sending == piece {
			c.cancelled = true
		} else if k := slices.Index(c.queue, piece); k >= 0 {
			c.queue[k] = ^piece
		}
	default:
		return nonsense("frame of kind %d from a peer that fetches", kind)
	}
	return nil
}

// write answers and tells news until the connection fails or ctx ends.
func (c *conn) write(ctx context.Context) error {
	c.changed = c.held.Changed() // before Have: nothing is missed
	c.told = c.held.Have()
	if err := c.send(append(head(c.buf[:0], kindHave, len(c.told)), c.told...)); err != nil {
		return err
	}
	soon := time.NewTimer(0)
	defer soon.Stop()
	for {
		err := c.news()
		if err == nil {
			list, piece, some := c.take()
			switch {
			case list:
				err = c.sendList(ctx)
			case some && piece < 0:
				err = c.send(indexed(kindLack, ^piece))
			case some:
				err = c.sendPiece(ctx, piece)
			default:
				err = c.pause(ctx, soon)
			}
		}
		if err != nil {
			return err
		}
	}
}

// take gives the next thing to do: the list, or a piece, whose complement if it was cancelled.
func (c *conn) take() (list bool, piece int, some bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sending, c.cancelled = -1, false
	if c.wantsList {
		c.wantsList = false
		return true, 0, true
	}
	if len(c.queue) == 0 {
		return false, 0, false
	}
	piece = c.queue[0]
	c.queue = c.queue[1:]
	if piece >= 0 {
		c.sending = piece
	}
	return false, piece, true
}

// pause waits for something to do.
func (c *conn) pause(ctx context.Context, soon *time.Timer) error {
	changed, due := c.changed, (<-chan time.Time)(nil)
	if d := time.Until(c.next); d > 0 && changed != nil {
		soon.Reset(d)
		changed, due = nil, soon.C
	}
	select {
	case <-c.wake:
	case <-changed:
	case <-due:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// news tells the pieces that have come since the last time, if it is time.
func (c *conn) news() error {
	now := time.Now()
	if now.Before(c.next) {
		return nil
	}
	select {
	case <-c.changed:
	default:
		return nil
	}
	c.changed, c.next = c.held.Changed(), now.Add(newsEvery)
	have := c.held.Have()
	var fresh []int
	for k, b := range have {
		for i := 8 * k; b&^c.told[k] != 0 && i < 8*k+8; i++ {
			if have.Has(i) && !c.told.Has(i) {
				fresh = append(fresh, i)
				c.told.Set(i)
			}
		}
	}
	for part := range slices.Chunk(fresh, maxGot) {
		if err := c.send(indexed(kindGot, part...)); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) sendList(ctx context.Context) error {
	for part := range slices.Chunk(c.list.Encode(), maxBody) {
		if err := c.x.out.wait(ctx, len(part)); err != nil {
			return err
		}
		if err := c.send(append(head(c.buf[:0], kindList, len(part)), part...)); err != nil {
			return err
		}
	}
	return c.send(head(c.buf[:0], kindList, 0))
}

// sendPiece sends a piece from the file, a frame at a time, or lack.
func (c *conn) sendPiece(ctx context.Context, i int) error {
	offset, n := c.list.Span(i)
	for n > 0 {
		c.mu.Lock()
		cancelled := c.cancelled
		c.mu.Unlock()
		if cancelled {
			return c.send(indexed(kindLack, i))
		}
		b := head(c.buf[:0], kindData, dataHead+min(n, sentData))
		b = binary.BigEndian.AppendUint32(b, uint32(i))
		b = b[:len(b)+min(n, sentData)]
		data := b[frameHead+dataHead:]
		if k, err := c.held.ReadAt(data, offset); errors.Is(err, blob.ErrAbsent) {
			c.told[i/8] &^= 1 << (i % 8) // it is told when it comes again
			return c.send(indexed(kindLack, i))
		} else if k < len(data) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read piece %d of %s: %w", i, c.list.Digest(), err)
		}
		if err := c.x.out.wait(ctx, len(data)); err != nil {
			return err
		}
		if err := c.send(b); err != nil {
			return err
		}
		offset, n = offset+int64(len(data)), n-len(data)
		if err := c.news(); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) send(b []byte) error {
	c.net.SetWriteDeadline(time.Now().Add(c.x.config.Idle))
	_, err := c.net.Write(b)
	return err
}
