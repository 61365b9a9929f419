//go:build unix && !race

package exchange

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/mesh"
	"github.com/ollamamax/ollamamax/internal/mesh/meshtest"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// What is measured here goes over the real mesh, in one process: TCP on loopback, TLS, yamux. `make figures` runs it.

func hosts(t *testing.T, n int) []*mesh.Host {
	t.Helper()
	all, err := meshtest.Hosts(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range all {
			h.Close()
		}
	})
	return all
}

// exchanging is an Exchange that serves, and its spool.
type exchanging struct {
	*Exchange
	id    cluster.NodeID
	spool *blob.Spool
}

// exchanges serves on a host: the whole blob if there is one, and what comes into the spool.
func exchanges(t *testing.T, h *mesh.Host, c Config, whole *blob.Whole) exchanging {
	t.Helper()
	spool, err := blob.OpenSpool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	x := New(c, Deps{Transport: h, Hold: func(ctx context.Context, d blob.Digest) (Holding, func(), error) {
		if whole != nil {
			return whole, func() {}, nil
		}
		p, err := spool.Get(ctx, d)
		return p, func() {}, err
	}})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := x.Run(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); work.Wait(); spool.Close() })
	return exchanging{x, h.ID(), spool}
}

// inFile is the whole thing in a folder of Ollama's form.
func (th thing) inFile(t *testing.T) *blob.Whole {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "blobs", "sha256-"+th.list.Digest().Hex())
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, th.bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := blob.Folder(dir).Open(th.list.Digest())
	if err != nil {
		t.Fatal(err)
	}
	w, err := blob.NewWhole(th.list, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// median is the middle one.
func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

// TestFiguresOfASingleTransfer has source and target on the same processors. Where these are few they are what both wait for:
// then a transfer is slower by what reading, hashing and writing take of them, beside encryption and sockets.
func TestFiguresOfASingleTransfer(t *testing.T) {
	const size, rounds = 256 << 20, 7
	th, both := newThing(t, size, blob.PieceSize), hosts(t, 2)
	from, to := exchanges(t, both[0], Config{}, th.inFile(t)), exchanges(t, both[1], Config{}, nil)
	transfer := func() float64 {
		tr := to.Transfer(th.want(from.id), to.spool)
		began := time.Now()
		if err := tr.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		if p := tr.Progress(); p.Received != size {
			t.Fatalf("%+v", p)
		}
		if err := to.spool.Remove(th.list.Digest()); err != nil {
			t.Fatal(err)
		}
		return size / took.Seconds()
	}
	stream := func(write int) float64 {
		rate, err := meshtest.Stream(t.Context(), both[0], both[1], size, write)
		if err != nil {
			t.Fatal(err)
		}
		return rate
	}
	transfer() // the connection's windows have grown
	var transfers, streams, shares, round, roundShares []float64
	for range rounds {
		x, s, r := transfer(), stream(meshtest.Fitting), stream(meshtest.Round)
		transfers, streams, shares = append(transfers, x/1e6), append(streams, s/1e6), append(shares, 100*x/s)
		round, roundShares = append(round, r/1e6), append(roundShares, 100*x/r)
	}
	t.Logf("%d bytes over the mesh, %d alternating rounds, medians: a transfer from a file into the spool, verified, %.0f MB/s; a bare stream whose writes fit the mesh's messages %.0f MB/s: %.0f %% of it (%.0f); one in writes of 64 KiB %.0f MB/s: %.0f %% (%.0f)",
		size, rounds, median(transfers), median(streams), median(shares), shares, median(round), median(roundShares), roundShares)
	if share := median(shares); share < 30 {
		t.Errorf("a transfer has %.0f %% of what a bare stream has", share)
	}
}

// used is the processor's time that this process has had.
func used(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestFiguresOfEightNodesFromOneCopy is TestEightNodesFromOneCopyTakeLessThanTwiceOnesTime in real time, with real connections.
func TestFiguresOfEightNodesFromOneCopy(t *testing.T) {
	const (
		size, piece = 40<<20 + 1234, 512 << 10
		rate        = 20e6 // bytes a second and node, each way
		rounds      = 3
		most        = 70 // per cent of the processors: above, it is not the rates that bind
	)
	th, all := newThing(t, size, piece), hosts(t, 9)
	c := Config{In: rate, Out: rate}
	first, ids := exchanges(t, all[0], c, th.inFile(t)), []cluster.NodeID{all[0].ID()}
	var nodes []exchanging
	for _, h := range all[1:] {
		nodes, ids = append(nodes, exchanges(t, h, c, nil)), append(ids, h.ID())
	}
	var worst float64
	run := func(fetchers []exchanging, from []cluster.NodeID) float64 {
		began, had := time.Now(), used(t)
		var work sync.WaitGroup
		for _, n := range fetchers {
			want := th.want(slices.DeleteFunc(slices.Clone(from), func(id cluster.NodeID) bool { return id == n.id })...)
			work.Go(func() {
				if err := n.Transfer(want, n.spool).Run(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		took := time.Since(began)
		worst = max(worst, 100*(used(t)-had).Seconds()/took.Seconds()/float64(runtime.NumCPU()))
		for _, n := range fetchers {
			if err := n.spool.Remove(th.list.Digest()); err != nil {
				t.Error(err)
			}
		}
		return took.Seconds()
	}
	var one, together, ratios []float64
	for range rounds {
		a, b := run(nodes[:1], ids), run(nodes, ids)
		one, together, ratios = append(one, a), append(together, b), append(ratios, b/a)
	}
	// What was used of the processors counts for the mechanism; the control waits for one source's rate.
	busiest := worst
	apart := run(nodes, []cluster.NodeID{first.id})
	t.Logf("%d bytes at %.0f MB/s each way, %d rounds, medians: 1 node from 1 %.2f s; 8 together %.2f s, %.2f x (%.2f); once, 8 from the first copy only: %.1f s, %.1f x; at most %.0f %% of the processors",
		size, rate/1e6, rounds, median(one), median(together), median(ratios), ratios, apart, apart/median(one), busiest)
	switch ratio := median(ratios); {
	case busiest > most:
		t.Logf("void: more than %d %% of the processors were used", most)
	case ratio > 3:
		t.Errorf("8 nodes took %.2f x the time of one", ratio)
	case apart < 5*median(one):
		t.Errorf("the control took %.1f x the time of one: the rates do not bind", apart/median(one))
	}
}
