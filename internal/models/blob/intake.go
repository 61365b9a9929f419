package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
)

// ErrBusy says that a blob is being taken in by somebody else.
var ErrBusy = errors.New("blob is being taken in already")

// Intake is the way into the spool of a blob whose list nobody has yet: it comes from the upstream registry, or from the
// engine beside the node. It is written front to back, its pieces are hashed as they come, and when
// the whole has the digest it becomes a Partial that is complete, without being read or copied again.
//
// Until then it has two files in the spool: .intake has the bytes, .sums the hashes of the pieces that are whole. By these
// the next Intake of the blob knows, after a kill or a loss of power, how much it can trust.
//
// It is for one writer. Closing or removing it through the Spool meanwhile is allowed: then the writer
// sees fs.ErrClosed.
type Intake struct {
	spool *Spool
	slot  *slot
	path  string // without an end

	mu     sync.Mutex
	list   *List // its hashes are those of the pieces that are whole
	data   file
	sums   file
	offset int64
	noted  int // bytes of the hashes that .sums has
	whole  hash.Hash
	piece  hash.Hash // of the piece that has begun
	closed bool
}

// Intake begins to take a blob of so many bytes in, or goes on where an earlier Intake stopped, which takes
// about a second a gigabyte of what is there. There is one for a blob at a time: else the error is ErrBusy, as it is for Open and
// Get meanwhile. A blob that has a list in the spool is fs.ErrExist: Get has it, and the pieces that it lacks can be written there.
func (s *Spool) Intake(ctx context.Context, d Digest, size int64) (*Intake, error) {
	return s.intake(ctx, d, size, PieceSize)
}

func (s *Spool) intake(ctx context.Context, d Digest, size int64, pieceSize int) (*Intake, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return nil, err
	}
	if size < 0 || size > int64(pieceSize)*maxPieces {
		return nil, fmt.Errorf("take in %s: a blob of %d bytes: %w", d, size, fs.ErrInvalid)
	}
	t, err := s.lock(d)
	if err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	if t.intake != nil {
		return nil, fmt.Errorf("take in %s: %w", d, ErrBusy)
	}
	switch _, err := s.lists.Get(d); {
	case err == nil:
		return nil, fmt.Errorf("take in %s: its list of pieces is there: %w", d, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrWrong): // a damaged list is none
		return nil, err
	}
	if t.partial != nil { // its list was deleted by somebody
		return nil, fmt.Errorf("take in %s: its pieces are there: %w", d, fs.ErrExist)
	}
	i := &Intake{spool: s, slot: t, path: s.path(d), list: &List{digest: d, size: size, piece: pieceSize}, whole: sha256.New(), piece: sha256.New()}
	if err := i.open(ctx); err != nil {
		return nil, fmt.Errorf("take in %s: %w", d, asFull(err))
	}
	if err := s.keep(d, func() { t.intake = i }); err != nil {
		return nil, errors.Join(err, i.close())
	}
	return i, nil
}

// open opens the files, and hashes what is there and can be trusted.
func (i *Intake) open(ctx context.Context) (err error) {
	// Pieces without a list are nobody's, and a state that Finish wrote before a kill is written again.
	if err := removeFiles(i.path, ".data", ".state"); err != nil {
		return err
	}
	data, err := os.OpenFile(i.path+".intake", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	i.data = data
	defer func() {
		if err != nil {
			data.Close()
		}
	}()
	sums, err := os.OpenFile(i.path+".sums", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	i.sums = sums
	defer func() {
		if err != nil {
			sums.Close()
		}
	}()
	if err := i.load(ctx); err != nil {
		return err
	}
	return data.Truncate(i.offset) // what is behind may be anything
}

// load takes the pieces from the files, up to the first that is not whole or not what was written.
func (i *Intake) load(ctx context.Context) error {
	buf, sum := make([]byte, i.list.piece), make([]byte, sha256.Size)
	for i.offset < i.list.size {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, n := i.list.Span(i.list.Len())
		for _, part := range []struct {
			from file
			to   []byte
			at   int64
		}{{i.data, buf[:n], i.offset}, {i.sums, sum, int64(i.noted)}} {
			if got, err := part.from.ReadAt(part.to, part.at); got < len(part.to) {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
		}
		if got := sha256.Sum256(buf[:n]); !bytes.Equal(got[:], sum) {
			return nil
		}
		i.whole.Write(buf[:n])
		i.list.hashes = append(i.list.hashes, sum...)
		i.noted = len(i.list.hashes)
		i.offset += int64(n)
	}
	return nil
}

// Offset is how many bytes are there: where the next Write goes.
func (i *Intake) Offset() int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.offset
}

// Write adds bytes. If they are more than the blob has left, nothing of them is written, and the error is ErrWrong. ErrFull
// is a full disk: what is there is kept, and writing can go on at Offset once there is room.
func (i *Intake) Write(b []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	d := i.list.digest
	switch {
	case i.closed:
		return 0, fmt.Errorf("take in %s: %w", d, fs.ErrClosed)
	case int64(len(b)) > i.list.size-i.offset:
		return 0, fmt.Errorf("take in %s: more than its %d bytes come: %w", d, i.list.size, ErrWrong)
	}
	done := 0
	for done < len(b) {
		begin, n := i.list.Span(i.list.Len())
		end := begin + int64(n)
		n, err := i.data.WriteAt(b[done:min(len(b), done+int(end-i.offset))], i.offset)
		i.whole.Write(b[done : done+n])
		i.piece.Write(b[done : done+n])
		i.offset, done = i.offset+int64(n), done+n
		if i.offset == end {
			i.list.hashes = i.piece.Sum(i.list.hashes)
			i.piece.Reset()
		}
		if err == nil {
			err = i.note()
		}
		if err != nil {
			return done, fmt.Errorf("take in %s: %w", d, asFull(err))
		}
	}
	return done, nil
}

// note writes the hashes that .sums lacks, after the bytes that they are of.
func (i *Intake) note() error {
	if i.noted == len(i.list.hashes) {
		return nil
	}
	if _, err := i.sums.WriteAt(i.list.hashes[i.noted:], int64(i.noted)); err != nil {
		return err
	}
	i.noted = len(i.list.hashes)
	return nil
}

// Finish makes the blob a Partial of the spool that is complete, which Get returns, and ends the Intake. Bytes that are missing are
// ErrAbsent, and the Intake goes on. If the whole does not have the digest the error is ErrWrong, and nothing of it is kept.
// After another error, as a full disk, it can be called again; if the Intake was closed by it, Get or the next Intake has the blob.
func (i *Intake) Finish() (*List, error) {
	i.slot.mu.Lock()
	defer i.slot.mu.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	l := i.list
	switch {
	case i.closed:
		return nil, fmt.Errorf("finish %s: %w", l.digest, fs.ErrClosed)
	case i.offset < l.size:
		return nil, fmt.Errorf("finish %s: %d of %d bytes came: %w", l.digest, i.offset, l.size, ErrAbsent)
	}
	if got := DigestOf([sha256.Size]byte(i.whole.Sum(nil))); got != l.digest {
		return nil, errors.Join(fmt.Errorf("finish %s: the bytes are those of %s: %w", l.digest, got, ErrWrong),
			i.shut(), removeFiles(i.path, ".state", ".sums", ".intake"))
	}
	// Killed after any of these steps, the blob is there to be taken in or to be opened, with all its bytes:
	// openPartial takes the .intake if there is no .data.
	err := i.note()
	if err == nil {
		err = i.data.Sync()
	}
	if err == nil {
		err = writeComplete(i.path, l)
	}
	if err == nil {
		err = i.spool.lists.Put(l)
	}
	if err != nil {
		return nil, fmt.Errorf("finish %s: %w", l.digest, asFull(err))
	}
	if err := errors.Join(i.shut(), adopt(i.path)); err != nil {
		return nil, fmt.Errorf("finish %s: %w", l.digest, err)
	}
	return l, nil
}

// writeComplete writes the state of a blob all of which is there, synced, and was found to have the digest.
func writeComplete(path string, l *List) error {
	f, err := os.OpenFile(path+".state", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = stateFile{f}.create(l, bytes.Repeat([]byte{synced}, l.Len()), true)
	return errors.Join(err, f.Close())
}

// adopt makes the bytes of an Intake those of a Partial. It is not there: nothing is done.
func adopt(path string) error {
	if _, err := os.Lstat(path + ".data"); err == nil {
		return nil
	}
	if err := os.Rename(path+".intake", path+".data"); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return removeFiles(path, ".sums")
}

// Close ends the Intake. What came stays in the spool for the next one.
func (i *Intake) Close() error {
	i.slot.mu.Lock()
	defer i.slot.mu.Unlock()
	return i.close()
}

// close is Close for who holds the slot.
func (i *Intake) close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	return i.shut()
}

// shut closes the files and frees the slot, whose lock the caller holds with the Intake's.
func (i *Intake) shut() error {
	i.closed = true
	i.slot.intake = nil
	return errors.Join(i.data.Close(), i.sums.Close())
}

// Intakes are the blobs that are taken in, or were when a process ended: for who clears away what nobody wants any more.
func (s *Spool) Intakes() (all []Digest, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("read folder: %w", err)
	}
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), ".intake")
		if d, err := HexDigest(digits); ok && err == nil {
			all = append(all, d)
		}
	}
	slices.Sort(all)
	return all, nil
}

// removeFiles deletes a blob's files with these ends, in this order. One that is not there is no error.
func removeFiles(path string, ends ...string) error {
	var errs []error
	for _, end := range ends {
		if err := os.Remove(path + end); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
