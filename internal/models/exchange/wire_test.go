package exchange

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

func TestFramesSurvive(t *testing.T) {
	th := newThing(t, 3*piece, piece)
	d, root, err := readWant(bytes.NewReader(wantFrame(th.list.Digest(), th.list.Root())))
	if err != nil || d != th.list.Digest() || root != th.list.Root() {
		t.Error(d, root, err)
	}
	r := bytes.NewReader(indexed(kindGot, 1, 0, 2))
	kind, n, err := readHead(r)
	all, err2 := readPieces(r, n, 3)
	if err != nil || err2 != nil || kind != kindGot || len(all) != 3 || all[2] != 2 {
		t.Error(kind, all, err, err2)
	}
	if _, err := readPieces(bytes.NewReader(indexed(kindGot, 3)[frameHead:]), 4, 3); err == nil {
		t.Error("piece 3 of 3")
	}
}

// FuzzServedBytes sends anything to a node that serves.
func FuzzServedBytes(f *testing.F) {
	th := newThing(f, 3*piece+1, piece)
	want := wantFrame(th.list.Digest(), th.list.Root())
	f.Add(want)
	f.Add(append(bytes.Clone(want), indexed(kindAsk, 1)...))
	f.Add(append(bytes.Clone(want), append(indexed(kindAsk, 3), indexed(kindCancel, 3)...)...))
	f.Add(append(bytes.Clone(want), head(nil, kindList, 0)...))
	f.Add(append(bytes.Clone(want), bytes.Repeat(indexed(kindAsk, 0), 20)...))
	whole := th.whole(f)
	x := New(Config{}, Deps{Hold: func(context.Context, blob.Digest) (Holding, func(), error) {
		return whole, func() {}, nil
	}})
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		var work sync.WaitGroup
		work.Go(func() { x.serve(t.Context(), far) })
		work.Go(func() { io.Copy(io.Discard, near) })
		near.Write(b)
		near.Close()
		work.Wait()
	})
}

// FuzzFetchedBytes sends anything to a node that fetches, as the answer of one that serves.
func FuzzFetchedBytes(f *testing.F) {
	th := newThing(f, 3*piece+1, piece)
	have := append(head(nil, kindHave, 1), 15)
	data := head(nil, kindData, dataHead+1)
	data = append(binary.BigEndian.AppendUint32(data, 3), th.bytes[3*piece])
	f.Add([]byte{})
	f.Add(have)
	f.Add(append(bytes.Clone(have), data...))
	f.Add(append(bytes.Clone(have), append(data, data...)...))
	f.Add(append(bytes.Clone(have), indexed(kindLack, 2)...))
	f.Add(append(bytes.Clone(have), indexed(kindGot, 2, 1)...))
	f.Add(no("nothing here"))
	f.Fuzz(func(t *testing.T, b []byte) { synctest.Test(t, func(t *testing.T) { fetchedBytes(t, th, b) }) })
}

func fetchedBytes(t *testing.T, th thing, b []byte) {
	spool, err := blob.OpenSpool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	if _, err := spool.Open(t.Context(), th.list); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var work sync.WaitGroup
	defer work.Wait()
	dials := 0
	x := New(Config{}, Deps{Transport: dialer(func() (net.Conn, error) {
		if dials++; dials > 1 {
			cancel()
			return nil, io.EOF
		}
		near, far := net.Pipe()
		work.Go(func() { io.Copy(io.Discard, far) })
		work.Go(func() { far.Write(b); far.Close() })
		return near, nil
	}), Blame: func(cluster.NodeID, blob.Digest, error) { cancel() }})
	tr := x.Transfer(th.want("peer"), spool)
	if err := tr.Run(ctx); err == nil {
		if err := th.in(t.Context(), spool); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzReadList sends anything instead of a list.
func FuzzReadList(f *testing.F) {
	f.Add(append(head(nil, kindList, 1), 7, kindList, 0, 0, 0, 0))
	f.Add(head(nil, kindHave, 0))
	f.Add(no("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readList(bufio.NewReader(bytes.NewReader(b)), func(int) error { return nil })
		if err == nil && len(got) > len(b) {
			t.Fatal(len(got))
		}
	})
}

// dialer is a Transport with one peer.
type dialer func() (net.Conn, error)

func (d dialer) Dial(context.Context, cluster.NodeID, string) (net.Conn, error) { return d() }
func (d dialer) Listen(string) (net.Listener, error)                            { return nil, io.EOF }

// asks connects to a node and begins.
func (w *world) asks(from mesher, th thing) net.Conn {
	c, err := from.Dial(w.t.Context(), "a", Protocol)
	if err != nil {
		w.t.Fatal(err)
	}
	c.Write(wantFrame(th.list.Digest(), th.list.Root())) // one that is refused may be too late
	return c
}

type mesher interface {
	Dial(context.Context, cluster.NodeID, string) (net.Conn, error)
}

// first is the kind of the first frame that comes.
func first(t *testing.T, c net.Conn) byte {
	kind, n, err := readHead(c)
	if err != nil {
		t.Fatal(err)
	}
	io.CopyN(io.Discard, c, int64(n))
	return kind
}

func TestAServerKeepsToItsLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 100*piece, piece)
		w.node("a", Config{PeerConnections: 2, Out: 100 << 10}, "", w.holds(th), nil)
		synctest.Wait()
		greedy := w.plain("greedy")
		var conns []net.Conn
		for i, want := range []byte{kindHave, kindHave, kindNo} {
			c := w.asks(greedy, th)
			if k := first(t, c); k != want {
				t.Errorf("connection %d got %d", i, k)
			}
			conns = append(conns, c)
		}
		one, two := conns[0], conns[1]
		modest := w.asks(w.plain("modest"), th)
		if k := first(t, modest); k != kindHave {
			t.Errorf("another peer got %d", k)
		}

		begin := time.Now()
		one.Write(bytes.Repeat(indexed(kindAsk, 1), 4*maxQueue))
		if n, _ := io.Copy(io.Discard, one); n > 3*maxQueue*piece || time.Since(begin) > time.Second {
			t.Errorf("one that asks for too much got %d bytes in %v", n, time.Since(begin))
		}
		if _, err := io.Copy(io.Discard, two); time.Since(begin) > 2*time.Minute {
			t.Error("an idle connection is kept", err)
		}
	})
}

// answer reads one answer: the piece, or for a lack its complement, and how many bytes came.
func answer(t *testing.T, c net.Conn, l *blob.List) (piece, got int) {
	for {
		kind, n, err := readHead(c)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		switch kind {
		case kindData:
			piece = int(binary.BigEndian.Uint32(b))
			got += n - dataHead
			if _, all := l.Span(piece); got == all {
				return piece, got
			}
		case kindLack:
			return ^int(binary.BigEndian.Uint32(b)), got
		}
	}
}

// TestAServerAnswersEachAskOnceAndInOrder first takes what the rate lets through at once: then time has to pass
// before the server sends on, and in a bubble it passes only when all that was said is read.
func TestAServerAnswersEachAskOnceAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const big = 256 << 10 // five frames
		w, th := newWorld(t), newThing(t, 8*big, big)
		a := w.node("a", Config{Out: 50 << 10}, "", nothing, nil)
		p, err := a.spool.Open(t.Context(), th.list)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{0, 1, 2} {
			if err := p.WritePiece(i, th.bytes[i*big:(i+1)*big]); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		c := w.asks(w.plain("b"), th)
		if k := first(t, c); k != kindHave {
			t.Fatal(k)
		}
		c.Write(indexed(kindAsk, 0))
		if i, _ := answer(t, c, th.list); i != 0 {
			t.Fatalf("answer %d", i)
		}
		// 7 is not there, 1 is cancelled before its turn, 2 while it is sent.
		for _, i := range []int{0, 7, 1, 2, 0} {
			c.Write(indexed(kindAsk, i))
		}
		c.Write(indexed(kindCancel, 1))
		for k, want := range []int{0, ^7, ^1} {
			if i, _ := answer(t, c, th.list); i != want {
				t.Errorf("answer %d is %d", k, i)
			}
		}
		time.Sleep(2 * time.Second) // a frame takes 1.3 s
		c.Write(indexed(kindCancel, 2))
		if i, got := answer(t, c, th.list); i != ^2 || got == 0 || got == big {
			t.Errorf("answer %d after %d bytes of %d", i, got, big)
		}
		if i, _ := answer(t, c, th.list); i != 0 {
			t.Errorf("the last answer is %d", i)
		}
		// What comes is told.
		if err := p.WritePiece(5, th.bytes[5*big:6*big]); err != nil {
			t.Fatal(err)
		}
		if k := first(t, c); k != kindGot {
			t.Errorf("frame %d", k)
		}
		c.Close()
	})
}
