package models

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// hashingBlob is a blob whose list is being made, for all who wait for it.
type hashingBlob struct {
	done chan struct{}
	err  error
}

// offer makes a blob of the own engine's ready for others: its list is made, and its root agreed. It takes a second a
// gigabyte the first time.
func (m *Models) offer(ctx context.Context, blob string) error {
	if !manifest.IsDigest(blob) {
		return fmt.Errorf("offer blob: %q is no digest", blob)
	}
	if !m.isHere(ctx, blob) { // before anything is begun: peers ask for anything
		return fmt.Errorf("offer blob %s: %w", short(blob), fs.ErrNotExist)
	}
	h, err := m.beginOffer(blob)
	if err != nil {
		return err
	}
	select {
	case <-h.done:
		return h.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// isHere tells whether a blob lies in the spool or belongs to the engine.
func (m *Models) isHere(ctx context.Context, hex string) bool {
	if _, err := m.spool.Get(ctx, digest(hex)); err == nil {
		return true
	}
	_, _, used := m.modelWith(hex)
	m.mu.Lock()
	defer m.mu.Unlock()
	_, held := m.held[hex]
	return held || m.locked && used
}

// beginOffer joins those who wait for a blob's list, or has it made.
func (m *Models) beginOffer(blob string) (*hashingBlob, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.hashing[blob]; h != nil {
		return h, nil
	}
	if m.run == nil || m.run.Err() != nil {
		return nil, errStopping
	}
	h, run := &hashingBlob{done: make(chan struct{})}, m.run
	m.hashing[blob] = h
	m.work.Go(func() {
		select { // peers may ask for all that there is
		case m.making <- struct{}{}:
			h.err = m.prepare(run, blob)
			<-m.making
		case <-run.Done():
			h.err = context.Cause(run)
		}
		m.mu.Lock()
		delete(m.hashing, blob)
		m.mu.Unlock()
		close(h.done)
		m.tell(run)
	})
	return h, nil
}

const maxMaking = 4 // lists at a time

// prepare has the root of a blob agreed that this node has.
func (m *Models) prepare(ctx context.Context, hex string) error {
	l, err := m.listOf(ctx, hex)
	if err != nil {
		return fmt.Errorf("offer blob %s: %w", short(hex), err)
	}
	if err := m.keepList(l); err != nil {
		return err
	}
	return m.agreeOnRoot(ctx, l)
}

// listOf returns the list of a blob that this node has: the one that it made before, one of verified bytes, or
// one of what the engine pushes.
func (m *Models) listOf(ctx context.Context, hex string) (*blob.List, error) {
	d := digest(hex)
	if p, err := m.spool.Get(ctx, d); err == nil && p.Missing() == 0 {
		return p.List(), p.Finish(ctx)
	}
	m.mu.Lock()
	dir, locked, damaged := m.folder, m.locked, m.isDamaged(hex)
	m.mu.Unlock()
	if locked {
		return m.listOfPushed(ctx, hex)
	}
	if dir == nil {
		return nil, errors.New("the engine's model folder is not known yet")
	}
	if damaged {
		return nil, blob.ErrWrong
	}
	if l, err := m.lists.Get(d); err == nil {
		return l, nil
	}
	file, err := blob.Folder(dir.Dir()).Open(d)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	l, err := blob.Make(ctx, io.NewSectionReader(file, 0, file.Size()), d, blob.PieceSize)
	if errors.Is(err, blob.ErrWrong) {
		m.damage(ctx, hex, err)
	}
	return l, err
}

// listOfPushed has the engine push a blob into the spool, whose folder cannot be read.
func (m *Models) listOfPushed(ctx context.Context, hex string) (*blob.List, error) {
	model, b, ok := m.modelWith(hex)
	if !ok {
		return nil, errors.New("no model of the engine's has it")
	}
	name, err := manifest.ParseName(model.Name)
	if err != nil {
		return nil, err
	}
	in, err := m.spool.Intake(ctx, digest(hex), b.Size)
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = in.Close() // what came stays
		m.mu.Lock()
		m.used[hex] = m.deps.Now()
		m.mu.Unlock()
	}()
	skip := in.Offset() // what an earlier push brought
	if skip < b.Size {
		if err := blob.CheckRoom(ctx, m.deps.DataDir, b.Size-skip, m.cfg.DiskReserveBytes); err != nil {
			return nil, err
		}
		_, err = m.export(ctx, name, model.Digest, manifest.Wanted{Blob: b, To: writerFunc(func(data []byte) (int, error) {
			n := min(int64(len(data)), skip)
			skip -= n
			if _, err := in.Write(data[n:]); err != nil {
				return 0, err
			}
			return len(data), nil
		})})
		if err != nil {
			return nil, err
		}
	}
	return in.Finish()
}

// modelWith finds a model of the engine's that has a blob.
func (m *Models) modelWith(hex string) (cluster.Model, manifest.Blob, bool) {
	models, _ := m.deps.EngineModels()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, model := range models {
		if k, ok := m.manifests[model.Digest]; ok {
			if b, ok := k.Blob(hex); ok {
				return model, b, true
			}
		}
	}
	return cluster.Model{}, manifest.Blob{}, false
}
