package exchange

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// plays is a node that answers each connection as it is told, and counts them.
func (w *world) plays(id cluster.NodeID, answer func(c net.Conn)) *atomic.Int64 {
	var connections atomic.Int64
	l := w.raw(id)
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			readWant(c)
			answer(c)
			c.Close()
		}
	}()
	return &connections
}

// hasAll is the frame of a node that has all pieces.
func (th thing) hasAll() []byte {
	m := blob.FullMap(th.list.Len())
	return append(head(nil, kindHave, len(m)), m...)
}

// knows is a spool with the thing's list.
func (n *node) knows(t *testing.T, th thing) {
	t.Helper()
	if _, err := n.spool.Open(t.Context(), th.list); err != nil {
		t.Fatal(err)
	}
}

func TestALiarThatLeavesAtOnceIsBlamedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const big = blob.PieceSize // hashing takes longer than leaving
		w, th := newWorld(t), newThing(t, big, big)
		connections := w.plays("liar", func(c net.Conn) {
			c.Write(th.hasAll())
			readHead(c)
			readPiece(c, 1)
			for n := big; n > 0; n -= maxData {
				b := append(head(nil, kindData, dataHead+min(n, maxData)), 0, 0, 0, 0)
				c.Write(append(b, make([]byte, min(n, maxData))...))
			}
		})
		b := w.node("b", Config{Patience: 5 * time.Second}, "", nothing, nil)
		b.knows(t, th)
		tr := b.x.Transfer(th.want("liar"), b.spool)
		if err := tr.Run(t.Context()); !errors.Is(err, ErrNobody) {
			t.Error(err)
		}
		if w.blames()["liar"] != 1 || connections.Load() != 1 || !tr.Progress().Sources[0].Banned {
			t.Errorf("blamed %v, asked %d times, %+v", w.blames(), connections.Load(), tr.Progress().Sources)
		}
	})
}

func TestASourceThatBringsNothingIsAskedEverMoreSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 3*piece, piece)
		connections := w.plays("a", func(c net.Conn) { c.Write(th.hasAll()) })
		b := w.node("b", Config{Patience: 30 * time.Second}, "", nothing, nil)
		b.knows(t, th)
		if err := b.x.Transfer(th.want("a"), b.spool).Run(t.Context()); !errors.Is(err, ErrNobody) {
			t.Error(err)
		}
		if n := connections.Load(); n < 5 || n > 15 {
			t.Errorf("asked %d times in 30 s", n)
		}
	})
}

func TestATransferThatWaitsForRoomIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const big = 1 << 20
		w, one, two := newWorld(t), newThing(t, 2*big, big), newThing(t, 2*big-1, big)
		w.node("slow", Config{Out: 50 << 10}, "", w.holds(one), nil) // 20 s a piece
		w.node("fast", Config{}, "", w.holds(two), nil)
		b := w.node("b", Config{Memory: big, Patience: 5 * time.Second}, "", nothing, nil)
		var work sync.WaitGroup
		defer work.Wait()
		work.Go(func() {
			if err := b.x.Transfer(one.want("slow"), b.spool).Run(t.Context()); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second) // the room is taken
		if err := b.x.Transfer(two.want("fast"), b.spool).Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// drips is a node that sends a byte of what it is asked for every few seconds.
func (w *world) drips(id cluster.NodeID, th thing) {
	l := w.raw(id)
	var work sync.WaitGroup
	w.t.Cleanup(func() { l.Close(); work.Wait() })
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				readWant(c)
				c.Write(th.hasAll())
				kind, n, err := readHead(c)
				body := make([]byte, n)
				if _, err2 := io.ReadFull(c, body); err != nil || err2 != nil {
					return
				}
				b := append(head(nil, kindList, 1), 0)
				if kind == kindAsk {
					b = append(append(head(nil, kindData, dataHead+1), body...), 0)
				}
				for err == nil {
					_, err = c.Write(b)
					time.Sleep(9 * time.Second)
				}
			})
		}
	})
}

func TestANodeThatDripsHoldsUpItsOwnTransfersOnlyAndTheseForATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const big = 1 << 20
		w, one, two, good := newWorld(t), newThing(t, big, big), newThing(t, big-1, big), newThing(t, 5*big, big)
		w.drips("drip", one)
		w.node("good", Config{}, "", w.holds(good), nil)
		b := w.node("b", Config{Memory: 2 * big, PeerConnections: 1, Slow: 5 * time.Minute}, "", nothing, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var work sync.WaitGroup
		defer work.Wait()
		for _, th := range []thing{one, two} {
			b.knows(t, th)
			work.Go(func() {
				tr := b.x.Transfer(th.want("drip"), b.spool)
				if err := tr.Run(ctx); !errors.Is(err, ErrNobody) || !strings.Contains(err.Error(), errSlow.Error()) {
					t.Error(err)
				}
				if p := tr.Progress(); len(p.Sources) != 1 || !p.Sources[0].Banned {
					t.Errorf("%+v", p)
				}
			})
		}
		time.Sleep(time.Minute)
		begin := time.Now()
		if err := b.x.Transfer(good.want("good"), b.spool).Run(ctx); err != nil || time.Since(begin) > time.Second {
			t.Errorf("another transfer took %v: %v", time.Since(begin), err)
		}
		work.Wait()
		if len(w.blames()) > 0 {
			t.Errorf("blamed %v", w.blames())
		}
	})
}

func TestAListThatDripsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 100*piece, piece)
		w.drips("drip", th)
		b := w.node("b", Config{Slow: 5 * time.Minute}, "", nothing, nil)
		if _, err := b.x.fetchList(t.Context(), "drip", th.want("drip")); !errors.Is(err, errSlow) {
			t.Error(err)
		}
	})
}

func TestAListComesHoweverSlowTheLineIs(t *testing.T) {
	for _, tc := range []struct {
		name     string
		from, to Config
	}{
		{"that gives it", Config{Out: 64 << 10}, Config{}},
		{"that takes it", Config{}, Config{In: 64 << 10}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				busy := func() bool { return true }
				w, th := newWorld(t), newThing(t, 10<<20, 1<<10) // a list of 320 KiB
				w.node("a", tc.from, "", w.holds(th), busy)
				b := w.node("b", tc.to, "", nothing, busy)
				synctest.Wait()
				if l, err := b.x.fetchList(t.Context(), "a", th.want("a")); err != nil || l.Root() != th.list.Root() {
					t.Error(err)
				}
			})
		})
	}
}

func TestAListIsSomethingToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 3*piece, piece)
		w.node("lister", Config{}, "", nothing, nil).knows(t, th)
		w.node("good", Config{}, "", w.holds(th), nil)
		b := w.node("b", Config{Patience: 5 * time.Second}, "", nothing, nil)
		begin := time.Now()
		want := th.want()
		want.Sources = func() (named []cluster.NodeID) {
			if time.Since(begin) > 4*time.Second {
				named = append(named, "lister")
			}
			if time.Since(begin) > 8*time.Second {
				named = append(named, "good")
			}
			return named
		}
		if err := b.x.Transfer(want, b.spool).Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestAPieceThatWasLostAndCameAgainIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th, dir := newWorld(t), newThing(t, 3*piece, piece), t.TempDir()
		a := w.node("a", Config{}, dir, nothing, nil)
		p, err := a.spool.Open(t.Context(), th.list)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if err := p.WritePiece(i, th.bytes[i*piece:(i+1)*piece]); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		c := w.asks(w.plain("b"), th)
		defer c.Close()
		if k := first(t, c); k != kindHave {
			t.Fatal(k)
		}
		f, err := os.OpenFile(filepath.Join(dir, th.list.Digest().Hex()+".data"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt(make([]byte, piece), piece)
		f.Close()
		if err := p.Finish(t.Context()); !errors.Is(err, blob.ErrAbsent) {
			t.Fatal(err)
		}
		c.Write(indexed(kindAsk, 1))
		if k := first(t, c); k != kindLack {
			t.Fatal(k)
		}
		if err := p.WritePiece(1, th.bytes[piece:2*piece]); err != nil {
			t.Fatal(err)
		}
		if k := first(t, c); k != kindGot {
			t.Error(k)
		}
	})
}
