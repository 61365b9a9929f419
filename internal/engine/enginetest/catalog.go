package enginetest

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

var (
	errNoName   = errors.New("model is required")
	errBadName  = errors.New("invalid model name")
	errNoModel  = errors.New("model not found")
	firstModels = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) // when those of Config were modified
)

// catalog is what models the server holds and has loaded, and its blobs.
type catalog struct {
	kind     Kind
	pullable map[string]Model // nil: any
	folder   *folder          // nil: none

	loading chan struct{} // one load at a time

	mu     sync.Mutex
	models map[string]heldModel // by key
	loaded map[string]*loadedModel
	blobs  map[string]int64 // size by digest
}

type heldModel struct {
	Model
	modified time.Time
	file     string // of its weights; "" outside a folder
}

// loadedModel is a model in memory; it leaves when nothing uses it after expires.
type loadedModel struct {
	Model
	context int
	expires time.Time
	users   int
}

func newCatalog(cfg Config) *catalog {
	c := &catalog{
		kind: cfg.Kind, loading: make(chan struct{}, 1),
		models: map[string]heldModel{}, loaded: map[string]*loadedModel{}, blobs: map[string]int64{},
	}
	for _, m := range cfg.Models {
		c.put(m, firstModels)
	}
	if cfg.Folder != "" && cfg.Kind == KindOllama {
		c.folder = newFolder(cfg)
	}
	if cfg.Pullable != nil {
		c.pullable = map[string]Model{}
		for _, m := range cfg.Pullable {
			c.pullable[c.key(m.Name)] = m
		}
	}
	return c
}

// AddModel makes the server hold m, in place of one with that name.
func (s *Server) AddModel(m Model) { s.catalog.put(m, time.Now()) }

// RemoveModel deletes a model, and unloads it; it says whether the server held it.
func (s *Server) RemoveModel(name string) bool {
	held, _ := s.catalog.remove(name) // it held what it could not delete too
	return held
}

// Models returns the models held, by name.
func (s *Server) Models() []Model {
	var out []Model
	for _, m := range s.catalog.list() {
		out = append(out, m.Model)
	}
	slices.SortFunc(out, func(a, b Model) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Loaded returns the names of the models in memory, sorted.
func (s *Server) Loaded() []string {
	var out []string
	for _, l := range s.catalog.inMemory() {
		out = append(out, l.Name)
	}
	slices.Sort(out)
	return out
}

func (c *catalog) key(name string) string {
	if c.kind != KindOllama {
		return name
	}
	return parseName(name).key()
}

func (c *catalog) put(m Model, now time.Time) {
	m = m.withDefaults(c.kind)
	if c.folder != nil {
		_ = c.folder.remove(m.Name) // mostly there is none
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.models[c.key(m.Name)] = heldModel{Model: m, modified: now}
}

// forget drops what is not in the folder, for a model there that has the name now.
func (c *catalog) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.models, c.key(name))
}

func (c *catalog) remove(name string) (held bool, err error) {
	if c.folder != nil {
		err = c.folder.remove(name)
		held = !errors.Is(err, fs.ErrNotExist)
		if !held {
			err = nil
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := c.key(name)
	if !held {
		_, held = c.models[key]
		delete(c.models, key)
	}
	delete(c.loaded, key)
	return held, err
}

// find returns the model of that name, or errNoName, errBadName or errNoModel.
func (c *catalog) find(name string) (heldModel, error) {
	if name == "" {
		return heldModel{}, errNoName
	}
	if c.kind == KindOllama && !parseName(name).valid() {
		return heldModel{}, errBadName
	}
	if c.folder != nil {
		if m, err := c.folder.find(name); err == nil {
			return c.folder.held(m), nil
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.models[c.key(name)]
	if !ok {
		return m, errNoModel
	}
	return m, nil
}

// list returns the models held, the last modified first.
func (c *catalog) list() []heldModel {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := maps.Clone(c.models)
	if c.folder != nil {
		for _, m := range c.folder.models() {
			all[m.name.key()] = c.folder.held(m)
		}
	}
	out := make([]heldModel, 0, len(all))
	for _, m := range all {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b heldModel) int {
		if n := b.modified.Compare(a.modified); n != 0 {
			return n
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// use returns m loaded with a context of numCtx tokens, after load has brought it in if it was not
// or had another context. Release it after use.
func (c *catalog) use(ctx context.Context, m Model, numCtx int, load func() error) (*loadedModel, error) {
	key := c.key(m.Name)
	if l := c.present(key, m, numCtx); l != nil {
		return l, nil
	}
	select {
	case c.loading <- struct{}{}:
		defer func() { <-c.loading }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l := c.present(key, m, numCtx); l != nil { // another request has loaded it meanwhile
		return l, nil
	}
	if err := load(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &loadedModel{Model: m, context: numCtx, users: 1}
	c.loaded[key] = l
	return l, nil
}

func (c *catalog) present(key string, m Model, numCtx int) *loadedModel {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.loaded[key]
	if l == nil || l.gone(time.Now()) || l.context != numCtx || l.Digest != m.Digest {
		return nil
	}
	l.users++
	return l
}

func (l *loadedModel) gone(now time.Time) bool { return l.users == 0 && !now.Before(l.expires) }

func (c *catalog) release(l *loadedModel, keep time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.users--
	l.expires = time.Now().Add(keep)
}

// unload takes the model out of memory once nothing uses it.
func (c *catalog) unload(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := c.key(name)
	if l := c.loaded[key]; l != nil && l.users == 0 {
		delete(c.loaded, key)
	}
}

// inMemory returns the loaded models, the one that stays longest first.
func (c *catalog) inMemory() []loadedModel {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	var out []loadedModel
	for key, l := range c.loaded {
		if l.gone(now) {
			delete(c.loaded, key)
			continue
		}
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b loadedModel) int {
		if n := b.expires.Compare(a.expires); n != 0 {
			return n
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}
