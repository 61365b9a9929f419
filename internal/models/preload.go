package models

import (
	"context"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

const (
	preloadEvery = time.Second
	steadyFor    = time.Minute          // what stays loaded for so long has not failed
	forEver      = 365 * 24 * time.Hour // what an engine means to keep for longer
)

// preloading is what has been done to keep a model loaded.
type preloading struct {
	done  int       // how often, since it last was steady
	until time.Time // when the next time may be
	since time.Time // when it began to be loaded; zero: it is not
}

// Preload returns the models that are configured to be kept loaded, by cluster.CanonicalModel. It is never changed.
func (m *Models) Preload() []string { return m.preload }

// canonicals are the names that stand for some, sorted and each once.
func canonicals(names []string) []string {
	var list []string
	for _, name := range names {
		list = append(list, cluster.CanonicalModel(name))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// keepLoaded keeps the configured models loaded whenever the engine holds them and may be used, one at a time, until ctx
// ends. What cannot be loaded, or does not stay because others need its memory, is tried less and less often.
func (m *Models) keepLoaded(ctx context.Context) {
	if len(m.preload) == 0 {
		return
	}
	done := map[string]*preloading{}
	for _, name := range m.preload {
		done[name] = &preloading{}
	}
	ticker := time.NewTicker(preloadEvery)
	defer ticker.Stop()
	for {
		for _, name := range m.preload {
			m.keepOneLoaded(ctx, name, done[name])
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// keepOneLoaded has a model loaded if it is not, or not for ever.
func (m *Models) keepOneLoaded(ctx context.Context, name string, p *preloading) {
	self, now := m.deps.View().SelfNode(), m.deps.Now()
	if self == nil || !self.Serves() || self.Engine.Kind != cluster.Ollama {
		return // an engine that starts anew has nothing loaded
	}
	held, holds := self.Model(name)
	if !holds {
		*p = preloading{}
		return
	}
	loaded, is := self.LoadedModel(name)
	if is && loaded.ExpiresAt.Sub(now) > forEver {
		if p.since.IsZero() {
			p.since = now
		}
		if now.Sub(p.since) >= steadyFor {
			p.done = 0
		}
		return
	}
	p.since = time.Time{}
	if now.Before(p.until) {
		return
	}
	m.deps.Log.Info("model is loaded, to be kept so", "model", held.Name, "loaded", is)
	err := m.keep(ctx, m.deps.Self, held.Name, true)
	m.deps.Refresh(ctx)
	wait := backoff(p.done)
	p.done++
	p.until = m.deps.Now().Add(wait)
	if err != nil && ctx.Err() == nil {
		m.deps.Log.Warn("cannot load the model that is to be kept loaded; it is tried again", "model", held.Name, "err", err, "in", wait)
	}
}
