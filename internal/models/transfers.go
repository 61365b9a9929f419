package models

import (
	"cmp"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Cancel ends a fetch of this node; false: there is no such one.
func (m *Models) Cancel(id string) (FetchRequest, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.jobs {
		if r.id == id {
			r.cancel(ErrCancelled)
			return r.request, true
		}
	}
	return FetchRequest{}, false
}

// Transfers are the models that are on their way to this node.
func (m *Models) Transfers() []Transfer {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Transfer, 0, len(m.jobs))
	for _, r := range m.jobs {
		t := Transfer{ID: r.id, Model: r.request.Name, Digest: r.digest, Since: r.since, Waiting: !r.started, Repair: m.repairs.isAway(r.digest)}
		if r.manifest != nil {
			t.Size = r.manifest.Size()
			t.Have = t.Size
			for _, digest := range r.missing {
				b, _ := r.manifest.Blob(digest)
				t.Have -= b.Size
			}
		}
		sources := map[cluster.NodeID]*Source{}
		for _, s := range r.supplies {
			switch {
			case s.upstream:
				t.Upstream = true
				t.Have += s.got
				t.Rate += float64(s.got) / max(m.deps.Now().Sub(s.since).Seconds(), 0.1)
			case s.transfer != nil:
				p := s.transfer.Progress()
				t.Have += p.Have
				t.Rate += p.Rate
				for _, from := range p.Sources {
					if sources[from.Node] == nil {
						sources[from.Node] = &Source{Node: from.Node}
					}
					sources[from.Node].add(from.Bytes, from.Rate, from.Connected, from.Banned, from.Failure)
				}
			case s.partial != nil:
				t.Have += s.size
			}
		}
		if t.Rate > 0 {
			t.ETA = time.Duration(float64(t.Size-t.Have) / t.Rate * float64(time.Second))
		}
		for _, from := range sources {
			t.Sources = append(t.Sources, *from)
		}
		slices.SortFunc(t.Sources, func(a, b Source) int { return cmp.Compare(a.Node, b.Node) })
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b Transfer) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	return all
}

// Transfer is a model on its way to a node.
type Transfer struct {
	ID       string
	Model    string
	Digest   string
	Waiting  bool  // others are fetched before it
	Repair   bool  // it brings back what a repair deleted
	Size     int64 // bytes of the model; 0 until its manifest is here
	Have     int64
	Rate     float64 // bytes a second
	ETA      time.Duration
	Upstream bool // some of it comes from the registry
	Sources  []Source
	Since    time.Time
}

// Source is a node from which a Transfer gets something.
type Source struct {
	Node      cluster.NodeID
	Bytes     int64
	Rate      float64
	Connected bool
	Banned    bool
	Failure   string
}

func (s *Source) add(bytes int64, rate float64, connected, banned bool, failure string) {
	s.Bytes += bytes
	s.Rate += rate
	s.Connected, s.Banned = s.Connected || connected, s.Banned || banned
	s.Failure = cmp.Or(s.Failure, failure)
}
