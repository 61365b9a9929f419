package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Replicas is a wanted number of replicas: at least 1, or EveryNode. On the wire and in configurations
// a number or "all".
type Replicas int

// EveryNode wants a replica on each node that can hold one.
const EveryNode Replicas = -1

// String is the number, or "all".
func (r Replicas) String() string {
	if r == EveryNode {
		return "all"
	}
	return strconv.Itoa(int(r))
}

// ParseReplicas reads what String writes: a number from 1 on, or "all".
func ParseReplicas(text string) (Replicas, error) {
	if text == "all" {
		return EveryNode, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxReplicas {
		return 0, fmt.Errorf("number of replicas is %.20q: give a number from 1 to %d, or all", text, maxReplicas)
	}
	return Replicas(n), nil
}

const maxReplicas = 10_000

// MarshalJSON writes a number, or "all".
func (r Replicas) MarshalJSON() ([]byte, error) {
	if r == EveryNode {
		return []byte(`"all"`), nil
	}
	return strconv.AppendInt(nil, int64(r), 10), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Replicas) UnmarshalJSON(data []byte) (err error) {
	*r, err = ParseReplicas(strings.Trim(string(data), `"`))
	return err
}

// MarshalYAML writes a number, or all.
func (r Replicas) MarshalYAML() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalYAML reads what MarshalYAML writes.
func (r *Replicas) UnmarshalYAML(data []byte) (err error) {
	*r, err = ParseReplicas(strings.Trim(strings.TrimSpace(string(data)), `"'`))
	return err
}

// Of is how many that are of so many nodes.
func (r Replicas) Of(nodes int) int {
	if r == EveryNode {
		return nodes
	}
	return int(r)
}

// Wanted is what the cluster wants of a model.
type Wanted struct {
	// Name is the model's, as it was first written.
	Name string `json:"name"`
	// Digest is the manifest's that every replica is to have, 64 hexadecimal digits.
	Digest   string   `json:"digest"`
	Replicas Replicas `json:"replicas"`
	// Nodes are the only ones that may hold it; none: all may. Labels must be those of a node that holds it.
	Nodes  []NodeID          `json:"nodes,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Pin: replicas that are there are not given up, however many there are.
	Pin bool `json:"pin,omitempty"`
	// Preload: it is kept loaded wherever it is held.
	Preload bool `json:"preload,omitempty"`
	// Deleted is when it was deleted; nil for one that is wanted. What a node that was away still holds from
	// before then is deleted when it comes back.
	Deleted *time.Time `json:"deleted,omitempty"`
	// Version is the State's when this was last changed.
	Version uint64 `json:"version"`
}

// Root is what the cluster agrees on about a blob: the hash of the list of its pieces, so that each piece can
// be verified, whoever sends it.
type Root struct {
	Hash string `json:"hash"` // 64 hexadecimal digits
	Size int64  `json:"size"` // bytes of the blob
}

// Place says what is wanted of a model; nil leaves what was wanted. The first Place of a model, or of one that
// was deleted, names a digest.
type Place struct {
	Model    string             `json:"model"` // a name in any spelling
	Digest   *string            `json:"digest,omitempty"`
	Replicas *Replicas          `json:"replicas,omitempty"`
	Nodes    *[]NodeID          `json:"nodes,omitempty"`
	Labels   *map[string]string `json:"labels,omitempty"`
	Pin      *bool              `json:"pin,omitempty"`
	Preload  *bool              `json:"preload,omitempty"`
	// Seen is the Version of the Wanted that the caller decided upon; 0: whatever it is now. When another is wanted, that is
	// an error, unless nothing would change.
	Seen uint64 `json:"seen,omitempty"`
}

// Forget says that a model is wanted no more. With Kept it is not deleted either: nobody cares.
type Forget struct {
	Model string `json:"model"`
	Kept  bool   `json:"kept,omitempty"`
	// Seen is the Version of the Wanted that the caller decided upon; 0: whatever it is now.
	Seen uint64 `json:"seen,omitempty"`
}

// SetRoot agrees on the root of a blob.
type SetRoot struct {
	Blob string `json:"blob"` // its digest, 64 hexadecimal digits
	Root Root   `json:"root"`
	// Instead is the root that its holder found to be wrong; "": there is none yet.
	Instead string `json:"instead,omitempty"`
}

const (
	maxWanted    = 20_000 // deleted ones too, of which the oldest make room
	maxRoots     = 50_000
	maxModelName = 600
	maxLabels    = 32
)

func (p *Place) bad() string {
	switch {
	case !validModel(p.Model):
		return "the model's name is malformed"
	case p.Digest != nil && !validDigest(*p.Digest):
		return "the model's digest is malformed"
	case p.Replicas != nil && *p.Replicas != EveryNode && (*p.Replicas < 1 || *p.Replicas > maxReplicas):
		return "the number of replicas is out of range"
	case p.Nodes != nil && (len(*p.Nodes) > 1000 || slices.ContainsFunc(*p.Nodes, func(id NodeID) bool { return !validID(string(id)) })):
		return "a node's id is malformed, or there are too many"
	case p.Labels != nil && !validLabels(*p.Labels):
		return "the labels are malformed"
	}
	return ""
}

func validModel(name string) bool {
	if len(name) > maxModelName || CanonicalModel(name) == "" {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

func validDigest(d string) bool {
	return len(d) == 64 && strings.Trim(d, "0123456789abcdef") == ""
}

func validLabels(labels map[string]string) bool {
	for k, v := range labels {
		if k == "" || len(k) > 128 || len(v) > 256 {
			return false
		}
	}
	return len(labels) <= maxLabels
}

func (s *State) place(p *Place) (*State, error) {
	key := CanonicalModel(p.Model)
	w, known := s.Models[key]
	var changed error
	if p.Seen != 0 && p.Seen != w.Version {
		changed = fmt.Errorf("place model %s: somebody has placed it otherwise meanwhile; look again: %w", p.Model, ErrChanged)
	}
	if !known || w.Deleted != nil {
		if changed != nil {
			return s, changed
		}
		if p.Digest == nil {
			return s, fmt.Errorf("place model %s: %w; pull it first", p.Model, ErrUnknownModel)
		}
		w = Wanted{Name: p.Model, Replicas: 1}
	}
	old := w
	if p.Digest != nil {
		w.Digest = *p.Digest
	}
	if p.Replicas != nil {
		w.Replicas = *p.Replicas
	}
	if p.Nodes != nil {
		w.Nodes = nil
		for _, id := range *p.Nodes {
			if _, ok := s.Members[id]; !ok {
				return s, fmt.Errorf("place model %s: node %s: %w", p.Model, id, ErrUnknownNode)
			}
			if !slices.Contains(w.Nodes, id) {
				w.Nodes = append(w.Nodes, id)
			}
		}
		slices.Sort(w.Nodes)
	}
	if p.Labels != nil {
		w.Labels = nil
		if len(*p.Labels) > 0 {
			w.Labels = maps.Clone(*p.Labels)
		}
	}
	if p.Pin != nil {
		w.Pin = *p.Pin
	}
	if p.Preload != nil {
		w.Preload = *p.Preload
	}
	if w.Nodes != nil && w.Replicas.Of(len(w.Nodes)) > len(w.Nodes) {
		return s, fmt.Errorf("place model %s: %d replicas are wanted, and only %d nodes may hold it: name more nodes, or want fewer replicas: %w",
			p.Model, w.Replicas, len(w.Nodes), ErrContradiction)
	}
	if known && s.Models[key].Deleted == nil && old.equal(w) {
		return s, nil // also when something else was seen: whose answer was lost tells it again
	}
	if changed != nil {
		return s, changed
	}
	n := s.next()
	w.Version = n.Version
	n.Models = maps.Clone(s.Models)
	if !known && len(n.Models) >= maxWanted && !n.forgetOldest() {
		return s, fmt.Errorf("place model %s: %d models are placed already: %w", p.Model, maxWanted, ErrBadCommand)
	}
	n.Models[key] = w
	return n, nil
}

func (w Wanted) equal(o Wanted) bool {
	return w.Name == o.Name && w.Digest == o.Digest && w.Replicas == o.Replicas && slices.Equal(w.Nodes, o.Nodes) &&
		maps.Equal(w.Labels, o.Labels) && w.Pin == o.Pin && w.Preload == o.Preload
}

// forgetOldest forgets the model that was deleted the longest time ago, of s's own map. False: none was deleted.
func (s *State) forgetOldest() bool {
	oldest := ""
	for key, w := range s.Models {
		if w.Deleted != nil && (oldest == "" || w.Deleted.Before(*s.Models[oldest].Deleted) || w.Deleted.Equal(*s.Models[oldest].Deleted) && key < oldest) {
			oldest = key
		}
	}
	delete(s.Models, oldest)
	return oldest != ""
}

func (s *State) forget(f *Forget, at time.Time) (*State, error) {
	key := CanonicalModel(f.Model)
	w, known := s.Models[key]
	if f.Kept && (!known || w.Deleted != nil) || w.Deleted != nil && !at.After(*w.Deleted) {
		return s, nil
	}
	if f.Seen != 0 && f.Seen != w.Version {
		return s, fmt.Errorf("forget model %s: somebody has placed it otherwise meanwhile; look again: %w", f.Model, ErrChanged)
	}
	n := s.next()
	n.Models = maps.Clone(s.Models)
	if f.Kept {
		delete(n.Models, key)
		return n, nil
	}
	if !known && len(n.Models) >= maxWanted && !n.forgetOldest() {
		return s, fmt.Errorf("forget model %s: %d models are placed: %w", f.Model, maxWanted, ErrBadCommand)
	}
	n.Models[key] = Wanted{Name: f.Model, Replicas: 1, Deleted: &at, Version: n.Version}
	return n, nil
}

func (s *State) setRoot(r *SetRoot) (*State, error) {
	old := s.Roots[r.Blob]
	if old == r.Root {
		return s, nil
	}
	if old.Hash != r.Instead {
		return s, fmt.Errorf("agree on root of blob %s: another is agreed: %w", r.Blob, ErrChanged)
	}
	n := s.next()
	n.Roots = maps.Clone(s.Roots)
	if old.Hash == "" && len(n.Roots) >= maxRoots { // whoever needs the one that goes has it made again
		delete(n.Roots, slices.Min(slices.Collect(maps.Keys(n.Roots))))
	}
	n.Roots[r.Blob] = r.Root
	return n, nil
}

// WantedModel returns what is wanted of a model, by its name in any spelling; false for one that nobody placed
// or that was deleted.
func (s *State) WantedModel(name string) (Wanted, bool) {
	w, ok := s.Models[CanonicalModel(name)]
	return w, ok && w.Deleted == nil
}

// withoutNode returns what is wanted without a node that is removed.
func withoutNode(models map[string]Wanted, id NodeID, version uint64) map[string]Wanted {
	changed := maps.Clone(models)
	for key, w := range models {
		if !slices.Contains(w.Nodes, id) {
			continue
		}
		w.Nodes = slices.DeleteFunc(slices.Clone(w.Nodes), func(other NodeID) bool { return other == id })
		if len(w.Nodes) == 0 {
			w.Nodes = nil // the cluster finds another place
		} else if w.Replicas != EveryNode {
			w.Replicas = min(w.Replicas, Replicas(len(w.Nodes)))
		}
		w.Version = version
		changed[key] = w
	}
	return changed
}
