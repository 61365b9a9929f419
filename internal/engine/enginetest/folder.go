package enginetest

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// The kinds of a model's files that the fake makes or looks for.
const (
	mediaManifest = "application/vnd.docker.distribution.manifest.v2+json"
	mediaConfig   = "application/vnd.docker.container.image.v1+json"
	mediaWeights  = "application/vnd.ollama.image.model"
	mediaTemplate = "application/vnd.ollama.image.template"
	mediaSystem   = "application/vnd.ollama.image.system"
	mediaParams   = "application/vnd.ollama.image.params"
)

// minPart is the size of the parts in which an Ollama moves a blob of up to 16 of them.
const minPart = 100_000_000

// folder is a folder of models in Ollama's form. All is read from the disk when it is asked for, so that what others
// put there or take away is noticed.
type folder struct {
	dir       string
	transport http.RoundTripper
	agent     string
	minPart   int64

	mu     sync.Mutex               // one change of names at a time
	moving map[string]chan struct{} // a lock for each blob that was ever pulled
}

// layer is one file of a model, as a manifest names it.
type layer struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"` // sha256:…
	Size      int64  `json:"size"`
	From      string `json:"from,omitempty"`
	Name      string `json:"name,omitempty"`
}

// filed is a manifest: what an Ollama keeps of it, in the order in which it writes it.
type filed struct {
	SchemaVersion int     `json:"schemaVersion"`
	MediaType     string  `json:"mediaType"`
	Config        layer   `json:"config"`
	Layers        []layer `json:"layers"`
}

// all are the layers in the order in which they move.
func (f filed) all() []layer {
	all := slices.Clone(f.Layers)
	if f.Config.Digest != "" {
		all = append(all, f.Config)
	}
	return all
}

// filedModel is a model in the folder.
type filedModel struct {
	filed
	name     name
	data     []byte // of the manifest
	modified time.Time
}

// newFolder does what an Ollama does when it starts: it deletes what no model uses, if that is older than an hour and
// all manifests can be read.
func newFolder(cfg Config) *folder {
	f := &folder{dir: cfg.Folder, transport: cfg.Transport, agent: "ollama/" + cfg.Version, minPart: minPart, moving: map[string]chan struct{}{}}
	if f.transport == nil {
		f.transport = http.DefaultTransport
	}
	f.prune(time.Now().Add(-time.Hour))
	return f
}

func (f *folder) prune(before time.Time) {
	entries, err := os.ReadDir(filepath.Join(f.dir, "blobs"))
	if err != nil || len(f.models()) < len(f.names()) {
		return
	}
	used := f.used()
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && info.ModTime().Before(before) && !used[strings.Replace(e.Name(), "-", ":", 1)] {
			_ = os.Remove(filepath.Join(f.dir, "blobs", e.Name())) // the next start tries again
		}
	}
}

func (f *folder) manifestPath(n name) string {
	return filepath.Join(f.dir, "manifests", n.host, n.namespace, n.model, n.tag)
}

// blobPath is where the blob with the digest is, or will be, in a folder that is there.
func (f *folder) blobPath(digest string) (string, error) {
	digest, ok := readDigest(digest)
	if !ok {
		return "", errBadDigest
	}
	dir := filepath.Join(f.dir, "blobs")
	return filepath.Join(dir, strings.Replace(digest, ":", "-", 1)), os.MkdirAll(dir, 0o755)
}

// names are those that have a manifest, sorted.
func (f *folder) names() []name {
	files, err := fs.Glob(os.DirFS(f.dir), "manifests/*/*/*/*")
	if err != nil {
		panic(err) // only of the pattern
	}
	var names []name
	for _, file := range files {
		part := strings.Split(file, "/")
		n := name{host: part[1], namespace: part[2], model: part[3], tag: part[4]}
		if n.valid() {
			names = append(names, n)
		}
	}
	return names
}

// written is the name as it is written if there is a model of that name.
func (f *folder) written(n name) name {
	for _, e := range f.names() {
		if e.key() == n.key() {
			return e
		}
	}
	return n
}

// existing is the name with those of its parts as they are written already that differ in case only.
func (f *folder) existing(n name) name {
	if e := f.written(n); e != n {
		return e
	}
	names := f.names()
	for _, part := range [...]func(*name) *string{
		func(n *name) *string { return &n.host }, func(n *name) *string { return &n.namespace },
		func(n *name) *string { return &n.model }, func(n *name) *string { return &n.tag },
	} {
		for _, e := range names {
			if strings.EqualFold(*part(&e), *part(&n)) {
				*part(&n) = *part(&e)
				break
			}
		}
	}
	return n
}

func (f *folder) read(n name) (filedModel, error) {
	m := filedModel{name: n}
	file, err := os.Open(f.manifestPath(n))
	if err != nil {
		return m, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil {
		m.modified = info.ModTime()
		m.data, err = io.ReadAll(file)
	}
	if err == nil {
		err = json.Unmarshal(m.data, &m.filed)
	}
	return m, err
}

// find reads the model that a client calls so; an error is fs.ErrNotExist if there is none.
func (f *folder) find(text string) (filedModel, error) { return f.read(f.existing(parseName(text))) }

// models are those whose manifests can be read.
func (f *folder) models() []filedModel {
	var out []filedModel
	for _, n := range f.names() {
		if m, err := f.read(n); err == nil {
			out = append(out, m)
		}
	}
	return out
}

// held is the model as the catalog has it.
func (f *folder) held(m filedModel) heldModel {
	h := heldModel{Model: Model{Name: m.name.String(), Digest: hexDigest(string(m.data))}, modified: m.modified}
	for _, l := range m.all() {
		h.Size += l.Size
		if path, err := f.blobPath(l.Digest); l.MediaType == mediaWeights && h.file == "" && err == nil {
			h.file = path
		}
	}
	_, err := os.Stat(h.file)
	h.lost = err != nil
	h.Model = h.withDefaults(KindOllama)
	return h
}

// used are the digests of all blobs that models have.
func (f *folder) used() map[string]bool {
	used := map[string]bool{}
	for _, m := range f.models() {
		for _, l := range m.all() {
			used[strings.ToLower(l.Digest)] = true
		}
	}
	return used
}

// sweep deletes those of the layers' blobs that no model has.
func (f *folder) sweep(layers []layer) error {
	used := f.used()
	var errs []error
	for _, l := range layers {
		path, err := f.blobPath(l.Digest)
		if err == nil && !used[strings.ToLower(l.Digest)] {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// put gives a manifest's bytes the name; blobs that a model of that name had stay.
func (f *folder) put(n name, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	path := f.manifestPath(n)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return replaceFile(f.dir, path, data)
}

// replaceFile writes a file whole or not at all, by way of one in dir.
func replaceFile(dir, path string, data []byte) error {
	file, err := os.CreateTemp(dir, "new-")
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Chmod(0o644), file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}

// copy gives a model another name too; an error is fs.ErrNotExist if there is no such model.
func (f *folder) copy(from, to string) error {
	m, err := f.find(from)
	if err != nil {
		return err
	}
	n := f.existing(parseName(to))
	if n == m.name {
		return nil
	}
	return f.put(n, m.data)
}

// remove deletes a name and the blobs that no other has; an error is fs.ErrNotExist if there is no such model.
func (f *folder) remove(text string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, err := f.find(text)
	if err != nil {
		return err
	}
	path := f.manifestPath(m.name)
	if err := os.Remove(path); err != nil {
		return err
	}
	for range 3 {
		path = filepath.Dir(path)
		if os.Remove(path) != nil {
			break // it has other names in it
		}
	}
	return f.sweep(m.all())
}
