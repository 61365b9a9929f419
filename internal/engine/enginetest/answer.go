package enginetest

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// errSpoilt says that a fault has ended the answer.
var errSpoilt = errors.New("spoilt by a fault")

// failer writes errors in a dialect.
type failer interface {
	// fail answers with an error before anything else was written.
	fail(w http.ResponseWriter, status int, message string)
	// died appends what a stream under way gets when Ollama's runner dies.
	died(b []byte) []byte
}

// answer is the way out of one request; every fault but FaultRefuse happens here.
type answer struct {
	s    *Server
	w    http.ResponseWriter
	r    *http.Request
	ctx  context.Context
	errs failer

	buf   *[]byte // pooled; the record being built
	sent  int     // records so far
	begun bool    // the status line is written
	timer *time.Timer

	hit, spared *activeFault // faults that have been decided for this request
}

func (s *Server) newAnswer(w http.ResponseWriter, r *http.Request, errs failer) *answer {
	buf, _ := s.buffers.Get().(*[]byte)
	if buf == nil {
		b := make([]byte, 0, 4096)
		buf = &b
	}
	return &answer{s: s, w: w, r: r, ctx: r.Context(), errs: errs, buf: buf}
}

func (a *answer) close() {
	if a.timer != nil {
		a.timer.Stop()
	}
	a.s.buffers.Put(a.buf)
	a.buf = nil
}

// stream sets the headers of a streamed answer; they go out with the first record.
func (a *answer) stream(contentType string) { a.w.Header()["Content-Type"] = []string{contentType} }

// record sends the record in b, at once.
func (a *answer) record(b []byte) error {
	*a.buf = b[:0]
	if err := a.gate(); err != nil {
		return err
	}
	a.sent++
	return a.write(b)
}

func (a *answer) write(b []byte) error {
	a.begun = true
	if _, err := a.w.Write(b); err != nil {
		return err
	}
	if f, ok := a.w.(http.Flusher); ok {
		f.Flush()
	}
	return nil
}

// body sends an answer that is not streamed.
func (a *answer) body(contentType string, b []byte) error {
	*a.buf = b[:0]
	if err := a.gate(); err != nil {
		return err
	}
	h := a.w.Header()
	h["Content-Type"] = []string{contentType}
	f := a.fault()
	if f != nil && f.Kind == FaultTwice && a.claim(f) {
		a.s.count.faulted.Add(1)
		if err := a.write(append(b, b...)); err != nil {
			return err
		}
		return errSpoilt
	}
	if f != nil && f.After > 0 && f.inAnswer() && a.claim(f) {
		if err := a.write(b[:len(b)/2]); err != nil {
			return err
		}
		a.sent = f.After
		if err := a.gate(); err != nil {
			return err
		}
		return a.write(b[len(b)/2:])
	}
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	_, err := a.w.Write(b)
	return err
}

// fault returns the one that applies to the request's path now.
func (a *answer) fault() *activeFault {
	f := a.s.fault.Load()
	if f == nil || f.Kind == FaultRefuse || f.Kind == FaultBusy ||
		!f.applies(a.r.URL.Path, a.s.routes[a.r.URL.Path][a.r.Method].inference) {
		return nil
	}
	return f
}

// claim says whether f hits this request; a request counts once.
func (a *answer) claim(f *activeFault) bool {
	switch f {
	case a.hit:
		return true
	case a.spared:
		return false
	}
	if f.take() {
		a.hit = f
		return true
	}
	a.spared = f
	return false
}

// gate is passed before each record. It carries out the fault that is due, and returns an error
// if nothing more may be sent.
func (a *answer) gate() error {
	for {
		f := a.fault()
		if f == nil || !f.inAnswer() || a.sent < f.After || !a.claim(f) {
			return nil
		}
		if f.Kind != FaultFreeze {
			a.s.count.faulted.Add(1)
			a.spoil(f)
			return errSpoilt
		}
		select {
		case <-f.off:
		case <-a.ctx.Done():
			return a.ctx.Err()
		}
	}
}

// again repeats the terminal record in b and adds a piece, if FaultTwice is on.
func (a *answer) again(b []byte, d dialect) error {
	f := a.fault()
	if f == nil || f.Kind != FaultTwice || !a.claim(f) {
		return nil
	}
	a.s.count.faulted.Add(1)
	if err := a.write(b); err != nil {
		return err
	}
	if err := a.write(d.piece(nil, pieces[0].text, pieces[0].json)); err != nil {
		return err
	}
	return errSpoilt
}

// endless writes a line that does not end.
func (a *answer) endless() {
	const chunk, most = 64 << 10, 64 << 20
	b := bytes.Repeat([]byte{'x'}, chunk)
	for range most / chunk {
		if a.ctx.Err() != nil || a.write(b) != nil { // the client has gone
			return
		}
	}
}

func (a *answer) spoil(f *activeFault) {
	switch f.Kind {
	case FaultError500:
		if !a.begun {
			a.errs.fail(a.w, http.StatusInternalServerError, runnerDied)
		} else if b := a.errs.died((*a.buf)[:0]); len(b) > 0 {
			_ = a.write(b) // the client may be gone; the answer ends here either way
		}
	case FaultReset:
		abort(a.w)
	case FaultEndless:
		a.endless()
	case FaultGarbage:
		_ = a.write([]byte("\x00\xff\xfe}{]<html>\x7f\nNaN;;\n\n\x00")) // as above
	case FaultTruncate:
		if !a.begun {
			a.w.WriteHeader(http.StatusOK)
		}
	}
}

// sleep waits for d, lengthened by FaultSlow; perPiece says whether its Delay counts too.
func (a *answer) sleep(d time.Duration, perPiece bool) error {
	if f := a.fault(); f != nil && f.Kind == FaultSlow && a.claim(f) {
		d = time.Duration(float64(d) * max(f.Factor, 1))
		if perPiece {
			d += f.Delay
		}
	}
	if d <= 0 {
		return nil
	}
	if a.timer == nil {
		a.timer = time.NewTimer(d)
	} else {
		a.timer.Reset(d)
	}
	select {
	case <-a.timer.C:
		return nil
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}
