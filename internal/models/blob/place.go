package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// PlaceAs gives a blob that is whole and verified a file of its own, in the place of one that was there: a second name of
// the spool's bytes where the disk allows that, else a copy under a passing name first. After that the spool's is to be removed, and
// not written to.
func (p *Partial) PlaceAs(ctx context.Context, passing, file string) error {
	p.mu.Lock()
	ready, data := p.whole && p.missing == 0 && !p.closed, p.data
	p.mu.Unlock()
	if !ready {
		return fmt.Errorf("place %s: %w", p.list.digest, ErrAbsent)
	}
	if err := data.Sync(); err != nil {
		return fmt.Errorf("place %s: %w", p.list.digest, err)
	}
	if err := os.Remove(passing); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("place %s: %w", p.list.digest, err)
	}
	named, ok := data.(*os.File)
	if !ok || os.Link(named.Name(), passing) != nil {
		if err := p.copyTo(ctx, passing); err != nil {
			return errors.Join(fmt.Errorf("place %s: %w", p.list.digest, asFull(err)), os.Remove(passing))
		}
	}
	if err := os.Rename(passing, file); err != nil {
		return errors.Join(fmt.Errorf("place %s: %w", p.list.digest, err), os.Remove(passing))
	}
	return nil
}

// copyTo writes the bytes, which are those of the list.
func (p *Partial) copyTo(ctx context.Context, file string) error {
	to, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	buf := make([]byte, p.list.piece)
	for i := range p.list.Len() {
		if err = ctx.Err(); err != nil {
			break
		}
		offset, n := p.list.Span(i)
		if _, err = p.data.ReadAt(buf[:n], offset); err != nil && !errors.Is(err, io.EOF) {
			break
		}
		if err = p.list.Check(i, buf[:n]); err != nil {
			break
		}
		if _, err = to.Write(buf[:n]); err != nil {
			break
		}
	}
	if err == nil {
		err = to.Sync()
	}
	return errors.Join(err, to.Close())
}
