package models

import (
	"context"
	"path/filepath"
	"time"
)

// lend gives the engine the blobs of a job, where its folder is ours: as hard links, so that it finds them there and neither
// asks the registry nor needs their room again. It waits until all are whole, and verifies them, since the engine does not look
// at what it has. What cannot be linked (another disk, say) the engine pulls like any other.
func (m *Models) lend(ctx context.Context, r *running) error {
	if !m.lends() {
		return nil
	}
	ticker := time.NewTicker(sayEvery)
	defer ticker.Stop()
	for _, s := range r.supplies {
		for waiting := true; waiting; {
			select {
			case <-s.done:
				waiting = false
			case <-ticker.C:
				m.sayProgress(r)
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if s.err != nil {
			return s.err
		}
		m.sayProgress(r)
	}
	for _, s := range r.supplies {
		if err := m.spool.Link(ctx, digest(s.digest), m.lent(s.digest)); err != nil {
			m.deps.Log.Debug("the engine gets a copy of a blob, not a link", "blob", short(s.digest), "err", err)
		}
	}
	return nil
}

func (m *Models) lends() bool { return m.deps.OwnFolder && m.deps.ModelsDir != "" }

func (m *Models) lent(hex string) string {
	return filepath.Join(m.deps.ModelsDir, "blobs", "sha256-"+hex)
}

// unlend takes the links back of a job that failed, but for blobs that another one needs, or a model of the engine's. If that
// cannot be seen they stay, until the engine starts again and finds that nobody uses them.
func (m *Models) unlend(ctx context.Context, r *running) {
	if !m.lends() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	m.deps.Refresh(ctx)
	if !m.take(ctx) {
		return
	}
	used := map[string]bool{}
	m.mu.Lock()
	for _, k := range m.manifests {
		for _, b := range k.Blobs {
			used[b.Digest] = true
		}
	}
	for _, other := range m.jobs {
		if other != r && other.manifest != nil {
			for _, b := range other.manifest.Blobs {
				used[b.Digest] = true
			}
		}
	}
	m.mu.Unlock()
	for _, s := range r.supplies {
		if used[s.digest] {
			continue
		}
		if err := m.spool.Unlink(digest(s.digest), m.lent(s.digest)); err != nil {
			m.deps.Log.Warn("cannot take a blob back from the engine's folder", "blob", short(s.digest), "err", err)
		}
	}
}
