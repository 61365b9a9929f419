package models

import (
	"context"
	"math"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// admit is a *blob.NoRoomError unless the disks have room for what is still to come of a job, beside what is still to come of
// those that were admitted before. The engine gets a copy of what the spool has.
func (m *Models) admit(ctx context.Context, r *running) error {
	m.admitting.Lock()
	defer m.admitting.Unlock()
	m.mu.Lock()
	of := []*running{r}
	for _, other := range m.jobs {
		if other.admitted && other != r {
			of = append(of, other)
		}
	}
	m.mu.Unlock()
	if spool, engine := m.toCome(ctx, r); spool+engine > 0 {
		spool, engine = m.toCome(ctx, of...)
		if err := m.checkRoom(ctx, spool, engine); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r.admitted = true
	return nil
}

// toCome is how many bytes are still to come of jobs, into the spool and from there into the engine's folder.
func (m *Models) toCome(ctx context.Context, of ...*running) (spool, engine int64) {
	m.mu.Lock()
	sizes := map[string]int64{}
	for _, r := range of {
		for _, hex := range r.missing {
			b, _ := r.manifest.Blob(hex)
			sizes[hex] = b.Size
		}
	}
	dir := m.folder
	m.mu.Unlock()
	for hex, size := range sizes {
		spool = plus(spool, size-m.spool.Came(ctx, digest(hex)))
		if dir != nil {
			size -= blob.Folder(dir.Dir()).Taken(digest(hex))
		}
		engine = plus(engine, size)
	}
	return spool, engine
}

// left is how many bytes are still to come of each job whose manifest is here.
func (m *Models) left(ctx context.Context) map[job]*cluster.Left {
	m.mu.Lock()
	var jobs []*running
	for _, r := range m.jobs {
		if r.manifest != nil {
			jobs = append(jobs, r)
		}
	}
	m.mu.Unlock()
	left := map[job]*cluster.Left{}
	for _, r := range jobs {
		spool, engine := m.toCome(ctx, r)
		left[r.job] = &cluster.Left{Spool: spool, Engine: engine}
	}
	return left
}

// plus stays at the greatest number instead of passing it: sizes come from others. What is negative counts as nothing.
func plus(a, b int64) int64 {
	if b > math.MaxInt64-a {
		return math.MaxInt64
	}
	return a + max(b, 0)
}

// checkRoom is a *blob.NoRoomError unless there is room in the data directory and in the engine's folder.
func (m *Models) checkRoom(ctx context.Context, spool, engine int64) error {
	if dir := m.otherDisk(ctx); dir != "" {
		if err := blob.CheckRoom(ctx, dir, engine, m.cfg.DiskReserveBytes); err != nil {
			return err
		}
	} else {
		spool = plus(spool, engine)
	}
	return blob.CheckRoom(ctx, m.deps.DataDir, spool, m.cfg.DiskReserveBytes)
}

// otherDisk is the folder of the engine's models, if it is known and does not lie on the disk of the data directory. One that cannot
// be looked at (the engine's, of another user, perhaps) is taken to lie there: it needs room, and nothing else is known of it.
func (m *Models) otherDisk(ctx context.Context) string {
	dir := m.deps.ModelsDir
	m.mu.Lock()
	if m.folder != nil {
		dir = m.folder.Dir()
	}
	m.mu.Unlock()
	if m.deps.Files != nil {
		dir = m.deps.Files.Dir
	}
	if dir == "" || blob.SameDisk(ctx, m.deps.DataDir, dir) {
		return ""
	}
	if _, err := blob.Free(ctx, dir); err != nil {
		m.deps.Log.Debug("cannot see how much room the engine has", "err", err)
		return ""
	}
	return dir
}

// EngineDiskFree is how many bytes are free where the engine keeps its models, at least 1, if that is known to be another disk than
// the data directory's; else 0.
func (m *Models) EngineDiskFree(ctx context.Context) int64 {
	dir := m.otherDisk(ctx)
	if dir == "" {
		return 0
	}
	free, err := blob.Free(ctx, dir)
	if err != nil {
		return 0 // it was there a moment ago
	}
	return max(free, 1)
}
