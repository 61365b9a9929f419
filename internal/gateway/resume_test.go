package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
	"github.com/ollamamax/ollamamax/internal/gateway/record"
)

// house is a gateway whose nodes are fake engines with the same models, asked in order.
type house struct {
	url     string
	engines []*enginetest.Server
	gateway *Gateway
	leases  *atomic.Int64                   // slots that are lent
	outcome atomic.Pointer[cluster.Outcome] // of the last that was given back
}

// models of the house: plain ones, some that think, one whose template closes what the assistant said.
var houseModels = []enginetest.Model{{Name: "m"}, {Name: "thinks", Thinking: true}, {Name: "tools", Tools: true}, {Name: "bos", BOS: true}}

func newHouse(t *testing.T, n int, cfg func(*Config), engine func(*enginetest.Config)) *house {
	t.Helper()
	h := &house{leases: new(atomic.Int64)}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	addrs := map[string]*url.URL{}
	var nodes []*cluster.Node
	for i := range n {
		config := enginetest.Config{Models: houseModels, Slots: 64}
		if engine != nil {
			engine(&config)
		}
		e := enginetest.New(config)
		server := httptest.NewServer(e)
		t.Cleanup(server.Close)
		id := string(rune('a' + i))
		u, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		addrs[id] = u
		h.engines = append(h.engines, e)
		kind := cluster.EngineKind(config.Kind)
		if kind == "" {
			kind = cluster.Ollama
		}
		node := &cluster.Node{ID: cluster.NodeID(id), Name: id, Condition: cluster.Alive, State: cluster.Active,
			Engine: &cluster.Engine{Kind: kind, Condition: cluster.EngineReady, Version: "0.33.0",
				Routes: []string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}}}
		for _, m := range houseModels {
			digest := m.Name
			if kind != cluster.Ollama {
				digest = ""
			}
			node.Models = append(node.Models, cluster.Model{Name: m.Name, Digest: digest, Thinks: m.Thinking, V1: []byte(`{"owned_by":"vllm"}`)})
			node.Loaded = append(node.Loaded, cluster.Loaded{Name: m.Name, ContextLength: 4096})
		}
		nodes = append(nodes, node)
	}
	v := cluster.NewView("a", time.Time{}, nodes)
	config := Default()
	config.Resume.Wait = time.Second
	if cfg != nil {
		cfg(&config)
	}
	send := transportTo(transport, addrs)
	g, err := New(config, Deps{
		Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), View: func() *cluster.View { return v },
		Scheduler: counted{inOrder(nodes), h}, Waiting: func() map[string]int { return nil },
		Engine: send, Peers: send, Refresh: func(context.Context, *cluster.Node) {}, Stopping: func() bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	h.gateway = g
	mux := http.NewServeMux()
	g.Register(mux)
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		server.Close()
		if n := h.leases.Load(); n != 0 {
			t.Errorf("%d slots were not given back", n)
		}
	})
	h.url = server.URL
	return h
}

// transportTo sends to the engine of the node that is the URL's host; "node" is the own one.
func transportTo(to *http.Transport, addrs map[string]*url.URL) transport {
	return func(r *http.Request) (*http.Response, error) {
		id := r.URL.Host
		if id == "node" {
			id = "a"
		}
		r.URL.Host, r.Host = addrs[id].Host, addrs[id].Host
		return to.RoundTrip(r)
	}
}

// counted counts the slots that are lent. A bound of silence is short, so that tests of it are.
type counted struct {
	inOrder
	of *house
}

func (c counted) Acquire(ctx context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	if lease := c.Try(r, tried); lease != nil {
		return lease, nil
	}
	return nil, cluster.ErrNobody
}

func (c counted) Try(r *cluster.Request, tried []cluster.NodeID) *cluster.Lease {
	lease := c.inOrder.Try(r, tried)
	if lease != nil {
		c.of.leases.Add(1)
		lease.Done = func(o cluster.Outcome) {
			c.of.outcome.Store(&o)
			c.of.leases.Add(-1)
		}
		lease.Stall = cluster.Stall{First: 5 * time.Second, Next: 100 * time.Millisecond, Floor: 100 * time.Millisecond, Ceiling: 5 * time.Second}
	}
	return lease
}

// ask sends a request and returns what came, and whether it came to its end.
func (h *house) ask(t *testing.T, path, body string) (status int, text string) {
	t.Helper()
	resp, err := http.Post(h.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v after %s", path, err, all)
	}
	return resp.StatusCode, string(all)
}

// said is what a stream or a whole body says.
type said struct {
	text, thinking, tools string
	ends, failures        int
	ids                   map[string]bool
	prompt, output        int
	reason                string
}

var idsIn = regexp.MustCompile(`"(?:id|item_id|created|response_id)":("[^"]*"|\d+)`)

func listen(t *testing.T, path, text string) (s said) {
	t.Helper()
	form, _ := record.FormOf(path)
	s.ids = map[string]bool{}
	tracker := record.NewTracker(form, false)
	for rest := []byte(text); len(rest) > 0; {
		n := form.Split(rest)
		if n == 0 {
			n = len(rest)
		}
		rec := rest[:n]
		rest = rest[n:]
		e := tracker.Follow(rec)
		if e.Garbage {
			t.Fatalf("%s: no record: %q", path, rec)
		}
		s.text, s.thinking = s.text+unescaped(e.Text), s.thinking+unescaped(e.Thinking)
		if e.Tool {
			s.tools += "call "
		}
		if e.Done {
			s.ends++
		}
		if e.Failed {
			s.failures++
		}
		if e.Reason != "" {
			s.reason = e.Reason
		}
		s.prompt, s.output = max(s.prompt, e.Prompt), max(s.output, e.Output)
		for _, m := range idsIn.FindAllStringSubmatch(string(rec), -1) {
			s.ids[m[1]] = true
		}
	}
	return s
}

// bodyFor makes a request for each route that generates.
func bodyFor(path, model, prompt, more string) string {
	if more != "" {
		more = "," + more
	}
	quoted, err := json.Marshal(prompt)
	if err != nil {
		panic(err)
	}
	switch path {
	case "/api/generate", "/v1/completions":
		return fmt.Sprintf(`{"model":%q,"prompt":%s%s}`, model, quoted, more)
	case "/v1/responses":
		return fmt.Sprintf(`{"model":%q,"input":%s%s}`, model, quoted, more)
	case "/v1/messages":
		return fmt.Sprintf(`{"model":%q,"max_tokens":40,"messages":[{"role":"user","content":%s}]%s}`, model, quoted, more)
	}
	return fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%s}]%s}`, model, quoted, more)
}

var generating = []string{"/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}

func TestABrokenStreamGoesOnElsewhereWithoutALostOrDoubledCharacter(t *testing.T) {
	h := newHouse(t, 3, nil, func(c *enginetest.Config) { c.Length = 40 })
	for _, path := range generating {
		body := bodyFor(path, "m", "tell me", `"stream":true`)
		_, text := h.ask(t, path, body)
		want := listen(t, path, text)
		if want.ends != 1 || len(want.text) < 100 {
			t.Fatalf("%s: the whole answer: %+v", path, want)
		}
		for _, kind := range []enginetest.FaultKind{enginetest.FaultReset, enginetest.FaultTruncate, enginetest.FaultError500, enginetest.FaultGarbage, enginetest.FaultFreeze} {
			for _, after := range []int{1, 2, 17, 39, 40} {
				t.Run(fmt.Sprint(path, " ", kind, " after ", after), func(t *testing.T) {
					h.engines[0].SetFault(enginetest.Fault{Kind: kind, After: after})
					defer h.engines[0].SetFault(enginetest.Fault{})
					status, text := h.ask(t, path, body)
					got := listen(t, path, text)
					if status != 200 || got.text != want.text || got.ends != 1 || got.failures != 0 || got.reason != want.reason {
						t.Errorf("status %d, %d ends, reason %q (want %q)\n%q\nwant\n%q", status, got.ends, got.reason, want.reason, got.text, want.text)
					}
					if len(got.ids) > len(want.ids) {
						t.Errorf("ids of two nodes: %v, whole: %v", got.ids, want.ids)
					}
					if limit := path == "/v1/messages" && after == 40; !limit && want.prompt > 0 && (got.prompt != want.prompt || got.output != want.output) {
						t.Errorf("counts %d+%d, want %d+%d", got.prompt, got.output, want.prompt, want.output)
					}
				})
			}
		}
	}
}

func TestAnAnswerThatIsWantedWholeIsMadeWhole(t *testing.T) {
	h := newHouse(t, 3, nil, func(c *enginetest.Config) { c.Length = 60 })
	normal := regexp.MustCompile(`("created_at":)"[^"]*"|("(?:total|load|prompt_eval|eval)_duration":)\d+|"id":"[^"]*"|"created(?:_at)?":\d+|"completed_at":\d+`)
	for _, path := range generating {
		body := bodyFor(path, "m", "tell me", `"stream":false`)
		direct := directly(t, h, path, body)
		want := normal.ReplaceAllString(direct, "")
		for _, fault := range []enginetest.Fault{{}, {Kind: enginetest.FaultReset, After: 20}, {Kind: enginetest.FaultTruncate, After: 20}, {Kind: enginetest.FaultReset}} {
			h.engines[0].SetFault(fault)
			status, text := h.ask(t, path, body)
			if got := normal.ReplaceAllString(text, ""); status != 200 || got != want {
				t.Errorf("%s with %v: %d\n%s\nwant\n%s", path, fault.Kind, status, got, want)
			}
		}
		h.engines[0].SetFault(enginetest.Fault{})
	}
}

// directly is what the third engine itself answers.
func directly(t *testing.T, h *house, path, body string) string {
	t.Helper()
	resp, err := http.Post(engineURL(t, h, path), "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// engineURL is a route of the third engine itself.
func engineURL(t *testing.T, h *house, path string) string {
	t.Helper()
	server := httptest.NewServer(h.engines[2])
	t.Cleanup(server.Close)
	return server.URL + path
}

func TestThinkingToolsFormatsAndTokenizersGoOn(t *testing.T) {
	const tools = `"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}]`
	for _, tc := range []struct {
		name, path, model, prompt, more string
		closes                          bool
		afters                          []int
	}{
		{"thinking, cut while thinking", "/api/chat", "thinks", "why", "", false, []int{1, 4}},
		{"thinking, cut in the content", "/api/chat", "thinks", "why", "", false, []int{12, 30}},
		{"thinking, cut in the content, the template closes it", "/api/chat", "thinks", "why", "", true, []int{12, 30}},
		{"thinking, generate", "/api/generate", "thinks", "why", "", false, []int{4, 12}},
		{"thinking, OpenAI", "/v1/chat/completions", "thinks", "why", "", false, []int{4, 12}},
		{"thinking, Anthropic", "/v1/messages", "thinks", "why", `"thinking":{"type":"enabled","budget_tokens":1000}`, false, []int{4, 12}},
		{"thinking, responses", "/v1/responses", "thinks", "why", "", false, []int{4, 12}},
		{"tools, cut before the call", "/api/chat", "tools", "CALL it", tools, false, []int{1, 3}},
		{"tools, no call", "/api/chat", "tools", "only talk", tools, false, []int{1, 20}},
		{"tools, OpenAI", "/v1/chat/completions", "tools", "CALL it", tools, false, []int{1, 3}},
		{"format", "/api/chat", "m", "json please", `"format":"json"`, false, []int{1, 7, 20}},
		{"format, OpenAI", "/v1/chat/completions", "m", "json please", `"response_format":{"type":"json_object"}`, false, []int{1, 7}},
		{"a token of the tokenizer's own", "/api/chat", "bos", "hello", "", false, []int{1, 20}},
		{"stop sequences", "/api/generate", "m", "tell", `"options":{"stop":[" the"," of"]}`, false, []int{1, 2}},
		{"a limit", "/api/generate", "m", "tell", `"options":{"num_predict":25}`, false, []int{1, 24, 25}},
		{"a limit, OpenAI", "/v1/chat/completions", "m", "tell", `"max_tokens":25`, false, []int{1, 24, 25}},
		{"a suffix", "/api/generate", "m", "def f():", `"suffix":"return x"`, false, []int{5}},
		{"a system prompt", "/api/generate", "m", "tell", `"system":"be brief"`, false, []int{5}},
		{"counts in the stream", "/v1/chat/completions", "m", "tell", `"stream_options":{"include_usage":true}`, false, []int{5, 40}},
		{"counts in the stream of completions", "/v1/completions", "m", "tell", `"stream_options":{"include_usage":true}`, false, []int{5}},
	} {
		h := newHouse(t, 2, nil, func(c *enginetest.Config) { c.Length = 40; c.ClosesAssistant = tc.closes })
		more := `"stream":true`
		if tc.more != "" {
			more += "," + tc.more
		}
		body := bodyFor(tc.path, tc.model, tc.prompt, more)
		_, text := h.ask(t, tc.path, body)
		want := listen(t, tc.path, text)
		if want.ends != 1 || want.text+want.thinking+want.tools == "" {
			t.Fatalf("%s: the whole answer: %+v\n%s", tc.name, want, text)
		}
		for _, after := range tc.afters {
			h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: after})
			_, text := h.ask(t, tc.path, body)
			got := listen(t, tc.path, text)
			if got.text != want.text || got.thinking != want.thinking || got.tools != want.tools || got.ends != 1 || got.failures != 0 {
				t.Errorf("%s, cut after %d: %+v\nwant %+v\n%s", tc.name, after, got, want, text)
			}
			if limit := after == 25; !limit && want.prompt > 0 && (got.prompt != want.prompt || got.output != want.output) {
				t.Errorf("%s, cut after %d: counts %d+%d, want %d+%d", tc.name, after, got.prompt, got.output, want.prompt, want.output)
			}
		}
	}
}

func TestAStreamThatIsSampledIsRepeatable(t *testing.T) {
	const tools = `"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}],"options":{"temperature":0.8}`
	h := newHouse(t, 2, nil, func(c *enginetest.Config) { c.Length = 40; c.Sampling = true })
	for i := range 5 {
		h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: 1 + i%3})
		_, text := h.ask(t, "/api/chat", bodyFor("/api/chat", "tools", "CALL it", tools))
		if got := listen(t, "/api/chat", text); got.ends != 1 || got.failures != 0 || got.tools == "" {
			t.Errorf("a request that was given a seed: %+v\n%s", got, text)
		}
	}
	// The control: without a seed the second node answers otherwise, which is said and never joined.
	h = newHouse(t, 2, func(c *Config) { c.Resume.Seed = false }, func(c *enginetest.Config) { c.Length = 40; c.Sampling = true })
	h.engines[1].SetFault(enginetest.Fault{})
	differed := 0
	for i := range 5 {
		h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: 1 + i%3})
		_, _ = h.ask(t, "/api/chat", bodyFor("/api/chat", "tools", "x", "")) // lets the two engines' counters differ
		_, text := h.ask(t, "/api/chat", bodyFor("/api/chat", "tools", "CALL it", tools))
		if got := listen(t, "/api/chat", text); got.failures == 1 && got.ends == 0 && strings.Contains(text, "another answer") {
			differed++
		}
	}
	if differed == 0 {
		t.Error("without a seed nothing differed: the test shows nothing")
	}
}

func TestThinkingThatDivergesBeginsAnewOrIsAnError(t *testing.T) {
	for _, how := range []string{thinkingRestart, thinkingError} {
		h := newHouse(t, 2, func(c *Config) { c.Resume.Thinking = how; c.Resume.Seed = false }, func(c *enginetest.Config) { c.Length = 40; c.Sampling = true })
		restarted, failed := 0, 0
		for range 6 {
			h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: 4})
			_, text := h.ask(t, "/api/chat", bodyFor("/api/chat", "thinks", "why", `"options":{"temperature":1}`))
			got := listen(t, "/api/chat", text)
			switch {
			case got.ends == 1 && got.failures == 0 && got.text != "":
				restarted++
			case got.ends == 0 && got.failures == 1 && got.text == "":
				failed++
			default:
				t.Errorf("%s: %+v\n%s", how, got, text)
			}
		}
		if how == thinkingRestart && failed > 0 || how == thinkingError && failed == 0 {
			t.Errorf("%s: %d restarted, %d failed", how, restarted, failed)
		}
	}
}

func TestAfterAWholeToolCallTheClientIsToldTheError(t *testing.T) {
	const tools = `"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}]`
	h := newHouse(t, 2, nil, func(c *enginetest.Config) { c.Length = 40 })
	_, text := h.ask(t, "/api/chat", bodyFor("/api/chat", "tools", "CALL it", tools))
	pieces := strings.Count(text, "\n") - 1
	h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: pieces})
	_, text = h.ask(t, "/api/chat", bodyFor("/api/chat", "tools", "CALL it", tools))
	if got := listen(t, "/api/chat", text); got.failures != 1 || got.ends != 0 || !strings.Contains(text, "tool call") {
		t.Errorf("%+v\n%s", got, text)
	}
}

func TestAStreamGoesOnThreeTimesAndThenSaysWhyNot(t *testing.T) {
	h := newHouse(t, 5, nil, func(c *enginetest.Config) { c.Length = 60 })
	body := bodyFor("/api/chat", "m", "tell me", "")
	_, text := h.ask(t, "/api/chat", body)
	want := listen(t, "/api/chat", text)
	for i := range 3 {
		h.engines[i].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: 10})
	}
	_, text = h.ask(t, "/api/chat", body)
	if got := listen(t, "/api/chat", text); got.text != want.text || got.ends != 1 {
		t.Errorf("three nodes died one after the other: %+v\nwant %+v", got, want)
	}
	h.engines[3].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: 10})
	_, text = h.ask(t, "/api/chat", body)
	if got := listen(t, "/api/chat", text); got.failures != 1 || got.ends != 0 || !strings.HasPrefix(want.text, got.text) || !strings.Contains(text, "3 times already") {
		t.Errorf("four: %+v\n%s", got, text)
	}
}

func TestALongAnswersMemoryIsBounded(t *testing.T) {
	h := newHouse(t, 2, func(c *Config) { c.Resume.MaxBytes = 100 }, func(c *enginetest.Config) { c.Length = 60 })
	h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: 50})
	for _, path := range generating {
		_, text := h.ask(t, path, bodyFor(path, "m", "tell me", `"stream":true`+`,"max_tokens":60`))
		if got := listen(t, path, text); got.failures != 1 || got.ends != 0 || len(got.text) < 100 || !strings.Contains(text, "longer than 100 bytes") {
			t.Errorf("%s: %+v\n%s", path, got, text)
		}
	}
}

func TestARepeatingModelsEndIsPassedOn(t *testing.T) {
	h := newHouse(t, 2, nil, nil)
	_, text := h.ask(t, "/api/generate", bodyFor("/api/generate", "m", "REPEAT it", ""))
	if n := strings.Count(text, "\n"); n < mostEqual || n > mostEqual+2 {
		t.Errorf("%d records: %s", n, text)
	}
	if s := h.engines[1].Stats(); s.Requests != 0 {
		t.Errorf("another node was asked to go on: %+v", s)
	}
}

func TestATerminalRecordReachesTheClientOnce(t *testing.T) {
	h := newHouse(t, 2, nil, func(c *enginetest.Config) { c.Length = 20 })
	h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultTwice})
	for _, path := range generating {
		_, text := h.ask(t, path, bodyFor(path, "m", "tell me", `"stream":true`))
		got := listen(t, path, text)
		if got.ends != 1 || got.text == "" {
			t.Errorf("%s: %d ends\n%s", path, got.ends, text)
		}
	}
}

func TestEnginesOfOpenAIsRoutesGoOn(t *testing.T) {
	for _, kind := range []enginetest.Kind{enginetest.KindLlamaServer, enginetest.KindOpenAI} {
		h := newHouse(t, 2, nil, func(c *enginetest.Config) { c.Kind = kind; c.Length = 40 })
		for _, path := range []string{"/v1/chat/completions", "/v1/completions"} {
			body := bodyFor(path, "m", "tell me", `"stream":true,"temperature":0,"max_tokens":40`)
			_, text := h.ask(t, path, body)
			want := listen(t, path, text)
			if want.ends != 1 {
				t.Fatalf("%s %s: %+v\n%s", kind, path, want, text)
			}
			for _, after := range []int{1, 9, 39} {
				h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: after})
				_, text := h.ask(t, path, body)
				got := listen(t, path, text)
				if got.text != want.text || got.ends != 1 || got.failures != 0 || got.reason != want.reason {
					t.Errorf("%s %s after %d: %+v\nwant %+v\n%s", kind, path, after, got, want, text)
				}
			}
			h.engines[0].SetFault(enginetest.Fault{})
		}
	}
}
