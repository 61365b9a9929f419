package models

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

func TestWhatWasLentForNothingIsTakenBack(t *testing.T) {
	g := newGroup(t, "a")
	n := &member{g: g, id: "a", data: t.TempDir(), folder: t.TempDir(), own: true}
	shared, other := some(300, 1), some(400, 2)
	n.file("there", shared, some(300, 3))
	g.open(n)
	m := g.publish("m", other, shared)
	r := &running{job: job{"m", m.Model}, manifest: &m, progress: newProgress()}
	for _, data := range [][]byte{other, shared} {
		s := &supply{digest: n.spooled(data, 1).Hex(), size: int64(len(data)), done: make(chan struct{})}
		close(s.done)
		r.supplies = append(r.supplies, s)
	}
	is := func(b manifest.Blob) bool {
		_, err := os.Lstat(n.lent(b.Digest))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return err == nil
	}
	if err := os.Remove(n.lent(m.Blobs[1].Digest)); err != nil { // so that both are links
		t.Fatal(err)
	}
	if err := n.lend(t.Context(), r); err != nil || !is(m.Blobs[0]) || !is(m.Blobs[1]) {
		t.Fatalf("they are not lent: %v", err)
	}
	next := &running{job: job{"next", "1"}, manifest: &m}
	n.mu.Lock()
	n.jobs[next.job] = next
	n.mu.Unlock()
	if n.unlend(t.Context(), r); !is(m.Blobs[0]) {
		t.Error("it is taken from another job")
	}
	n.mu.Lock()
	delete(n.jobs, next.job)
	n.mu.Unlock()
	if n.unlend(t.Context(), r); is(m.Blobs[0]) {
		t.Error("a blob that no model has is left")
	}
	if !is(m.Blobs[1]) {
		t.Error("a blob of another model is taken from it")
	}
}

func TestAFailedInstallLeavesTheSpoolWhatItLent(t *testing.T) {
	g := newGroup(t, "a")
	n := &member{g: g, id: "a", data: t.TempDir(), folder: t.TempDir(), own: true}
	n.file("there", some(300, 3), some(300, 4))
	g.open(n)
	until(t, "that it runs", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.run != nil })
	data := some(400, 1)
	m := g.publish("m", data, some(300, 2))
	n.spooled(data, 1)
	r := &running{job: job{"m", "no digest that an engine takes"}, manifest: &m, missing: []string{m.Blobs[0].Digest}, progress: newProgress()}
	if err := n.bring(t.Context(), r, known{Manifest: m}, mustName(t, "m")); err == nil {
		t.Fatal("it is installed")
	}
	if _, err := os.Lstat(n.lent(m.Blobs[0].Digest)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left in the engine's folder: %v", err)
	}
	if !n.inSpool(t.Context(), m.Blobs[0]) {
		t.Error("the only copy is gone")
	}
}
