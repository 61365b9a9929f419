package models

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// awayFile has the names that a repair deletes, until they are back: a crash between does not lose them.
const awayFile = "away.json"

// away is a name that a repair deleted, and that comes back.
type away struct {
	FetchRequest
	At time.Time `json:"at"`
}

// repairs is what is known of damaged blobs. But for the channel it lies under the lock of Models.
type repairs struct {
	kick    chan struct{}
	unread  map[string]int          // what could not be read, and how many checks in a row that was so
	asked   map[string]bool         // blobs whose repair somebody waits for
	failed  map[string]failedRepair // by blob
	away    []away
	back    bool            // they have been deleted, and come back
	fetches []cluster.Fetch // models that are repaired now
	blobs   map[string]bool // theirs, which stay in the spool
	changed chan struct{}   // closed when the outcome of a repair is known, or a blob is whole again
}

// failedRepair is a repair that could not be made, and is let alone for a while.
type failedRepair struct {
	err   error
	times int
	until time.Time
}

func newRepairs() repairs {
	return repairs{kick: make(chan struct{}, 1), unread: map[string]int{}, asked: map[string]bool{}, failed: map[string]failedRepair{}, changed: make(chan struct{})}
}

// nudge has damaged blobs looked at now.
func (r *repairs) nudge() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *repairs) change() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *repairs) needs(blob string) bool { return r.blobs[blob] }

func (r *repairs) isAway(model string) bool {
	return slices.ContainsFunc(r.away, func(a away) bool { return a.Digest == model })
}

// tell adds the models that are repaired to those that are fetched: nobody needs to do anything about them.
func (r *repairs) tell(fetches []cluster.Fetch) []cluster.Fetch {
	for _, f := range r.fetches {
		if !slices.ContainsFunc(fetches, func(o cluster.Fetch) bool { return o.Name == f.Name && o.Digest == f.Digest }) {
			fetches = append(fetches, f)
		}
	}
	return fetches
}

func (m *Models) isAway(model string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.repairs.isAway(model)
}

// beginRepair tells what is repaired, and keeps its blobs in the spool.
func (m *Models) beginRepair(ctx context.Context, names []FetchRequest, blobs []manifest.Blob) {
	m.mu.Lock()
	m.repairs.fetches, m.repairs.blobs = told(names), map[string]bool{}
	for _, b := range blobs {
		m.repairs.blobs[b.Digest] = true
	}
	m.mu.Unlock()
	m.tell(ctx)
}

// endRepair lets go of what is not under way any more.
func (m *Models) endRepair(ctx context.Context) {
	m.mu.Lock()
	for hex := range m.repairs.blobs {
		m.used[hex] = m.deps.Now()
	}
	m.repairs.fetches, m.repairs.blobs = nil, nil
	m.mu.Unlock()
	m.tell(ctx)
	m.Look()
}

// setAway remembers names that are about to be deleted.
func (m *Models) setAway(names []FetchRequest, at time.Time) error {
	var list []away
	for _, name := range names {
		list = append(list, away{name, at})
	}
	if err := m.writeAway(list); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.repairs.away, m.repairs.back = list, false
	return nil
}

// writeAway writes the file, so that it survives a loss of power.
func (m *Models) writeAway(list []away) error {
	file := filepath.Join(m.deps.DataDir, spoolDir, awayFile)
	if len(list) == 0 {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget names that are back: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("remember names: %w", err)
	}
	f, err := os.Create(file + ".new")
	if err != nil {
		return fmt.Errorf("remember names: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err == nil {
		err = blob.SyncFolder(filepath.Dir(file))
	}
	if err != nil {
		return fmt.Errorf("remember names: %w", err)
	}
	return nil
}

// loadAway reads what a repair that was broken off has deleted.
func (m *Models) loadAway() error {
	data, err := os.ReadFile(filepath.Join(m.deps.DataDir, spoolDir, awayFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var list []away
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		return fmt.Errorf("read names that a repair has deleted: %w: move the file away to give them up", err)
	}
	m.repairs.away, m.repairs.blobs = list, map[string]bool{}
	for _, a := range list {
		m.repairs.fetches = append(m.repairs.fetches, told([]FetchRequest{a.FetchRequest})...)
		if k, ok := m.own(a.Digest); ok {
			for _, b := range k.Blobs {
				m.repairs.blobs[b.Digest] = true
			}
		}
	}
	return nil
}

// bringBack installs the names again that a repair has deleted.
func (m *Models) bringBack(ctx context.Context) error {
	for {
		m.mu.Lock()
		list := m.repairs.away
		if len(list) > 0 && !m.repairs.back {
			m.repairs.back = true
			m.repairs.change() // who waits to fetch one of them may go on
		}
		m.mu.Unlock()
		if len(list) == 0 {
			return nil
		}
		models, isOllama := m.deps.EngineModels()
		if !isOllama {
			return ErrNoEngine
		}
		a, key := list[0], cluster.CanonicalModel(list[0].Name)
		deleted := m.deps.State().Models[key].Deleted
		unwanted := deleted != nil && deleted.After(a.At) || slices.ContainsFunc(models, func(model cluster.Model) bool {
			return cluster.CanonicalModel(model.Name) == key && model.Digest != a.Digest // somebody has given the name to another one
		})
		if !unwanted {
			err := m.Fetch(ctx, a.FetchRequest, nil)
			if err != nil && !errors.Is(err, errDeleted) { // who cancels it does not want the model deleted
				return err
			}
		}
		if err := m.writeAway(list[1:]); err != nil {
			return err
		}
		m.mu.Lock()
		m.repairs.away = list[1:]
		m.mu.Unlock()
		if len(list) == 1 {
			m.endRepair(ctx)
		}
	}
}
