package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// transport answers as a node would.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func respond(status int, body string, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

// testGateway is a gateway with the nodes a, b and c, which all hold the model m; a is itself. Nodes
// are picked in order. serve answers for a node.
func testGateway(t *testing.T, serve func(node string, r *http.Request) (*http.Response, error)) http.Handler {
	t.Helper()
	nodes := testNodes("a", "b", "c")
	return gatewayOf(t, inOrder(nodes), nodes, serve)
}

// testNodes are nodes that hold the models m, which is loaded, and n.
func testNodes(ids ...cluster.NodeID) (nodes []*cluster.Node) {
	for _, id := range ids {
		nodes = append(nodes, &cluster.Node{ID: id, Name: string(id), Condition: cluster.Alive, State: cluster.Active,
			Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady, Version: "0.33.0"},
			Models: []cluster.Model{{Name: "m", Digest: "1"}, {Name: "n", Digest: "2"}}, Loaded: []cluster.Loaded{{Name: "m"}}})
	}
	return nodes
}

// gatewayOf is a gateway of the node a.
func gatewayOf(t *testing.T, s Scheduler, nodes []*cluster.Node, serve func(node string, r *http.Request) (*http.Response, error)) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	newGateway(t, s, nodes, serve).Register(mux)
	return mux
}

func newGateway(t testing.TB, s Scheduler, nodes []*cluster.Node, serve func(node string, r *http.Request) (*http.Response, error)) *Gateway {
	t.Helper()
	v := cluster.NewView("a", time.Time{}, nodes)
	g, err := New(Default(), Deps{
		Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), View: func() *cluster.View { return v },
		Scheduler: s, Waiting: func() map[string]int { return nil },
		Engine:   transport(func(r *http.Request) (*http.Response, error) { return serve("a", r) }),
		Peers:    transport(func(r *http.Request) (*http.Response, error) { return serve(r.URL.Host, r) }),
		Refresh:  func(context.Context, *cluster.Node) {},
		Stopping: func() bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// inOrder lends slots of nodes in their order, without end.
type inOrder []*cluster.Node

func (o inOrder) Acquire(_ context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	if lease := o.Try(r, tried); lease != nil {
		return lease, nil
	}
	return nil, cluster.ErrNobody
}

func (o inOrder) Try(_ *cluster.Request, tried []cluster.NodeID) *cluster.Lease {
	for _, n := range o {
		if !slices.Contains(tried, n.ID) {
			return &cluster.Lease{Node: n, Stall: cluster.Stall{First: time.Minute, Floor: time.Second, Ceiling: time.Minute}, Done: func(cluster.Outcome) {}}
		}
	}
	return nil
}

func (inOrder) Resolve(string) []string                          { return nil }
func (inOrder) Explain(*cluster.Request) (e cluster.Explanation) { return e }

func do(h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func refusedDial(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
}

func TestWhoIsAskedNext(t *testing.T) {
	reset := func(*http.Request) (*http.Response, error) { return nil, errors.New("connection reset") }
	answering := func(status int, header ...string) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) { return respond(status, "{}", header...), nil }
	}
	for _, tc := range []struct {
		name, method, path string
		first              func(*http.Request) (*http.Response, error)
		asked              string // the nodes that were asked, in order
		status             int
	}{
		{"an answer stands", "POST", "/api/chat", answering(200), "b", 200},
		{"a refused dial", "POST", "/api/chat", refusedDial, "bc", 200},
		{"a reset before an answer", "POST", "/api/chat", reset, "bc", 200},
		{"a refusal of the node", "POST", "/api/chat", answering(503, refusedHeader, "draining"), "bc", 200},
		{"a model that is gone", "POST", "/api/chat", answering(404), "bc", 200},
		{"an overload, once", "POST", "/api/chat", answering(503), "bc", 200},
		{"a client's mistake stands", "POST", "/api/chat", answering(400), "b", 400},
		{"not implemented stands", "POST", "/api/embed", answering(501), "b", 501},
		{"a pull that was never sent", "POST", "/api/pull", refusedDial, "bc", 200},
		{"a pull that may have begun", "POST", "/api/pull", reset, "b", 502},
		{"a pull that failed", "POST", "/api/pull", answering(500), "b", 500},
		{"a create that was refused", "POST", "/api/create", answering(503, refusedHeader, "stopping"), "bc", 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked := ""
			nodes := testNodes("b", "c")
			h := gatewayOf(t, inOrder(nodes), nodes, func(node string, r *http.Request) (*http.Response, error) {
				asked += node
				if node == "b" {
					return tc.first(r)
				}
				return respond(200, `{"by":"`+node+`"}`), nil
			})
			w := do(h, tc.method, tc.path, `{"model":"m","messages":[{}]}`)
			if asked != tc.asked || w.Code != tc.status {
				t.Errorf("asked %q, status %d: %s", asked, w.Code, w.Body)
			}
			if w.Header().Get(refusedHeader) != "" {
				t.Error("an internal header reached the client")
			}
		})
	}
}

func TestAnEngineIsNotHeardAsIfItWereANode(t *testing.T) {
	for _, header := range []string{refusedHeader, brokeHeader} {
		asked := ""
		h := testGateway(t, func(node string, _ *http.Request) (*http.Response, error) {
			asked += node
			return respond(200, "{}", header, "so it says"), nil
		})
		if w := do(h, "POST", "/api/create", `{"model":"m"}`); asked != "a" || w.Code != 200 || w.Header().Get(header) != "" {
			t.Errorf("%s: asked %q, %d %s", header, asked, w.Code, w.Body)
		}
	}
}

func TestEachNodeIsAskedOnceAndTheLastWordIsInTheClientsDialect(t *testing.T) {
	for path, want := range map[string]string{
		"/api/chat":            `{"error":"all 3 nodes that can serve this failed`,
		"/v1/chat/completions": `{"error":{"message":"all 3 nodes`,
		"/v1/messages":         `{"type":"error","error":{"type":"api_error","message":"all 3 nodes`,
	} {
		asked := 0
		h := testGateway(t, func(string, *http.Request) (*http.Response, error) { asked++; return refusedDial(nil) })
		w := do(h, "POST", path, `{"model":"m","messages":[{}],"max_tokens":1}`)
		if asked != 3 || w.Code != http.StatusBadGateway || !strings.HasPrefix(w.Body.String(), want) {
			t.Errorf("%s: asked %d, %d %s", path, asked, w.Code, w.Body)
		}
	}
}

func TestAnUploadIsNotSentOnOnceItWasRead(t *testing.T) {
	for _, read := range []bool{false, true} {
		asked := ""
		h := testGateway(t, func(node string, r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodHead {
				return respond(404, ""), nil
			}
			asked += node
			if node == "a" {
				if read {
					_, _ = r.Body.Read(make([]byte, 1))
				}
				r.Body.Close()
				return refusedDial(r)
			}
			text, err := io.ReadAll(r.Body)
			if err != nil || string(text) != "blob" {
				t.Errorf("the next node received %q, %v", text, err)
			}
			return respond(201, ""), nil
		})
		w := do(h, "POST", "/api/blobs/sha256:1", "blob")
		if read && (asked != "a" || w.Code != 502) || !read && (asked != "ab" || w.Code != 201) {
			t.Errorf("read %v: asked %q, %d", read, asked, w.Code)
		}
	}
}

func TestABlobThatIsThereIsNotSentAgain(t *testing.T) {
	h := testGateway(t, func(_ string, r *http.Request) (*http.Response, error) {
		if r.Method != http.MethodHead {
			t.Error("the blob was sent")
		}
		return respond(200, ""), nil
	})
	if w := do(h, "POST", "/api/blobs/sha256:1", "blob"); w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
}

func TestWhatIsTakenFromABody(t *testing.T) {
	type taken struct {
		Model           string
		Stream, Unload  bool
		NumCtx          int
		Prompt, HasText bool
	}
	for body, want := range map[string]taken{
		`{"model":"a"}`: {Model: "a", Stream: true},
		`{"MODEL":"a","model":"b","stream":false}`:       {Model: "b"},
		`{"name":"a","prompt":"x"}`:                      {Model: "a", Stream: true, Prompt: true},
		`{"model":"a","options":{"num_ctx":8192}}`:       {Model: "a", Stream: true, NumCtx: 8192},
		`{"model":"a","keep_alive":0}`:                   {Model: "a", Stream: true, Unload: true},
		`{"model":"a","keep_alive":"0s"}`:                {Model: "a", Stream: true, Unload: true},
		`{"model":"a","keep_alive":"5m"}`:                {Model: "a", Stream: true},
		`{"model":"a","keep_alive":-1}`:                  {Model: "a", Stream: true},
		`{"model":"a","stream":"no","other":[[[1]]]}`:    {Model: "a", Stream: true},
		`{"model":"a"} and what Ollama does not look at`: {Model: "a", Stream: true},
	} {
		req := &request{route: &route{path: "/api/generate"}, stream: true, Request: cluster.Request{Infers: true}}
		if err := req.peek([]byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		got := taken{Model: req.Model, Stream: req.stream, Unload: req.unload, NumCtx: req.NumCtx, Prompt: req.prompt}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", body, diff)
		}
	}
}

func TestADeepOrBombedBodyIsRefused(t *testing.T) {
	h := testGateway(t, func(string, *http.Request) (*http.Response, error) {
		t.Error("an engine was bothered")
		return respond(200, ""), nil
	})
	if w := do(h, "POST", "/api/chat", strings.Repeat("[", 8<<20)); w.Code != 400 || !strings.Contains(w.Body.String(), "exceeded max depth") {
		t.Errorf("%d %.200s", w.Code, w.Body)
	}
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := encoder.EncodeAll(make([]byte, 64<<20), nil)
	if w := do(h, "POST", "/v1/chat/completions", string(bomb), "Content-Encoding", "zstd"); w.Code != 400 {
		t.Errorf("%d bytes that become 64 MiB: %d %.200s", len(bomb), w.Code, w.Body)
	}
}

func TestACompressedBodyFindsItsModelAndGoesOnAsItCame(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	compressed := encoder.EncodeAll([]byte(`{"model":"m","messages":[{"role":"user"}],"stream":true}`), nil)
	h := testGateway(t, func(_ string, r *http.Request) (*http.Response, error) {
		text, err := io.ReadAll(r.Body)
		if err != nil || string(text) != string(compressed) || r.Header.Get("Content-Encoding") != "zstd" {
			t.Errorf("the engine received %d bytes, %v", len(text), err)
		}
		return respond(200, "{}"), nil
	})
	if w := do(h, "POST", "/v1/chat/completions", string(compressed), "Content-Encoding", "zstd"); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestAudioFindsItsModelBehindTheFile(t *testing.T) {
	h := testGateway(t, func(_ string, r *http.Request) (*http.Response, error) { return respond(200, "{}"), nil })
	form := "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--x--\r\n"
	if w := do(h, "POST", "/v1/audio/transcriptions", form, "Content-Type", "multipart/form-data; boundary=x"); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	without := strings.Replace(form, `name="model"`, `name="other"`, 1)
	if w := do(h, "POST", "/v1/audio/transcriptions", without, "Content-Type", "multipart/form-data; boundary=x"); w.Code != 400 || !strings.Contains(w.Body.String(), "model is required") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := do(h, "POST", "/v1/audio/transcriptions", form); w.Code != 400 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestAnAnswerThatBreaksOffDoesNotLookWhole(t *testing.T) {
	h := testGateway(t, func(string, *http.Request) (*http.Response, error) {
		body := io.MultiReader(strings.NewReader("{\"response\":\"a\"}\n"), &broken{})
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(body), ContentLength: -1}, nil
	})
	server := httptest.NewServer(h)
	defer server.Close()
	resp, err := http.Post(server.URL+"/api/pull", "application/json", strings.NewReader(`{"model":"m"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a broken answer ended well: %q", text)
	}
}

type broken struct{}

func (*broken) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestRetriesAfterAnOverloadAreAShareOfTheRequests(t *testing.T) {
	asked := 0
	h := testGateway(t, func(string, *http.Request) (*http.Response, error) { asked++; return respond(500, "{}"), nil })
	const n = 500
	for range n {
		if w := do(h, "POST", "/api/chat", `{"model":"m"}`); w.Code != 500 {
			t.Fatal(w.Code)
		}
	}
	if most := n + mostSaved + n/5 + 1; asked > most {
		t.Errorf("%d requests became %d, at most %d", n, asked, most)
	}
	if asked < n+mostSaved {
		t.Errorf("the reserve was not used: %d", asked)
	}
}

func TestCopyAndDeleteAnswerForAll(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fails  string
		status int
		want   string
	}{
		{"all did it", "", 200, ""},
		{"one could not", "b", 502, `{"error":"failed on b: disk full; done on a, c"}`},
		{"none could", "abc", 502, `{"error":"failed on a: disk full; b: disk full; c: disk full"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := testGateway(t, func(node string, r *http.Request) (*http.Response, error) {
				if strings.Contains(tc.fails, node) {
					return respond(500, `{"error":"disk full"}`), nil
				}
				return respond(200, ""), nil
			})
			w := do(h, "DELETE", "/api/delete", `{"model":"m"}`)
			if w.Code != tc.status || w.Body.String() != tc.want {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

func TestHeadersOfOneConnectionAreNotPassedOn(t *testing.T) {
	from := http.Header{"Connection": {"close, X-Private"}, "X-Private": {"1"}, "Keep-Alive": {"5"}, "Te": {"trailers"},
		"X-Ollamamax-Node": {"evil"}, "Authorization": {"Bearer x"}, "Content-Type": {"a"}}
	to := http.Header{}
	copyHeader(to, from)
	if diff := cmp.Diff(http.Header{"Authorization": {"Bearer x"}, "Content-Type": {"a"}}, to); diff != "" {
		t.Error(diff)
	}
}

func TestTheLowestVersionSpeaksForANodeWithoutAnEngine(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"0.9.0", "0.33.0", -1}, {"0.33.0", "0.33.0", 0}, {"1.0", "0.99.9", 1}, {"0.33", "0.33.0", 0}, {"0.33.0-rc1", "0.33.0", 0}} {
		if got := compareVersions(tc.a, tc.b); got != tc.want {
			t.Errorf("%s to %s: %d", tc.a, tc.b, got)
		}
	}
}

func FuzzPeekNeverPanics(f *testing.F) {
	for _, seed := range []string{`{"model":"a"}`, `[`, `{"messages":[{}]`, `"`, `{"options":{"num_ctx":1e99}}`, "\x00", `{"keep_alive":{"a":[]}}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		req := &request{route: &route{path: "/api/copy"}}
		if err := req.peek([]byte(body)); err == nil {
			_ = fmt.Sprint(req.Model, req.NumCtx)
		}
	})
}
