package models

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/blob"
)

const (
	checkAfter = 5 * time.Minute // a start has other work
	checkLook  = time.Minute     // for blobs that are due
	checkYield = 4               // while the engine answers prompts it goes so many times slower
	rereads    = 3               // times that a blob cannot be read before it is damaged: a disk of the network may be away
	rereadWait = 10 * time.Minute
)

// check looks through the blobs of the engine's models for bytes that have changed, one blob at a time and slowly, until
// ctx ends. A blob that has no list gets one on the way, so that it can be offered at once later.
func (m *Models) check(ctx context.Context) {
	if m.cfg.CheckRate == 0 {
		return
	}
	tried := map[string]time.Time{} // in this run, whatever came of it
	for wait := min(checkAfter, m.cfg.CheckEvery); sleep(ctx, wait); wait = min(checkLook, m.cfg.CheckEvery) {
		for {
			hex, store := m.due(tried)
			if hex == "" {
				break
			}
			tried[hex] = m.deps.Now()
			if m.checkBlob(ctx, store, hex) {
				tried[hex] = m.deps.Now().Add(min(rereadWait, m.cfg.CheckEvery) - m.cfg.CheckEvery)
			}
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// sleep waits; false: ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// due is the blob whose check is due the longest, and where it lies; "" for none.
func (m *Models) due(tried map[string]time.Time) (hex string, store blob.Store) {
	m.mu.Lock()
	dir := m.folder
	damaged := map[string]fs.FileInfo{}
	blobs := map[string]bool{}
	for _, k := range m.manifests {
		for _, b := range k.Blobs {
			if _, there := m.held[b.Digest]; there && !m.repairs.needs(b.Digest) {
				blobs[b.Digest] = true
			}
			if info, is := m.damaged[b.Digest]; is {
				damaged[b.Digest] = info
			}
		}
	}
	m.mu.Unlock()
	if dir == nil {
		return "", nil
	}
	now, oldest := m.deps.Now(), time.Time{}
	for b := range blobs {
		at := tried[b]
		if checked, err := m.lists.Checked(digest(b)); err == nil && checked.After(at) && !checked.After(now) {
			at = checked // one in the future tells nothing: a clock was wrong
		}
		if was, is := damaged[b]; is {
			if info, err := m.stat(b); err != nil || sameFile(was, info) {
				continue
			}
			at = time.Time{} // somebody has replaced it
		}
		if now.Sub(at) >= m.cfg.CheckEvery && (hex == "" || at.Before(oldest) || at.Equal(oldest) && b < hex) {
			hex, oldest = b, at
		}
	}
	return hex, blob.Folder(dir.Dir())
}

// checkBlob compares a blob with its list, which is made if there is none. It tells whether the blob is to be read again soon.
func (m *Models) checkBlob(ctx context.Context, store blob.Store, hex string) (again bool) {
	d := digest(hex)
	file := &slowFile{ctx: ctx, store: store, digest: d, rate: m.cfg.CheckRate, busy: m.deps.Busy}
	l, err := m.lists.Get(d)
	if err == nil {
		err = checkPieces(file, l)
	} else if l, err = blob.Make(ctx, file, d, blob.PieceSize); err == nil {
		err = m.lists.Put(l)
	}
	if err == nil {
		err = m.lists.SetChecked(d, m.deps.Now())
	}
	var broken *readError
	failed := 0
	if ctx.Err() == nil {
		m.mu.Lock()
		if errors.As(err, &broken) {
			failed = m.repairs.unread[hex] + 1
			m.repairs.unread[hex] = failed
		} else {
			delete(m.repairs.unread, hex)
		}
		m.mu.Unlock()
	}
	switch {
	case ctx.Err() != nil, errors.Is(err, fs.ErrNotExist): // deleted meanwhile
	case errors.Is(err, blob.ErrWrong), failed >= rereads:
		m.damage(ctx, hex, err)
	case err != nil:
		m.deps.Log.Warn("cannot check a blob", "blob", short(hex), "err", err)
	default:
		m.heal(ctx, hex)
	}
	return failed > 0 && failed < rereads
}

// checkPieces reads a blob to its end: blob.ErrWrong if it is not the list's.
func checkPieces(r io.Reader, l *blob.List) error {
	buf := make([]byte, l.PieceSize())
	for i := range l.Len() {
		_, n := l.Span(i)
		if n, err := io.ReadFull(r, buf[:n]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			offset, _ := l.Span(i)
			return fmt.Errorf("it ends after %d bytes of %d: %w", offset+int64(n), l.Size(), blob.ErrWrong)
		} else if err != nil {
			return err
		}
		if err := l.Check(i, buf[:n]); err != nil {
			return err
		}
	}
	if _, err := io.ReadFull(r, buf[:1]); err == nil {
		return fmt.Errorf("it has more than %d bytes: %w", l.Size(), blob.ErrWrong)
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// slowFile reads a blob at a pace. It opens the file anew for each read: who deletes a model in the middle of a check gets
// the room at once.
type slowFile struct {
	ctx    context.Context
	store  blob.Store
	digest blob.Digest
	rate   int64 // bytes a second
	busy   func() bool

	offset int64
}

// readError is the disk's.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// Read reads, and waits as long as that many bytes may take.
func (f *slowFile) Read(b []byte) (int, error) {
	if f.ctx.Err() != nil {
		return 0, context.Cause(f.ctx)
	}
	file, err := f.store.Open(f.digest)
	if err != nil {
		return 0, err
	}
	n, err := file.ReadAt(b, f.offset)
	file.Close() // it was only read
	f.offset += int64(n)
	switch {
	case n == 0 && errors.Is(err, io.EOF):
		return 0, io.EOF
	case err != nil && !errors.Is(err, io.EOF):
		return n, &readError{fmt.Errorf("read at %d: %w", f.offset, err)}
	}
	wait := time.Duration(float64(n) / float64(f.rate) * float64(time.Second))
	if f.busy() {
		wait *= checkYield
	}
	if !sleep(f.ctx, wait) {
		return n, context.Cause(f.ctx)
	}
	return n, nil
}
