package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// Spool is a folder of blobs that are on their way, three files each, named by the digest's digits:
//
//	.list   the list of pieces, behind its root
//	.data   the bytes, sparse
//	.state  which pieces are there, see stateFile
//
// and two of one whose list nobody has yet, see Intake.
//
// The files belong to one process at a time. What is in the folder when it is opened goes on where it was.
type Spool struct {
	dir   string
	lists *Lists

	mu     sync.Mutex
	closed bool
	open   map[Digest]*slot
}

// slot is a Partial or an Intake, or the room for one: opening may take a while and must not hold up the others.
type slot struct {
	mu      sync.Mutex
	partial *Partial // nil until it is open
	intake  *Intake  // nil when the blob is not being taken in
	gone    bool     // removed: there is another one, or none
}

// close closes what is there. The caller holds the lock.
func (t *slot) close() (err error) {
	if t.partial != nil {
		err = t.partial.close()
	}
	if t.intake != nil {
		err = errors.Join(err, t.intake.close())
	}
	return err
}

// OpenSpool opens a folder and makes it if there is none.
func OpenSpool(dir string) (*Spool, error) {
	lists, err := OpenLists(dir)
	if err != nil {
		return nil, err
	}
	return &Spool{dir: dir, lists: lists, open: make(map[Digest]*slot)}, nil
}

// Close syncs and closes all Partials, and closes all Intakes; their files stay.
func (s *Spool) Close() error {
	s.mu.Lock()
	s.closed = true
	slots := s.open
	s.open = make(map[Digest]*slot)
	s.mu.Unlock()
	var errs []error
	for _, t := range slots {
		t.mu.Lock()
		errs = append(errs, t.close())
		t.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Digests are the blobs that lie in the folder with their lists: no half-written Intakes.
func (s *Spool) Digests() ([]Digest, error) { return s.lists.Digests() }

// Open returns the Partial of a blob, which begins empty or goes on where it was. There is one
// for each blob, shared by all callers. Of a blob that had another list the pieces stay that fit, and of one
// that was half taken in. One that is being taken in is ErrBusy.
func (s *Spool) Open(ctx context.Context, l *List) (*Partial, error) {
	return s.get(ctx, l.digest, func() (*List, error) {
		had, err := s.lists.Get(l.digest)
		if err == nil && had.Root() == l.Root() {
			return l, nil
		}
		return l, s.lists.Put(l)
	})
}

// Get returns the Partial of a blob that lies in the folder, or fs.ErrNotExist.
func (s *Spool) Get(ctx context.Context, d Digest) (*Partial, error) {
	if _, err := s.lists.Get(d); err != nil { // before a slot is made: peers ask for anything
		return nil, err
	}
	return s.get(ctx, d, func() (*List, error) { return s.lists.Get(d) })
}

// Came is how many bytes of a blob lie in the folder, be it half taken in.
func (s *Spool) Came(ctx context.Context, d Digest) int64 {
	if p, err := s.Get(ctx, d); err == nil {
		return p.Came()
	}
	if info, err := os.Stat(s.path(d) + ".intake"); err == nil {
		return info.Size()
	}
	return 0
}

func (s *Spool) get(ctx context.Context, d Digest, list func() (*List, error)) (*Partial, error) {
	t, err := s.lock(d)
	if err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	if t.intake != nil {
		return nil, fmt.Errorf("open %s: %w", d, ErrBusy)
	}
	l, err := list()
	if err != nil {
		return nil, err
	}
	if t.partial != nil && t.partial.list.Root() == l.Root() {
		return t.partial, nil
	}
	if t.partial != nil { // the cluster has agreed on another list
		if err := t.partial.close(); err != nil {
			return nil, err
		}
		t.partial = nil
	}
	p, err := openPartial(ctx, s.path(d), l)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d, asFull(err))
	}
	if err := s.keep(d, func() { t.partial = p }); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// lock returns the blob's slot, which is made if there is none, locked.
func (s *Spool) lock(d Digest) (*slot, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, fmt.Errorf("open %s: %w", d, fs.ErrClosed)
		}
		t := s.open[d]
		if t == nil {
			t = &slot{}
			s.open[d] = t
		}
		s.mu.Unlock()
		t.mu.Lock()
		if !t.gone {
			return t, nil
		}
		t.mu.Unlock()
	}
}

// keep puts something that was opened into its slot, unless Close passed by meanwhile, and did not see it.
func (s *Spool) keep(d Digest, put func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("open %s: %w", d, fs.ErrClosed)
	}
	put()
	return nil
}

func openPartial(ctx context.Context, path string, l *List) (p *Partial, err error) {
	p = &Partial{list: l, changed: make(chan struct{})}
	if err := adopt(path); err != nil {
		return nil, err
	}
	data, err := os.OpenFile(path+".data", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p.data = data
	defer func() {
		if err != nil {
			p.data.Close()
		}
	}()
	state, err := os.OpenFile(path+".state", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p.state = stateFile{state}
	defer func() {
		if err != nil {
			p.state.Close()
		}
	}()
	info, err := data.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != l.size || l.size == 0 {
		// New, half taken in, or cut off by somebody: then whatever is there is looked at.
		pieces := make([]byte, l.Len())
		for i := range pieces {
			if offset, _ := l.Span(i); offset < info.Size() {
				pieces[i] = written
			}
		}
		if err := p.state.create(l, pieces, false); err != nil {
			return nil, err
		}
		if err := makeSparse(data); err != nil {
			return nil, err
		}
		if err := data.Truncate(l.size); err != nil {
			return nil, err
		}
	}
	return p, p.load(ctx)
}

// Link makes a hard link of a blob that is complete, once its digest was verified. A file that is there is no error, and stays.
func (s *Spool) Link(ctx context.Context, d Digest, path string) error {
	p, err := s.Get(ctx, d)
	if err == nil {
		err = p.Finish(ctx)
	}
	if err == nil {
		err = p.Sync()
	}
	if err == nil {
		err = os.Link(s.path(d)+".data", path)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link blob: %w", err)
	}
	return nil
}

// Sync returns when a loss of power takes nothing any more of what is there of a blob.
func (s *Spool) Sync(ctx context.Context, d Digest) error {
	p, err := s.Get(ctx, d)
	if err == nil {
		err = p.Sync()
	}
	if err != nil {
		return err
	}
	return SyncFolder(s.dir)
}

// SyncFolder returns when a loss of power changes no name in a folder any more.
func SyncFolder(dir string) error {
	if runtime.GOOS == "windows" { // a folder cannot be synced there
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Unlink removes a file that Link made of a blob. One that is not there is no error, and one of other bytes stays.
func (s *Spool) Unlink(d Digest, path string) error {
	ours, err := os.Stat(s.path(d) + ".data")
	if err != nil {
		return nil // it was not linked, or cannot be told from others
	}
	is, err := os.Lstat(path)
	if err == nil && os.SameFile(ours, is) {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unlink blob: %w", err)
	}
	return nil
}

// Remove deletes what has come of a blob, with its list, be it half taken in. A blob that is not there is no error.
func (s *Spool) Remove(d Digest) error {
	if _, err := ParseDigest(string(d)); err != nil {
		return err
	}
	t, err := s.lock(d) // until all is gone: whoever opened it meanwhile would make files anew
	if err != nil {
		return err
	}
	defer t.mu.Unlock()
	// The list last: as long as it is there, what is left is found again.
	err = errors.Join(t.close(), removeFiles(s.path(d), ".state", ".data", ".sums", ".intake", ".list"))
	s.mu.Lock()
	defer s.mu.Unlock()
	t.gone = true
	delete(s.open, d)
	return err
}

func (s *Spool) path(d Digest) string { return filepath.Join(s.dir, d.Hex()) }

// Lists is a folder of lists, which outlive the blobs' way through the spool: who serves a blob needs its list.
type Lists struct{ dir string }

// OpenLists opens a folder, makes it if there is none, and clears away what a killed process left half written.
func OpenLists(dir string) (*Lists, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.list.*"))
	if err != nil {
		return nil, err
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return nil, err
		}
	}
	return &Lists{dir}, nil
}

// Put keeps a list in the place of one that was there.
func (s *Lists) Put(l *List) error {
	f, err := os.CreateTemp(s.dir, l.digest.Hex()+".list.*")
	if err != nil {
		return fmt.Errorf("keep list: %w", asFull(err))
	}
	root := l.Root()
	_, err = f.Write(append(root[:], l.Encode()...))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.file(l.digest))
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("keep list of %s: %w", l.digest, asFull(err))
	}
	return nil
}

// Get reads a list: fs.ErrNotExist if there is none, ErrWrong if its file is damaged.
func (s *Lists) Get(d Digest) (*List, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(s.file(d))
	if err != nil {
		return nil, fmt.Errorf("read list: %w", err)
	}
	if len(b) < len(Root{}) {
		return nil, fmt.Errorf("read list of %s: %w", d, ErrWrong)
	}
	l, err := Decode(b[len(Root{}):], Root(b))
	if err != nil {
		return nil, err
	}
	if l.digest != d {
		return nil, fmt.Errorf("read list of %s: it is one of %s: %w", d, l.digest, ErrWrong)
	}
	return l, nil
}

// Digests are the blobs whose lists are there.
func (s *Lists) Digests() (all []Digest, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("read folder: %w", err)
	}
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), ".list")
		if d, err := ParseDigest(digestPrefix + digits); ok && err == nil {
			all = append(all, d)
		}
	}
	slices.Sort(all)
	return all, nil
}

// Remove drops a list. One that is not there is no error.
func (s *Lists) Remove(d Digest) error {
	if _, err := ParseDigest(string(d)); err != nil {
		return err
	}
	if err := os.Remove(s.file(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop list: %w", err)
	}
	return nil
}
