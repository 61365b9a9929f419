package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// balance plans what is loaded of a placed model: everywhere when it is to be, else on one node fewer while nobody
// asks for it. A node that is busy lets nothing go, nor does one whose owner has it keep the model loaded.
func (s *survey) balance(key string, w cluster.Wanted) {
	loaded, stored := s.serving(key, w.Digest)
	if w.Preload {
		for _, r := range stored {
			if s.fits(r.Node, w.Digest) {
				s.act(Action{Kind: Load, Node: r.Node.ID, Name: r.Model.Name, Digest: w.Digest, Why: "it is to be kept loaded wherever it is held"})
			}
		}
		return
	}
	loaded = slices.DeleteFunc(loaded, func(r cluster.Replica) bool { return !sound(r.Node) })
	if len(loaded) < 2 || s.demand[key] > 0 || !s.settled() || s.running[work{Load, key}] > 0 || s.running[work{Unload, key}] > 0 {
		return
	}
	slices.SortStableFunc(loaded, func(a, b cluster.Replica) int { // who is short of memory first
		return cmp.Or(cmp.Compare(a.Node.Memory.Free, b.Node.Memory.Free), cmp.Compare(a.Node.ID, b.Node.ID))
	})
	for _, r := range loaded {
		if slices.Contains(r.Node.Preload, key) || r.Node.Slots.Busy > 0 { // one that begins to be asked is in no demand yet
			continue
		}
		if r.Loaded.ExpiresAt.Sub(s.in.Now) > lettingGo && s.act(Action{Kind: Unload, Node: r.Node.ID, Name: r.Model.Name, Digest: w.Digest,
			Why: fmt.Sprintf("nobody asks for it, and it is loaded on %d nodes", len(loaded))}) {
			return
		}
	}
}

// spread plans one more node that loads a hot model, whoever placed it. One that is loaded nowhere is loaded by its
// first request.
func (s *survey) spread() {
	for _, key := range slices.Sorted(maps.Keys(s.demand)) {
		w := s.in.State.Models[key]
		digest := w.Digest
		if digest == "" && w.Deleted == nil {
			digest = s.in.View.ChosenDigest(key, "/api/chat")
		}
		if digest == "" || s.running[work{Load, key}] > 0 || s.running[work{Unload, key}] > 0 {
			continue
		}
		loaded, stored := s.serving(key, digest)
		slots := 0
		for _, r := range loaded {
			slots += max(1, r.Node.Slots.Total)
		}
		if len(loaded) == 0 || s.demand[key] <= hot*float64(slots) {
			continue
		}
		slices.SortStableFunc(stored, func(a, b cluster.Replica) int { // the least busy first
			return cmp.Or(cmp.Compare(a.Node.Slots.Busy*max(1, b.Node.Slots.Total), b.Node.Slots.Busy*max(1, a.Node.Slots.Total)),
				cmp.Compare(len(a.Node.Loaded), len(b.Node.Loaded)), cmp.Compare(b.Node.Memory.Free, a.Node.Memory.Free), cmp.Compare(a.Node.ID, b.Node.ID))
		})
		for _, r := range stored {
			if s.fits(r.Node, digest) && s.act(Action{Kind: Load, Node: r.Node.ID, Name: r.Model.Name, Digest: digest,
				Why: fmt.Sprintf("%.1f requests at a time, and %d slots where it is loaded", s.demand[key], slots)}) {
				break
			}
		}
	}
}

// serving returns the replicas with the digest that clients' requests may go to: those that are loaded, and those
// that could be.
func (s *survey) serving(key, digest string) (loaded, stored []cluster.Replica) {
	for _, r := range s.in.View.Replicas(key) {
		switch {
		case r.Model.Digest != digest || r.Model.Damaged || !r.Node.Serves() || s.removing[pair{r.Node.ID, key}]:
		case r.Loaded != nil && (r.Loaded.Digest == digest || r.Loaded.Digest == ""):
			loaded = append(loaded, r)
		case sound(r.Node):
			stored = append(stored, r)
		}
	}
	return loaded, stored
}

// fits tells whether a model finds memory on a node beside what is loaded.
func (s *survey) fits(n *cluster.Node, digest string) bool {
	return n.Memory.Free == 0 || s.toLoad(digest) <= n.Memory.Free-s.memory[n.ID]
}
