package exchange

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

const piece = 16 << 10

func TestABlobComesOnceFromOneSource(t *testing.T) {
	for _, size := range []int{0, 1, piece, 20*piece + 5} {
		synctest.Test(t, func(t *testing.T) {
			w, th := newWorld(t), newThing(t, size, piece)
			w.node("a", Config{}, "", w.holds(th), nil)
			b := w.node("b", Config{}, "", nothing, nil)
			tr := b.x.Transfer(th.want("a"), b.spool)
			if err := tr.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := th.in(t.Context(), b.spool); err != nil {
				t.Fatal(err)
			}
			p := tr.Progress()
			if p.Received != int64(size) || p.Have != int64(size) || p.Size != int64(size) || p.ETA != 0 {
				t.Errorf("%d bytes: %+v", size, p)
			}
			if err := b.x.Transfer(th.want(), b.spool).Run(t.Context()); err != nil {
				t.Error("what is there is fetched again:", err)
			}
			partial, err := b.spool.Get(t.Context(), th.list.Digest())
			if err != nil {
				t.Fatal(err)
			}
			if err := partial.Finish(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSourcesShareTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 100*piece, piece)
		for _, id := range []cluster.NodeID{"a", "b", "c", "d"} {
			w.node(id, Config{Out: 1 << 20}, "", w.holds(th), nil)
		}
		e := w.node("e", Config{}, "", nothing, nil)
		begin := time.Now()
		tr := e.x.Transfer(th.want("a", "b", "c", "d"), e.spool)
		if err := tr.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 600*time.Millisecond { // one alone: 1.56 s
			t.Error("took", took)
		}
		p := tr.Progress()
		if p.Received > p.Size*102/100 {
			t.Errorf("%d of %d bytes came", p.Received, p.Size)
		}
		for _, s := range p.Sources {
			if s.Bytes < 15*piece {
				t.Errorf("%+v", s)
			}
		}
	})
}

// liar serves other bytes than it should in one of its pieces.
type liar struct {
	Holding
	piece int
}

func (l liar) ReadAt(b []byte, at int64) (int, error) {
	n, err := l.Holding.ReadAt(b, at)
	if int(at/piece) == l.piece && n > 0 {
		b[n/2] ^= 1
	}
	return n, err
}

func TestALiarIsBlamedBannedAndDoneWithout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 60*piece, piece)
		w.node("good", Config{Out: 1 << 20}, "", w.holds(th), nil)
		for _, id := range []cluster.NodeID{"liar1", "liar2"} {
			w.node(id, Config{Out: 1 << 20}, "", func(blob.Digest) Holding { return liar{th.whole(t), 10} }, nil)
		}
		b := w.node("b", Config{}, "", nothing, nil)
		// Only the liars at first, so that both are caught.
		from := atomic.Pointer[[]cluster.NodeID]{}
		from.Store(&[]cluster.NodeID{"liar1", "liar2"})
		want := th.want()
		want.Sources = func() []cluster.NodeID { return *from.Load() }
		tr := b.x.Transfer(want, b.spool)
		time.AfterFunc(2*time.Second, func() { from.Store(&[]cluster.NodeID{"liar1", "liar2", "good"}) })
		if err := tr.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := th.in(t.Context(), b.spool); err != nil {
			t.Fatal(err)
		}
		if blamed := w.blames(); len(blamed) != 2 || blamed["liar1"] != 1 || blamed["liar2"] != 1 {
			t.Errorf("blamed %v", blamed)
		}
		for _, s := range tr.Progress().Sources {
			if s.Banned != strings.HasPrefix(string(s.Node), "liar") || s.Banned && !strings.Contains(s.Failure, "hash") {
				t.Errorf("%+v", s)
			}
		}
	})
}

func TestAForgedListIsBlamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 60*piece, piece)
		forger := w.raw("forger")
		defer forger.Close()
		go func() {
			for {
				c, err := forger.Accept()
				if err != nil {
					return
				}
				readWant(c)
				c.Write(head(nil, kindHave, 0))
				b := th.list.Encode()
				b[len(b)-1] ^= 1
				c.Write(append(head(nil, kindList, len(b)), b...))
				c.Write(head(nil, kindList, 0))
				c.Close()
			}
		}()
		b := w.node("b", Config{Patience: 5 * time.Second}, "", nothing, nil)
		err := b.x.Transfer(th.want("forger"), b.spool).Run(t.Context())
		if !errors.Is(err, ErrNobody) || w.blames()["forger"] != 1 {
			t.Errorf("%v, blamed %v", err, w.blames())
		}
		w.node("good", Config{}, "", w.holds(th), nil)
		if err := b.x.Transfer(th.want("forger", "good"), b.spool).Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestASilentSourceIsOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 100*piece, piece)
		for _, id := range []cluster.NodeID{"a", "b"} {
			w.node(id, Config{Out: 1 << 20}, "", w.holds(th), nil)
		}
		c := w.node("c", Config{}, "", nothing, nil)
		time.AfterFunc(200*time.Millisecond, func() { w.mesh.Cut("b", "c") })
		defer w.mesh.Heal("b", "c")
		begin := time.Now()
		tr := c.x.Transfer(th.want("a", "b"), c.spool)
		if err := tr.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		// 0.2 s together and the rest, 1.2 MB, alone: no waiting for the one that says nothing.
		if took := time.Since(begin); took > 1700*time.Millisecond {
			t.Error("took", took)
		}
		if p := tr.Progress(); p.Received > p.Size*102/100+piece {
			t.Errorf("%d of %d bytes came", p.Received, p.Size)
		}
	})
}

func TestASlowSourceHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 100*piece, piece)
		w.node("fast", Config{Out: 1 << 20}, "", w.holds(th), nil)
		w.node("slow", Config{Out: 10 << 10}, "", w.holds(th), nil)
		c := w.node("c", Config{}, "", nothing, nil)
		begin := time.Now()
		tr := c.x.Transfer(th.want("fast", "slow"), c.spool)
		if err := tr.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 1700*time.Millisecond { // the fast one alone: 1.56 s
			t.Error("took", took)
		}
	})
}

func TestATransferGoesOnWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 200*piece, piece)
		w.node("a", Config{Out: 1 << 20}, "", w.holds(th), nil)
		dir := t.TempDir()
		var received int64
		rounds := 0
		for ; ; rounds++ {
			b := w.node("b", Config{}, dir, nothing, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			tr := b.x.Transfer(th.want("a"), b.spool)
			err := tr.Run(ctx)
			cancel()
			received += tr.Progress().Received
			b.stop()
			if err == nil {
				break
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
		}
		if rounds < 4 || received > int64(200*piece)+int64(rounds*3*piece) {
			t.Errorf("%d bytes of %d in %d rounds", received, 200*piece, rounds)
		}
	})
}

func TestSourcesMayDieComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 300*piece, piece)
		w.node("a", Config{Out: 1 << 20}, "", w.holds(th), nil)
		c := w.node("c", Config{}, "", nothing, nil)
		named := atomic.Pointer[[]cluster.NodeID]{}
		named.Store(&[]cluster.NodeID{"a", "b"})
		want := th.want()
		want.Sources = func() []cluster.NodeID { return *named.Load() }
		tr := c.x.Transfer(want, c.spool)
		ended := make(chan error)
		go func() { ended <- tr.Run(t.Context()) }()
		time.Sleep(time.Second)
		w.mesh.Kill("a") // there is nobody now
		time.Sleep(5 * time.Second)
		w.node("b", Config{Out: 1 << 20}, "", w.holds(th), nil)
		time.Sleep(12 * time.Second)
		if p := tr.Progress(); p.Have != p.Size {
			t.Errorf("%+v", p)
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	})
}

func TestASourceNoLongerNamedIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 300*piece, piece)
		w.node("a", Config{Out: 100 << 10}, "", w.holds(th), nil)
		c := w.node("c", Config{Patience: 5 * time.Second}, "", nothing, nil)
		var gone atomic.Bool
		want := th.want()
		want.Sources = func() []cluster.NodeID {
			if gone.Load() {
				return nil
			}
			return []cluster.NodeID{"a"}
		}
		time.AfterFunc(time.Second, func() { gone.Store(true) })
		begin := time.Now()
		tr := c.x.Transfer(want, c.spool)
		if err := tr.Run(t.Context()); !errors.Is(err, ErrNobody) {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 7*time.Second || tr.Progress().Received > 200<<10 {
			t.Errorf("after %v, %d bytes", took, tr.Progress().Received)
		}
	})
}

func TestNobodyHasItSaysWhatTheNodesSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 3*piece, piece)
		w.node("a", Config{}, "", nothing, nil)
		b := w.node("b", Config{}, "", nothing, nil)
		begin := time.Now()
		err := b.x.Transfer(th.want("a", "x"), b.spool).Run(t.Context())
		if !errors.Is(err, ErrNobody) || !strings.Contains(err.Error(), "the blob is not here") || !strings.Contains(err.Error(), "x: dial") {
			t.Error(err)
		}
		if took := time.Since(begin); took < time.Minute || took > time.Minute+time.Second {
			t.Error("took", took)
		}
	})
}

func TestABrokenSpoolEndsTheTransferWithItsOwnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 100*piece, piece)
		w.node("a", Config{Out: 1 << 20}, "", w.holds(th), nil)
		b := w.node("b", Config{}, "", nothing, nil)
		time.AfterFunc(500*time.Millisecond, func() { b.spool.Remove(th.list.Digest()) })
		if err := b.x.Transfer(th.want("a"), b.spool).Run(t.Context()); !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
		if len(w.blames()) != 0 {
			t.Error("blamed for it:", w.blames())
		}
		if err := b.x.Transfer(th.want("a"), b.spool).Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestCancelEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 100*piece, piece)
		w.node("a", Config{Out: 100 << 10}, "", w.holds(th), nil)
		b := w.node("b", Config{}, "", nothing, nil)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(3*time.Second, cancel)
		begin := time.Now()
		tr := b.x.Transfer(th.want("a"), b.spool)
		if err := tr.Run(ctx); !errors.Is(err, context.Canceled) || time.Since(begin) != 3*time.Second {
			t.Error(err, time.Since(begin))
		}
		if p := tr.Progress(); p.Rate < 80<<10 || p.Rate > 120<<10 || p.ETA < 10*time.Second || p.ETA > 20*time.Second {
			t.Errorf("%+v", p)
		}
	})
}

func TestTransfersGiveWayToInference(t *testing.T) {
	for _, tc := range []struct {
		name     string
		out      int64
		from, to float64 // of the full rate
	}{
		{"limited", 1 << 20, 0.2, 0.3},
		{"unlimited, against the fastest second", 0, 0.2, 0.3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, th := newWorld(t), newThing(t, 800*piece, piece)
				var busy atomic.Bool
				// The line, when nobody limits: the other side takes so much.
				w.node("a", Config{Out: tc.out}, "", w.holds(th), busy.Load)
				b := w.node("b", Config{In: 1 << 20}, "", nothing, nil)
				tr := b.x.Transfer(th.want("a"), b.spool)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- tr.Run(ctx) }()
				time.Sleep(4 * time.Second)
				full := tr.Progress().Received
				busy.Store(true)
				time.Sleep(time.Second)
				before := tr.Progress().Received
				time.Sleep(4 * time.Second)
				share := float64(tr.Progress().Received-before) / float64(full)
				if share < tc.from || share > tc.to {
					t.Errorf("%.2f of the rate while busy", share)
				}
				busy.Store(false)
				time.Sleep(time.Second)
				before = tr.Progress().Received
				time.Sleep(2 * time.Second)
				if share := 2 * float64(tr.Progress().Received-before) / float64(full); share < 0.9 {
					t.Errorf("%.2f of the rate afterwards", share)
				}
				cancel()
				<-ended
			})
		})
	}
}

func TestABusyNodeIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, first, second := newWorld(t), newThing(t, 100*piece, piece), newThing(t, 2*piece, piece)
		has := map[blob.Digest]Holding{first.list.Digest(): first.whole(t), second.list.Digest(): second.whole(t)}
		w.node("a", Config{PeerConnections: 1, Out: 100 << 10}, "", func(d blob.Digest) Holding { return has[d] }, nil)
		b := w.node("b", Config{Patience: 5 * time.Second}, "", nothing, nil)
		slow := make(chan error, 1)
		go func() { slow <- b.x.Transfer(first.want("a"), b.spool).Run(t.Context()) }()
		time.Sleep(time.Second)
		if err := b.x.Transfer(second.want("a"), b.spool).Run(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-slow; err != nil {
			t.Error(err)
		}
	})
}

func TestANodeThatIsAlwaysBusyIsNotWaitedForForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, 2*piece, piece)
		l := w.raw("full")
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(io.Discard, c) }() // until it is closed
				_, _ = c.Write(no(busy))                      // it may have left
				_ = c.Close()
			}
		}()
		b := w.node("b", Config{Patience: 5 * time.Second, Slow: time.Minute}, "", nothing, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := b.x.Transfer(th.want("full"), b.spool).Run(ctx); !errors.Is(err, ErrNobody) || !strings.Contains(err.Error(), busy) {
			t.Error(err)
		}
	})
}
