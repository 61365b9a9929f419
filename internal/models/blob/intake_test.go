package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
)

func intakeOf(t *testing.T, s *Spool, blob []byte) *Intake {
	t.Helper()
	i, err := s.intake(t.Context(), DigestOf(sha256.Sum256(blob)), int64(len(blob)), small)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// come writes the blob's bytes from where the Intake is up to a place, in writes of any size.
func come(t *testing.T, i *Intake, blob []byte, end int) {
	t.Helper()
	for at := int(i.Offset()); at < end; {
		n := min(1+rand.IntN(3*small), end-at)
		if got, err := i.Write(blob[at : at+n]); got != n || err != nil {
			t.Fatal(got, err)
		}
		at += n
	}
}

// finish is Finish, and looks whether the blob is there as if it had come piece by piece.
func finish(t *testing.T, i *Intake, blob []byte) {
	t.Helper()
	s := i.spool
	l, err := i.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if want := listOf(t, blob); l.Root() != want.Root() {
		t.Fatal("the list is not that of the blob")
	}
	p, err := s.Get(t.Context(), l.Digest())
	if err != nil {
		t.Fatal(err)
	}
	if !p.whole && l.Size() > 0 {
		t.Error("its bytes are to be read again")
	}
	if p.Missing() != 0 || p.Have().Count() != l.Len() || p.List().Root() != l.Root() {
		t.Errorf("%d of %d pieces are missing", p.Missing(), l.Len())
	}
	if got, err := io.ReadAll(io.NewSectionReader(p, 0, l.Size())); err != nil || !bytes.Equal(got, blob) {
		t.Error("reads otherwise", err)
	}
	if err := p.Finish(t.Context()); err != nil {
		t.Error(err)
	}
	names := []string{}
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		names = append(names, e.Name()[2*sha256.Size:])
	}
	if want := []string{".data", ".list", ".state"}; !slices.Equal(names, want) {
		t.Errorf("the files %v are there, want %v", names, want)
	}
}

func TestABlobWithoutAListBecomesAPartialThatIsComplete(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, small - 1, small, small + 1, 90*small + 7} {
		blob := random(11, size)
		s := openSpool(t, t.TempDir())
		i := intakeOf(t, s, blob)
		come(t, i, blob, size)
		if i.Offset() != int64(size) {
			t.Error(i.Offset())
		}
		finish(t, i, blob)
		if _, err := i.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
		if _, err := i.Finish(); !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatWasTakenInIsNotReadAgainOnceItIsWhole(t *testing.T) {
	t.Parallel()
	blob, dir := random(11, 9*small+7), t.TempDir()
	s := openSpool(t, dir)
	i := intakeOf(t, s, blob)
	come(t, i, blob, len(blob))
	l, err := i.Finish()
	if err != nil {
		t.Fatal(err)
	}
	// Other bytes in the file are not seen by who does not read it.
	if err := os.WriteFile(s.path(l.digest)+".data", random(12, len(blob)), 0o600); err != nil {
		t.Fatal(err)
	}
	p := openIn(t, openSpool(t, dir), l)
	if p.Missing() != 0 || !p.whole {
		t.Errorf("%d pieces are missing", p.Missing())
	}
}

func TestAnIntakeGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	blob := random(13, 20*small+9)
	const came = 10*small + 100
	for _, tc := range []struct {
		name   string
		came   int
		damage func(path string) error
		want   int64
	}{
		{"closed", came, func(string) error { return nil }, 10 * small},
		{"all there", len(blob), func(string) error { return nil }, int64(len(blob))},
		{"nothing there", 0, func(string) error { return nil }, 0},
		{"cut off", came, func(p string) error { return os.Truncate(p+".intake", 4*small-1) }, 3 * small},
		{"cut off at a piece", came, func(p string) error { return os.Truncate(p+".intake", 4*small) }, 4 * small},
		{"zeros at the end", came, func(p string) error {
			return errors.Join(os.Truncate(p+".intake", 7*small), os.Truncate(p+".intake", 15*small))
		}, 7 * small},
		{"more than it has", came, func(p string) error {
			return os.WriteFile(p+".intake", append(bytes.Clone(blob[:10*small]), random(5, 99*small)...), 0o600)
		}, 10 * small},
		{"rot in the middle", came, func(p string) error {
			f, err := os.OpenFile(p+".intake", os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("rot"), 5*small+3)
			return errors.Join(err, f.Close())
		}, 5 * small},
		{"hashes cut off", came, func(p string) error { return os.Truncate(p+".sums", 2*sha256.Size+9) }, 2 * small},
		{"other hashes", came, func(p string) error { return os.WriteFile(p+".sums", random(6, 999), 0o600) }, 0},
		{"hashes gone", came, func(p string) error { return os.Remove(p + ".sums") }, 0},
		{"bytes gone", came, func(p string) error { return os.Remove(p + ".intake") }, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openSpool(t, dir)
			i := intakeOf(t, s, blob)
			come(t, i, blob, tc.came)
			if err := i.Close(); err != nil {
				t.Fatal(err)
			}
			if err := tc.damage(i.path); err != nil {
				t.Fatal(err)
			}
			s = openSpool(t, dir)
			if all, err := s.Digests(); len(all) != 0 || err != nil {
				t.Errorf("%v are listed: %v", all, err)
			}
			if all, err := s.Intakes(); err != nil || (len(all) != 1 && tc.name != "bytes gone") {
				t.Errorf("%v are half taken in: %v", all, err)
			}
			i = intakeOf(t, s, blob)
			if i.Offset() != tc.want {
				t.Errorf("it goes on at %d, want %d", i.Offset(), tc.want)
			}
			come(t, i, blob, len(blob))
			finish(t, i, blob)
		})
	}
}

func TestAKillAtAnyStepOfFinishLosesNothing(t *testing.T) {
	t.Parallel()
	blob := random(13, 20*small+9)
	l := listOf(t, blob)
	killedAt := func(t *testing.T, steps int) *Spool {
		dir := t.TempDir()
		s := openSpool(t, dir)
		i := intakeOf(t, s, blob)
		come(t, i, blob, len(blob))
		if steps > 0 {
			if err := writeComplete(i.path, l); err != nil {
				t.Fatal(err)
			}
		}
		if steps > 1 {
			if err := s.lists.Put(l); err != nil {
				t.Fatal(err)
			}
		}
		i.Close()
		if steps > 2 { // and .sums is left
			if err := os.Rename(i.path+".intake", i.path+".data"); err != nil {
				t.Fatal(err)
			}
		}
		return openSpool(t, dir)
	}
	for steps := range 4 {
		s := killedAt(t, steps)
		if i, err := s.intake(t.Context(), l.digest, l.size, small); steps < 2 {
			if err != nil || i.Offset() != l.size {
				t.Fatal(err)
			}
			finish(t, i, blob)
		} else if !errors.Is(err, fs.ErrExist) {
			t.Error(err)
		}
		for _, open := range []func(*Spool) (*Partial, error){
			func(s *Spool) (*Partial, error) { return s.Open(t.Context(), l) }, // by who had the list from somebody else
			func(s *Spool) (*Partial, error) { return s.Get(t.Context(), l.digest) },
		} {
			s := killedAt(t, steps)
			p, err := open(s)
			if steps < 2 && errors.Is(err, fs.ErrNotExist) {
				continue // no list, no blob
			}
			if err != nil || p.Missing() != 0 {
				t.Fatalf("killed after %d steps: %v", steps, err)
			}
			if err := p.Finish(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Remove(l.digest); err != nil {
				t.Error(err)
			}
			if left, _ := os.ReadDir(s.dir); len(left) != 0 {
				t.Errorf("killed after %d steps: %v is left", steps, left)
			}
		}
	}
}

func TestWhatWasHalfTakenInNeedNotComeFromMembers(t *testing.T) {
	t.Parallel()
	blob := random(14, 20*small)
	s := openSpool(t, t.TempDir())
	i := intakeOf(t, s, blob)
	come(t, i, blob, 12*small+5)
	l := listOf(t, blob)
	if _, err := s.Open(t.Context(), l); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	if all, _ := s.Digests(); len(all) != 0 {
		t.Error("Open has left a list")
	}
	i.Close()
	p := openIn(t, s, l)
	if have := p.Have(); have.Count() != 12 || have.Has(12) {
		t.Fatalf("%d pieces are there", have.Count())
	}
	if _, err := s.intake(t.Context(), l.digest, l.size, small); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	for n := 12; n < 20; n++ {
		write(t, p, blob, n)
	}
	if err := p.Finish(t.Context()); err != nil {
		t.Error(err)
	}
	if all, _ := s.Intakes(); len(all) != 0 {
		t.Error(all)
	}
}

func TestPiecesWhoseListIsDamagedDoNotHinderAnIntake(t *testing.T) {
	t.Parallel()
	blob := random(14, 5*small)
	dir := t.TempDir()
	s := openSpool(t, dir)
	l := listOf(t, blob)
	write(t, openIn(t, s, l), blob, 0, 3)
	s.Close()
	if err := os.WriteFile(s.path(l.digest)+".list", []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	i := intakeOf(t, openSpool(t, dir), blob)
	come(t, i, blob, len(blob))
	finish(t, i, blob)
}

func TestAnIntakeOfOtherBytesIsDropped(t *testing.T) {
	t.Parallel()
	blob := random(15, 5*small+1)
	s := openSpool(t, t.TempDir())
	i := intakeOf(t, s, blob)
	bad := bytes.Clone(blob)
	bad[3*small] ^= 1
	come(t, i, bad, len(bad)-1)
	if _, err := i.Finish(); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
	if n, err := i.Write(bad[len(bad)-2:]); n != 0 || !errors.Is(err, ErrWrong) {
		t.Errorf("a byte too many: %d, %v", n, err)
	}
	come(t, i, bad, len(bad)) // neither error has ended it
	if _, err := i.Finish(); !errors.Is(err, ErrWrong) {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(s.dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	i = intakeOf(t, s, blob)
	come(t, i, blob, len(blob))
	finish(t, i, blob)
}

func TestAFullDiskKeepsWhatWasTakenIn(t *testing.T) {
	t.Parallel()
	blob := random(16, 10*small)
	full := &fs.PathError{Op: "write", Path: "x", Err: diskFull}
	for _, name := range []string{"bytes", "hashes"} {
		s := openSpool(t, t.TempDir())
		i := intakeOf(t, s, blob)
		data, sums := i.data, i.sums
		if name == "bytes" {
			i.data = &fullFile{file: data, room: 6, err: full}
		} else {
			i.sums = &fullFile{file: sums, room: 6, err: full}
		}
		n, err := i.Write(blob)
		if !errors.Is(err, ErrFull) || i.Offset() != int64(n) || n < 6*small || n > 7*small {
			t.Fatalf("%s: %d bytes, at %d: %v", name, n, i.Offset(), err)
		}
		i.data, i.sums = data, sums
		if name == "hashes" { // it goes on later
			i.Close()
			if i = intakeOf(t, s, blob); i.Offset() != 6*small {
				t.Errorf("%s: goes on at %d", name, i.Offset())
			}
		}
		come(t, i, blob, len(blob))
		finish(t, i, blob)
	}
}

func TestOneIntakeOfABlobAtATime(t *testing.T) {
	t.Parallel()
	blob := random(17, 30*small)
	d := DigestOf(sha256.Sum256(blob))
	s := openSpool(t, t.TempDir())
	var (
		work  sync.WaitGroup
		mu    sync.Mutex
		taken []*Intake
	)
	for range 8 {
		work.Go(func() {
			i, err := s.intake(t.Context(), d, int64(len(blob)), small)
			if err != nil {
				if !errors.Is(err, ErrBusy) {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			taken = append(taken, i)
		})
	}
	work.Wait()
	if len(taken) != 1 {
		t.Fatalf("%d have it", len(taken))
	}
	if _, err := s.Get(t.Context(), d); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	other := random(18, 3*small) // does not hinder another blob's
	i := intakeOf(t, s, other)
	come(t, i, other, len(other))
	if _, err := i.Finish(); err != nil {
		t.Error(err)
	}
	come(t, taken[0], blob, len(blob))
	if _, err := taken[0].Finish(); err != nil {
		t.Error(err)
	}
}

func TestAnIntakeEndsWithItsSpoolOrItsBlob(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		end  func(*Spool, Digest) error
		left int
	}{
		{"closed", func(s *Spool, _ Digest) error { return s.Close() }, 2},
		{"removed", func(s *Spool, d Digest) error { return s.Remove(d) }, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := openSpool(t, t.TempDir())
			// So large that the writer never comes to its end.
			i, err := s.intake(t.Context(), DigestOf([sha256.Size]byte{19}), small*maxPieces, small)
			if err != nil {
				t.Fatal(err)
			}
			begun, ended := make(chan struct{}), make(chan error)
			go func() {
				for at := 0; ; at++ {
					if _, err := i.Write([]byte{byte(at)}); err != nil {
						ended <- err
						return
					}
					if at == 2*small {
						close(begun)
					}
				}
			}()
			<-begun
			if err := tc.end(s, i.list.digest); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; !errors.Is(err, fs.ErrClosed) {
				t.Error(err)
			}
			if err := i.Close(); err != nil {
				t.Error(err)
			}
			if left, _ := os.ReadDir(s.dir); len(left) != tc.left {
				t.Errorf("%v is left", left)
			}
		})
	}
}

func TestABadIntakeIsRefused(t *testing.T) {
	t.Parallel()
	blob := random(20, 3*small)
	d := DigestOf(sha256.Sum256(blob))
	s := openSpool(t, t.TempDir())
	for _, tc := range []struct {
		d    Digest
		size int64
	}{{"sha256:../../x", 1}, {d, -1}, {d, PieceSize*maxPieces + 1}} {
		if _, err := s.Intake(t.Context(), tc.d, tc.size); err == nil {
			t.Errorf("%s of %d bytes: no error", tc.d, tc.size)
		}
	}
	i := intakeOf(t, s, blob)
	come(t, i, blob, 2*small)
	i.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.intake(ctx, d, int64(len(blob)), small); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	s.Close()
	if _, err := s.Intake(t.Context(), d, int64(len(blob))); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
}

func TestHexDigestIsADigestsDigits(t *testing.T) {
	t.Parallel()
	d := DigestOf(sha256.Sum256(nil))
	if got, err := HexDigest(d.Hex()); got != d || err != nil {
		t.Error(got, err)
	}
	for _, bad := range []string{"", string(d), d.Hex()[1:], "G" + d.Hex()[1:]} {
		if _, err := HexDigest(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
