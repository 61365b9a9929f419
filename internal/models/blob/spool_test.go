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
	"path/filepath"
	"sync"
	"testing"
)

func openSpool(t *testing.T, dir string) *Spool {
	t.Helper()
	s, err := OpenSpool(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openIn(t *testing.T, s *Spool, l *List) *Partial {
	t.Helper()
	p, err := s.Open(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func write(t *testing.T, p *Partial, blob []byte, pieces ...int) {
	t.Helper()
	for _, i := range pieces {
		at, n := p.list.Span(i)
		if err := p.WritePiece(i, blob[at:int(at)+n]); err != nil {
			t.Fatal(err)
		}
	}
}

// killed forgets a spool as a kill -9 does: nothing is synced, noted or closed in order.
func killed(s *Spool) {
	for _, t := range s.open {
		t.partial.data.Close()
		t.partial.state.Close()
	}
	s.open = nil
}

func TestPiecesInAnyOrderMakeTheBlob(t *testing.T) {
	t.Parallel()
	blob := random(2, 200*small+9)
	s := openSpool(t, t.TempDir())
	p := openIn(t, s, listOf(t, blob))
	var work sync.WaitGroup
	for _, part := range [][]int{rand.Perm(201), rand.Perm(201), rand.Perm(201)} {
		work.Go(func() {
			for _, i := range part {
				at, n := p.list.Span(i)
				if err := p.WritePiece(i, blob[at:int(at)+n]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if p.Missing() != 0 || p.Have().Count() != 201 {
		t.Fatalf("%d missing, %d there", p.Missing(), p.Have().Count())
	}
	for range 2 {
		if err := p.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := io.ReadAll(io.NewSectionReader(p, 0, p.list.size)); err != nil || !bytes.Equal(got, blob) {
		t.Fatal("reads otherwise", err)
	}
	if again := openIn(t, s, p.list); again != p {
		t.Error("opened twice there are two")
	}
}

func TestAWrongPieceIsNotKept(t *testing.T) {
	t.Parallel()
	blob := random(2, 3*small)
	p := openIn(t, openSpool(t, t.TempDir()), listOf(t, blob))
	for _, bad := range [][]byte{nil, blob[:small-1], blob[1 : small+1], blob[small : 2*small]} {
		if err := p.WritePiece(0, bad); !errors.Is(err, ErrWrong) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	for _, i := range []int{-1, 3} {
		if err := p.WritePiece(i, blob[:small]); err == nil {
			t.Errorf("piece %d: no error", i)
		}
	}
	if p.Missing() != 3 {
		t.Error(p.Missing())
	}
}

func TestReadAtGivesWhatIsThere(t *testing.T) {
	t.Parallel()
	blob := random(2, 4*small+10)
	p := openIn(t, openSpool(t, t.TempDir()), listOf(t, blob))
	write(t, p, blob, 1, 2, 4)
	for _, tc := range []struct {
		at, n, want int
		err         error
	}{
		{0, 10, 0, ErrAbsent}, {small, 2 * small, 2 * small, nil}, {small + 5, 3 * small, 2*small - 5, ErrAbsent},
		{3*small - 1, 1, 1, nil}, {4 * small, 10, 10, nil}, {4*small + 2, 100, 8, io.EOF}, {4*small + 10, 1, 0, io.EOF},
	} {
		b := make([]byte, tc.n)
		n, err := p.ReadAt(b, int64(tc.at))
		if n != tc.want || err != tc.err || !bytes.Equal(b[:n], blob[tc.at:tc.at+n]) {
			t.Errorf("%d bytes at %d: %d, %v", tc.n, tc.at, n, err)
		}
	}
}

func TestWhatWasWrittenSurvivesAKill(t *testing.T) {
	t.Parallel()
	blob := random(3, 150*small)
	l, dir := listOf(t, blob), t.TempDir()
	order := rand.Perm(150)
	for done := 0; done < 150; {
		s := openSpool(t, dir)
		p, err := s.Get(t.Context(), l.Digest())
		if done == 0 && errors.Is(err, fs.ErrNotExist) {
			p, err = s.Open(t.Context(), l)
		}
		if err != nil {
			t.Fatal(err)
		}
		if have := p.Have(); have.Count() != done {
			t.Fatalf("%d of %d pieces are there", have.Count(), done)
		}
		next := min(done+1+rand.IntN(70), 150)
		write(t, p, blob, order[done:next]...)
		done = next
		killed(s)
	}
	p := openIn(t, openSpool(t, dir), l)
	if err := p.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestWhatAPowerFailureTookIsFetchedAgain(t *testing.T) {
	t.Parallel()
	blob := random(3, 100*small)
	l, dir := listOf(t, blob), t.TempDir()
	s := openSpool(t, dir)
	p := openIn(t, s, l)
	for i := range 70 {
		write(t, p, blob, i)
	}
	killed(s)
	// The first 64 were synced. Of the others the states reached the disk and some bytes did not.
	data, err := os.OpenFile(s.path(l.digest)+".data", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := 64; i < 67; i++ {
		data.WriteAt(make([]byte, small), int64(i*small))
	}
	data.Close()
	p = openIn(t, openSpool(t, dir), l)
	if have := p.Have(); have.Count() != 67 || have.Has(64) || have.Has(66) || !have.Has(67) {
		t.Errorf("%d pieces are there", have.Count())
	}
}

func TestADamagedStateCostsReadingOnly(t *testing.T) {
	t.Parallel()
	blob := random(3, 20*small)
	l := listOf(t, blob)
	for _, tc := range []struct {
		name   string
		damage func(path string) error
		want   int
	}{
		{"gone", func(p string) error { return os.Remove(p + ".state") }, 10},
		{"cut", func(p string) error { return os.Truncate(p+".state", 50) }, 10},
		{"other bytes", func(p string) error { return os.WriteFile(p+".state", random(9, 1000), 0o600) }, 10},
		{"data cut", func(p string) error { return os.Truncate(p+".data", 5*small+1) }, 5},
		{"data gone", func(p string) error { return os.Remove(p + ".data") }, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openSpool(t, dir)
			p := openIn(t, s, l)
			for i := range 10 {
				write(t, p, blob, i)
			}
			s.Close()
			if err := tc.damage(s.path(l.digest)); err != nil {
				t.Fatal(err)
			}
			p = openIn(t, openSpool(t, dir), l)
			if n := p.Have().Count(); n != tc.want {
				t.Errorf("%d pieces, want %d", n, tc.want)
			}
		})
	}
}

func TestFinishFindsWhatChangedOnTheDisk(t *testing.T) {
	t.Parallel()
	blob := random(4, 10*small)
	s := openSpool(t, t.TempDir())
	p := openIn(t, s, listOf(t, blob))
	for i := range 10 {
		write(t, p, blob, i)
	}
	p.data.WriteAt([]byte("rot"), 7*small+3)
	if err := p.Finish(t.Context()); !errors.Is(err, ErrAbsent) {
		t.Fatal(err)
	}
	if have := p.Have(); have.Has(7) || have.Count() != 9 {
		t.Fatalf("%d pieces are there", have.Count())
	}
	write(t, p, blob, 7)
	if err := p.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestFinishRefusesALyingList(t *testing.T) {
	t.Parallel()
	blob := random(4, 10*small)
	lie := listOf(t, blob).Encode()
	copy(lie[12:], random(5, 32))
	l, err := Decode(lie, rootOf(lie))
	if err != nil {
		t.Fatal(err)
	}
	p := openIn(t, openSpool(t, t.TempDir()), l)
	for i := range 10 {
		write(t, p, blob, i)
	}
	if err := p.Finish(t.Context()); !errors.Is(err, ErrWrong) {
		t.Error(err)
	}
}

func TestAnotherListKeepsThePiecesThatFit(t *testing.T) {
	t.Parallel()
	blob := random(4, 10*small)
	good := listOf(t, blob)
	b := good.Encode()
	b[len(b)-1] ^= 1 // the last piece's hash
	bad, err := Decode(b, rootOf(b))
	if err != nil {
		t.Fatal(err)
	}
	s := openSpool(t, t.TempDir())
	write(t, openIn(t, s, bad), blob, 0, 5)
	p := openIn(t, s, good)
	if have := p.Have(); have.Count() != 2 || !have.Has(5) {
		t.Errorf("%d pieces are there", have.Count())
	}
	write(t, p, blob, 9)
}

// fullFile is a file on a disk with room for so many writes.
type fullFile struct {
	file
	room int
	err  error
}

func (f *fullFile) WriteAt(b []byte, at int64) (int, error) {
	if f.room == 0 {
		n, _ := f.file.WriteAt(b[:len(b)/2], at)
		return n, f.err
	}
	f.room--
	return f.file.WriteAt(b, at)
}

func TestAFullDiskKeepsWhatIsThereAndCanGoOn(t *testing.T) {
	t.Parallel()
	blob := random(5, 10*small)
	dir := t.TempDir()
	s := openSpool(t, dir)
	p := openIn(t, s, listOf(t, blob))
	whole := p.data
	p.data = &fullFile{file: whole, room: 6, err: &fs.PathError{Op: "write", Path: "x", Err: diskFull}}
	for i := range 6 {
		write(t, p, blob, i)
	}
	err := p.WritePiece(6, blob[6*small:7*small])
	if !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if n := p.Have().Count(); n != 6 {
		t.Fatalf("%d pieces are there", n)
	}
	b := make([]byte, 6*small)
	if _, err := p.ReadAt(b, 0); err != nil || !bytes.Equal(b, blob[:6*small]) {
		t.Fatal("what was there is not", err)
	}
	p.data = whole
	for i := 6; i < 10; i++ {
		write(t, p, blob, i)
	}
	if err := p.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	t.Parallel()
	blob := random(6, 3*small)
	dir := t.TempDir()
	s := openSpool(t, dir)
	l := listOf(t, blob)
	p := openIn(t, s, l)
	write(t, p, blob, 1)
	changed := p.Changed()
	if all, err := s.Digests(); err != nil || len(all) != 1 || all[0] != l.digest {
		t.Error(all, err)
	}
	for range 2 {
		if err := s.Remove(l.digest); err != nil {
			t.Fatal(err)
		}
	}
	<-changed
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	if err := p.WritePiece(0, blob[:small]); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Get(t.Context(), l.digest); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if len(s.open) != 0 {
		t.Error("asking for what is not there is remembered")
	}
}

func TestListsForgetHalfWrittenOnes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := listOf(t, random(6, 3*small))
	half := filepath.Join(dir, l.digest.Hex()+".list.123")
	if err := os.WriteFile(half, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	lists, err := OpenLists(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := lists.Put(l); err != nil {
		t.Fatal(err)
	}
	if back, err := lists.Get(l.digest); err != nil || back.Root() != l.Root() {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, l.digest.Hex()+".list"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lists.Get(l.digest); !errors.Is(err, ErrWrong) {
		t.Error(err)
	}
}

func TestFolderReadsOllamasBlobs(t *testing.T) {
	t.Parallel()
	blob := random(7, 2*small+1)
	d := DigestOf(sha256.Sum256(blob))
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "blobs"), 0o755)
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256-"+d.Hex()), blob, 0o600); err != nil {
		t.Fatal(err)
	}
	var store Store = Folder(dir)
	src, err := store.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWhole(listOf(t, blob), src)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if got, err := io.ReadAll(io.NewSectionReader(w, 0, src.Size())); err != nil || !bytes.Equal(got, blob) || w.Have().Count() != 3 {
		t.Error("reads otherwise", err)
	}
	if _, err := store.Open(DigestOf([32]byte{})); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := store.Open("sha256:../../x"); err == nil {
		t.Error("opened what is no digest")
	}
	src, err = store.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewWhole(listOf(t, blob[1:]), src); !errors.Is(err, ErrWrong) {
		t.Error(err)
	}
}

func TestCheckRoomSaysTheNumbers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := CheckRoom(t.Context(), dir, 1, 0); err != nil {
		t.Error(err)
	}
	var e *NoRoomError
	if err := CheckRoom(t.Context(), dir, 1<<50, 5); !errors.As(err, &e) || e.Need != 1<<50+5 || e.Free <= 0 {
		t.Error(err)
	}
	if err := CheckRoom(t.Context(), filepath.Join(dir, "none"), 1, 0); err == nil {
		t.Error("no error for no folder")
	}
}

func TestACancelledOpenLeavesNothingOpen(t *testing.T) {
	t.Parallel()
	blob := random(8, 3*small)
	s := openSpool(t, t.TempDir())
	l := listOf(t, blob)
	p := openIn(t, s, l)
	write(t, p, blob, 0)
	killed(s)
	s = openSpool(t, s.dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Open(ctx, l); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := openIn(t, s, l).Have().Count(); n != 1 {
		t.Errorf("%d pieces are there", n)
	}
}

func TestALinkIsMadeOfWhatIsWholeAndRightOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	blob := random(31, 10*small+3)
	s := openSpool(t, filepath.Join(dir, "spool"))
	l := listOf(t, blob)
	p := openIn(t, s, l)
	link := filepath.Join(dir, "blob")
	write(t, p, blob, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
	if err := s.Link(t.Context(), l.Digest(), link); !errors.Is(err, ErrAbsent) {
		t.Errorf("a piece is missing: %v", err)
	}
	write(t, p, blob, 10)
	for range 2 { // the second time it is there
		if err := s.Link(t.Context(), l.Digest(), link); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(l.Digest()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(link); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("the link has other bytes: %v", err)
	}
	if err := s.Link(t.Context(), l.Digest(), link); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of what is not there: %v", err)
	}
}

func TestWhatWasSyncedIsTrustedWithoutReading(t *testing.T) {
	t.Parallel()
	blob := random(9, 3*small)
	dir := t.TempDir()
	s := openSpool(t, dir)
	l := listOf(t, blob)
	p := openIn(t, s, l)
	write(t, p, blob, 0, 2)
	for range 2 { // the second time there is nothing to do
		if err := s.Sync(t.Context(), l.Digest()); err != nil {
			t.Fatal(err)
		}
	}
	write(t, p, blob, 1)
	if got := p.pieces; !bytes.Equal(got, []byte{synced, written, synced}) {
		t.Errorf("pieces are %v", got)
	}
	killed(s)
	data, err := os.ReadFile(s.path(l.digest) + ".state")
	if err != nil || !bytes.Equal(data[stateHead:], []byte{synced, written, synced}) {
		t.Errorf("%v %v", data, err)
	}
}

func TestWhoAsksWhileItIsRemovedMakesNothingAnew(t *testing.T) {
	t.Parallel()
	blob := random(9, 3*small)
	dir := t.TempDir()
	s := openSpool(t, dir)
	l := listOf(t, blob)
	for range 200 {
		openIn(t, s, l)
		var asking sync.WaitGroup
		for range 4 {
			asking.Go(func() {
				for {
					if _, err := s.Get(t.Context(), l.digest); err != nil {
						return
					}
				}
			})
		}
		if err := s.Remove(l.digest); err != nil {
			t.Fatal(err)
		}
		asking.Wait()
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Fatalf("%v is left", left)
		}
	}
}
