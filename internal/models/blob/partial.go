package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// What is known of a piece of a Partial, a byte each in its state file.
//
// A kill -9 loses nothing that was written, since the pages are the kernel's; a loss of power may lose what was not
// synced, and may keep the later of two writes. So a byte is set at once, without syncing, and means that the piece
// is to be verified when the file is opened again. After each syncAfter such pieces the data are synced
// and only then the bytes become trusted. Opening therefore reads at most so much (256 MiB), whatever the blob's
// size, and no piece that was written is fetched again.
const (
	absent byte = iota
	written
	synced
)

const syncAfter = 64 // pieces

// file is what a Partial needs of an *os.File: the test's may be full.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
}

// Partial is a blob that is on its way. Its methods may be called from many goroutines.
type Partial struct {
	list *List
	data file

	syncing sync.Mutex // held by who syncs; taken before mu

	mu      sync.Mutex
	state   stateFile
	pieces  []byte
	missing int
	fresh   int  // pieces that are written and not synced
	whole   bool // the list was found to be the digest's
	closed  bool
	changed chan struct{}
}

// List is the blob's.
func (p *Partial) List() *List { return p.list }

// Have tells which pieces are there.
func (p *Partial) Have() Map {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := NewMap(len(p.pieces))
	for i, s := range p.pieces {
		if s != absent {
			m.Set(i)
		}
	}
	return m
}

// Missing is how many pieces are not there.
func (p *Partial) Missing() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.missing
}

// Came is how many bytes are there.
func (p *Partial) Came() (n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.pieces {
		if s != absent {
			_, length := p.list.Span(i)
			n += int64(length)
		}
	}
	return n
}

// Changed returns a channel that is closed when other pieces are there than now, or the Partial is closed.
func (p *Partial) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// change tells who waits at Changed. The caller holds the lock.
func (p *Partial) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// WritePiece keeps a piece: ErrWrong if it is not the one, ErrFull if the disk is full. One that is there
// already is not written again. The caller may use b afterwards.
func (p *Partial) WritePiece(i int, b []byte) error {
	if err := p.list.Check(i, b); err != nil {
		return err
	}
	p.mu.Lock()
	there, closed := p.pieces[i] != absent, p.closed
	p.mu.Unlock()
	if closed {
		return fmt.Errorf("write piece %d of %s: %w", i, p.list.digest, fs.ErrClosed)
	}
	if there {
		return nil
	}
	offset, _ := p.list.Span(i)
	if _, err := p.data.WriteAt(b, offset); err != nil {
		return fmt.Errorf("write piece %d of %s: %w", i, p.list.digest, asFull(err))
	}
	p.mu.Lock()
	if p.pieces[i] != absent { // another goroutine has written the same
		p.mu.Unlock()
		return nil
	}
	if err := p.state.set(i, written); err != nil {
		p.mu.Unlock()
		return fmt.Errorf("note piece %d of %s: %w", i, p.list.digest, asFull(err))
	}
	p.pieces[i] = written
	p.missing--
	p.fresh++
	p.change()
	due := p.fresh >= syncAfter && p.missing > 0
	p.mu.Unlock()
	if due && p.syncing.TryLock() { // else another goroutine is at it
		defer p.syncing.Unlock()
		return p.sync()
	}
	return nil
}

// Sync returns when a loss of power takes nothing any more of what was written before.
func (p *Partial) Sync() error {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	return p.sync()
}

// sync makes the pieces that are written trusted. The caller holds syncing.
func (p *Partial) sync() error {
	p.mu.Lock()
	if p.fresh == 0 {
		p.mu.Unlock()
		return nil
	}
	var batch []int
	for i, s := range p.pieces {
		if s == written {
			batch = append(batch, i)
		}
	}
	p.mu.Unlock()

	err := p.data.Sync()

	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range batch {
		if err != nil || p.pieces[i] != written {
			continue
		}
		if err = p.state.set(i, synced); err == nil {
			p.pieces[i] = synced
			p.fresh--
		}
	}
	if err == nil {
		err = p.state.sync()
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", p.list.digest, asFull(err))
	}
	return nil
}

// ReadAt reads what is there, as an io.ReaderAt: it ends with ErrAbsent before the first byte that is not.
func (p *Partial) ReadAt(b []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", p.list.digest, offset, fs.ErrInvalid)
	}
	if offset >= p.list.size {
		return 0, io.EOF
	}
	end := min(offset+int64(len(b)), p.list.size)
	there := offset
	p.mu.Lock()
	for i := int(offset / int64(p.list.piece)); there < end && p.pieces[i] != absent; i++ {
		there = min(int64(i+1)*int64(p.list.piece), end)
	}
	p.mu.Unlock()
	var n int
	if there > offset {
		var err error
		if n, err = p.data.ReadAt(b[:there-offset], offset); n < int(there-offset) {
			return n, fmt.Errorf("read %s: %w", p.list.digest, err)
		}
	}
	switch {
	case there < end:
		return n, ErrAbsent
	case n < len(b):
		return n, io.EOF
	}
	return n, nil
}

// Finish verifies the digest of the whole blob, once: a later call, in this process or another, returns at once.
//
// When no piece is missing, this can fail in two cases only, since the pieces have the hashes of the list and the
// list has the root that the cluster agreed on. Bytes changed on the disk after they came: then the pieces
// concerned are absent again, and the error is ErrAbsent. Or the member that made the list lied about the digest: ErrWrong.
// It costs as much again as verifying the pieces did, a second a gigabyte. So it is for whoever gives the
// blob to an engine that does not look, and for finding out why one refused it; Ollama hashes all that it pulls.
//
// What is remembered is that the list is the digest's, which stays true whatever happens to the
// pieces: they have to match the list. So nothing is synced here.
func (p *Partial) Finish(ctx context.Context) error {
	p.mu.Lock()
	missing, whole := p.missing, p.whole
	p.mu.Unlock()
	switch {
	case whole && missing == 0:
		return nil
	case missing > 0:
		return fmt.Errorf("finish %s: %d pieces: %w", p.list.digest, missing, ErrAbsent)
	}
	h, buf := sha256.New(), make([]byte, p.list.piece)
	err := p.each(ctx, buf, func(_ int, b []byte) error { h.Write(b); return nil })
	if err != nil {
		return fmt.Errorf("finish %s: %w", p.list.digest, err)
	}
	if DigestOf([sha256.Size]byte(h.Sum(nil))) != p.list.digest {
		return p.findChanged(ctx, buf)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.state.setWhole(); err != nil {
		return fmt.Errorf("finish %s: %w", p.list.digest, err)
	}
	p.whole = true
	return nil
}

// findChanged makes the pieces absent whose bytes are not what was written.
func (p *Partial) findChanged(ctx context.Context, buf []byte) error {
	changed := 0
	err := p.each(ctx, buf, func(i int, b []byte) error {
		if p.list.Check(i, b) == nil {
			return nil
		}
		changed++
		return p.forget(i)
	})
	switch {
	case err != nil:
		return fmt.Errorf("verify %s: %w", p.list.digest, err)
	case changed > 0:
		return fmt.Errorf("finish %s: %d pieces changed on the disk: %w", p.list.digest, changed, ErrAbsent)
	}
	return fmt.Errorf("finish %s: the agreed list of pieces is not this blob's: %w", p.list.digest, ErrWrong)
}

// each reads every piece that is there.
func (p *Partial) each(ctx context.Context, buf []byte, fn func(i int, b []byte) error) error {
	for i := range p.list.Len() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.mu.Lock()
		there := p.pieces[i] != absent
		p.mu.Unlock()
		if !there {
			continue
		}
		offset, n := p.list.Span(i)
		if _, err := p.data.ReadAt(buf[:n], offset); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := fn(i, buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

func (p *Partial) forget(i int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pieces[i] == absent {
		return nil
	}
	if p.pieces[i] == written {
		p.fresh--
	}
	p.pieces[i] = absent
	p.missing++
	p.change()
	return p.state.set(i, absent)
}

// close syncs and closes. The files stay.
func (p *Partial) close() error {
	err := p.Sync()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	p.change()
	return errors.Join(err, p.data.Close(), p.state.Close())
}

// load reads the states of the pieces, verifies those that are not trusted, and syncs them.
func (p *Partial) load(ctx context.Context) error {
	var err error
	if p.pieces, p.whole, err = p.state.load(p.list); err != nil {
		return err
	}
	for _, s := range p.pieces {
		switch s {
		case absent:
			p.missing++
		case written:
			p.fresh++
		}
	}
	buf := make([]byte, p.list.piece)
	for i, s := range p.pieces {
		if s != written {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		offset, n := p.list.Span(i)
		if _, err := p.data.ReadAt(buf[:n], offset); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if p.list.Check(i, buf[:n]) != nil {
			if err := p.forget(i); err != nil {
				return err
			}
		}
	}
	return p.Sync()
}

var _ file = (*os.File)(nil)
