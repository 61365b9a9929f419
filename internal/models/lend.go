package models

import (
	"context"
	"path/filepath"
	"time"
)

// lend gives the engine the blobs of a job that have come, where its folder is ours: as hard links, so that it finds them there
// and neither asks the registry nor needs their room again. It waits until they are whole, and verifies them, since the engine
// does not look at what it has. What cannot be linked (another disk, say) the engine pulls like any other.
func (m *Models) lend(ctx context.Context, r *running) error {
	if !m.deps.OwnFolder || m.deps.ModelsDir == "" {
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
		path := filepath.Join(m.deps.ModelsDir, "blobs", "sha256-"+s.digest)
		if err := m.spool.Link(ctx, digest(s.digest), path); err != nil {
			m.deps.Log.Debug("the engine gets a copy of a blob, not a link", "blob", short(s.digest), "err", err)
		}
	}
	return nil
}
