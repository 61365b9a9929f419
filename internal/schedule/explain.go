package schedule

import (
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Explain returns what a choice for the request would be made of now: every replica, whether it can
// serve it, and the terms of its score. Nothing is lent.
func (s *Scheduler) Explain(r *cluster.Request) cluster.Explanation {
	v := s.deps.View()
	e := cluster.Explanation{Model: r.Model, Policy: string(s.cfg.Policy), Candidates: []cluster.Candidate{}, Waiting: s.Length()}
	digest := v.ChosenDigest(r.Key(), r.Path)
	fit, _ := s.candidates(v, r, nil, 0, nil)
	if len(fit) > 0 {
		e.Chosen = s.choose(fit, r).node.Name
	}
	replicas := v.Replicas(r.Key())
	typical := s.typical(replicas, r)
	for _, replica := range replicas {
		c := s.weigh(v, replica, r, typical, 0)
		k := c.pair.known.Load()
		why := s.unfit(replica, r, nil, digest)
		if why == notServing && c.node.Unavailable != "" {
			why = "its owner keeps it: " + c.node.Unavailable
		}
		e.Candidates = append(e.Candidates, cluster.Candidate{
			Node: c.node.Name, Why: why, Loaded: replica.Loaded != nil,
			Fits: k.fits(replica.Loaded, r, int(c.pair.context.Load())),
			Busy: c.busy, Slots: c.limit, Ejected: c.ejected.String(),
			Score: c.score.String(), Wait: c.terms.Wait.String(), Load: c.terms.Load.String(), Prefill: c.terms.Prefill.String(),
			Link: c.terms.Link.String(), Risk: c.terms.Risk, PromptTokens: k.promptTokens(r), CachedTokens: c.terms.Cached,
			Learned: cluster.Learned{Load: k.load.String(), Prefill: k.prefill, Gap: k.gap.Round(time.Microsecond).String(), Output: k.output},
		})
	}
	return e
}
