package blob

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// unnamed is a file that cannot have a second name, as on another disk.
type unnamed struct{ file }

func TestABlobThatIsPlacedOutlivesTheSpools(t *testing.T) {
	t.Parallel()
	blob := random(7, 5*small+1)
	for name, linked := range map[string]bool{"by a second name": true, "by a copy": false} {
		t.Run(name, func(t *testing.T) {
			s, dir := openSpool(t, t.TempDir()), t.TempDir()
			l := listOf(t, blob)
			p := openIn(t, s, l)
			passing, file := filepath.Join(dir, ".passing"), filepath.Join(dir, "m.gguf")
			write(t, p, blob, 0, 1, 2, 3, 4, 5)
			if err := p.PlaceAs(t.Context(), passing, file); !errors.Is(err, ErrAbsent) {
				t.Fatalf("one that nobody has verified: %v", err)
			}
			if err := p.Finish(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !linked {
				p.data = unnamed{p.data}
			}
			if err := os.WriteFile(passing, []byte("of a crash"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := p.PlaceAs(t.Context(), passing, file); err != nil {
				t.Fatal(err)
			}
			if err := s.Remove(l.Digest()); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, blob) {
				t.Errorf("it has %d bytes: %v", len(got), err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
				t.Errorf("%v %v", left, err)
			}
		})
	}
}

func TestACopyOfWhatChangedOnTheDiskIsNotPlaced(t *testing.T) {
	t.Parallel()
	blob := random(8, 3*small)
	s, dir := openSpool(t, t.TempDir()), t.TempDir()
	p := openIn(t, s, listOf(t, blob))
	write(t, p, blob, 0, 1, 2)
	if err := p.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.data.WriteAt([]byte("x"), small+1); err != nil {
		t.Fatal(err)
	}
	p.data = unnamed{p.data}
	if err := p.PlaceAs(t.Context(), filepath.Join(dir, ".passing"), filepath.Join(dir, "m.gguf")); !errors.Is(err, ErrWrong) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v %v", left, err)
	}
}
