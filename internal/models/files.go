package models

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// A llama-server of the node's own is given models as files in its folder: the weights of a model, which is all
// that it can use. It answers by the template that stands in the file and by its own defaults, where an Ollama goes by the
// template and the parameters of the model's manifest: the same name, and other answers. So such a replica has no digest, and
// no Ollama goes on with its answers, nor it with theirs; it only tells whose weights it has (cluster.Model.Weights), so that a
// request that begins may go to either. It is made where an operator names the node, and never counts as a whole
// replica: the model cannot be had back from it.

// Files is a llama-server into whose folder models are put.
type Files struct {
	Dir string
	// Reload has it see what is in the folder; anew: also what has another content than it had.
	Reload func(ctx context.Context, anew bool) error
	// Lists is what it can answer for now, called by the names of files without .gguf.
	Lists func() []cluster.Model
	// Ended is why it ended by itself since it was last reloaded; "" if it did not.
	Ended func() string
}

const (
	modelFile   = ".gguf"
	passingFile = ".ollamamax-" // and the blob's digest: what an engine does not look at
	maxFileName = 200           // bytes
)

// weights is the one blob of a model that a llama-server can use, if it can use the model without the others.
func weights(of manifest.Manifest) (b manifest.Blob, err error) {
	for _, layer := range of.Blobs {
		kind, is := strings.CutPrefix(layer.MediaType, "application/vnd.ollama.image.")
		switch {
		case !is:
		case kind == "model" && b.Digest == "":
			b = layer
		case kind == "model", kind == "projector", kind == "adapter", kind == "tensor", kind == "draft":
			return b, fmt.Errorf("the model has a blob of the kind %s beside its weights: a llama-server is given models of one file only; choose a node with an Ollama", kind)
		}
	}
	if b.Digest == "" {
		return b, errors.New("the model has no file of weights: choose a node with an Ollama")
	}
	return b, nil
}

// fileName is a name for a model's file that says which model it is, and is good in every file system. Names that come to the
// same, and long ones, are told apart by their hash.
func fileName(key string, taken func(file string) bool) string {
	plain := strings.NewReplacer("/", "_", ":", "_").Replace(key)
	if name := plain + modelFile; len(name) <= maxFileName && !taken(name) {
		return name
	}
	return plain[:min(len(plain), maxFileName/2)] + "-" + manifest.DigestOf([]byte(key))[:16] + modelFile
}

// fetchFile brings the weights of a model into the folder.
func (m *Models) fetchFile(ctx context.Context, r *running, name manifest.Name, of manifest.Manifest) error {
	b, err := weights(of)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", name, err)
	}
	was, have := m.placedAs(r.name)
	have = have && was.Digest == r.digest && !was.Damaged && !was.Modified.IsZero() && m.isOurs(was)
	if have && !was.Passing && m.isListed(was) {
		return nil
	}
	m.mu.Lock()
	r.manifest, r.supplies = &of, nil
	if !have {
		r.missing = []string{b.Digest}
	}
	m.mu.Unlock()
	var whole *blob.Partial
	if !have {
		if err := os.MkdirAll(m.deps.Files.Dir, 0o755); err != nil {
			return fmt.Errorf("fetch %s: make folder for models: %w", name, err)
		}
		if err := m.admit(ctx, r); err != nil {
			return fmt.Errorf("fetch %s: %w", name, err)
		}
		s, release := m.acquire(b, origin{name: name, insecure: name.Plain})
		defer func() { release(); m.dropPlaced(r.name, b.Digest) }()
		if whole, err = m.await(ctx, r, s); err != nil {
			return fmt.Errorf("fetch %s: %w", name, err)
		}
	}
	select {
	case m.filing <- struct{}{}:
		defer func() { <-m.filing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	name.Plain = false
	p := placed{Model: name.String(), Digest: r.digest, Blob: b.Digest, Size: b.Size, Passing: true, Checked: m.deps.Now()}
	if err := m.putFile(ctx, r, p, whole); err != nil {
		return fmt.Errorf("fetch %s: %w", name, err)
	}
	r.progress.say(status("success"))
	return nil
}

// await waits for a blob, whose digest is then verified: a llama-server does not look.
func (m *Models) await(ctx context.Context, r *running, s *supply) (*blob.Partial, error) {
	m.mu.Lock()
	r.supplies = append(r.supplies, s)
	m.mu.Unlock()
	ticker := time.NewTicker(sayEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.done:
			if s.err != nil {
				return nil, s.err
			}
			r.progress.say(status("verifying sha256 digest"))
			p, err := m.spool.Get(ctx, digest(s.digest))
			if err == nil {
				err = p.Finish(ctx)
			}
			return p, err
		case <-ticker.C:
			m.mu.Lock()
			got := s.got
			if s.transfer != nil {
				got = s.transfer.Progress().Have
			}
			m.mu.Unlock()
			r.progress.say(pulling(s.digest, s.size, got))
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// dropPlaced drops a blob from the spool that lies in the folder now.
func (m *Models) dropPlaced(key, hex string) {
	m.mu.Lock()
	p, there := m.placed[key]
	_, wanted := m.supplies[hex]
	m.mu.Unlock()
	if !there || p.Blob != hex || p.Modified.IsZero() || wanted {
		return
	}
	if err := m.spool.Remove(digest(hex)); err != nil {
		m.deps.Log.Warn("cannot drop a blob from the spool", "blob", short(hex), "err", err)
	}
}

// putFile gives the engine a file and returns when it can answer for it. Without a blob the file is there already. The
// caller holds filing.
func (m *Models) putFile(ctx context.Context, r *running, p placed, whole *blob.Partial) error {
	was, replaces := m.placedAs(r.name)
	if whole == nil {
		p = was
	} else {
		if replaces {
			if err := m.removeOurs(was); err != nil {
				return err
			}
		}
		for _, listed := range m.deps.Files.Lists() {
			if cluster.CanonicalModel(listed.Name) == r.name && !m.isPlaced(listed.Name+modelFile) {
				return fmt.Errorf("the engine's folder %s has another model of that name, %s%s, which was not put there by this node: rename or remove it", m.deps.Files.Dir, listed.Name, modelFile)
			}
		}
		if p.File = was.File; !replaces {
			p.File = fileName(r.name, m.isPlaced)
		}
		file := filepath.Join(m.deps.Files.Dir, p.File)
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there already, and was not put there by this node: rename or remove it (%w)", file, errors.Join(fs.ErrExist, err))
		}
		if err := m.note(r.name, &p); err != nil {
			return err
		}
		if err := whole.PlaceAs(ctx, filepath.Join(m.deps.Files.Dir, passingFile+p.Blob), file); err != nil {
			return errors.Join(err, m.note(r.name, nil))
		}
		info, err := os.Lstat(file)
		if err != nil {
			return err
		}
		p.Modified = info.ModTime()
		if err := m.note(r.name, &p); err != nil {
			return err
		}
	}
	if err := m.show(ctx, r, p, replaces && whole != nil); err != nil {
		return err
	}
	p.Passing = false
	if err := m.note(r.name, &p); err != nil {
		return err
	}
	m.tell(ctx)
	m.deps.Refresh(ctx)
	return nil
}

func (m *Models) isPlaced(file string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.placed {
		if p.File == file {
			return true
		}
	}
	return false
}

// show has the engine see a file, once it serves nothing if need be, and takes it out again if the engine does not run with it.
func (m *Models) show(ctx context.Context, r *running, p placed, anew bool) error {
	m.tell(ctx)
	r.progress.say(status("having the engine see it"))
	waiting, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if err := m.deps.Files.Reload(waiting, anew); err != nil {
		return fmt.Errorf("have the engine see %s: %w", p.File, err)
	}
	ticker := time.NewTicker(lookForSources)
	defer ticker.Stop()
	for {
		m.deps.Refresh(waiting)
		if m.isListed(p) {
			return nil
		}
		why := m.deps.Files.Ended()
		if why == "" {
			select {
			case <-ticker.C:
				continue
			case <-waiting.Done():
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				why = "it does not list it after " + loadTimeout.String()
			}
		}
		return errors.Join(fmt.Errorf("the engine does not run with %s: %s: see what it says in this node's log", p.File, why),
			m.removeOurs(p), m.note(r.name, nil), m.deps.Files.Reload(ctx, true))
	}
}

// isListed tells whether the engine can answer for a file.
func (m *Models) isListed(p placed) bool {
	return slices.ContainsFunc(m.deps.Files.Lists(), func(of cluster.Model) bool { return of.Name+modelFile == p.File })
}

// removeOurs removes a file, unless somebody else has put another in its place.
func (m *Models) removeOurs(p placed) error {
	if !m.isOurs(p) {
		return nil
	}
	if err := os.Remove(filepath.Join(m.deps.Files.Dir, p.File)); err != nil {
		return fmt.Errorf("remove model's file: %w", err)
	}
	return nil
}

// removeFile takes a model out of the folder, if this node put it there. A model of "" is any.
func (m *Models) removeFile(ctx context.Context, key, model string) error {
	select {
	case m.filing <- struct{}{}:
		defer func() { <-m.filing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	p, ours := m.placedAs(key)
	if !ours || model != "" && p.Digest != model {
		return nil
	}
	p.Passing = true // nothing new is asked of it
	if err := m.note(key, &p); err != nil {
		return err
	}
	m.tell(ctx)
	m.deps.Refresh(ctx)
	if err := m.removeOurs(p); err != nil {
		return err
	}
	if err := m.deps.Files.Reload(ctx, false); err != nil {
		return fmt.Errorf("have the engine forget %s: %w", p.File, err)
	}
	m.deps.Refresh(ctx)
	if err := m.note(key, nil); err != nil {
		return err
	}
	m.tell(ctx)
	m.deps.Refresh(ctx)
	m.Look()
	return nil
}
