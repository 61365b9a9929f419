package models

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

func TestOnlyBytesThatHaveNotComeNeedRoom(t *testing.T) {
	n := alone(t)
	data := some(9<<20, 1)
	half := manifest.Blob{Digest: n.spooled(data, 1).Hex(), Size: int64(len(data))}
	pulled := manifest.Blob{Digest: digestOf(some(1, 2)).Hex(), Size: 8 << 20}
	both := &running{job: job{"m", "1"}, manifest: &manifest.Manifest{Blobs: []manifest.Blob{half, pulled}}, missing: []string{half.Digest, pulled.Digest}}
	one := &running{job: job{"other", "2"}, manifest: &manifest.Manifest{Blobs: []manifest.Blob{half}}, missing: []string{half.Digest}}
	n.write("there", 1<<10, 3) // so that the engine says where its folder is
	n.refresh(t.Context())
	n.take(t.Context())
	if spool, engine := n.toCome(t.Context(), one); spool != 5<<20 || engine != 9<<20 {
		t.Errorf("of a half-fetched blob %d and %d bytes are to come", spool, engine)
	}
	partial := filepath.Join(n.folder, "blobs", "sha256-"+pulled.Digest+"-partial")
	if err := errors.Join(os.WriteFile(partial, make([]byte, 1<<20), 0o600), os.Truncate(partial, pulled.Size)); err != nil {
		t.Fatal(err)
	}
	if spool, engine := n.toCome(t.Context(), both, one); spool != 13<<20 || engine != 16<<20 {
		t.Errorf("of two models %d and %d bytes are to come", spool, engine)
	}
}

func TestJobsAreAdmittedOnlyBesideEachOther(t *testing.T) {
	n := alone(t)
	large := manifest.Blob{Digest: digestOf(some(1, 1)).Hex(), Size: 1 << 60}
	r := &running{job: job{"large", "1"}, manifest: &manifest.Manifest{Blobs: []manifest.Blob{large}}, missing: []string{large.Digest}, admitted: true}
	n.mu.Lock()
	n.jobs[r.job] = r // there was room when it began
	n.mu.Unlock()
	small := manifest.Blob{Digest: digestOf(some(1, 2)).Hex(), Size: 1}
	next := &running{job: job{"small", "2"}, manifest: &manifest.Manifest{Blobs: []manifest.Blob{small}}, missing: []string{small.Digest}}
	var full *blob.NoRoomError
	if err := n.admit(t.Context(), next); !errors.As(err, &full) || next.admitted {
		t.Errorf("it is admitted into the room of another: %v", err)
	}
	next.missing = nil
	if err := n.admit(t.Context(), next); err != nil {
		t.Errorf("what needs no room is refused: %v", err)
	}
	n.mu.Lock()
	delete(n.jobs, r.job)
	n.mu.Unlock()
}

func TestASecondNameOfWhatALockedEngineHasNeedsNoRoom(t *testing.T) {
	m := &Models{locked: true, manifests: map[string]known{}}
	has, lacks := manifest.Blob{Digest: "1", Size: 5}, manifest.Blob{Digest: "2", Size: 6}
	m.manifests["m"] = known{Manifest: manifest.Manifest{Blobs: []manifest.Blob{has}}}
	if missing := m.missing(manifest.Manifest{Blobs: []manifest.Blob{has, lacks}}); len(missing) != 1 || missing[0] != lacks.Digest {
		t.Errorf("missing are %q", missing)
	}
}

func TestAFolderThatCannotBeLookedAtIsNoOtherDisk(t *testing.T) {
	dir := t.TempDir()
	m := &Models{deps: Deps{Log: slog.New(slog.DiscardHandler), DataDir: dir, ModelsDir: filepath.Join(dir, "none")}}
	if err := m.checkRoom(t.Context(), 1, 1); err != nil {
		t.Errorf("there is room: %v", err)
	}
	var full *blob.NoRoomError
	if err := m.checkRoom(t.Context(), 1, 1<<60); !errors.As(err, &full) {
		t.Errorf("the engine's copy needs no room: %v", err)
	}
	if free := m.EngineDiskFree(t.Context()); free != 0 {
		t.Errorf("another disk with %d bytes free is told", free)
	}
}
