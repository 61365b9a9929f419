package models

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/install"
)

// loader is an engine that loads models and lets them go, with the node beside it and its picture of the cluster.
type loader struct {
	mu      sync.Mutex
	node    cluster.Node
	state   *cluster.State
	loads   []time.Duration // after which time something was to be loaded
	began   time.Time
	at      int // loads at a time
	failing bool
	room    int // models that it keeps loaded at once; 0: all
}

func newLoader(models ...string) *loader {
	l := &loader{began: time.Now(), state: cluster.NewState(), node: cluster.Node{ID: "a", Condition: cluster.Alive, State: cluster.Active,
		Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady}}}
	for _, name := range models {
		l.node.Models = append(l.node.Models, cluster.Model{Name: name, Digest: strings.Repeat("d", 64)})
	}
	return l
}

func (l *loader) view() *cluster.View {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, engine := l.node, *l.node.Engine
	n.Engine, n.Models, n.Loaded = &engine, slices.Clone(n.Models), slices.Clone(n.Loaded)
	v := cluster.NewView("a", time.Now(), []*cluster.Node{&n})
	v.Leader, v.Quorum = "a", true
	return v
}

func (l *loader) change(f func(n *cluster.Node)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.node)
}

func (l *loader) loadedAt() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.loads)
}

// RoundTrip takes a second to load a model.
func (l *loader) RoundTrip(r *http.Request) (*http.Response, error) {
	var wire struct {
		Model     string
		KeepAlive any `json:"keep_alive"`
	}
	if err := json.NewDecoder(r.Body).Decode(&wire); err != nil {
		return nil, err
	}
	l.mu.Lock()
	if r.URL.Path == "/api/generate" {
		l.loads = append(l.loads, time.Since(l.began).Round(time.Second))
	}
	l.at++
	together, failing := l.at, l.failing
	l.mu.Unlock()
	time.Sleep(time.Second)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at--
	status := http.StatusOK
	if failing || together > 1 {
		status = http.StatusInternalServerError
	} else {
		expires := time.Now().Add(5 * time.Minute)
		if wire.KeepAlive == -1.0 {
			expires = time.Now().Add(200 * forEver)
		}
		l.node.Loaded = slices.DeleteFunc(l.node.Loaded, func(other cluster.Loaded) bool { return other.Name == wire.Model })
		if l.room > 0 && len(l.node.Loaded) >= l.room {
			l.node.Loaded = l.node.Loaded[1:]
		}
		l.node.Loaded = append(l.node.Loaded, cluster.Loaded{Name: wire.Model, Digest: strings.Repeat("d", 64), ExpiresAt: expires})
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{}`))}, nil
}

// run runs a part of a Models beside it until the test ends.
func (l *loader) run(t *testing.T, preload []string, part func(*Models, context.Context)) {
	t.Helper()
	l.node.Preload = canonicals(preload)
	m := &Models{preload: canonicals(preload), actions: map[about]*acting{}, deps: Deps{
		Log: slog.New(slog.DiscardHandler), Self: "a", View: l.view, State: func() *cluster.State { return l.state }, Now: time.Now, Refresh: func(context.Context) {},
	}}
	m.install = install.New(install.Deps{Log: m.deps.Log, Engine: l})
	ctx, cancel := context.WithCancel(t.Context())
	m.run = ctx
	var running sync.WaitGroup
	running.Go(func() { part(m, ctx) })
	t.Cleanup(func() { cancel(); running.Wait(); m.work.Wait() })
}

func keepLoaded(m *Models, ctx context.Context) { m.keepLoaded(ctx) }

func TestWhatIsToBeKeptLoadedIsLoadedWhenTheEngineHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader("Big.Model:v1", "other:latest")
		l.node.Engine.Condition = cluster.EngineStarting
		l.run(t, []string{"m", "big.model:V1"}, keepLoaded)
		time.Sleep(10 * time.Second)
		if got := l.loadedAt(); len(got) != 0 {
			t.Fatalf("loaded while the engine starts: %v", got)
		}
		l.change(func(n *cluster.Node) { n.Engine.Condition = cluster.EngineReady })
		time.Sleep(10 * time.Second)
		l.change(func(n *cluster.Node) { n.Models = append(n.Models, cluster.Model{Name: "m:latest"}) })
		time.Sleep(10 * time.Minute)
		if got := l.loadedAt(); len(got) != 2 || got[0].Round(5*time.Second) != 10*time.Second || got[1].Round(5*time.Second) != 20*time.Second {
			t.Fatalf("loaded at %v", got)
		}
		for _, loaded := range l.view().SelfNode().Loaded {
			if time.Until(loaded.ExpiresAt) < forEver {
				t.Errorf("%s is loaded until %v", loaded.Name, loaded.ExpiresAt)
			}
		}
		// A client has it kept for five minutes only; the engine is started anew; an owner keeps the engine meanwhile.
		l.change(func(n *cluster.Node) { n.Loaded[1].ExpiresAt = time.Now().Add(5 * time.Minute) })
		time.Sleep(2 * time.Minute)
		l.change(func(n *cluster.Node) { n.Loaded, n.Unavailable = nil, "on battery" })
		time.Sleep(2 * time.Minute)
		l.change(func(n *cluster.Node) { n.Unavailable = "" })
		time.Sleep(2 * time.Minute)
		if got := l.loadedAt()[2:]; len(got) != 3 || got[0].Round(5*time.Second) != 620*time.Second || got[2]-got[1] > 3*time.Second || got[1].Round(5*time.Second) != 860*time.Second {
			t.Errorf("loaded again at %v", got)
		}
	})
}

func TestWhatCannotBeKeptLoadedIsTriedLessAndLessOften(t *testing.T) {
	for name, spoil := range map[string]func(*loader){
		"it fails":              func(l *loader) { l.failing = true },
		"there is room for one": func(l *loader) { l.room = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLoader("m:latest", "n:latest")
				spoil(l)
				l.run(t, []string{"m", "n"}, keepLoaded)
				time.Sleep(30 * time.Minute)
				tried := len(l.loadedAt())
				if tried > 2*12 || tried < 2*6 { // 5, 10 s and so on, at most 5 minutes
					t.Errorf("tried %d times in half an hour", tried)
				}
				l.change(func(*cluster.Node) { l.failing, l.room = false, 0 })
				time.Sleep(6 * time.Minute)
				if n := len(l.view().SelfNode().Loaded); n != 2 {
					t.Errorf("%d are loaded when there is nothing against it", n)
				}
				// It counts as new when it has been loaded for a while.
				before := len(l.loadedAt())
				for range 2 {
					l.change(func(n *cluster.Node) { n.Loaded = nil })
					time.Sleep(10 * time.Second)
				}
				if got := len(l.loadedAt()) - before; got != 4 {
					t.Errorf("loaded %d times after the engine was started anew twice", got)
				}
			})
		})
	}
}

func TestTheLeaderDoesNotLoadAgainAndAgainWhatDoesNotStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader("m:latest")
		l.state.Models["m:latest"] = cluster.Wanted{Name: "m", Digest: strings.Repeat("d", 64), Replicas: 1, Preload: true}
		l.run(t, nil, func(m *Models, ctx context.Context) {
			if err := m.Lead(ctx); err != nil {
				t.Error(err)
			}
		})
		for range 30 * 60 { // another program's model takes its memory
			time.Sleep(time.Second)
			l.change(func(n *cluster.Node) { n.Loaded = nil })
		}
		if tried := len(l.loadedAt()); tried > 20 || tried < 6 {
			t.Errorf("loaded %d times in half an hour: %v", tried, l.loadedAt())
		}
	})
}
