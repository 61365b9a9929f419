// Package folder reads the folder in which an Ollama keeps its models: which there are, and the bytes of their
// blobs. It never writes there, and trusts no name that it finds.
//
// Where the folder is, the engine itself says: Find reads it off the path of a model's file. A folder that
// cannot be read is ErrUnreadable: its models come out through a push (package install).
//
// Start reading at Find, then Folder.
package folder

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// maxShow bounds an answer of /api/show, which may have a long licence.
const maxShow = 32 << 20

// ErrUnreadable is returned for a folder that is not there or not to be read by this process.
var ErrUnreadable = errors.New("model folder cannot be read")

// Folder is a folder of models.
type Folder struct{ dir string }

// Find returns the folder of an engine that holds a model with the name. The engine's requests need a path
// only.
func Find(ctx context.Context, engine http.RoundTripper, name manifest.Name) (*Folder, error) {
	data, err := json.Marshal(map[string]string{"model": name.String()})
	if err != nil {
		return nil, fmt.Errorf("find model folder: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "/api/show", bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("find model folder: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := engine.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("find model folder: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("find model folder: engine says to /api/show: %s", resp.Status)
	}
	var wire struct {
		Modelfile string `json:"modelfile"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxShow)).Decode(&wire); err != nil {
		return nil, fmt.Errorf("find model folder: %w", err)
	}
	dir, ok := dirOf(wire.Modelfile)
	if !ok {
		return nil, fmt.Errorf("find model folder: the engine names no file for %s", name)
	}
	return Open(dir)
}

// dirOf is the models' folder that a modelfile's first line FROM tells: two above the blob.
func dirOf(modelfile string) (string, bool) {
	lines := bufio.NewScanner(strings.NewReader(modelfile))
	lines.Buffer(nil, maxShow)
	for lines.Scan() {
		path, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "FROM ")
		if !ok {
			continue
		}
		path = filepath.Clean(strings.Trim(strings.TrimSpace(path), `"`))
		_, isBlob := manifest.CutDigest(filepath.Base(path))
		blobs := filepath.Dir(path)
		return filepath.Dir(blobs), isBlob && filepath.IsAbs(path) && filepath.Base(blobs) == "blobs"
	}
	return "", false
}

// Open returns the folder at dir, if it can be read.
func Open(dir string) (*Folder, error) {
	for _, sub := range []string{"manifests", "blobs"} {
		if _, err := os.ReadDir(filepath.Join(dir, sub)); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
	}
	return &Folder{dir: dir}, nil
}

// Dir is where the folder is.
func (f *Folder) Dir() string { return f.dir }

// Manifest returns the bytes of the manifest that has the name. With a model they are the ones that have this digest;
// an engine counts a final newline not always.
func (f *Folder) Manifest(name manifest.Name, model string) ([]byte, error) {
	path := filepath.Join(f.dir, "manifests", name.Host, name.Namespace, name.Model, name.Tag)
	data, err := readManifest(path)
	if errors.Is(err, fs.ErrNotExist) {
		// Names that differ in case are one: the file may be called otherwise.
		names, _ := f.names()
		for _, other := range names {
			if other.Equal(name) {
				data, err = readManifest(filepath.Join(f.dir, "manifests", other.Host, other.Namespace, other.Model, other.Tag))
				break
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest of %s: %w", name, err)
	}
	data, ok := manifest.Matching(data, model)
	if !ok {
		return nil, fmt.Errorf("read manifest of %s: it is not that of model %s", name, model)
	}
	return data, nil
}

func readManifest(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, manifest.MaxSize+1))
	if err == nil && len(data) > manifest.MaxSize {
		err = errors.New("it is too large")
	}
	return data, err
}

// names are those that have a manifest's file.
func (f *Folder) names() ([]manifest.Name, error) {
	files, err := fs.Glob(os.DirFS(f.dir), "manifests/*/*/*/*")
	if err != nil {
		return nil, err
	}
	var names []manifest.Name
	for _, file := range files {
		part := strings.Split(file, "/")
		n := manifest.Name{Host: part[1], Namespace: part[2], Model: part[3], Tag: part[4]}
		if again, err := manifest.ParseName(n.Host + "/" + n.Namespace + "/" + n.Model + ":" + n.Tag); err == nil && again == n {
			names = append(names, n)
		}
	}
	return names, nil
}

// Blobs are the blobs that are there, whole, with their sizes, by digest. Whether their bytes are right is
// for others to check.
func (f *Folder) Blobs() (map[string]int64, error) {
	entries, err := os.ReadDir(filepath.Join(f.dir, "blobs"))
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	blobs := make(map[string]int64, len(entries))
	for _, e := range entries {
		digest, ok := manifest.CutDigest(e.Name())
		if !ok {
			continue // a part of one that is being pulled
		}
		info, err := os.Stat(filepath.Join(f.dir, "blobs", e.Name())) // it may be a link to another disk
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		if info.Mode().IsRegular() {
			blobs[digest] = info.Size()
		}
	}
	return blobs, nil
}

// OpenBlob opens a blob for reading.
func (f *Folder) OpenBlob(digest string) (*os.File, error) {
	if !manifest.IsDigest(digest) {
		return nil, fmt.Errorf("open blob: %q is no digest", digest)
	}
	file, err := os.Open(filepath.Join(f.dir, "blobs", "sha256-"+digest))
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return file, nil
}
