package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// bury removes what is left of a model that was deleted, wherever it is older than that.
func (s *survey) bury(key string, deleted time.Time) {
	for _, r := range s.in.View.Replicas(key) {
		if managed(r) && sound(r.Node) && r.Model.ModifiedAt.Before(deleted) {
			s.act(Action{Kind: Remove, Node: r.Node.ID, Name: r.Model.Name, Digest: r.Model.Of(),
				Why: "the model was deleted on " + deleted.UTC().Format(time.RFC3339)})
		}
	}
}

// replicate plans what brings a model's replicas to their number, digest and place.
func (s *survey) replicate(key string, w cluster.Wanted) {
	if s.right(key, w) {
		return
	}
	chosen, all := s.choose(key, w)
	s.fill(key, w, chosen, all)
	s.trim(key, w, chosen, all)
}

// right tells whether the replicas are exactly those that there should be, as nearly always: then no other node
// need be looked at.
func (s *survey) right(key string, w cluster.Wanted) bool {
	replicas := s.in.View.Replicas(key)
	for _, r := range replicas {
		if !managed(r) || r.Node.Condition == cluster.Dead || !active(r.Node) || s.lost(r.Node) ||
			r.Model.Of() != w.Digest || r.Model.Damaged || s.removing[pair{r.Node.ID, key}] || barred(r.Node, w) != "" {
			return false
		}
	}
	return w.Replicas != cluster.EveryNode && len(replicas) == count(w)
}

// fill plans the fetches of the chosen nodes that lack the model.
func (s *survey) fill(key string, w cluster.Wanted, chosen, all []*candidate) {
	have, replacing := 0, false
	for _, c := range all {
		if c.tier == holds && c.why == "" {
			have++
		}
		replacing = replacing || c.tier == coming && c.replica != nil
	}
	sources, suspect := s.sources(w.Digest)
	if len(sources) == 0 && (suspect || s.underway(w.Digest)) {
		return // it comes from upstream once; from the first node that has it then
	}
	for _, c := range chosen {
		n := c.node
		switch {
		case c.tier == holds, c.tier == coming, n.Condition != cluster.Alive, s.fetches[n.ID] >= fetchesAt:
			continue
		case c.tier == differs && replacing:
			continue // one by one, so that the name is always answered for
		case len(sources) == 1 && !s.alone[sources[0].ID][w.Digest] && len(s.alone[sources[0].ID]) >= modelsFrom:
			continue
		}
		why := fmt.Sprintf("replicas there: %d, wanted: %s", have, w.Replicas)
		if c.tier == differs && c.replica.Model.Of() == w.Digest {
			why = "a file of its replica is damaged"
		} else if c.tier == differs {
			why = fmt.Sprintf("holds digest %.12s, wanted is %.12s", c.replica.Model.Of(), w.Digest)
		}
		if s.act(Action{Kind: Fetch, Node: n.ID, Name: w.Name, Digest: w.Digest, From: nearest(n, sources, s.fetches), Why: why}) {
			replacing = replacing || c.tier == differs
			if len(sources) == 0 {
				return
			}
		}
	}
}

// underway tells whether a digest is being fetched anywhere.
func (s *survey) underway(digest string) bool {
	for _, d := range s.fetching {
		if d == digest {
			return true
		}
	}
	return false
}

// nearest orders the sources for a node.
func nearest(to *cluster.Node, sources []*cluster.Node, fetches map[cluster.NodeID]int) []cluster.NodeID {
	at := domainOf(to)
	rank := func(n *cluster.Node) (self, ready, near int) {
		if n.ID == to.ID {
			self = 1
		}
		if n.Serves() {
			ready = 1
		}
		return self, ready, at.near(domainOf(n))
	}
	sorted := slices.SortedFunc(slices.Values(sources), func(a, b *cluster.Node) int {
		selfA, readyA, nearA := rank(a)
		selfB, readyB, nearB := rank(b)
		return cmp.Or(cmp.Compare(selfB, selfA), cmp.Compare(readyB, readyA), cmp.Compare(nearB, nearA),
			cmp.Compare(a.Slots.Busy, b.Slots.Busy), cmp.Compare(fetches[a.ID], fetches[b.ID]), cmp.Compare(a.ID, b.ID))
	})
	ids := make([]cluster.NodeID, 0, len(sorted))
	for _, n := range sorted {
		ids = append(ids, n.ID)
	}
	return ids
}

// trim plans the removal of one replica that is too many, or where it may not be: the worst of them, once as
// many as are wanted lie where they should and their nodes are alive.
func (s *survey) trim(key string, w cluster.Wanted, chosen, all []*candidate) {
	if w.Pin || len(chosen) < count(w) || !s.settled() || s.running[work{Fetch, key}] > 0 || s.running[work{Remove, key}] > 0 {
		return
	}
	keeps, whole := map[*candidate]bool{}, false
	near := domains{}
	for _, c := range chosen {
		if c.tier != holds || !sound(c.node) {
			return
		}
		keeps[c], whole = true, whole || ollama(c.node)
		near.add(c.domain)
	}
	var goes *candidate
	for _, c := range all {
		if c.replica == nil || keeps[c] || !sound(c.node) || !active(c.node) || w.Replicas == cluster.EveryNode && !c.misplaced {
			continue
		}
		if ollama(c.node) && !whole { // weights that somebody was given are not the model
			continue
		}
		if s.busy[pair{c.node.ID, key}] || s.failed[attempt{pair{c.node.ID, key}, Remove, c.replica.Model.Of()}] {
			continue
		}
		if goes == nil || cmp.Or(cmp.Compare(misplaced(c), misplaced(goes)), near.compare(c, goes)) > 0 {
			goes = c
		}
	}
	if goes == nil {
		return
	}
	why := fmt.Sprintf("replicas wanted: %s, kept on other nodes: %d", w.Replicas, len(chosen))
	switch {
	case goes.misplaced:
		why = goes.why + "; " + why
	case goes.tier == differs && goes.replica.Model.Digest == w.Digest:
		why = "a file of it is damaged; " + why
	case goes.tier == differs:
		why = fmt.Sprintf("holds digest %.12s, wanted is %.12s; %s", goes.replica.Model.Of(), w.Digest, why)
	}
	s.act(Action{Kind: Remove, Node: goes.node.ID, Name: goes.replica.Model.Name, Digest: goes.replica.Model.Of(), Why: why})
}

func misplaced(c *candidate) int {
	if c.misplaced {
		return 1
	}
	return 0
}
