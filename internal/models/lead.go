package models

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/placement"
)

const (
	planEvery = time.Second

	settleFor = 5 * time.Second // until what was done is told

	firstBackoff = 5 * time.Second
	lastBackoff  = 5 * time.Minute
)

// patience is how long the need for an action must have been seen before it is done: what a node that has just come back
// holds is not known at once, and what is deleted is gone.
func patience(kind placement.Kind) time.Duration {
	switch kind {
	case placement.Remove, placement.Unload:
		return 5 * time.Second
	case placement.Fetch:
		return 2 * time.Second
	}
	return time.Second
}

// about is what an action is about: there is one at a time of each.
type about struct {
	node  cluster.NodeID
	model string // canonical
}

// step is an action without its reasons.
type step struct {
	kind         placement.Kind
	node         cluster.NodeID
	name, digest string
}

// acting is an action that is being done, or has failed and is let alone for a while.
type acting struct {
	action  placement.Action
	running bool
	cancel  context.CancelCauseFunc
	failed  int
	loads   int // how often it was loaded, and did not stay
	until   time.Time
}

// Lead compares what is wanted with what is there and has the difference made, until ctx ends: as long as this node
// leads.
func (m *Models) Lead(ctx context.Context) error {
	fetching := slices.ContainsFunc(m.deps.View().Nodes, func(n *cluster.Node) bool { return n.Condition != cluster.Dead && len(n.Fetches) > 0 })
	m.mu.Lock()
	m.leading, m.actions = ctx, map[about]*acting{}
	m.leases, m.hearing = map[string]lease{}, time.Time{}
	if fetching {
		m.hearing = m.deps.Now().Add(hearFor)
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.leading = nil
		m.mu.Unlock()
	}()
	seen := map[step]time.Time{}
	since, down := m.deps.Now(), map[cluster.NodeID]time.Time{}
	ticker := time.NewTicker(planEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		m.abandon()
		m.plan(since, down, seen)
	}
}

// abandon ends the fetches of what is wanted no more.
func (m *Models) abandon() {
	var running []acting
	m.mu.Lock()
	for _, a := range m.actions {
		if a.running && a.action.Kind == placement.Fetch {
			running = append(running, *a)
		}
	}
	m.mu.Unlock()
	state := m.deps.State() // in which all that they began for is agreed
	for _, a := range running {
		if w, wanted := state.WantedModel(a.action.Name); !wanted || w.Digest != a.action.Digest {
			a.cancel(errUnwanted)
		}
	}
}

// plan begins with what has been needed for long enough.
func (m *Models) plan(since time.Time, down map[cluster.NodeID]time.Time, seen map[step]time.Time) {
	view, now := m.deps.View(), m.deps.Now()
	if view.Leader != m.deps.Self || !view.Quorum {
		return
	}
	for _, n := range view.Nodes {
		if n.Condition != cluster.Dead && n.ID != m.deps.Self && n.Boot == 0 {
			return // it has not yet told what it holds
		}
		if n.Engine == nil || n.Engine.Condition == cluster.EngineReady {
			delete(down, n.ID)
		} else if down[n.ID].IsZero() {
			down[n.ID] = now
		}
	}
	in := placement.Input{View: view, State: m.deps.State(), Now: now, Since: since, Down: down}
	m.mu.Lock()
	for what, a := range m.actions {
		switch {
		case a.running, a.failed == 0 && now.Sub(a.until) < settleFor:
			in.Running = append(in.Running, a.action)
		case now.Before(a.until), a.unsteady(now):
			in.Failed = append(in.Failed, a.action)
		case now.Sub(a.until) > lastBackoff:
			delete(m.actions, what)
		}
	}
	m.mu.Unlock()
	planned := map[step]bool{}
	for _, plan := range placement.Plan(m.placing(), in) {
		key := step{plan.Kind, plan.Node, plan.Name, plan.Digest}
		planned[key] = true
		first, was := seen[key]
		if !was {
			seen[key], first = now, now
		}
		if now.Sub(first) >= patience(plan.Kind) {
			m.act(plan, "")
		}
	}
	for key := range seen {
		if !planned[key] {
			delete(seen, key)
		}
	}
}

// unsteady tells whether what was loaded is not to be loaded again yet, if it does not stay: an engine with too little
// memory lets it go for another one, and would go on so.
func (a *acting) unsteady(now time.Time) bool {
	return a.action.Kind == placement.Load && a.failed == 0 && now.Sub(a.until) < backoff(a.loads)
}

// backoff is how long to wait after so many failures before the last one.
func backoff(failed int) time.Duration { return min(firstBackoff<<min(failed, 10), lastBackoff) }

// underWay are the actions that are being done: what of them the nodes have not told yet counts when the next is chosen.
func (m *Models) underWay() (actions []placement.Action) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.actions {
		if a.running {
			actions = append(actions, a.action)
		}
	}
	return actions
}

// act does an action, if this node leads and nothing is being done about the same. A node whose manifest the model's is may
// be named.
func (m *Models) act(a placement.Action, from cluster.NodeID) {
	what := about{a.Node, cluster.CanonicalModel(a.Name)}
	m.mu.Lock()
	defer m.mu.Unlock()
	ctx := m.leading
	if ctx == nil || ctx.Err() != nil || m.run == nil || m.run.Err() != nil {
		return
	}
	now := m.actions[what]
	if now == nil {
		now = &acting{}
		m.actions[what] = now
	}
	if now.running {
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	now.action, now.running, now.cancel = a, true, cancel
	m.work.Go(func() {
		defer cancel(nil)
		err := m.do(ctx, a, from)
		unwanted := errors.Is(err, errUnwanted) || errors.Is(context.Cause(ctx), errUnwanted)
		m.mu.Lock()
		now.running = false
		if unwanted {
			delete(m.actions, what) // it has not failed
		} else if err == nil {
			now.failed = 0
			now.until = m.deps.Now() // what it did is told soon
			now.loads++
			if a.Kind != placement.Load {
				now.loads = 0
			}
		} else {
			now.until = m.deps.Now().Add(backoff(now.failed))
			now.failed++
		}
		m.mu.Unlock()
		if err != nil && !unwanted && ctx.Err() == nil {
			m.deps.Log.Warn("cannot make what is wanted of a model; it is tried again", "what", a.Kind, "model", a.Name, "on", m.nameOf(a.Node), "err", err)
		}
	})
}

// do does an action.
func (m *Models) do(ctx context.Context, a placement.Action, from cluster.NodeID) error {
	m.deps.Log.Info("model is moved", "what", a.Kind, "model", a.Name, "digest", short(a.Digest), "on", m.nameOf(a.Node), "why", a.Why)
	switch a.Kind {
	case placement.Fetch:
		w, wanted := m.deps.State().WantedModel(a.Name)
		if !wanted || w.Digest != a.Digest {
			return errUnwanted // since a moment ago
		}
		return m.fetchOn(ctx, a.Node, FetchRequest{Name: a.Name, Digest: a.Digest, From: from, Version: w.Version}, nil)
	case placement.Remove:
		return m.removeOn(ctx, a.Node, a.Name, a.Digest)
	case placement.Load:
		return m.keep(ctx, a.Node, a.Name, true)
	default:
		return m.keep(ctx, a.Node, a.Name, false)
	}
}

// keep has a node's engine load a model, or let it go.
func (m *Models) keep(ctx context.Context, id cluster.NodeID, name string, load bool) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	keepAlive := any(0)
	if load {
		keepAlive = m.keepAlive(id, name)
	}
	err := m.tellEngine(ctx, id, "/api/generate", map[string]any{"model": name, "keep_alive": keepAlive})
	if load && err != nil && ctx.Err() == nil { // one that embeds does not generate
		err = m.tellEngine(ctx, id, "/api/embed", map[string]any{"model": name, "input": []string{}, "keep_alive": keepAlive})
	}
	return err
}

const (
	loadTimeout = 10 * time.Minute
	hotFor      = "10m" // one that is loaded for its demand
)

// keepAlive is how long a model stays loaded on a node when nobody asks for it.
func (m *Models) keepAlive(id cluster.NodeID, name string) any {
	w, _ := m.deps.State().WantedModel(name)
	n := m.deps.View().Node(id)
	if w.Preload || n != nil && slices.Contains(n.Preload, cluster.CanonicalModel(name)) {
		return -1
	}
	return hotFor
}

// tellEngine sends a request to a node's engine whose answer says nothing.
func (m *Models) tellEngine(ctx context.Context, id cluster.NodeID, route string, body any) error {
	if id != m.deps.Self {
		resp, err := m.send(ctx, id, http.MethodPost, route, body)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxRecord))
		return errors.Join(err, resp.Body.Close())
	}
	return m.install.Do(ctx, route, body)
}
