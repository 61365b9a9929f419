package exchange

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// source is a node from which a Transfer takes pieces, for the time of one connection: one goroutine
// reads, another asks.
type source struct {
	t      *Transfer
	id     cluster.NodeID
	keeper *keeper
	wake   chan struct{}
	cancel context.CancelFunc
	conn   net.Conn

	// Under the Transfer's lock.
	view    *view
	waiting bool // we do not read: the source is not to blame
	stalled bool
}

var (
	errStalled = errors.New("it owes a piece and sends nothing")
	errSlow    = errors.New("it sends too slowly")
	errSaysNo  = errors.New("it says no")
	errBusy    = errors.New("it serves others") // and sends when one of them is done
)

// run returns why the connection ended.
func (s *source) run(ctx context.Context) error {
	conn, err := s.t.x.dial(ctx, s.id, s.t.want)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s.conn = conn
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		defer conn.Close()
		s.ask(ctx)
	}()
	err = s.read(ctx)
	s.cancel()
	<-asking
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.stalled {
		return errStalled
	}
	return err
}

// dial connects and says what is wanted.
func (x *Exchange) dial(ctx context.Context, id cluster.NodeID, w Want) (net.Conn, error) {
	conn, err := x.deps.Transport.Dial(ctx, id, Protocol)
	if err != nil {
		return nil, err
	}
	conn.SetWriteDeadline(time.Now().Add(x.config.Stall))
	conn.Write(wantFrame(w.Digest, w.Root)) // one that refuses us may be gone already: reading tells why
	return conn, nil
}

// ask tells the source what the picker wants of it, and keeps the connection when that is nothing.
func (s *source) ask(ctx context.Context) {
	ping := time.NewTicker(s.t.x.config.Idle / 3)
	defer ping.Stop()
	for {
		var b []byte
		select {
		case <-s.wake:
			b = s.choose(time.Now())
		case <-ping.C:
			b = head(nil, kindPing, 0)
		case <-ctx.Done():
			return
		}
		if len(b) == 0 {
			continue
		}
		s.conn.SetWriteDeadline(time.Now().Add(s.t.x.config.Stall))
		if _, err := s.conn.Write(b); err != nil {
			return
		}
	}
}

func (s *source) choose(now time.Time) (b []byte) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.view.have == nil || s.t.failed != nil {
		return nil
	}
	for _, i := range s.view.cancels {
		b = append(b, indexed(kindCancel, i)...)
	}
	s.view.cancels = s.view.cancels[:0]
	for {
		i, ok := s.t.picker.next(s.view, now)
		if !ok {
			break
		}
		b = append(b, indexed(kindAsk, i)...)
	}
	for _, other := range s.t.sources { // pieces may have been taken from them
		if len(other.view.cancels) > 0 {
			select {
			case other.wake <- struct{}{}:
			default:
			}
		}
	}
	return b
}

// read takes what the source sends until the connection fails.
func (s *source) read(ctx context.Context) error {
	// Small, so that most of a frame is read to where it belongs.
	r := bufio.NewReaderSize(s.conn, 4<<10)
	l := s.keeper.partial.List()
	s.conn.SetReadDeadline(time.Now().Add(s.t.x.config.Stall))
	kind, n, err := readHead(r)
	if err != nil {
		return err
	}
	switch kind {
	case kindNo:
		return readNo(r, n)
	case kindHave:
	default:
		return nonsense("frame of kind %d before the map", kind)
	}
	have, err := readMap(r, n, l.Len())
	if err != nil {
		return err
	}
	s.conn.SetReadDeadline(time.Time{}) // from here on Transfer.look watches
	s.t.mu.Lock()
	s.t.picker.join(s.view, have)
	s.t.mu.Unlock()
	s.t.wakeAll()

	in := incoming{s: s, r: r, list: l, piece: -1}
	defer in.drop()
	for {
		kind, n, err := readHead(r)
		if err != nil {
			return err
		}
		switch kind {
		case kindGot:
			err = s.got(r, n, l.Len())
		case kindData:
			err = in.data(ctx, n)
		case kindLack:
			err = in.lack()
		case kindNo:
			err = readNo(r, n)
		default:
			err = nonsense("frame of kind %d to one that fetches", kind)
		}
		if err != nil {
			return err
		}
	}
}

func readNo(r io.Reader, n int) error {
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	if string(b) == busy {
		return fmt.Errorf("%w: %w: %q", errSaysNo, errBusy, b)
	}
	return fmt.Errorf("%w: %q", errSaysNo, b)
}

func (s *source) got(r io.Reader, n, pieces int) error {
	all, err := readPieces(r, n, pieces)
	if err != nil {
		return err
	}
	s.t.mu.Lock()
	for _, i := range all {
		s.t.picker.got(s.view, i)
	}
	s.t.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// allowance is the time that a node has to send something. It does not run while the rate keeps us from reading.
type allowance struct{ until time.Time }

func (x *Exchange) allow() allowance { return allowance{time.Now().Add(x.config.Slow)} }

// wait waits until n bytes may be read; errSlow if the time is over.
func (a *allowance) wait(ctx context.Context, p *pace, n int) error {
	began := time.Now()
	if began.After(a.until) {
		return errSlow
	}
	err := p.wait(ctx, n)
	a.until = a.until.Add(time.Since(began))
	return err
}

// incoming is the piece that a source is sending.
type incoming struct {
	s         *source
	r         *bufio.Reader
	list      *blob.List
	piece     int // -1: none
	buf       []byte
	n         int // bytes that have come
	allowance allowance
}

func (in *incoming) data(ctx context.Context, n int) error {
	var b [dataHead]byte
	if _, err := io.ReadFull(in.r, b[:]); err != nil {
		return err
	}
	i := int(binary.BigEndian.Uint32(b[:]))
	n -= dataHead
	if in.piece < 0 {
		if err := in.begin(ctx, i); err != nil {
			return err
		}
	}
	if i != in.piece || n > len(in.buf)-in.n {
		return nonsense("%d bytes of piece %d within piece %d", n, i, in.piece)
	}
	in.s.setWaiting(true)
	err := in.allowance.wait(ctx, in.s.t.x.in, n)
	in.s.setWaiting(false)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(in.r, in.buf[in.n:in.n+n]); err != nil {
		return err
	}
	in.n += n
	if in.s.received(n, in.piece, in.n == len(in.buf)) {
		return in.keep(ctx)
	}
	return nil
}

// begin checks that a piece was asked for and finds room for it.
func (in *incoming) begin(ctx context.Context, i int) error {
	in.s.t.mu.Lock()
	owed := false
	for _, a := range in.s.view.asks {
		owed = owed || a.piece == i && !a.came
	}
	in.s.t.mu.Unlock()
	if !owed {
		return nonsense("piece %d was not asked for", i)
	}
	in.s.setWaiting(true)
	defer in.s.setWaiting(false)
	_, n := in.list.Span(i)
	buf, err := in.s.keeper.room(ctx, n)
	if err != nil {
		return err
	}
	in.piece, in.buf, in.n, in.allowance = i, buf, 0, in.s.t.x.allow()
	return nil
}

// keep hands the piece to the keeper, which verifies it while the next one comes.
func (in *incoming) keep(ctx context.Context) error {
	in.s.setWaiting(true)
	defer in.s.setWaiting(false)
	a := arrival{in.s, in.piece, in.buf}
	in.piece, in.buf = -1, nil
	select {
	case in.s.keeper.pieces <- a:
		return nil
	case <-ctx.Done():
		in.s.keeper.drop(a)
		return ctx.Err()
	}
}

func (in *incoming) lack() error {
	i, err := readPiece(in.r, in.list.Len())
	if err != nil {
		return err
	}
	if in.piece == i {
		in.drop()
	}
	in.s.t.mu.Lock()
	ok := in.s.t.picker.lacks(in.s.view, i)
	in.s.t.mu.Unlock()
	if !ok {
		return nonsense("piece %d is lacking and was not asked for", i)
	}
	in.s.t.wakeAll()
	return nil
}

func (in *incoming) drop() {
	if in.piece >= 0 {
		in.s.keeper.free(in.buf)
		in.piece, in.buf = -1, nil
	}
}

func (s *source) setWaiting(w bool) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.waiting = w
	s.view.heard = time.Now()
}

// received counts bytes. It tells whether they made a piece whole.
func (s *source) received(n, piece int, whole bool) bool {
	now := time.Now()
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.t.received += int64(n)
	s.t.meter.add(now, n)
	s.t.heard, s.view.heard, s.t.refused = now, now, time.Time{}
	r := s.t.node(s.id)
	r.bytes += int64(n)
	r.meter.add(now, n)
	return whole && s.t.picker.came(s.view, piece, now)
}
