package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// While a source gives nothing, its client gets one of the last reserve bytes every trickle: an Ollama begins a
// part anew after 30 s of silence, one that pulls many small blobs after 10. It lasts for 2.8 hours.
const (
	trickle = 5 * time.Second
	reserve = 2 << 10
)

// chunkSize is what is read at once.
const chunkSize = 128 << 10

// span is a range of a blob of a model.
type span struct {
	model, blob    string
	offset, length int64
}

// chunk is what was read, or why nothing more will be.
type chunk struct {
	data []byte
	err  error
}

// send streams a range of a blob as it comes. A failure breaks the connection: Ollama would take the words of an
// error for bytes of the blob.
func (r *Registry) send(w http.ResponseWriter, req *http.Request, status int, what span) {
	ctx, cancel := context.WithCancel(req.Context())
	chunks := make(chan chunk)
	go func() {
		defer close(chunks)
		r.read(ctx, what, chunks)
	}()
	defer func() {
		cancel()
		for range chunks {
		}
	}()
	out := &sender{w: w, control: http.NewResponseController(w), status: status, patience: r.cfg.IdleTimeout}
	silence := time.NewTimer(trickle)
	defer silence.Stop()
	for left := what.length; left > 0; silence.Reset(trickle) {
		var err error
		select {
		case c, open := <-chunks:
			if !open {
				panic(http.ErrAbortHandler) // the client left
			}
			if err = c.err; err != nil {
				_ = out.write(out.held) // they are right
				break
			}
			left -= int64(len(c.data))
			err = out.take(c.data, left == 0)
		case <-silence.C:
			err = out.trickle()
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if what.length == 0 {
		w.WriteHeader(status)
	}
}

// sender writes an answer's bytes, the last ones later.
type sender struct {
	w        http.ResponseWriter
	control  *http.ResponseController
	status   int // of the answer; 0: it is written
	patience time.Duration
	held     []byte // came, and are not written yet
}

// take writes all that came but the reserve; all, when nothing more is to come.
func (s *sender) take(data []byte, last bool) error {
	keep := reserve
	if last {
		keep = 0
	}
	if len(data) >= keep {
		if err := s.write(s.held); err != nil {
			return err
		}
		s.held = append(s.held[:0], data[len(data)-keep:]...)
		return s.write(data[:len(data)-keep])
	}
	s.held = append(s.held, data...)
	return s.release(len(s.held) - keep)
}

// trickle writes one byte, if there is one.
func (s *sender) trickle() error { return s.release(min(1, len(s.held))) }

// release writes the first n of the bytes that are held back.
func (s *sender) release(n int) error {
	if n <= 0 {
		return nil
	}
	err := s.write(s.held[:n])
	s.held = s.held[:copy(s.held, s.held[n:])]
	return err
}

func (s *sender) write(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if s.status != 0 {
		s.w.WriteHeader(s.status)
		s.status = 0
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(s.patience)) // there is one on every connection
	if _, err := s.w.Write(data); err != nil {
		return err
	}
	return s.control.Flush() // the next byte may be long in coming
}

// read reads a range and hands it on. When a read fails it goes on where it stopped, until the source fails for longer
// than patience without a byte, or for good; that is told to who follows the model. A chunk's bytes hold until
// the next but one is taken.
func (r *Registry) read(ctx context.Context, what span, to chan<- chunk) {
	failing, pause := time.Now(), firstPause
	var buffers [2][]byte
	for what.length > 0 {
		took, err := r.readOnce(ctx, &what, &buffers, to)
		if ctx.Err() != nil {
			return
		}
		if took {
			failing, pause = time.Now(), firstPause
		}
		if err == nil {
			continue
		}
		if errors.Is(err, ErrNotHeld) || time.Since(failing) >= r.cfg.Patience {
			err = fmt.Errorf("read blob %s: %w", what.blob, err)
			r.deps.Log.Debug("blob cannot be read", "model", what.model, "offset", what.offset, "err", err)
			r.fail(what.model, err)
			select {
			case to <- chunk{err: err}:
			case <-ctx.Done():
			}
			return
		}
		if !wait(ctx, pause) {
			return
		}
		pause = min(2*pause, longestPause)
	}
}

// readOnce reads until all of it is there or a read fails.
func (r *Registry) readOnce(ctx context.Context, what *span, buffers *[2][]byte, to chan<- chunk) (took bool, err error) {
	from, err := r.deps.Source.Open(ctx, what.model, what.blob, what.offset, what.length)
	if err != nil {
		return false, err
	}
	defer from.Close()
	for what.length > 0 {
		if buffers[0] == nil {
			buffers[0] = make([]byte, min(chunkSize, what.length))
		}
		n, err := from.Read(buffers[0][:min(int64(len(buffers[0])), what.length)])
		if n > 0 {
			select {
			case to <- chunk{data: buffers[0][:n]}:
			case <-ctx.Done():
				return true, ctx.Err()
			}
			buffers[0], buffers[1] = buffers[1], buffers[0]
			took, what.offset, what.length = true, what.offset+int64(n), what.length-int64(n)
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && what.length > 0 {
			return took, err
		}
	}
	return took, nil
}
