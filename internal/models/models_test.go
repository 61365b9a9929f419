package models

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/placement"
	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

func TestEightNodesGetAModelThatTheRegistrySendsOnce(t *testing.T) {
	g := newGroup(t, "a", "b", "c", "d", "e", "f", "g", "h")
	m := g.publish("m", some(9<<20, 1), some(2000, 2))
	nodes := g.start()
	if err := nodes[3].pull("m", 8); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.hasSoon("m", m)
	}
	if err := g.once(m); err != nil {
		t.Error(err)
	}
}

func TestCallersOfSeveralNodesShareOneTransfer(t *testing.T) {
	g := newGroup(t, "a", "b", "c")
	m := g.publish("m", some(5<<20, 1), some(2000, 2))
	nodes := g.start()
	var calls sync.WaitGroup
	for i := range 20 {
		calls.Go(func() {
			if err := nodes[i%3].pull([]string{"m", "m:latest", "library/m"}[i%3], 2); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if err := g.once(m); err != nil {
		t.Error(err)
	}
	for _, n := range g.view("a").Replicas("m") {
		g.members[n.Node.ID].hasSoon("m", m)
	}
	if n := len(g.view("a").Replicas("m")); n != 2 {
		t.Errorf("%d nodes have it", n)
	}
}

func TestModelOfOneNodeReachesTheOthersThoughItsHolderDies(t *testing.T) {
	g := newGroup(t, "a", "b", "c", "d")
	g.cfg.Bandwidth = 24 << 20
	var m manifest.Manifest
	nodes := g.start(func(n *member) {
		if n.id == "d" {
			m = n.write("mine", 24<<20, 7)
		}
	})
	dying := nodes[3]
	if err := nodes[0].Made(t.Context(), "d", "mine", m.Model, m.Size()); err != nil {
		t.Fatal(err)
	}
	three := cluster.Replicas(3)
	if err := nodes[0].Place(t.Context(), cluster.Place{Model: "mine", Replicas: &three}); err != nil {
		t.Fatal(err)
	}
	// Once the others have every piece between them, nobody needs the one that had it.
	weights := m.Blobs[0]
	until(t, "all pieces on two nodes, neither of which has all", func() bool {
		all := blob.NewMap(6)
		for _, n := range nodes[:3] {
			if p, err := n.spool.Get(t.Context(), digest(weights.Digest)); err == nil {
				for i, b := range p.Have() {
					all[i] |= b
				}
			}
		}
		return all.Count() == 6
	})
	dying.stop()
	until(t, "two nodes with the model", func() bool {
		has := 0
		for _, n := range nodes[:3] {
			if n.has("mine", m) == nil {
				has++
			}
		}
		return has >= 2
	})
	if total := g.registry.Total(); total > 0 {
		t.Errorf("the registry sent %d bytes", total)
	}
}

func TestAWishWhoseAnswerIsLostIsAskedForAgain(t *testing.T) {
	g := newGroup(t, "a", "b", "c")
	var m manifest.Manifest
	nodes := g.start(func(n *member) {
		if n.id == "b" {
			m = n.write("mine", 2<<20, 7)
		}
	})
	nodes[1].loses.Store(2)
	if err := nodes[1].Made(t.Context(), "b", "mine", m.Model, m.Size()); err != nil {
		t.Fatal(err)
	}
	if lost := nodes[1].loses.Load(); lost >= 0 {
		t.Fatalf("%d answers were not lost", lost)
	}
	until(t, "a second node with the model", func() bool { return nodes[0].has("mine", m) == nil || nodes[2].has("mine", m) == nil })
}

func TestPiecesThatNobodyCompletesAreFilledFromTheRegistry(t *testing.T) {
	g := newGroup(t, "a", "b")
	data := some(13<<20, 3)
	m := g.publish("m", data, some(300, 4))
	d := blob.DigestOf(sha256.Sum256(data))
	l, err := blob.Make(t.Context(), bytes.NewReader(data), d, blob.PieceSize)
	if err != nil {
		t.Fatal(err)
	}
	nodes := g.start(func(n *member) { // each has one piece of an earlier run
		spool, err := blob.OpenSpool(filepath.Join(n.data, spoolDir, blobsDir))
		if err != nil {
			t.Fatal(err)
		}
		p, err := spool.Open(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		i := map[cluster.NodeID]int{"a": 0, "b": 1}[n.id]
		offset, size := l.Span(i)
		if err := errors.Join(p.WritePiece(i, data[offset:offset+int64(size)]), spool.Close()); err != nil {
			t.Fatal(err)
		}
	})
	until(t, "both tell their pieces", func() bool { return len(nodes[0].Told().Blobs) == 1 && len(nodes[1].Told().Blobs) == 1 })
	if told := nodes[0].Told().Blobs[0]; told.State != cluster.BlobPartial || told.Have != blob.PieceSize {
		t.Errorf("of one piece of four it tells %+v", told)
	}
	if err := nodes[0].pull("m", 2); err != nil { // nothing is agreed of it, so that nobody knows whose pieces are right
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.hasSoon("m", m)
	}
	if sent, most := g.registry.Sent(m.Blobs[0].Digest), m.Blobs[0].Size-blob.PieceSize; sent > most {
		t.Errorf("the registry sent %d bytes, of which %d were lacking", sent, most)
	}
}

func TestFetchEndsRightThoughTheLeaderDies(t *testing.T) {
	g := newGroup(t, "a", "b", "c")
	m := g.publish("m", some(9<<20, 5), some(300, 6))
	g.registry.Set(registrytest.Faults{BytesPerSecond: 12 << 20})
	nodes := g.start()
	done := make(chan error, 1)
	go func() { done <- nodes[1].pull("m", 3) }()
	weights := m.Blobs[0]
	fetching := func(n *member) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		s := n.supplies[weights.Digest]
		return s != nil && s.got > 0
	}
	until(t, "the registry sends to one", func() bool { return slices.ContainsFunc(nodes, fetching) })
	first := nodes[slices.IndexFunc(nodes, fetching)]
	nodes[0].stop()
	g.lead(nodes[2])
	<-done // the node that died did not get it, and its replica is made elsewhere or not at all
	for _, n := range nodes[1:] {
		until(t, "the model on "+string(n.id), func() bool { return n.has("m", m) == nil })
	}
	most := weights.Size
	if first == nodes[0] {
		most *= 2 // what the dead one had is lost
	}
	if sent := g.registry.Sent(weights.Digest); sent > most {
		t.Errorf("the registry sent %d bytes of %d", sent, weights.Size)
	}
}

func TestCancelEndsATransferAndTheWish(t *testing.T) {
	g := newGroup(t, "a", "b")
	m := g.publish("m", some(5<<20, 5), some(300, 6))
	g.registry.Set(registrytest.Faults{StallAfter: 1 << 20})
	nodes := g.start()
	done := make(chan error, 1)
	go func() { done <- nodes[0].pull("m", 1) }()
	var at *member
	until(t, "a transfer", func() bool {
		for _, n := range nodes {
			if all := n.Transfers(); len(all) == 1 && all[0].Have > 0 {
				at = n
				return true
			}
		}
		return false
	})
	if err := nodes[1].CancelOn(t.Context(), at.id, at.Transfers()[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), ErrCancelled.Error()) {
		t.Errorf("the pull ended with %v", err)
	}
	if w, wanted := g.agreed().WantedModel("m"); wanted {
		t.Errorf("it is still wanted: %+v", w)
	}
	until(t, "no transfer", func() bool { return len(at.Transfers()) == 0 })
	g.registry.Set(registrytest.Faults{})
	if err := nodes[0].pull("m", 2); err != nil { // as if nothing had been
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.hasSoon("m", m)
	}
}

func TestWhatIsPulledAgainIsNotTheJobThatIsBeingDeleted(t *testing.T) {
	g := newGroup(t, "a")
	m := g.publish("m", some(5<<20, 5), some(300, 6))
	g.registry.Set(registrytest.Faults{StallAfter: 1 << 20})
	n := g.start()[0]
	done := make(chan error, 1)
	go func() { done <- n.pull("m", 1) }()
	until(t, "a transfer", func() bool { all := n.Transfers(); return len(all) == 1 && all[0].Have > 0 })
	if err := n.Delete(t.Context(), "M:latest"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), errDeleted.Error()) {
		t.Errorf("the pull ended with %v", err)
	}
	if models, err := n.list(t.Context()); err != nil || len(models) > 0 {
		t.Errorf("%v %v", models, err)
	}
	g.registry.Set(registrytest.Faults{})
	if err := n.pull("m", 1); err != nil {
		t.Fatal(err)
	}
	n.hasSoon("m", m)
}

func TestWrongBytesOfAPeerAreBlamedAndComeFromElsewhere(t *testing.T) {
	for name, published := range map[string]bool{"the registry has it": true, "nobody has it": false} {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t, "a", "b")
			data := [][]byte{some(5<<20, 8), some(300, 9)}
			if published {
				g.publish("m", data...)
			}
			var m manifest.Manifest
			nodes := g.start(func(n *member) {
				if n.id == "b" {
					m = n.file("m", data...)
				}
			})
			until(t, "the model of b", func() bool { return len(nodes[1].Told().Blobs) == 2 })
			if err := nodes[1].offer(t.Context(), m.Blobs[0].Digest); err != nil {
				t.Fatal(err)
			}
			flip(t, filepath.Join(nodes[1].folder, "blobs", "sha256-"+m.Blobs[0].Digest), 4<<20+5)
			err := nodes[0].Fetch(t.Context(), FetchRequest{Name: "m", Digest: m.Model}, nil)
			if published {
				if err != nil {
					t.Fatal(err)
				}
				nodes[0].hasSoon("m", m)
				// What came right is kept; whether something came before the wrong piece is chance.
				if sent := g.registry.Sent(m.Blobs[0].Digest); sent > m.Blobs[0].Size {
					t.Errorf("the registry sent %d bytes", sent)
				}
			} else if err == nil || !strings.Contains(err.Error(), "node b") || !strings.Contains(err.Error(), "no such model") && !strings.Contains(err.Error(), "404") {
				t.Errorf("the error is %v", err)
			}
			if n := strings.Count(g.log(), "node sends wrong bytes"); n != 1 {
				t.Errorf("blamed %d times", n)
			}
		})
	}
}

func TestFullDiskIsOneErrorWithTheNumbers(t *testing.T) {
	g := newGroup(t, "a")
	g.publish("m", some(5<<20, 5), some(300, 6))
	g.cfg.DiskReserveBytes = 1 << 62
	n := g.start()[0]
	err := n.pull("m", 1)
	_, wanted := g.agreed().WantedModel("m")
	if err == nil || !strings.Contains(err.Error(), "MB free at") || strings.Contains(err.Error(), "\n") || wanted || len(n.Transfers()) > 0 {
		t.Errorf("%v, wanted %v", err, wanted)
	}
	if total := g.registry.Total(); total > 0 {
		t.Errorf("the registry sent %d bytes", total)
	}
}

func TestHolderWithoutAListMakesOneWhenItIsAsked(t *testing.T) {
	g := newGroup(t, "a", "b", "c")
	data := [][]byte{some(5<<20, 8), some(300, 9)}
	var m manifest.Manifest
	nodes := g.start(func(n *member) {
		if n.id != "a" {
			m = n.file("m", data...)
		}
	})
	until(t, "two holders", func() bool { return len(nodes[1].Told().Blobs) == 2 && len(nodes[2].Told().Blobs) == 2 })
	for _, b := range m.Blobs {
		if err := nodes[2].offer(t.Context(), b.Digest); err != nil {
			t.Fatal(err)
		}
	}
	nodes[2].stop() // b has the model, and never made a list
	if err := nodes[0].Fetch(t.Context(), FetchRequest{Name: "m", Digest: m.Model}, nil); err != nil {
		t.Fatal(err)
	}
	nodes[0].hasSoon("m", m)
}

func TestOnlyTheLeaderGivesLeasesAndOnlyOne(t *testing.T) {
	g := newGroup(t, "a", "b", "c")
	nodes := g.start()
	d := strings.Repeat("1", 64)
	if ok, err := nodes[1].grant(d, "b", leaseRequest{}); ok || !errors.Is(err, cluster.ErrNotLeader) {
		t.Errorf("a follower grants: %v %v", ok, err)
	}
	if ok, err := nodes[1].askForLease(t.Context(), d, leaseRequest{}); !ok || err != nil {
		t.Errorf("nobody has it: %v", err)
	}
	if ok, err := nodes[2].askForLease(t.Context(), d, leaseRequest{}); ok || err != nil {
		t.Errorf("two have it: %v", err)
	}
	nodes[1].giveLeaseBack(t.Context(), d)
	if ok, err := nodes[2].askForLease(t.Context(), d, leaseRequest{}); !ok || err != nil {
		t.Errorf("it was given back: %v", err)
	}
	nodes[2].stop()
	if ok, err := nodes[1].askForLease(t.Context(), d, leaseRequest{}); !ok || err != nil {
		t.Errorf("its holder is dead: %v", err)
	}
}

func TestPeersThatAskForAnythingLeaveNothingBehind(t *testing.T) {
	g := newGroup(t, "a")
	n := g.start()[0]
	for range maxMaking { // all hands are full
		n.making <- struct{}{}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 100 {
		d := blob.DigestOf(sha256.Sum256([]byte{byte(i)}))
		if _, _, err := n.hold(t.Context(), d); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := n.offer(gone, d.Hex()); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.used)+len(n.hashing) > 0 {
		t.Errorf("%d blobs are remembered that are not there", len(n.used)+len(n.hashing))
	}
}

func TestAPullGoesOnThoughTheWayToItsNodeBreaks(t *testing.T) {
	g := newGroup(t, "a", "b", "c")
	m := g.publish("m", some(5<<20, 5), some(300, 6))
	g.registry.Set(registrytest.Faults{BytesPerSecond: 4 << 20})
	nodes := g.start()
	breaks := sync.OnceFunc(func() { nodes[1].net.Disconnect("c") })
	err := nodes[1].Pull(t.Context(), Request{Name: "m", Nodes: &[]cluster.NodeID{"c"}}, func(record []byte) error {
		if bytes.Contains(record, []byte(`"digest"`)) {
			breaks()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, wanted := g.agreed().WantedModel("m"); !wanted {
		t.Error("it is wanted no more")
	}
	nodes[2].hasSoon("m", m)
	if err := g.once(m); err != nil {
		t.Error(err)
	}
}

func TestAPullGoesOnWhereTheLeaderPutsItWhenItsNodeDies(t *testing.T) {
	g := newGroup(t, "a", "b", "c", "d")
	m := g.publish("m", some(5<<20, 5), some(300, 6))
	g.registry.Set(registrytest.Faults{BytesPerSecond: 4 << 20})
	nodes := g.start()
	one := cluster.Replicas(1)
	done := make(chan error, 1)
	go func() {
		done <- nodes[1].Pull(t.Context(), Request{Name: "m", Replicas: &one, Nodes: &[]cluster.NodeID{"c", "d"}}, func([]byte) error { return nil })
	}()
	at := func(n *member) bool { all := n.Transfers(); return len(all) == 1 && all[0].Have > 0 }
	until(t, "a transfer", func() bool { return at(nodes[2]) || at(nodes[3]) })
	dies, gets := nodes[2], nodes[3]
	if at(gets) {
		dies, gets = gets, dies
	}
	dies.stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	gets.hasSoon("m", m)
}

func TestAFetchThatIsWantedGoesOnWithoutItsLeader(t *testing.T) {
	g := newGroup(t, "a", "b")
	m := g.publish("m", some(5<<20, 5), some(300, 6))
	g.registry.Set(registrytest.Faults{StallAfter: 1 << 20})
	nodes := g.start()
	if err := nodes[1].Pull(t.Context(), Request{Name: "m", Nodes: &[]cluster.NodeID{"b"}}, nil); err != nil {
		t.Fatal(err)
	}
	until(t, "a transfer", func() bool { all := nodes[1].Transfers(); return len(all) == 1 && all[0].Have > 0 })
	if told := nodes[1].Told().Fetches; len(told) != 1 || told[0].Size != m.Size() {
		t.Errorf("%+v is told of a model of %d bytes", told, m.Size())
	}
	nodes[0].stop()
	var r *running
	until(t, "that nobody waits for it", func() bool {
		nodes[1].mu.Lock()
		defer nodes[1].mu.Unlock()
		for _, r = range nodes[1].jobs {
		}
		return r.users == 0
	})
	nodes[1].letGo(r)
	if r.ctx.Err() != nil {
		t.Fatal("it ended: ", context.Cause(r.ctx))
	}
	if err := g.apply(t.Context(), cluster.Command{At: time.Now(), Forget: &cluster.Forget{Model: "m", Kept: true}}); err != nil {
		t.Fatal(err)
	}
	nodes[1].letGo(r)
	if !errors.Is(context.Cause(r.ctx), errUnwanted) {
		t.Error("it goes on though nobody wants it")
	}
}

func TestAFetchEndsWhenItsModelIsDeletedByWhoCannotReachIt(t *testing.T) {
	g := newGroup(t, "a")
	m := g.publish("m", some(5<<20, 5), some(300, 6))
	g.registry.Set(registrytest.Faults{BytesPerSecond: 8 << 20})
	n := g.start()[0]
	deletes := sync.OnceFunc(func() {
		if err := g.apply(t.Context(), cluster.Command{At: time.Now(), Forget: &cluster.Forget{Model: "m"}}); err != nil {
			t.Error(err)
		}
	})
	err := n.Fetch(t.Context(), FetchRequest{Name: "m", Digest: m.Model}, func(record []byte) error {
		if bytes.Contains(record, []byte(`"digest"`)) {
			deletes()
		}
		return nil
	})
	if !errors.Is(err, errDeleted) {
		t.Error(err)
	}
	if models, err := n.list(t.Context()); err != nil || len(models) > 0 {
		t.Errorf("%v %v", models, err)
	}
	if err := n.Fetch(t.Context(), FetchRequest{Name: "m", Digest: m.Model, Version: 1}, nil); !errors.Is(err, errDeleted) {
		t.Errorf("what was wanted before then: %v", err)
	}
	if err := n.Fetch(t.Context(), FetchRequest{Name: "m", Digest: m.Model}, nil); err != nil {
		t.Errorf("what is wanted since then: %v", err)
	}
}

func TestTheLeaderDoesNotWaitForWhatIsWantedNoMore(t *testing.T) {
	g := newGroup(t, "a", "b")
	g.publish("m", some(5<<20, 5), some(300, 6))
	g.registry.Set(registrytest.Faults{StallAfter: 1 << 20})
	nodes := g.start()
	if err := nodes[1].Pull(t.Context(), Request{Name: "m", Nodes: &[]cluster.NodeID{"b"}}, nil); err != nil {
		t.Fatal(err)
	}
	until(t, "a transfer", func() bool { return len(nodes[1].Transfers()) == 1 })
	if err := g.apply(t.Context(), cluster.Command{At: time.Now(), Forget: &cluster.Forget{Model: "m"}}); err != nil {
		t.Fatal(err)
	}
	until(t, "that nobody waits for it", func() bool {
		nodes[1].mu.Lock()
		defer nodes[1].mu.Unlock()
		for _, r := range nodes[1].jobs {
			return r.users == 0
		}
		return true
	})
	until(t, "that the leader has forgotten it", func() bool {
		nodes[0].mu.Lock()
		defer nodes[0].mu.Unlock()
		return len(nodes[0].actions) == 0
	})
}

func TestWhoHasLostTheLeaseAsksTheRegistryNoMore(t *testing.T) {
	g := newGroup(t, "a", "b")
	m := g.publish("m", some(9<<20, 5), some(300, 6))
	weights := m.Blobs[0].Digest
	g.registry.Set(registrytest.Faults{StallAfter: 5 << 20})
	nodes := g.start()
	done := make(chan error, 1)
	go func() { done <- nodes[1].Fetch(t.Context(), FetchRequest{Name: "m", Digest: m.Model}, nil) }()
	asks := func() (bool, int64) {
		nodes[1].mu.Lock()
		defer nodes[1].mu.Unlock()
		s := nodes[1].supplies[weights]
		return s != nil && s.upstream, g.registry.Sent(weights)
	}
	until(t, "bytes from the registry", func() bool { asking, sent := asks(); return asking && sent >= 5<<20 })
	nodes[0].mu.Lock()
	nodes[0].leases[weights] = lease{"other", time.Now()}
	nodes[0].mu.Unlock()
	until(t, "that it asks no more", func() bool { asking, _ := asks(); return !asking })
	g.registry.Set(registrytest.Faults{})
	nodes[0].release(weights, "other")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	nodes[1].hasSoon("m", m)
	if sent := g.registry.Sent(weights); sent > m.Blobs[0].Size+blob.PieceSize { // whole pieces are kept
		t.Errorf("the registry sent %d bytes of a blob of %d", sent, m.Blobs[0].Size)
	}
}

func TestAModelOfManyBlobsComesAFewBlobsAtATime(t *testing.T) {
	g := newGroup(t, "a", "b")
	var blobs [][]byte
	for i := range 20 {
		blobs = append(blobs, some(20_000, byte(i)))
	}
	m := g.publish("m", blobs...)
	nodes := g.start()
	if err := nodes[1].pull("m", 2); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.hasSoon("m", m)
	}
	for i := range blobs {
		blobs[i] = some(20_000, byte(100+i))
	}
	m = g.publish("stalls", blobs...)
	g.registry.Set(registrytest.Faults{StallAfter: 1000})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = nodes[1].Fetch(ctx, FetchRequest{Name: "stalls", Digest: m.Model}, nil) }() // it never ends
	supplies := func() (begun, stalled int) {
		nodes[1].mu.Lock()
		defer nodes[1].mu.Unlock()
		for _, s := range nodes[1].supplies {
			if begun++; s.got > 0 {
				stalled++
			}
		}
		return begun, stalled
	}
	until(t, "blobs on their way", func() bool { _, stalled := supplies(); return stalled >= maxSupplies })
	if begun, _ := supplies(); begun > maxSupplies {
		t.Errorf("%d blobs are fetched at a time", begun)
	}
}

func TestWhatIsWantedNoMoreHasNotFailed(t *testing.T) {
	g := newGroup(t, "a")
	n := g.start()[0]
	begun := &acting{}
	n.mu.Lock()
	n.actions[about{"a", cluster.CanonicalModel("m")}] = begun
	n.mu.Unlock()
	n.act(placement.Action{Kind: placement.Fetch, Node: "a", Name: "m", Digest: digestOf([]byte("m")).Hex()}, "")
	until(t, "that it ends", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return !begun.running })
	n.mu.Lock()
	defer n.mu.Unlock()
	if begun.failed > 0 {
		t.Error("it has failed, and is let alone for a while")
	}
}
