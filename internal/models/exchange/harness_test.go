package exchange

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/mesh"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// bytesSource is a whole blob in memory.
type bytesSource struct{ *bytes.Reader }

func (bytesSource) Close() error { return nil }

// thing is a blob and its list.
type thing struct {
	bytes []byte
	list  *blob.List
}

func newThing(t testing.TB, size, piece int) thing {
	t.Helper()
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(b)
	l, err := blob.Make(t.Context(), bytes.NewReader(b), blob.DigestOf(sha256.Sum256(b)), piece)
	if err != nil {
		t.Fatal(err)
	}
	return thing{b, l}
}

// want asks nodes for the thing.
func (th thing) want(from ...cluster.NodeID) Want {
	return Want{Digest: th.list.Digest(), Root: th.list.Root(), Sources: func() []cluster.NodeID { return from }}
}

func (th thing) whole(t testing.TB) *blob.Whole {
	t.Helper()
	w, err := blob.NewWhole(th.list, bytesSource{bytes.NewReader(th.bytes)})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// in is an error unless the spool has the thing.
func (th thing) in(ctx context.Context, s *blob.Spool) error {
	p, err := s.Get(ctx, th.list.Digest())
	if err != nil {
		return err
	}
	got, err := io.ReadAll(io.NewSectionReader(p, 0, th.list.Size()))
	if err != nil || !bytes.Equal(got, th.bytes) {
		return fmt.Errorf("the spool has other bytes: %w", err)
	}
	return nil
}

// world is nodes in one mesh.
type world struct {
	t      testing.TB
	mesh   *mesh.Memory
	blamed struct {
		sync.Mutex
		ids map[cluster.NodeID]int
	}
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, mesh: mesh.NewMemory()}
	w.blamed.ids = make(map[cluster.NodeID]int)
	return w
}

func (w *world) blames() map[cluster.NodeID]int {
	w.blamed.Lock()
	defer w.blamed.Unlock()
	return w.blamed.ids
}

// node is one that serves what it holds.
type node struct {
	id    cluster.NodeID
	x     *Exchange
	spool *blob.Spool
	stop  func() // abruptly
}

// nothing is a node's store that is empty.
func nothing(blob.Digest) Holding { return nil }

// node starts a node with a store and the spool in a folder; "" is a new one.
func (w *world) node(id cluster.NodeID, c Config, dir string, store func(blob.Digest) Holding, busy func() bool) *node {
	w.t.Helper()
	if dir == "" {
		dir = w.t.TempDir()
	}
	spool, err := blob.OpenSpool(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	in := w.mesh.Node(id, mesh.Deps{Admit: func(cluster.NodeID, []byte) error { return nil }})
	n := &node{id: id, spool: spool}
	n.x = New(c, Deps{
		Transport: in, Busy: busy,
		Hold: func(ctx context.Context, d blob.Digest) (Holding, func(), error) {
			if h := store(d); h != nil {
				return h, func() {}, nil
			}
			p, err := spool.Get(ctx, d)
			if err != nil {
				return nil, nil, fs.ErrNotExist
			}
			return p, func() {}, nil
		},
		Blame: func(id cluster.NodeID, _ blob.Digest, _ error) {
			w.blamed.Lock()
			defer w.blamed.Unlock()
			w.blamed.ids[id]++
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := n.x.Run(ctx); err != nil && !errors.Is(err, net.ErrClosed) { // killed
			w.t.Error(err)
		}
	})
	n.stop = sync.OnceFunc(func() {
		in.Close()
		cancel()
		work.Wait()
		spool.Close()
	})
	w.t.Cleanup(n.stop)
	return n
}

// holds is a store that has the thing.
func (w *world) holds(th thing) func(blob.Digest) Holding {
	h := th.whole(w.t)
	return func(d blob.Digest) Holding {
		if d == th.list.Digest() {
			return h
		}
		return nil
	}
}

// plain is a node that is no Exchange.
func (w *world) plain(id cluster.NodeID) *mesh.MemoryNode {
	n := w.mesh.Node(id, mesh.Deps{Admit: func(cluster.NodeID, []byte) error { return nil }})
	w.t.Cleanup(func() { n.Close() })
	return n
}

// raw is a plain node that listens.
func (w *world) raw(id cluster.NodeID) net.Listener {
	l, err := w.plain(id).Listen(Protocol)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}
