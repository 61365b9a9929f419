package models

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// placed is a file that this node put into the folder, or is about to.
type placed struct {
	Model  string `json:"model"`  // the name that the cluster calls it by
	Digest string `json:"digest"` // the model's
	Blob   string `json:"blob"`
	Size   int64  `json:"size"`
	File   string `json:"file"` // in the folder
	// Modified is the file's time, by which it is known that it still is ours; the zero time: it may not be there yet.
	Modified time.Time `json:"modified"`
	// Passing is set while the file is on its way in or out: nobody is told of it.
	Passing bool `json:"passing,omitempty"`
	// Checked is when its bytes were last seen to be the blob's; Damaged: they were not.
	Checked time.Time `json:"checked"`
	Damaged bool      `json:"damaged,omitempty"`
}

// loadPlaced reads the record of what was put into the folder, and drops from it what is not there any more.
func (m *Models) loadPlaced() error {
	m.placed = map[string]placed{}
	if m.deps.Files == nil {
		return nil
	}
	data, err := os.ReadFile(m.placedPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read which models are ours: %w", err)
	}
	var all []placed
	if err == nil {
		if err := json.Unmarshal(data, &all); err != nil {
			return fmt.Errorf("read which models are ours: %s: %w", m.placedPath(), err)
		}
	}
	for _, p := range all {
		if m.isOurs(p) {
			m.placed[cluster.CanonicalModel(p.Model)] = p
		}
	}
	left, err := filepath.Glob(filepath.Join(m.deps.Files.Dir, passingFile+"*"))
	for _, file := range left {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

func (m *Models) placedPath() string { return filepath.Join(m.deps.DataDir, spoolDir, placedFile) }

// note changes the record of a model; nil: there is none any more.
func (m *Models) note(key string, p *placed) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p == nil {
		delete(m.placed, key)
	} else {
		m.placed[key] = *p
	}
	all := make([]placed, 0, len(m.placed))
	for _, p := range m.placed {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b placed) int { return strings.Compare(a.Model, b.Model) })
	data, err := json.Marshal(all)
	if err == nil {
		err = os.WriteFile(m.placedPath()+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(m.placedPath()+".new", m.placedPath())
	}
	if err != nil {
		return fmt.Errorf("note which models are ours: %w", err)
	}
	return nil
}

func (m *Models) placedAs(key string) (placed, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.placed[key]
	return p, ok
}

// isOurs tells whether the file is there and still the one that was put there.
func (m *Models) isOurs(p placed) bool {
	info, err := os.Lstat(filepath.Join(m.deps.Files.Dir, p.File))
	return err == nil && info.Mode().IsRegular() && info.Size() == p.Size && (p.Modified.IsZero() || info.ModTime().Equal(p.Modified))
}

// files is what is told of the files, by what the engine calls them. The caller holds the lock.
func (m *Models) files() map[string]cluster.Model {
	files := make(map[string]cluster.Model, len(m.placed))
	for _, p := range m.placed {
		of := cluster.Model{}
		if !p.Passing {
			of = cluster.Model{Name: p.Model, Weights: p.Digest, Size: p.Size, ModifiedAt: p.Modified.UTC(), Damaged: p.Damaged}
		}
		files[strings.TrimSuffix(p.File, modelFile)] = of
	}
	return files
}
