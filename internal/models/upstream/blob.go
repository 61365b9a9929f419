package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// answer is an answer whose reads do not wait for ever.
type answer struct {
	resp   *http.Response
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

// Read fails with ErrStalled when nothing comes for too long. How long the caller takes does not count.
func (a *answer) Read(p []byte) (int, error) {
	a.timer.Reset(a.stall)
	n, err := a.resp.Body.Read(p)
	a.timer.Stop()
	if err != nil && err != io.EOF && a.ctx.Err() != nil {
		err = context.Cause(a.ctx)
	}
	return n, err
}

func (a *answer) Close() {
	a.timer.Stop()
	a.resp.Body.Close()
	a.cancel(nil)
}

// request sends one request and returns its answer, whatever its status.
func (r *Remote) request(ctx context.Context, at *url.URL, header http.Header) (*answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stall := r.client.cfg.Stall
	a := &answer{ctx: ctx, cancel: cancel, stall: stall}
	a.timer = time.AfterFunc(stall, func() { cancel(fmt.Errorf("%w: no byte for %v", ErrStalled, stall)) })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		a.timer.Stop()
		cancel(nil)
		return nil, finalError{err}
	}
	for key, values := range header {
		req.Header[key] = values
	}
	req.Header.Set("Accept-Encoding", "identity") // ranges are of the bytes themselves
	resp, err := r.client.http.Do(req)
	a.timer.Stop()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		cancel(nil)
		return nil, err
	}
	a.resp = resp
	return a, nil
}

// Open returns length bytes of the blob from offset on. Its reads go on where one broke off; an error is the
// last of several. It is not for concurrent use.
func (r *Remote) Open(ctx context.Context, blob string, offset, length int64) (io.ReadCloser, error) {
	b := &blobReader{ctx: ctx, remote: r, blob: blob, offset: offset, left: length}
	if length == 0 {
		return b, nil
	}
	if err := r.again(ctx, b.open); err != nil {
		return nil, b.explain(err)
	}
	return b, nil
}

type blobReader struct {
	ctx    context.Context
	remote *Remote
	blob   string
	offset int64 // of the next byte
	left   int64
	answer *answer // nil: it broke off
	err    error
}

func (b *blobReader) explain(err error) error {
	return fmt.Errorf("read blob %s of %s from %s: %w", b.blob, b.remote.name, b.remote.base.Host, err)
}

// open asks for what is left.
func (b *blobReader) open() error {
	a, err := b.remote.get(b.ctx, b.remote.base.JoinPath("blobs", "sha256:"+b.blob), http.Header{
		"Range": {fmt.Sprintf("bytes=%d-%d", b.offset, b.offset+b.left-1)}})
	if err != nil {
		return err
	}
	switch a.resp.StatusCode {
	case http.StatusPartialContent:
		if said := a.resp.Header.Get("Content-Range"); !strings.HasPrefix(said, fmt.Sprintf("bytes %d-", b.offset)) {
			err = finalError{fmt.Errorf("registry sends other bytes (%q) than those from %d on", printable(said), b.offset)}
		}
	case http.StatusOK:
		if b.offset != 0 {
			err = finalError{errors.New("registry cannot send a part of a blob")}
		}
	default:
		err = statusError(a)
	}
	if err != nil {
		a.Close()
		return err
	}
	b.answer = a
	return nil
}

// Read returns bytes as they come.
func (b *blobReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	n := 0
	err := b.remote.again(b.ctx, func() (err error) {
		if b.answer == nil {
			if err := b.open(); err != nil {
				return err
			}
		}
		n, err = b.answer.Read(p[:min(int64(len(p)), b.left)])
		if n > 0 || err == nil {
			return nil // an error comes again with the next read
		}
		b.answer.Close()
		b.answer = nil
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
	b.offset, b.left = b.offset+int64(n), b.left-int64(n)
	if err != nil {
		b.err = b.explain(err)
	}
	return n, b.err
}

// Close gives the connection back or breaks it.
func (b *blobReader) Close() error {
	if b.answer != nil {
		b.answer.Close()
		b.answer = nil
	}
	if b.err == nil {
		b.err = errors.New("read of a closed blob")
	}
	return nil
}
