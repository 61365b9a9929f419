package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

// draining is a gateway of the node a whose nodes are fake engines in memory, so that a test can be in a
// bubble. Nodes that serve are asked in order.
type draining struct {
	*Gateway
	handler  http.Handler
	registry *prometheus.Registry
	engines  map[string]*enginetest.Server
	view     atomic.Pointer[cluster.View]

	mu      sync.Mutex
	lent    map[string]int
	results map[string][]cluster.Result // of the attempts that have ended
}

func newDraining(t *testing.T, nodes string, cfg func(*Config), engine func(node string, c *enginetest.Config)) *draining {
	t.Helper()
	d := &draining{registry: prometheus.NewRegistry(), engines: map[string]*enginetest.Server{}, lent: map[string]int{}, results: map[string][]cluster.Result{}}
	for _, id := range strings.Split(nodes, "") {
		config := enginetest.Config{Models: houseModels, Slots: 1000, Length: 200, TokenGap: 100 * time.Millisecond}
		if engine != nil {
			engine(id, &config)
		}
		d.engines[id] = enginetest.New(config)
	}
	d.set(func(*cluster.Node) {})
	config := Default()
	config.Resume.DrainGrace = 5 * time.Second
	if cfg != nil {
		cfg(&config)
	}
	send := transport(func(r *http.Request) (*http.Response, error) {
		id := r.URL.Host
		if id == "node" {
			id = "a"
		}
		return inMemory(d.engines[id], r)
	})
	var err error
	d.Gateway, err = New(config, Deps{Log: slog.New(slog.DiscardHandler), Registry: d.registry, View: d.view.Load, Scheduler: d,
		Waiting: func() map[string]int { return nil }, Engine: send, Peers: send, Refresh: func(context.Context, *cluster.Node) {}, Stopping: func() bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	d.Register(mux)
	d.handler = mux
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); d.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return d
}

// set publishes a new View, in which the nodes are changed.
func (d *draining) set(change func(*cluster.Node)) {
	var nodes []*cluster.Node
	for id := range d.engines {
		n := &cluster.Node{ID: cluster.NodeID(id), Name: id, Condition: cluster.Alive, State: cluster.Active,
			Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady, Version: "0.33.0"}}
		for _, m := range houseModels {
			n.Models = append(n.Models, cluster.Model{Name: m.Name, Digest: m.Name, Thinks: m.Thinking})
			n.Loaded = append(n.Loaded, cluster.Loaded{Name: m.Name, ContextLength: 4096})
		}
		change(n)
		nodes = append(nodes, n)
	}
	d.view.Store(cluster.NewView("a", time.Now(), nodes))
}

func (d *draining) drain(id string) {
	d.set(func(n *cluster.Node) {
		if n.Name == id {
			n.State = cluster.Draining
		}
	})
}

func (d *draining) Acquire(_ context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	if lease := d.Try(r, tried); lease != nil {
		return lease, nil
	}
	return nil, cluster.ErrNobody
}

func (d *draining) Try(r *cluster.Request, tried []cluster.NodeID) *cluster.Lease {
	for _, n := range d.view.Load().Nodes {
		if !n.Serves() || slices.Contains(tried, n.ID) {
			continue
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.lent[n.Name]++
		return &cluster.Lease{Node: n, Stall: cluster.Stall{First: time.Minute, Floor: time.Second, Ceiling: time.Minute}, Done: func(o cluster.Outcome) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.lent[n.Name]--
			d.results[n.Name] = append(d.results[n.Name], o.Result)
		}}
	}
	return nil
}

func (*draining) Resolve(string) []string                          { return nil }
func (*draining) Explain(*cluster.Request) (e cluster.Explanation) { return e }

// on is how many slots of a node are lent.
func (d *draining) on(node string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lent[node]
}

// resumed is how often a stream broke and went on as the labels say.
func (d *draining) resumed(t *testing.T, broke string) map[string]int {
	t.Helper()
	families, err := d.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]int{}
	for _, f := range families {
		for _, m := range f.Metric {
			labels := map[string]string{}
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			if f.GetName() == "ollamamax_resumes_total" && labels["broke"] == broke {
				by[labels["method"]] = int(m.Counter.GetValue())
			}
		}
	}
	return by
}

// start asks for n answers and returns what they say once they have ended.
func (d *draining) start(n int, path, body string) func(t *testing.T) []said {
	all := make([]*httptest.ResponseRecorder, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() { all[i] = do(d.handler, "POST", path, body) })
	}
	return func(t *testing.T) (texts []said) {
		t.Helper()
		running.Wait()
		for i, w := range all {
			if w.Code != 200 {
				t.Errorf("%s, answer %d: %d %s", path, i, w.Code, w.Body)
			}
			texts = append(texts, listen(t, path, w.Body.String()))
		}
		return texts
	}
}

// inMemory has a handler serve a request without a network.
func inMemory(h http.Handler, r *http.Request) (*http.Response, error) {
	reader, writer := io.Pipe()
	w := &pipeWriter{header: http.Header{}, body: writer, begun: make(chan *http.Response, 1)}
	in := httptest.NewRequestWithContext(r.Context(), r.Method, r.URL.Path, r.Body)
	in.Header = r.Header
	stop := context.AfterFunc(r.Context(), func() { _ = reader.CloseWithError(context.Cause(r.Context())) })
	go func() {
		defer stop()
		defer func() {
			if recover() != nil { // a handler that breaks its answer off
				_ = writer.CloseWithError(io.ErrUnexpectedEOF)
			}
		}()
		h.ServeHTTP(w, in)
		w.WriteHeader(http.StatusOK)
		_ = writer.Close()
	}()
	select {
	case resp := <-w.begun:
		resp.Body = reader
		return resp, nil
	case <-r.Context().Done():
		return nil, context.Cause(r.Context())
	}
}

type pipeWriter struct {
	header http.Header
	body   io.Writer
	begun  chan *http.Response
	wrote  bool
}

func (w *pipeWriter) Header() http.Header { return w.header }
func (w *pipeWriter) Flush()              {}

func (w *pipeWriter) WriteHeader(status int) {
	if !w.wrote {
		w.wrote = true
		w.begun <- &http.Response{StatusCode: status, Header: w.header.Clone(), ContentLength: -1}
	}
}

func (w *pipeWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

func TestStreamsLeaveANodeThatIsDrainedPastItsGrace(t *testing.T) {
	for _, tc := range []struct{ path, model, more, method string }{
		{"/api/generate", "m", `"stream":true`, "raw"},
		{"/api/chat", "m", `"stream":true`, "raw"},
		{"/api/chat", "m", `"stream":false`, "raw"},
		{"/api/chat", "thinks", `"stream":true,"options":{"seed":1}`, "probe"},
		{"/api/chat", "m", `"stream":true,"format":"json","options":{"seed":1}`, "replay"},
		{"/v1/chat/completions", "m", `"stream":true`, "raw"},
		{"/v1/responses", "m", `"stream":true`, "raw"},
		{"/v1/messages", "m", `"stream":true,"max_tokens":200`, "raw"},
	} {
		t.Run(tc.path+" "+tc.model+" "+tc.more, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 20
				if tc.method == "replay" { // which takes the client's time so far once more
					n = movedAtOnce
				}
				d := newDraining(t, "ab", nil, nil)
				body := strings.Replace(bodyFor(tc.path, tc.model, "tell me", tc.more), `"max_tokens":40,`, "", 1)
				want := d.start(1, tc.path, body)(t)[0]
				if want.ends != 1 || want.failures != 0 || len(want.text) < 500 {
					t.Fatalf("undisturbed: %+v", want)
				}
				wait := d.start(n, tc.path, body)
				time.Sleep(2 * time.Second)
				d.drain("a")
				time.Sleep(4900 * time.Millisecond)
				if on := d.on("a"); on != n {
					t.Errorf("%d of %d are there before the grace is over", on, n)
				}
				time.Sleep(8 * time.Second) // a replay says anew what 7 s have said
				if d.on("a") != 0 || d.on("b") != n || d.engines["a"].Stats().InFlight != 0 {
					t.Errorf("%d and %d are on the nodes after it, %d inside the first engine", d.on("a"), d.on("b"), d.engines["a"].Stats().InFlight)
				}
				for _, r := range d.Requests() {
					if r.Node != "b" || r.Resumes != 1 || r.Broke != "drained" {
						t.Errorf("listed as %+v", r)
					}
				}
				for i, got := range wait(t) {
					if diff := cmp.Diff(want.text+want.thinking, got.text+got.thinking); diff != "" || got.ends != 1 || got.failures != 0 || len(got.ids) > len(want.ids)+1 {
						t.Errorf("answer %d: %d ends, %d failures: %s", i, got.ends, got.failures, diff)
					}
				}
				if by := d.resumed(t, "drained"); by[tc.method] != n || len(by) != 1 {
					t.Errorf("counted %v", by)
				}
				if slices.Contains(d.results["a"], cluster.Failed) || slices.Contains(d.results["a"], cluster.Silent) {
					t.Errorf("the drained node is blamed: %v", d.results["a"])
				}
			})
		})
	}
}

func TestADrainNeverLosesAnAnswer(t *testing.T) {
	const tools = `"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}],"options":{"seed":1}`
	fault := func(kind enginetest.FaultKind) func(*draining) {
		return func(d *draining) { d.engines["b"].SetFault(enginetest.Fault{Kind: kind}) }
	}
	for _, tc := range []struct {
		name, nodes, model, more string
		cfg                      func(*Config)
		engine                   func(string, *enginetest.Config)
		before                   func(*draining)
		stayed                   bool // it was tried
	}{
		{name: "nobody else", nodes: "a"},
		{name: "undrained before the grace", nodes: "ab", before: func(d *draining) {
			go func() { time.Sleep(4900 * time.Millisecond); d.set(func(*cluster.Node) {}) }()
		}},
		{name: "resuming is turned off", nodes: "ab", cfg: func(c *Config) { c.Resume.Attempts = 0 }},
		{name: "too long to be kept", nodes: "ab", cfg: func(c *Config) { c.Resume.MaxBytes = 100 }},
		{name: "others are ill", nodes: "ab", before: fault(enginetest.FaultError500), stayed: true},
		{name: "others freeze", nodes: "ab", before: fault(enginetest.FaultFreeze), stayed: true},
		{name: "others break", nodes: "ab", before: fault(enginetest.FaultReset), stayed: true},
		{name: "others talk nonsense", nodes: "ab", before: fault(enginetest.FaultGarbage), stayed: true},
		{name: "others are too slow", nodes: "ab", engine: func(id string, c *enginetest.Config) {
			if id == "b" {
				c.FirstToken = time.Minute
			}
		}, stayed: true},
		{name: "another build answers otherwise", nodes: "ab", more: `"format":"json","options":{"seed":1}`, engine: func(id string, c *enginetest.Config) {
			if id == "b" {
				c.Seed = 7
			}
		}, stayed: true},
		{name: "a tool was called", nodes: "ab", model: "tools", more: tools},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const path = "/api/chat"
				d := newDraining(t, tc.nodes, tc.cfg, func(id string, c *enginetest.Config) {
					c.Length = 400
					if tc.engine != nil {
						tc.engine(id, c)
					}
				})
				model, prompt := "m", "tell me"
				if tc.model != "" {
					model, prompt = tc.model, "CALL it"
				}
				body := bodyFor(path, model, prompt, tc.more)
				want := d.start(1, path, body)(t)[0]
				before := len(d.results["a"])
				wait := d.start(10, path, body)
				time.Sleep(2500 * time.Millisecond)
				d.drain("a")
				if tc.before != nil {
					tc.before(d)
				}
				for i, got := range wait(t) {
					if got.text != want.text || got.tools != want.tools || got.ends != 1 || got.failures != 0 || got.reason != want.reason {
						t.Errorf("answer %d: %+v\nwant %+v", i, got, want)
					}
				}
				for _, r := range d.results["a"][before:] {
					if r != cluster.Answered {
						t.Errorf("the drained node's attempts: %v", d.results["a"])
					}
				}
				if by := d.resumed(t, "drained"); (by["stayed"] > 0) != tc.stayed || len(by) > 1 {
					t.Errorf("counted %v", by)
				}
				if d.on("a") != 0 || d.on("b") != 0 {
					t.Errorf("%d and %d slots were not given back", d.on("a"), d.on("b"))
				}
			})
		})
	}
}

func TestStreamsLeaveADrainedNodeAFewAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, first = 100, 500 * time.Millisecond
		d := newDraining(t, "ab", func(c *Config) { c.Resume.DrainGrace = 0 }, func(id string, c *enginetest.Config) {
			if id == "b" {
				c.FirstToken = first
			}
		})
		wait := d.start(n, "/api/generate", bodyFor("/api/generate", "m", "tell me", ""))
		time.Sleep(time.Second)
		d.drain("a")
		most := 0
		for began := time.Now(); d.on("a") > 0; time.Sleep(10 * time.Millisecond) {
			synctest.Wait()                   // both are counted at one moment
			both := d.on("a") + d.on("b") - n // those that have a slot of each
			most = max(most, both)
			if time.Since(began) > n/movedAtOnce*2*first {
				t.Fatalf("%d are still there", d.on("a"))
			}
		}
		if most != movedAtOnce {
			t.Errorf("%d move at a time", most)
		}
		for _, got := range wait(t) {
			if got.ends != 1 || got.failures != 0 {
				t.Errorf("%+v", got)
			}
		}
		if fmt.Sprint(d.resumed(t, "drained")) != fmt.Sprintf("map[raw:%d]", n) {
			t.Errorf("counted %v", d.resumed(t, "drained"))
		}
	})
}

func TestAnAnswerLeavesPastANodeThatBreaksWhileItRepeatsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDraining(t, "abc", nil, nil)
		body := bodyFor("/api/chat", "m", "tell me", `"format":"json","options":{"seed":1}`)
		want := d.start(1, "/api/chat", body)(t)[0]
		wait := d.start(1, "/api/chat", body)
		time.Sleep(2 * time.Second)
		d.drain("a")
		d.engines["b"].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: 3})
		got := wait(t)[0]
		if got.text != want.text || got.ends != 1 || got.failures != 0 {
			t.Errorf("%+v\nwant %+v", got, want)
		}
		if by := d.resumed(t, "drained"); by["replay"] != 1 || len(by) != 1 || d.engines["c"].Stats().Requests == 0 {
			t.Errorf("counted %v", by)
		}
	})
}
