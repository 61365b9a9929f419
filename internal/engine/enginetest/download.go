package enginetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// download is a blob on its way into the folder. Beside the file lies how far each part is, so that a later pull goes on.
type download struct {
	from      *remote
	digest    string
	path      string
	total     int64
	parts     []*part
	completed atomic.Int64
}

// part is a range of a blob, in the form in which an Ollama writes it down.
type part struct {
	N         int
	Offset    int64
	Size      int64
	Completed int64
}

// fetch makes sure that a blob is there; fresh says that it came just now and nobody has verified it.
func (r *remote) fetch(ctx context.Context, digest string, say func(progress) error) (fresh bool, err error) {
	path, err := r.folder.blobPath(digest)
	if err != nil {
		return false, err
	}
	waited, unlock, err := r.folder.lock(ctx, path)
	if err != nil {
		return false, err
	}
	defer unlock()
	d := &download{from: r, digest: digest, path: path}
	if info, err := os.Stat(path); err == nil {
		d.total = info.Size()
		d.completed.Store(info.Size())
		return waited, say(d.progress())
	}
	if err := d.prepare(ctx); err != nil {
		return false, err
	}
	return true, watch(ctx, d.run, func() error { return say(d.progress()) })
}

// lock waits until nobody else fetches the blob; waited says that somebody did.
func (f *folder) lock(ctx context.Context, path string) (waited bool, unlock func(), err error) {
	f.mu.Lock()
	turn := f.moving[path]
	if turn == nil {
		turn = make(chan struct{}, 1)
		f.moving[path] = turn
	}
	f.mu.Unlock()
	unlock = func() { <-turn }
	select {
	case turn <- struct{}{}:
		return false, unlock, nil
	default:
	}
	select {
	case turn <- struct{}{}:
		return true, unlock, nil
	case <-ctx.Done():
		return true, nil, ctx.Err()
	}
}

func (d *download) progress() progress {
	return progress{"pulling " + d.digest[7:19], d.digest, d.total, d.completed.Load()}
}

// prepare finds the parts that an earlier pull left, or asks how large the blob is and makes new ones.
func (d *download) prepare(ctx context.Context) error {
	for n := 0; ; n++ {
		data, err := os.ReadFile(d.partPath(n))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		p := &part{}
		if err == nil {
			err = json.Unmarshal(data, p)
		}
		if err != nil {
			return err
		}
		d.parts = append(d.parts, p)
		d.total += p.Size
		d.completed.Add(p.Completed)
	}
	if len(d.parts) > 0 {
		return nil
	}
	var err error
	if d.total, err = d.from.head(ctx, d.digest); err != nil {
		return err
	}
	for offset, size := range d.from.folder.cut(d.total) {
		p := &part{N: len(d.parts), Offset: offset, Size: size}
		if err := d.save(p); err != nil {
			return err
		}
		d.parts = append(d.parts, p)
	}
	return nil
}

// cut yields the offsets and sizes of the parts in which so many bytes move.
func (f *folder) cut(total int64) func(func(offset, size int64) bool) {
	return func(yield func(offset, size int64) bool) {
		size := min(max(total/16, f.minPart), 10*f.minPart)
		for offset := int64(0); offset < total; offset += size {
			if !yield(offset, min(size, total-offset)) {
				return
			}
		}
	}
}

func (d *download) partPath(n int) string { return d.path + "-partial-" + strconv.Itoa(n) }

func (d *download) save(p *part) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(d.partPath(p.N), append(data, '\n'), 0o644)
}

// run fetches what is missing, and gives the file its name.
func (d *download) run(ctx context.Context) error {
	file, err := os.OpenFile(d.path+"-partial", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer file.Close() // again, if all went well
	if err := file.Truncate(d.total); err != nil {
		return err
	}
	place, err := d.from.place(ctx, d.digest)
	if err != nil {
		return err
	}
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, p := range d.parts {
		if p.Completed < p.Size {
			g.Go(func() error { return persist(inner, func() error { return d.take(inner, place, file, p) }) })
		}
	}
	if err := errors.Join(g.Wait(), file.Close()); err != nil {
		return err
	}
	for _, p := range d.parts {
		if err := os.Remove(d.partPath(p.N)); err != nil {
			return err
		}
	}
	return os.Rename(file.Name(), d.path)
}

// take asks for the rest of a part, and takes what comes for it, whatever the status. What came before the connection
// broke or the client left is kept; after any other failure it is forgotten.
func (d *download) take(ctx context.Context, place string, file *os.File, p *part) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	defer silence.Stop()
	begin := p.Offset + p.Completed
	resp, err := d.from.folder.send(ctx, request{method: http.MethodGet, url: place, header: map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", begin, p.Offset+p.Size-1)}})
	if err != nil {
		return because(ctx, err)
	}
	defer resp.Body.Close()
	to := io.NewOffsetWriter(file, begin)
	n, err := io.CopyN(writerFunc(func(b []byte) (int, error) {
		silence.Reset(stallTimeout)
		n, err := to.Write(b)
		d.completed.Add(int64(n))
		return n, err
	}), resp.Body, p.Size-p.Completed)
	err = because(ctx, err)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, context.Canceled) {
		d.completed.Add(-n)
		return err
	}
	p.Completed += n
	return errors.Join(err, d.save(p))
}

// because is why a request failed: the cause of its context's end, if that ended.
func because(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
