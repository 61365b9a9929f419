package models

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registry"
	"github.com/ollamamax/ollamamax/internal/models/upstream"
)

// source is what the loopback registry serves.
type source struct{ m *Models }

// Manifest returns the bytes of a model that is being fetched, or was.
func (s source) Manifest(_ context.Context, model string) ([]byte, error) {
	k, ok := s.m.own(model)
	if !ok {
		return nil, fmt.Errorf("manifest %s: %w", short(model), registry.ErrNotHeld)
	}
	return k.data, nil
}

// Size returns how many bytes a blob of the model has.
func (s source) Size(_ context.Context, model, digest string) (int64, error) {
	b, err := s.blob(model, digest)
	return b.Size, err
}

func (s source) blob(model, digest string) (manifest.Blob, error) {
	if k, ok := s.m.own(model); ok {
		if b, ok := k.Blob(digest); ok {
			return b, nil
		}
	}
	return manifest.Blob{}, fmt.Errorf("blob %s of model %s: %w", short(digest), short(model), registry.ErrNotHeld)
}

// Open returns a part of a blob, whose reads wait for the pieces that have not come.
func (s source) Open(ctx context.Context, model, digest string, offset, length int64) (io.ReadCloser, error) {
	b, err := s.blob(model, digest)
	if err != nil {
		return nil, err
	}
	from, ok := s.m.originOf(model)
	if !ok {
		return nil, fmt.Errorf("blob %s: nobody fetches model %s: %w", short(digest), short(model), registry.ErrNotHeld)
	}
	sup, release := s.m.acquire(b, from)
	select {
	case <-sup.listed:
	case <-sup.done:
		if s.m.pieces(sup) == nil {
			release()
			return nil, final(sup.err)
		}
	case <-ctx.Done():
		release()
		return nil, context.Cause(ctx)
	}
	return &waitingReader{ctx: ctx, m: s.m, s: sup, release: release, offset: offset, end: offset + length}, nil
}

// final marks the errors of a supply that asking again does not mend.
func final(err error) error {
	if errors.Is(err, blob.ErrFull) || errors.Is(err, blob.ErrWrong) || errors.Is(err, upstream.ErrNoModel) || errors.Is(err, upstream.ErrDenied) || errors.Is(err, upstream.ErrStalled) {
		return fmt.Errorf("%w: %w", registry.ErrNotHeld, err)
	}
	return err
}

// waitingReader reads a part of a blob as it comes.
type waitingReader struct {
	ctx         context.Context
	m           *Models
	s           *supply
	release     func()
	offset, end int64
}

func (r *waitingReader) Read(b []byte) (int, error) {
	if r.offset >= r.end {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), r.end-r.offset)]
	for {
		partial := r.m.pieces(r.s)
		changed := partial.Changed()
		n, err := partial.ReadAt(b, r.offset)
		if n > 0 {
			r.offset += int64(n)
			return n, nil
		}
		if !errors.Is(err, blob.ErrAbsent) {
			return 0, err
		}
		select {
		case <-changed:
		case <-r.s.done:
			if r.s.err != nil {
				return 0, final(r.s.err)
			}
			if partial = r.m.pieces(r.s); partial.Missing() > 0 {
				return 0, fs.ErrClosed // what came was lost again: the next try fetches it
			}
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

func (r *waitingReader) Close() error {
	r.release()
	return nil
}
