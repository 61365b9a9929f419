package models

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

const (
	maxJobs = 4                // models that are fetched at a time; more wait
	linger  = 10 * time.Second // how long a fetch goes on that nobody waits for, and how often it is looked whether it is wanted
)

// ErrNoEngine is returned for a model that is to come to a node whose engine takes none.
var ErrNoEngine = errors.New("the node's engine is neither an Ollama nor a llama-server of its own: it cannot be given models")

// ErrCancelled is returned for a fetch that an operator ended.
var ErrCancelled = errors.New("cancelled by an operator")

// job is a model that is to have a name in this node's engine.
type job struct{ name, digest string } // the name is canonical

// errDeleted ends the fetch of a model that is deleted.
var errDeleted = errors.New("the model was deleted")

// running is a job for all who wait for it.
type running struct {
	job
	id       string
	request  FetchRequest
	ctx      context.Context
	cancel   context.CancelCauseFunc
	since    time.Time
	progress *progress

	// Under the lock of Models.
	users    int
	version  uint64 // of the newest request
	started  bool
	admitted bool               // there is room for it
	manifest *manifest.Manifest // nil: not here yet
	missing  []string           // blobs that the engine had not
	supplies []*supply
	done     chan struct{}
	err      error
}

// FetchRequest asks a node to bring a model into its engine.
type FetchRequest struct {
	// Name is what the model is to be called; http:// before it asks its registry without TLS.
	Name   string `json:"name"`
	Digest string `json:"digest"`
	// From is a node that has the manifest; "": whoever holds the model.
	From cluster.NodeID `json:"from,omitempty"`
	// Version is the State's at which the model was wanted: it is not fetched if it was deleted since then. 0: the State's now.
	Version uint64 `json:"version,omitempty"`
}

// Fetch brings a model into the own engine under a name, and returns when it is there. All who fetch the same at the same
// time share one transfer. Progress is given records of the form that Ollama's pull has; it may be nil. A
// caller who leaves, or whose progress fails, does not end it for the others.
func (m *Models) Fetch(ctx context.Context, req FetchRequest, progress func(record []byte) error) error {
	name, err := manifest.ParseName(req.Name)
	if err != nil {
		return err
	}
	if !manifest.IsDigest(req.Digest) {
		return fmt.Errorf("fetch %s: %q is no model's digest", req.Name, req.Digest)
	}
	if name.IsPassing() {
		return fmt.Errorf("fetch %s: this name is for models that pass", name)
	}
	if req.Version == 0 {
		req.Version = m.deps.State().Version
	}
	var r *running
	for {
		if m.isDeleted(cluster.CanonicalModel(req.Name), req.Version) {
			return fmt.Errorf("fetch %s: %w", req.Name, errDeleted)
		}
		if r, err = m.join(job{cluster.CanonicalModel(req.Name), req.Digest}, req); err != nil {
			return err
		}
		if r.ctx.Err() == nil {
			break
		}
		m.leave(r)
		select { // it was cancelled, or given up: what is wanted now is another
		case <-r.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer m.leave(r)
	if err := r.progress.follow(ctx, r.done, progress); err != nil {
		return err
	}
	return r.err
}

// join finds the running job, or begins it.
func (m *Models) join(j job, req FetchRequest) (*running, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.jobs[j]; r != nil {
		r.users++
		r.version = max(r.version, req.Version)
		return r, nil
	}
	if m.run == nil || m.run.Err() != nil {
		return nil, errStopping
	}
	ctx, cancel := context.WithCancelCause(m.run)
	m.numbered++
	r := &running{job: j, id: fmt.Sprintf("%s-%d", short(j.digest)[:8], m.numbered), request: req, ctx: ctx, cancel: cancel, users: 1, version: req.Version,
		since: m.deps.Now(), progress: newProgress(), done: make(chan struct{})}
	m.jobs[j] = r
	m.work.Go(func() {
		defer cancel(nil)
		m.tell(ctx)
		err := m.fetch(ctx, r)
		if err == nil {
			err = m.undo(ctx, r)
		}
		if err != nil && ctx.Err() != nil {
			if err = context.Cause(ctx); errors.Is(err, context.Canceled) {
				err = errStopping
			}
		}
		m.mu.Lock()
		delete(m.jobs, j)
		r.err = err
		run := m.run
		m.mu.Unlock()
		close(r.done)
		level := m.deps.Log.Info
		if err != nil {
			level = m.deps.Log.Warn
		}
		level("model fetched", "model", req.Name, "digest", short(j.digest), "took", m.deps.Now().Sub(r.since).Round(time.Millisecond), "err", err)
		if run != nil {
			ctx = run // it ends later
		}
		m.tell(ctx)
		m.Look()
	})
	return r, nil
}

// undo takes a model out of the engine again that was deleted while it was fetched: who deleted it may not have reached this node.
func (m *Models) undo(ctx context.Context, r *running) error {
	m.mu.Lock()
	version := r.version
	m.mu.Unlock()
	if !m.isDeleted(r.name, version) {
		return nil
	}
	name, err := manifest.ParseName(r.request.Name)
	if err != nil {
		return err
	}
	name.Plain = false
	return errors.Join(errDeleted, m.drop(ctx, name, r.digest))
}

// isDeleted tells whether it was agreed after that version of the State that the model is deleted.
func (m *Models) isDeleted(key string, version uint64) bool {
	w := m.deps.State().Models[key]
	return w.Deleted != nil && w.Version > version
}

// leave is called by who waits for a job no more.
func (m *Models) leave(r *running) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.users--; r.users == 0 {
		time.AfterFunc(linger, func() { m.letGo(r) })
	}
}

// letGo ends a job that nobody waits for, unless it is agreed that the model is wanted here: its leader is lost, and the next one
// takes what is under way for done.
func (m *Models) letGo(r *running) {
	w, wanted := m.deps.State().WantedModel(r.name)
	wanted = wanted && w.Digest == r.digest && (len(w.Nodes) == 0 || slices.Contains(w.Nodes, m.deps.Self))
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case r.users > 0 || r.ctx.Err() != nil:
	case wanted:
		time.AfterFunc(linger, func() { m.letGo(r) })
	default:
		r.cancel(errUnwanted)
	}
}

// fetching tells whether a model is on its way here.
func (m *Models) fetching(model string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for j := range m.jobs {
		if j.digest == model {
			return true
		}
	}
	return false
}

// originOf is where the blobs of a model come from that no member has.
func (m *Models) originOf(model string) (origin, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for j, r := range m.jobs {
		if j.digest == model {
			name, err := manifest.ParseName(r.request.Name)
			return origin{name: name, insecure: name.Plain}, err == nil
		}
	}
	return origin{}, false
}

// fetch does a job.
func (m *Models) fetch(ctx context.Context, r *running) error {
	_, isOllama := m.deps.EngineModels()
	if !isOllama && m.deps.Files == nil {
		return ErrNoEngine
	}
	if k, ok := m.own(r.digest); ok {
		if err := m.awaitRepair(ctx, k); err != nil {
			return err
		}
	}
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if isOllama {
		select {
		case <-m.clean:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	m.mu.Lock()
	r.started = true
	m.mu.Unlock()
	r.progress.say(status("pulling manifest"))
	if from := r.request.From; from != "" && from != m.deps.Self {
		m.deps.Seen(ctx, from) // it may have been made there just now
	}
	name, err := manifest.ParseName(r.request.Name)
	if err != nil {
		return err
	}
	k, err := m.manifestFromAnywhere(ctx, name, r.request)
	if err != nil {
		return err
	}
	if m.deps.Files != nil {
		err = m.fetchFile(ctx, r, name, k.Manifest)
		if errors.Is(err, blob.ErrWrong) && m.doubt(ctx, k.Blobs...) {
			err = m.fetchFile(ctx, r, name, k.Manifest)
		}
		return err
	}
	m.mu.Lock()
	r.manifest, r.missing = &k.Manifest, m.missing(k.Manifest)
	r.admitted = m.repairs.isAway(r.digest) // there was room before the model was deleted, and the spool has the bytes
	admitted := r.admitted
	m.mu.Unlock()
	m.tell(ctx) // its size
	if !admitted {
		if err := m.admit(ctx, r); err != nil {
			return fmt.Errorf("fetch %s: %w", name, err)
		}
	}
	err = m.bring(ctx, r, k, name)
	if err != nil && ctx.Err() == nil && m.doubt(ctx, k.Blobs...) {
		err = m.bring(ctx, r, k, name)
	}
	return err
}

// bring gets the blobs of a job that the engine lacks, and the model into it.
func (m *Models) bring(ctx context.Context, r *running, k known, name manifest.Name) error {
	release, err := m.gather(ctx, r, k, origin{name: name, insecure: name.Plain})
	defer release()
	if err != nil {
		return fmt.Errorf("fetch %s: %w", name, err)
	}
	if err := m.lend(ctx, r); err != nil {
		return fmt.Errorf("fetch %s: %w", name, err)
	}
	plain := name
	plain.Plain = false
	if err := m.install.Install(ctx, plain, r.digest, func(record []byte) error { r.progress.say(record); return nil }); err != nil {
		m.unlend(ctx, r)
		return err
	}
	m.deps.Refresh(ctx)
	if m.take(ctx) {
		release()
		for _, b := range k.Blobs {
			m.dropHeld(b.Digest)
		}
	}
	return nil
}

// missing are the blobs of a model that the engine has not, as far as that can be seen. The caller holds the lock.
func (m *Models) missing(of manifest.Manifest) (digests []string) {
	has := m.held
	if m.locked {
		has = map[string]int64{}
		for _, k := range m.manifests {
			for _, b := range k.Blobs {
				has[b.Digest] = b.Size
			}
		}
	}
	for _, b := range of.Blobs {
		if size, there := has[b.Digest]; !there || size != b.Size {
			digests = append(digests, b.Digest)
		}
	}
	return digests
}

// gather begins with the blobs that the engine has not, a few at a time, and returns when all are here or on their way from members:
// the engine may pull then. What the engine may have and we cannot see is got when the engine asks for it.
func (m *Models) gather(ctx context.Context, r *running, k known, from origin) (release func(), err error) {
	var releases []func()
	release = func() {
		for _, f := range releases {
			f()
		}
		releases = nil
	}
	m.mu.Lock()
	r.supplies = nil
	locked := m.locked
	m.mu.Unlock()
	if locked {
		return release, nil
	}
	ticker := time.NewTicker(sayEvery)
	defer ticker.Stop()
	ended := make(chan *supply, len(r.missing)) // nobody waits to send
	// wait returns when the blob is listed, or any has ended: it is nil then.
	wait := func(listed <-chan struct{}) error {
		for {
			select {
			case <-listed:
				return nil
			case s := <-ended:
				return s.err
			case <-ticker.C:
				m.sayProgress(r)
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	for i, digest := range r.missing {
		if i >= maxSupplies {
			if err := wait(nil); err != nil {
				return release, err
			}
		}
		b, _ := k.Blob(digest)
		s, back := m.acquire(b, from)
		releases = append(releases, back)
		m.mu.Lock()
		r.supplies = append(r.supplies, s)
		m.mu.Unlock()
		m.work.Go(func() {
			<-s.done
			ended <- s
		})
	}
	for _, s := range r.supplies {
		for m.pieces(s) == nil {
			if err := wait(s.listed); err != nil {
				return release, err
			}
		}
	}
	return release, nil
}

const (
	sayEvery    = 250 * time.Millisecond
	maxSupplies = 4 // blobs that a job gets at a time: there are models with a blob for each tensor, and nodes serve few connections to a peer
)

// sayProgress tells how far the blobs are that the engine does not ask for yet.
func (m *Models) sayProgress(r *running) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range r.supplies {
		if s.upstream {
			r.progress.say(pulling(s.digest, s.size, s.got))
		} else if s.transfer != nil {
			r.progress.say(pulling(s.digest, s.size, s.transfer.Progress().Have))
		}
	}
}

// dropHeld drops a blob from the spool that a model of the engine's has now, and that nobody waits for: the last to go drops it. A
// blob in the engine's folder that no model has goes with the next start of the engine, if a failed install did not take it back.
func (m *Models) dropHeld(of string) {
	if _, err := m.stat(of); err != nil {
		return // what was last listed may be gone
	}
	held := false
	m.mu.Lock()
	for _, k := range m.manifests {
		_, has := k.Blob(of)
		held = held || has
	}
	_, wanted := m.supplies[of]
	repaired := m.repairs.needs(of) && len(m.repairs.away) == 0 // what the engine has is damaged, or goes with it
	m.mu.Unlock()
	if !held || wanted || repaired {
		return
	}
	if err := m.spool.Remove(digest(of)); err != nil {
		m.deps.Log.Warn("cannot drop a blob from the spool", "blob", short(of), "err", err)
	}
}

// manifestFromAnywhere returns a model's manifest: the own one, a member's, or the registry's.
func (m *Models) manifestFromAnywhere(ctx context.Context, name manifest.Name, req FetchRequest) (known, error) {
	if k, ok := m.own(req.Digest); ok {
		return k, nil
	}
	var said []error
	for deadline := m.deps.Now().Add(untilTold); ; {
		said = nil
		for _, id := range m.manifestHolders(req) {
			data, err := m.askForManifest(ctx, id, req.Digest)
			if err == nil && manifest.DigestOf(data) != req.Digest {
				err = errors.New("it is another one")
			}
			if err == nil {
				return m.learn(req.Digest, data)
			}
			said = append(said, fmt.Errorf("node %s: %w", m.nameOf(id), err))
		}
		if !m.deps.Now().Before(deadline) {
			break
		}
		if !sleep(ctx, lookForSources) {
			return known{}, context.Cause(ctx)
		}
	}
	data, err := m.upstream.Remote(name, name.Plain).Manifest(ctx)
	if err == nil && manifest.DigestOf(data) != req.Digest {
		err = fmt.Errorf("the registry's %s is another model by now (%s)", name, short(manifest.DigestOf(data)))
	}
	if err != nil {
		return known{}, fmt.Errorf("find manifest %s of %s: %w", short(req.Digest), name, errors.Join(append(said, err)...))
	}
	return m.learn(req.Digest, data)
}

// untilTold is how long it may take until all know who holds a model that was made just now.
const untilTold = 2 * time.Second

// learn keeps a manifest.
func (m *Models) learn(model string, data []byte) (known, error) {
	k, err := parse(data)
	if err == nil {
		err = m.keepManifest(model, data)
	}
	return k, err
}

// manifestHolders are the members that have a model's manifest, the named one first.
func (m *Models) manifestHolders(req FetchRequest) (ids []cluster.NodeID) {
	if req.From != "" && req.From != m.deps.Self {
		ids = append(ids, req.From)
	}
	for _, n := range m.deps.View().Nodes {
		has := slices.ContainsFunc(n.Models, func(o cluster.Model) bool { return o.Digest == req.Digest }) ||
			slices.ContainsFunc(n.Fetches, func(f cluster.Fetch) bool { return f.Digest == req.Digest })
		if has && n.ID != m.deps.Self && n.Condition != cluster.Dead && !slices.Contains(ids, n.ID) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// Remove deletes a name from the own engine, if it is that of the model still, and ends its fetch. A model of "" is any.
func (m *Models) Remove(ctx context.Context, name, model string) error {
	parsed, err := manifest.ParseName(name)
	if err != nil {
		return err
	}
	parsed.Plain = false
	key := cluster.CanonicalModel(name)
	var ending []*running
	m.mu.Lock()
	for j, r := range m.jobs {
		if j.name == key && (j.digest == model || model == "") {
			r.cancel(errDeleted)
			ending = append(ending, r)
		}
	}
	m.mu.Unlock()
	for _, r := range ending { // it may be about to give the model its name
		select {
		case <-r.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if len(ending) > 0 {
		m.deps.Refresh(ctx)
	}
	return m.drop(ctx, parsed, model)
}

// drop deletes a name from the own engine, if it is that of the model still. A model of "" is any.
func (m *Models) drop(ctx context.Context, name manifest.Name, model string) (err error) {
	key := cluster.CanonicalModel(name.String())
	if m.deps.Files != nil {
		return m.removeFile(ctx, key, model)
	}
	models, _ := m.deps.EngineModels()
	for _, has := range models {
		if cluster.CanonicalModel(has.Name) == key && (has.Digest == model || model == "") {
			err = errors.Join(err, m.install.Remove(ctx, name, model))
		}
	}
	m.deps.Refresh(ctx)
	m.Look()
	return err
}
