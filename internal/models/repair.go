package models

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

const (
	repairLook = 10 * time.Second // for what can be repaired now
	warnBefore = 2 * time.Second  // until all nodes have heard that a replica is out of service
)

// errLastCopy is returned for a damaged blob of which no good copy is known.
var errLastCopy = errors.New("no member has a good copy: it is left as it is, and serves as long as nothing better does")

// errChangedMeanwhile is returned for a repair that is no longer the right one.
var errChangedMeanwhile = errors.New("the engine's models have changed meanwhile")

// repair is what a damaged blob takes with it. An engine does not fetch a blob of which it has a file, and deletes the
// file with the last name that uses it. So all these names have to go at once, and come back.
type repair struct {
	names []FetchRequest // sorted
	bad   []manifest.Blob
	good  []manifest.Blob // blobs that would go with the names
}

// keepRepairing replaces damaged blobs from good copies, one repair at a time, until ctx ends.
func (m *Models) keepRepairing(ctx context.Context) {
	select {
	case <-m.clean:
	case <-ctx.Done():
		return
	}
	for wait := time.Duration(0); ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-m.repairs.kick:
			timer.Stop()
		}
		wait = repairLook
		if err := m.bringBack(ctx); err != nil {
			if ctx.Err() == nil {
				m.deps.Log.Warn("cannot bring models back that a repair deleted; it is tried again", "err", err)
			}
			continue // nothing else is deleted before
		}
		for _, hex := range m.toRepair() {
			m.noteRepair(ctx, hex, m.repair(ctx, hex))
		}
	}
}

// toRepair are the damaged blobs whose turn it is.
func (m *Models) toRepair() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var due []string
	for _, hex := range slices.Sorted(maps.Keys(m.damaged)) {
		if f := m.repairs.failed[hex]; m.repairs.asked[hex] || !m.deps.Now().Before(f.until) {
			due = append(due, hex)
		}
	}
	return due
}

// noteRepair remembers how a repair ended.
func (m *Models) noteRepair(ctx context.Context, hex string, err error) {
	m.mu.Lock()
	delete(m.repairs.asked, hex)
	was := m.repairs.failed[hex]
	if err == nil {
		delete(m.repairs.failed, hex)
	} else {
		until := m.deps.Now().Add(min(firstBackoff<<min(was.times, 10), lastBackoff))
		if errors.Is(err, errLastCopy) {
			until = m.deps.Now() // looking again costs nothing
		}
		m.repairs.failed[hex] = failedRepair{err: err, times: was.times + 1, until: until}
	}
	m.repairs.change()
	m.mu.Unlock()
	if err != nil && ctx.Err() == nil && (was.err == nil || was.err.Error() != err.Error()) {
		m.deps.Log.Error("damaged blob cannot be replaced now; it is tried again", "blob", short(hex), "err", err)
	}
}

// repair replaces a damaged blob. Nothing is deleted before all that goes with it lies in the spool, verified.
func (m *Models) repair(ctx context.Context, hex string) error {
	r := m.planRepair(hex)
	if len(r.names) == 0 {
		return nil // nobody uses it
	}
	if !m.replaceable(ctx, r) {
		return errLastCopy
	}
	all := slices.Concat(r.bad, r.good)
	var size int64
	for _, b := range all {
		if !m.inSpool(ctx, b) {
			size += b.Size
		}
	}
	if err := blob.CheckRoom(ctx, m.deps.DataDir, size, m.cfg.DiskReserveBytes); err != nil {
		return err
	}
	for _, name := range r.names {
		k, _ := m.own(name.Digest)
		if err := m.keepManifest(name.Digest, k.data); err != nil {
			return err
		}
	}
	m.beginRepair(ctx, r.names, all)
	err := m.replace(ctx, r, all)
	m.mu.Lock()
	away := len(m.repairs.away) > 0
	m.mu.Unlock()
	if away {
		err = errors.Join(err, m.bringBack(ctx))
	} else {
		m.endRepair(ctx)
	}
	return err
}

// replace gathers the blobs and deletes the names.
func (m *Models) replace(ctx context.Context, r repair, all []manifest.Blob) error {
	if err := m.spoolAll(ctx, r); err != nil {
		return err
	}
	if !sleep(ctx, warnBefore) {
		return context.Cause(ctx)
	}
	for _, b := range all {
		if !m.inSpool(ctx, b) {
			return fmt.Errorf("blob %s is not in the spool any more", short(b.Digest))
		}
	}
	if now := m.planRepair(r.bad[0].Digest); !reflect.DeepEqual(now, r) {
		return errChangedMeanwhile
	}
	var names []manifest.Name
	for _, name := range r.names {
		parsed, err := manifest.ParseName(name.Name)
		if err != nil {
			return err
		}
		m.deps.Log.Info("model is installed anew, since a blob is damaged", "model", name.Name, "digest", short(name.Digest))
		names = append(names, parsed)
	}
	// What the spool has is all that is left of a model once its name is deleted, also if the power fails.
	for _, b := range all {
		if err := m.spool.Sync(ctx, digest(b.Digest)); err != nil {
			return err
		}
	}
	if err := blob.SyncFolder(filepath.Join(m.deps.DataDir, spoolDir, manifestDir)); err != nil {
		return err
	}
	if err := m.setAway(r.names, m.deps.Now()); err != nil {
		return err
	}
	var errs []error
	for i, name := range names {
		// What is in memory is of the damaged file, and would stay.
		if err := m.keep(ctx, m.deps.Self, name.String(), false); err != nil {
			m.deps.Log.Debug("cannot unload a model", "model", name, "err", err)
		}
		errs = append(errs, m.install.Remove(ctx, name, r.names[i].Digest))
	}
	m.deps.Refresh(ctx)
	m.take(ctx)
	for _, b := range r.bad {
		if _, err := m.stat(b.Digest); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("the engine keeps the file of blob %s", short(b.Digest)))
		} else if err := m.lists.SetChecked(digest(b.Digest), m.deps.Now()); err != nil { // the engine verifies what it fetches
			m.deps.Log.Debug("cannot note a blob's check", "err", err)
		}
	}
	return errors.Join(errs...)
}

// planRepair finds all that goes with a damaged blob.
func (m *Models) planRepair(hex string) repair {
	models, _ := m.deps.EngineModels()
	m.mu.Lock()
	defer m.mu.Unlock()
	bad := map[string]bool{hex: true}
	affected := func(digest string) bool {
		return slices.ContainsFunc(m.manifests[digest].Blobs, func(b manifest.Blob) bool { return bad[b.Digest] })
	}
	for grown := -1; grown != len(bad); { // other damaged blobs of theirs, whose names have to go too
		grown = len(bad)
		for _, model := range models {
			if !affected(model.Digest) {
				continue
			}
			for _, b := range m.manifests[model.Digest].Blobs {
				if _, there := m.held[b.Digest]; m.isDamaged(b.Digest) || !there {
					bad[b.Digest] = true
				}
			}
		}
	}
	var r repair
	stays := map[string]bool{} // blobs that other names use
	for _, model := range models {
		if affected(model.Digest) {
			r.names = append(r.names, FetchRequest{Name: model.Name, Digest: model.Digest})
			continue
		}
		for _, b := range m.manifests[model.Digest].Blobs {
			stays[b.Digest] = true
		}
	}
	slices.SortFunc(r.names, func(a, b FetchRequest) int { return strings.Compare(a.Name, b.Name) })
	seen := map[string]bool{}
	for _, name := range r.names {
		for _, b := range m.manifests[name.Digest].Blobs {
			switch {
			case seen[b.Digest]:
			case bad[b.Digest]:
				r.bad = append(r.bad, b)
			case !stays[b.Digest]:
				r.good = append(r.good, b)
			}
			seen[b.Digest] = true
		}
	}
	return r
}

// replaceable tells whether good copies of the damaged blobs can be had: from members, or, of models that were placed, perhaps
// from the registry.
func (m *Models) replaceable(ctx context.Context, r repair) bool {
	placed := !slices.ContainsFunc(r.names, func(name FetchRequest) bool {
		w, ok := m.deps.State().WantedModel(name.Name)
		return !ok || w.Digest != name.Digest
	})
	return !slices.ContainsFunc(r.bad, func(b manifest.Blob) bool {
		h := m.holders(b.Digest, nil)
		return !placed && len(h.whole)+len(h.locked) == 0 && !m.inSpool(ctx, b)
	})
}

// inSpool tells whether all of a blob lies in the spool.
func (m *Models) inSpool(ctx context.Context, b manifest.Blob) bool {
	p, err := m.spool.Get(ctx, digest(b.Digest))
	return err == nil && p.Missing() == 0
}

// spoolAll gets the damaged blobs into the spool from wherever they can be had, and copies the others there.
func (m *Models) spoolAll(ctx context.Context, r repair) error {
	for _, b := range r.bad {
		err := m.spoolGood(ctx, r, b)
		if errors.Is(err, blob.ErrWrong) {
			m.doubt(ctx, b) // the next try finds the true list
		}
		if err != nil {
			return fmt.Errorf("get blob %s: %w", short(b.Digest), err)
		}
	}
	for _, b := range r.good {
		if err := m.spoolOwn(ctx, b); err != nil {
			return fmt.Errorf("copy blob %s: %w", short(b.Digest), err)
		}
	}
	return nil
}

// originsOf are the names by which registries may have a blob, as they were pulled: of a model and its copy one at least is.
func (m *Models) originsOf(r repair, b manifest.Blob) (all []origin) {
	for _, of := range r.names {
		k, _ := m.own(of.Digest)
		if _, has := k.Blob(b.Digest); !has {
			continue
		}
		text := of.Name
		if w, ok := m.deps.State().WantedModel(of.Name); ok && w.Digest == of.Digest {
			text = w.Name
		}
		if name, err := manifest.ParseName(text); err == nil { // an engine that has another name pulled it nowhere
			all = append(all, origin{name: name, insecure: name.Plain})
		}
	}
	return all
}

// spoolGood gets a good copy of a damaged blob into the spool.
func (m *Models) spoolGood(ctx context.Context, r repair, b manifest.Blob) error {
	var errs []error
	for _, from := range m.originsOf(r, b) {
		err := m.spoolFrom(ctx, b, from)
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...) // none: what is not in the spool is not taken for replaced
}

func (m *Models) spoolFrom(ctx context.Context, b manifest.Blob, from origin) error {
	s, release := m.acquire(b, from)
	defer release()
	select {
	case <-s.done:
		if s.err != nil {
			return s.err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return m.verifySpooled(ctx, b)
}

// verifySpooled reads all of a blob in the spool.
func (m *Models) verifySpooled(ctx context.Context, b manifest.Blob) error {
	p, err := m.spool.Get(ctx, digest(b.Digest))
	if err != nil {
		return err
	}
	return p.Finish(ctx)
}

// spoolOwn copies a blob of the engine's into the spool.
func (m *Models) spoolOwn(ctx context.Context, b manifest.Blob) error {
	if m.inSpool(ctx, b) {
		return m.verifySpooled(ctx, b)
	}
	l, err := m.listOf(ctx, b.Digest)
	if err != nil {
		return err
	}
	m.mu.Lock()
	dir := m.folder
	m.mu.Unlock()
	if dir == nil {
		return errChangedMeanwhile
	}
	file, err := blob.Folder(dir.Dir()).Open(digest(b.Digest))
	if err != nil {
		return err
	}
	defer file.Close()
	p, err := m.spool.Open(ctx, l)
	if err != nil {
		return err
	}
	buf := make([]byte, l.PieceSize())
	for i := range l.Len() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		offset, n := l.Span(i)
		_, err := file.ReadAt(buf[:n], offset)
		if err == nil {
			err = p.WritePiece(i, buf[:n])
		}
		if errors.Is(err, blob.ErrWrong) {
			m.damage(ctx, b.Digest, err)
		}
		if err != nil {
			return err
		}
	}
	return p.Finish(ctx)
}

// awaitRepair returns when a model has no damaged blob any more: it is about to be fetched then, by who waits or who repairs.
func (m *Models) awaitRepair(ctx context.Context, k known) error {
	failures := map[string]int{}
	for {
		m.mu.Lock()
		hex := m.damageOf(k.Manifest)
		if hex == "" || m.repairs.back && m.repairs.isAway(k.Model) {
			m.mu.Unlock()
			return nil
		}
		failed, changed := m.repairs.failed[hex], m.repairs.changed
		before, waited := failures[hex]
		if !waited {
			failures[hex] = failed.times
			m.repairs.asked[hex] = true
		}
		m.mu.Unlock()
		if waited && failed.times > before {
			return fmt.Errorf("blob %s is damaged: %w", short(hex), failed.err)
		}
		m.repairs.nudge()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func told(names []FetchRequest) (fetches []cluster.Fetch) {
	for _, name := range names {
		fetches = append(fetches, cluster.Fetch{Name: cluster.CanonicalModel(name.Name), Digest: name.Digest})
	}
	return fetches
}
