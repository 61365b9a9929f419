package models

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
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

// check looks through the blobs of the engine's models, and through the files that this node put into a llama-server's folder,
// for bytes that have changed, one at a time and slowly, until ctx ends. A blob that has no list gets one on the way, so that it
// can be offered at once later.
func (m *Models) check(ctx context.Context) {
	if m.cfg.CheckRate == 0 {
		return
	}
	tried := map[string]time.Time{} // in this run, whatever came of it
	for wait := min(checkAfter, m.cfg.CheckEvery); sleep(ctx, wait); wait = min(checkLook, m.cfg.CheckEvery) {
		for {
			name, check := m.due(tried)
			if check == nil {
				break
			}
			tried[name] = m.deps.Now()
			if check(ctx) {
				tried[name] = m.deps.Now().Add(min(rereadWait, m.cfg.CheckEvery) - m.cfg.CheckEvery)
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

// due finds what is to be checked next, and how: that whose check is due the longest. Nil: nothing is due. A check tells whether
// it is to be made again soon.
func (m *Models) due(tried map[string]time.Time) (name string, check func(context.Context) (again bool)) {
	m.mu.Lock()
	dir, files := m.folder, maps.Clone(m.placed)
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
		blobs = nil
	}
	now, oldest := m.deps.Now(), time.Time{}
	consider := func(of string, at time.Time, how func(context.Context) bool) {
		if now.Sub(at) >= m.cfg.CheckEvery && (check == nil || at.Before(oldest) || at.Equal(oldest) && of < name) {
			name, check, oldest = of, how, at
		}
	}
	// later is the time of the last check, or attempt. One in the future tells nothing: a clock was wrong.
	later := func(tried, checked time.Time) time.Time {
		if checked.After(tried) && !checked.After(now) {
			return checked
		}
		return tried
	}
	for b := range blobs {
		at := tried[b]
		if checked, err := m.lists.Checked(digest(b)); err == nil {
			at = later(at, checked)
		}
		if was, is := damaged[b]; is {
			if info, err := m.stat(b); err != nil || sameFile(was, info) {
				continue
			}
			at = time.Time{} // somebody has replaced it
		}
		consider(b, at, func(ctx context.Context) bool { return m.checkBlob(ctx, blob.Folder(dir.Dir()), b) })
	}
	for key, p := range files {
		if !p.Passing && !p.Damaged && m.isOurs(p) {
			consider(p.File, later(tried[p.File], p.Checked), func(ctx context.Context) bool { return m.checkFile(ctx, key, p) })
		}
	}
	return name, check
}

// checkBlob compares a blob of the engine's with its list.
func (m *Models) checkBlob(ctx context.Context, store blob.Store, hex string) (again bool) {
	err := m.compare(ctx, store.Open, hex)
	if err == nil {
		err = m.lists.SetChecked(digest(hex), m.deps.Now())
	}
	wrong, again := m.judge(ctx, hex, err)
	switch {
	case wrong:
		m.damage(ctx, hex, err)
	case err == nil:
		m.heal(ctx, hex)
	}
	return again
}

// checkFile compares a file that was put into the folder with its blob's list.
func (m *Models) checkFile(ctx context.Context, key string, p placed) (again bool) {
	err := m.compare(ctx, func(blob.Digest) (blob.Source, error) {
		return blob.OpenFile(filepath.Join(m.deps.Files.Dir, p.File))
	}, p.Blob)
	wrong, again := m.judge(ctx, p.File, err)
	if !wrong && err != nil {
		return again
	}
	select {
	case m.filing <- struct{}{}:
		defer func() { <-m.filing }()
	case <-ctx.Done():
		return false
	}
	if now, there := m.placedAs(key); !there || now != p || !m.isOurs(p) {
		return false // it was replaced meanwhile
	}
	p.Checked, p.Damaged = m.deps.Now(), wrong
	if wrong {
		m.deps.Log.Error("model's file is damaged: it is replaced if a good copy is found", "model", p.Model, "file", p.File, "err", err)
	}
	if err := m.note(key, &p); err != nil {
		m.deps.Log.Warn("cannot note a file's check", "file", p.File, "err", err)
	}
	m.tell(ctx)
	return false
}

// compare reads a blob and compares it with its list, which is made if there is none.
func (m *Models) compare(ctx context.Context, open func(blob.Digest) (blob.Source, error), hex string) error {
	d := digest(hex)
	file := &slowFile{ctx: ctx, open: open, digest: d, rate: m.cfg.CheckRate, busy: m.deps.Busy}
	l, err := m.lists.Get(d)
	if err == nil {
		return checkPieces(file, l)
	}
	if l, err = blob.Make(ctx, file, d, blob.PieceSize); err != nil {
		return err
	}
	return m.lists.Put(l)
}

// judge tells whether the error of a check says that the bytes are not what they were. What cannot be read is so only when it
// could not be read several times: until then it is to be read again.
func (m *Models) judge(ctx context.Context, name string, err error) (wrong, again bool) {
	if ctx.Err() != nil {
		return false, false
	}
	unread := errors.As(err, new(*readError))
	m.mu.Lock()
	failed := m.repairs.unread[name] + 1
	if again = unread && failed < rereads; again {
		m.repairs.unread[name] = failed
	} else {
		delete(m.repairs.unread, name)
	}
	m.mu.Unlock()
	wrong = errors.Is(err, blob.ErrWrong) || unread && !again
	if err != nil && !wrong && !errors.Is(err, fs.ErrNotExist) { // else it was deleted meanwhile
		m.deps.Log.Warn("cannot check a model's file", "file", name, "err", err)
	}
	return wrong, again
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
	open   func(blob.Digest) (blob.Source, error)
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
	file, err := f.open(f.digest)
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
