package models

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/exchange"
	"github.com/ollamamax/ollamamax/internal/models/folder"
	"github.com/ollamamax/ollamamax/internal/models/gguf"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

const (
	lookEvery  = 30 * time.Second // without being told of a change
	lookAgain  = 2 * time.Second  // after what failed
	keepUnused = 10 * time.Minute // a blob in the spool that the engine has too, or that nobody wants
)

// known is a manifest that this node has.
type known struct {
	manifest.Manifest
	data []byte
}

// Look tells that the engine may hold something else than it did. It never blocks.
func (m *Models) Look() {
	select {
	case m.nudge <- struct{}{}:
	default:
	}
}

// watch keeps what is told current, until ctx ends.
func (m *Models) watch(ctx context.Context) {
	cleaned := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.nudge:
		case <-timer.C:
		}
		models, isOllama := m.deps.EngineModels()
		again := lookEvery
		if isOllama {
			// What a crash left is deleted before anything is installed under such a name; and later what an engine left that
			// died in the middle, or that did what it was asked when nobody waited any more.
			if err := m.install.Clean(ctx, !cleaned); err != nil {
				m.deps.Log.Debug("cannot delete names left over; it is tried again", "err", err)
				again = lookAgain
			} else if !cleaned {
				cleaned = true
				close(m.clean)
			}
		}
		if isOllama && !m.take(ctx) {
			again = lookAgain
		}
		m.sweep(models)
		m.tell(ctx)
		timer.Reset(again)
	}
}

// take reads what the engine's folder holds of the models that it lists; false: not all could be read.
func (m *Models) take(ctx context.Context) bool {
	select {
	case m.taking <- struct{}{}:
		defer func() { <-m.taking }()
	case <-ctx.Done():
		return false
	}
	models, isOllama := m.deps.EngineModels()
	if !isOllama {
		return false
	}
	dir, locked := m.find(ctx, models)
	held := map[string]int64{}
	if dir != nil {
		blobs, err := dir.Blobs()
		if err != nil {
			m.deps.Log.Warn("cannot list the engine's blobs", "dir", dir.Dir(), "err", err)
			return false
		}
		held = blobs
	}
	all := true
	manifests := map[string]known{}
	for _, model := range models {
		if model.Digest == "" || cluster.CloudModel(model.Name) {
			continue
		}
		k, err := m.manifestOf(ctx, model, dir, locked)
		if errors.Is(err, manifest.ErrNoLayers) {
			continue
		}
		if err != nil {
			m.deps.Log.Debug("cannot read the manifest of a model", "model", model.Name, "err", err)
			all = false
			continue
		}
		manifests[model.Digest] = k
		m.readFootprint(k, dir)
	}
	m.mu.Lock()
	m.folder, m.locked, m.held, m.manifests = dir, locked, held, manifests
	m.forgetGone()
	m.mu.Unlock()
	m.recall()
	return all
}

// find returns the engine's folder; nil if it is not known, or locked: it cannot be read.
func (m *Models) find(ctx context.Context, models []cluster.Model) (dir *folder.Folder, locked bool) {
	if len(models) == 0 && m.deps.ModelsDir == "" {
		return nil, false
	}
	m.mu.Lock()
	last, wasLocked := m.folder, m.locked
	m.mu.Unlock()
	dir, err := m.findAnew(ctx, models)
	if errors.Is(err, folder.ErrUnreadable) && len(models) > 0 {
		if !wasLocked {
			m.deps.Log.Info("the engine's model folder cannot be read; others get models from the engine itself, and nobody checks its files", "err", err)
		}
		return nil, true
	}
	if err != nil {
		m.deps.Log.Debug("cannot find the engine's model folder", "err", err)
		if last == nil || errors.Is(err, folder.ErrUnreadable) {
			return nil, wasLocked && len(models) > 0
		}
		if dir, err = folder.Open(last.Dir()); err != nil { // where it was when the engine last told
			return nil, false
		}
	}
	return dir, false
}

// findAnew opens the folder that is configured, or that the engine tells. Not every model is one of files in it.
func (m *Models) findAnew(ctx context.Context, models []cluster.Model) (*folder.Folder, error) {
	if m.deps.ModelsDir != "" {
		return folder.Open(m.deps.ModelsDir)
	}
	err := errors.New("the engine has no models of its own")
	asked := 0
	for _, model := range models {
		if cluster.CloudModel(model.Name) {
			continue
		}
		if asked++; asked > maxAsked {
			break
		}
		name, bad := manifest.ParseName(model.Name)
		if bad != nil {
			err = bad
			continue
		}
		var dir *folder.Folder
		if dir, err = folder.Find(ctx, m.deps.Engine, name); err == nil || errors.Is(err, folder.ErrUnreadable) {
			return dir, err
		}
	}
	return nil, err
}

const maxAsked = 16 // models by which the engine's folder is looked for

// manifestOf returns the manifest of a model that the engine lists.
func (m *Models) manifestOf(ctx context.Context, model cluster.Model, dir *folder.Folder, locked bool) (known, error) {
	m.mu.Lock()
	k, ok := m.manifests[model.Digest]
	m.mu.Unlock()
	if ok {
		return k, nil
	}
	if data, err := m.keptManifest(model.Digest); err == nil {
		return parse(data)
	}
	name, err := manifest.ParseName(model.Name)
	if err != nil {
		return known{}, err
	}
	var data []byte
	switch {
	case dir != nil:
		data, err = dir.Manifest(name, model.Digest)
	case locked:
		if data, err = m.export(ctx, name, model.Digest); err == nil {
			err = m.keepManifest(model.Digest, data)
		}
	default:
		err = errors.New("the engine's folder is not known")
	}
	if err != nil {
		return known{}, err
	}
	return parse(data)
}

func parse(data []byte) (known, error) {
	parsed, err := manifest.Parse(data)
	return known{parsed, data}, err
}

// export has the engine push a model, of which only wanted blobs cross, and returns the manifest that has the digest.
func (m *Models) export(ctx context.Context, name manifest.Name, model string, wanted ...manifest.Wanted) ([]byte, error) {
	select { // the registry takes one push of a model at a time
	case m.exporting <- struct{}{}:
		defer func() { <-m.exporting }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	data, err := m.install.Export(ctx, name, model, wanted...)
	if err != nil {
		return nil, err
	}
	if data, ok := manifest.Matching(data, model); ok {
		return data, nil
	}
	return nil, errors.New("the engine pushes another manifest than it says it has")
}

// keptManifest is one that was fetched, or exported.
func (m *Models) keptManifest(model string) ([]byte, error) {
	if !manifest.IsDigest(model) {
		return nil, fs.ErrNotExist
	}
	data, err := os.ReadFile(m.manifestFile(model))
	if err == nil && manifest.DigestOf(data) != model {
		return nil, fs.ErrNotExist // damaged: it is fetched again
	}
	return data, err
}

func (m *Models) manifestFile(model string) string {
	return filepath.Join(m.deps.DataDir, spoolDir, manifestDir, model)
}

func (m *Models) keepManifest(model string, data []byte) error {
	file := m.manifestFile(model)
	f, err := os.CreateTemp(filepath.Dir(file), model+".")
	if err != nil {
		return fmt.Errorf("keep manifest: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep manifest: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// own returns the manifest of a model if this node has it.
func (m *Models) own(model string) (known, bool) {
	m.mu.Lock()
	k, ok := m.manifests[model]
	m.mu.Unlock()
	if ok {
		return k, true
	}
	data, err := m.keptManifest(model)
	if err != nil {
		return known{}, false
	}
	k, err = parse(data)
	return k, err == nil
}

// readFootprint reads what a model's own file says of its memory, once.
func (m *Models) readFootprint(k known, dir *folder.Folder) {
	m.mu.Lock()
	_, read := m.footprints[k.Model]
	m.mu.Unlock()
	if read || dir == nil {
		return
	}
	f, err := gguf.OfModel(k.Manifest, func(digest string) (gguf.File, error) { return dir.OpenBlob(digest) }, gguf.F16)
	if err != nil {
		m.deps.Log.Debug("cannot read what memory a model takes", "model", short(k.Model), "err", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.footprints[k.Model] = nil
	if err == nil && f.Weights > 0 {
		m.footprints[k.Model] = &f
	}
}

// footprintOf is what a model's own file says of its memory, if this node has read it.
func (m *Models) footprintOf(model string) *cluster.Footprint {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.footprints[model]
}

// sweep drops what is in the spool and is of no use there any more.
func (m *Models) sweep(models []cluster.Model) {
	digests, err := m.spool.Digests()
	if err == nil {
		var half []blob.Digest
		half, err = m.spool.Intakes()
		digests = append(digests, half...)
	}
	if err != nil {
		m.deps.Log.Warn("cannot list the spool", "err", err)
		return
	}
	coming := m.coming()
	for _, d := range digests {
		m.mu.Lock()
		wanted := coming[d.Hex()] || m.supplies[d.Hex()] != nil || m.hashing[d.Hex()] != nil || m.serving[d.Hex()] > 0 || m.repairs.needs(d.Hex())
		touched := m.used[d.Hex()]
		if touched.IsZero() {
			touched = m.deps.Now()
			m.used[d.Hex()] = touched
		}
		m.mu.Unlock()
		if wanted || m.deps.Now().Sub(touched) < keepUnused {
			continue
		}
		if err := m.spool.Remove(d); err != nil {
			m.deps.Log.Warn("cannot drop a blob from the spool", "blob", d, "err", err)
		}
		m.mu.Lock()
		delete(m.used, d.Hex())
		m.mu.Unlock()
	}
	m.mu.Lock()
	maps.DeleteFunc(m.used, func(hex string, at time.Time) bool {
		return m.deps.Now().Sub(at) >= keepUnused && !slices.Contains(digests, digest(hex))
	})
	m.mu.Unlock()
	m.sweepLists(coming)
	kept, err := os.ReadDir(filepath.Join(m.deps.DataDir, spoolDir, manifestDir))
	if err != nil {
		return // the next look will do
	}
	for _, file := range kept {
		info, err := file.Info()
		if err != nil || m.deps.Now().Sub(info.ModTime()) < keepUnused || slices.ContainsFunc(models, func(model cluster.Model) bool { return model.Digest == file.Name() }) {
			continue
		}
		if wanted := m.deps.State().Models; m.fetching(file.Name()) || m.isAway(file.Name()) || anyDigest(wanted, file.Name()) {
			continue
		}
		_ = os.Remove(m.manifestFile(file.Name())) // it is tried again
	}
}

// sweepLists drops the lists of blobs that are not here and that are not on their way.
func (m *Models) sweepLists(coming map[string]bool) {
	all, err := m.lists.Digests()
	if err != nil {
		m.deps.Log.Warn("cannot list the lists of pieces", "err", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.folder == nil && !m.locked && m.deps.Files == nil {
		return // nobody knows what the engine has
	}
	here := maps.Clone(coming)
	for hex := range m.held {
		here[hex] = true
	}
	for _, k := range m.manifests {
		for _, b := range k.Blobs {
			here[b.Digest] = true
		}
	}
	for _, p := range m.placed {
		here[p.Blob] = true
	}
	for _, d := range all {
		if here[d.Hex()] || m.repairs.needs(d.Hex()) {
			continue
		}
		if at, err := m.lists.Checked(d); err != nil || m.deps.Now().Sub(at) < keepUnused {
			continue // it was made just now
		}
		if err := m.lists.Remove(d); err != nil {
			m.deps.Log.Warn("cannot drop a list of pieces", "blob", d, "err", err)
		}
	}
}

// coming are the blobs of models that are on their way here, be it that they wait for their turn, or for the engine; and of
// those that may be sent here again, since more nodes are wanted to hold them than do.
func (m *Models) coming() map[string]bool {
	models := map[string]bool{}
	m.mu.Lock()
	for j := range m.jobs {
		models[j.digest] = true
	}
	m.mu.Unlock()
	view := m.deps.View()
	for _, w := range m.deps.State().Models {
		if w.Deleted != nil || len(w.Nodes) > 0 && !slices.Contains(w.Nodes, m.deps.Self) {
			continue
		}
		held, here := 0, false
		for _, r := range view.Replicas(w.Name) {
			if r.Model.Of() == w.Digest && r.Node.Condition != cluster.Dead {
				held++
				here = here || r.Node.ID == m.deps.Self
			}
		}
		if !here && held < w.Replicas.Of(len(view.Nodes)) {
			models[w.Digest] = true
		}
	}
	blobs := map[string]bool{}
	for model := range models {
		if k, ok := m.own(model); ok {
			for _, b := range k.Blobs {
				blobs[b.Digest] = true
			}
		}
	}
	return blobs
}

func anyDigest(wanted map[string]cluster.Wanted, digest string) bool {
	for _, w := range wanted {
		if w.Digest == digest {
			return true
		}
	}
	return false
}

// tell publishes what this node holds, if that has changed. Who comes while another is at it leaves it to that one, which
// begins anew: what is told last is what was seen last.
func (m *Models) tell(ctx context.Context) {
	m.mu.Lock()
	m.tellAgain = true
	if m.telling {
		m.mu.Unlock()
		return
	}
	m.telling = true
	for m.tellAgain {
		m.tellAgain = false
		m.mu.Unlock()
		m.tellNow(ctx)
		m.mu.Lock()
	}
	m.telling = false
	m.mu.Unlock()
}

func (m *Models) tellNow(ctx context.Context) {
	inSpool, err := m.spool.Digests()
	if err != nil {
		m.deps.Log.Warn("cannot list the spool", "err", err)
	}
	m.mu.Lock()
	blobs := map[string]cluster.Blob{}
	for _, k := range m.manifests {
		for _, b := range k.Blobs {
			state := cluster.BlobWhole
			if size, there := m.held[b.Digest]; m.locked {
				state = cluster.BlobLocked
			} else if there && m.isDamaged(b.Digest) {
				state = cluster.BlobDamaged
			} else if !there || size != b.Size {
				continue
			}
			blobs[b.Digest] = cluster.Blob{Digest: b.Digest, Size: b.Size, State: state}
		}
	}
	m.mu.Unlock()
	for _, d := range inSpool {
		if has := blobs[d.Hex()].State; has == cluster.BlobWhole {
			continue
		}
		p, err := m.spool.Get(ctx, d)
		if err != nil {
			continue // it is gone, or its list is damaged
		}
		b := cluster.Blob{Digest: d.Hex(), Size: p.List().Size(), State: cluster.BlobWhole}
		if p.Missing() > 0 {
			b.State, b.Have = cluster.BlobPartial, p.Came()
		}
		blobs[d.Hex()] = b
	}
	left := m.left(ctx)
	m.mu.Lock()
	for digest, s := range m.supplies { // on their way, and not in the spool yet
		if _, there := blobs[digest]; !there && s.upstream {
			blobs[digest] = cluster.Blob{Digest: digest, Size: s.size, State: cluster.BlobPartial, Have: s.got}
		}
	}
	told := Told{Footprints: map[string]*cluster.Footprint{}, Damaged: map[string]bool{}, Files: m.files()}
	for _, b := range blobs {
		told.Blobs = append(told.Blobs, b)
	}
	for j, r := range m.jobs {
		f := cluster.Fetch{Name: j.name, Digest: j.digest, Left: left[j]}
		if r.manifest != nil {
			f.Size = r.manifest.Size()
		}
		told.Fetches = append(told.Fetches, f)
	}
	told.Fetches = m.repairs.tell(told.Fetches)
	for model, k := range m.manifests {
		if m.damageOf(k.Manifest) != "" {
			told.Damaged[model] = true
		}
		if f := m.footprints[model]; f != nil {
			told.Footprints[model] = f
		}
	}
	slices.SortFunc(told.Blobs, func(a, b cluster.Blob) int { return cmp.Compare(a.Digest, b.Digest) })
	slices.SortFunc(told.Fetches, func(a, b cluster.Fetch) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Digest, b.Digest))
	})
	changed := !reflect.DeepEqual(told, m.told)
	if changed {
		m.told = told
	}
	m.mu.Unlock()
	if changed {
		m.deps.Changed()
	}
}

// hold finds a blob for a peer: in the spool, or in the engine's folder with the list that was made of it.
func (m *Models) hold(ctx context.Context, d blob.Digest) (exchange.Holding, func(), error) {
	m.mu.Lock()
	dir, damaged := m.folder, m.isDamaged(d.Hex())
	_, held := m.held[d.Hex()]
	m.mu.Unlock()
	p, err := m.spool.Get(ctx, d)
	if err == nil {
		m.mu.Lock()
		m.serving[d.Hex()]++ // only of what is there: peers ask for anything
		m.mu.Unlock()
		return p, func() { m.served(d.Hex()) }, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if dir == nil || damaged {
		return nil, nil, fs.ErrNotExist
	}
	list, err := m.lists.Get(d)
	if errors.Is(err, fs.ErrNotExist) && held { // the engine got it by itself: the peer asks again
		_, err = m.beginOffer(d.Hex())
		return nil, nil, errors.Join(fs.ErrNotExist, err)
	}
	if err != nil {
		return nil, nil, err
	}
	file, err := blob.Folder(dir.Dir()).Open(d)
	if err != nil {
		return nil, nil, err
	}
	whole, err := blob.NewWhole(list, file)
	if err != nil {
		return nil, nil, err
	}
	return whole, func() { _ = whole.Close() }, nil // it was only read
}

// served notes that a peer is done with a blob in the spool.
func (m *Models) served(hex string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used[hex] = m.deps.Now()
	if m.serving[hex]--; m.serving[hex] == 0 {
		delete(m.serving, hex)
	}
}
