package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

type aliased struct{ inOrder }

func (aliased) Resolve(m string) []string {
	if m == "gpt" {
		return []string{"m", "n"}
	}
	return nil
}

func TestDeletingAnAliasDeletesNoModel(t *testing.T) {
	nodes := testNodes("a", "b")
	asked := ""
	h := gatewayOf(t, aliased{inOrder(nodes)}, nodes, func(node string, r *http.Request) (*http.Response, error) {
		text, _ := io.ReadAll(r.Body)
		asked += node + " " + r.Method + " " + string(text) + "; "
		return nil, fmt.Errorf("connection reset")
	})
	w := do(h, "DELETE", "/api/delete", `{"model":"gpt"}`)
	if strings.Contains(asked, `"m"`) || strings.Contains(asked, `"n"`) {
		t.Errorf("engines were told: %s (%d)", asked, w.Code)
	}
}

// keeping keeps the outcomes.
type keeping struct {
	inOrder
	outcomes chan cluster.Outcome
}

func (k keeping) Acquire(ctx context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	l, err := k.inOrder.Acquire(ctx, r, tried)
	if l != nil {
		l.Done = func(o cluster.Outcome) { k.outcomes <- o }
	}
	return l, err
}

// slow takes every piece of an answer after a while.
type slow struct {
	*httptest.ResponseRecorder
	after time.Duration
}

func (s slow) Write(p []byte) (int, error) { time.Sleep(s.after); return s.ResponseRecorder.Write(p) }

func TestASlowReaderIsNoSlowEngine(t *testing.T) {
	nodes := testNodes("a")
	k := keeping{inOrder(nodes), make(chan cluster.Outcome, 1)}
	h := gatewayOf(t, k, nodes, func(node string, r *http.Request) (*http.Response, error) {
		reader, writer := io.Pipe()
		go func() {
			for range 5 {
				fmt.Fprintln(writer, `{"model":"m","created_at":"2026-01-01T00:00:00Z","response":"x","done":false}`)
			}
			fmt.Fprintln(writer, `{"model":"m","created_at":"2026-01-01T00:00:00Z","response":"","done":true,"done_reason":"stop","eval_count":5}`)
			writer.Close()
		}()
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/x-ndjson"}}, Body: reader, ContentLength: -1}, nil
	})
	h.ServeHTTP(slow{httptest.NewRecorder(), 300 * time.Millisecond}, httptest.NewRequest("POST", "/api/generate", strings.NewReader(`{"model":"m","prompt":"x"}`)))
	if o := <-k.outcomes; o.MaxGap > 100*time.Millisecond {
		t.Errorf("the engine never paused, and is said to have paused %v", o.MaxGap)
	}
}

func TestAClientThatLeavesIsNoShortAnswer(t *testing.T) {
	nodes := testNodes("a")
	k := keeping{inOrder(nodes), make(chan cluster.Outcome, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	h := gatewayOf(t, k, nodes, func(node string, r *http.Request) (*http.Response, error) {
		reader, writer := io.Pipe()
		go func() {
			fmt.Fprintln(writer, `{"model":"m","created_at":"2026-01-01T00:00:00Z","response":"x","done":false}`)
			fmt.Fprintln(writer, `{"model":"m","created_at":"2026-01-01T00:00:00Z","response":"x","done":false}`)
			cancel()
			<-r.Context().Done()
			writer.CloseWithError(r.Context().Err())
		}()
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/x-ndjson"}}, Body: reader, ContentLength: -1}, nil
	})
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/api/generate", strings.NewReader(`{"model":"m","prompt":"x"}`)).WithContext(ctx))
	if o := <-k.outcomes; o.Result != cluster.Abandoned {
		t.Errorf("result %v, %d tokens", o.Result, o.OutputTokens)
	}
}

func TestACompressedRequestIsReplayed(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	nodes := testNodes("a", "b")
	chunk := `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"x"},"finish_reason":null}]}` + "\n\n"
	h := gatewayOf(t, inOrder(nodes), nodes, func(node string, r *http.Request) (*http.Response, error) {
		text, _ := io.ReadAll(r.Body)
		if strings.Contains(r.URL.Path, "show") {
			return respond(200, `{"details":{},"model_info":{},"capabilities":["completion"]}`), nil
		}
		if compressed := !strings.HasPrefix(string(text), "{"); compressed != (r.Header.Get("Content-Encoding") == "zstd") {
			t.Errorf("node %s: compressed %v, Content-Encoding %q", node, compressed, r.Header.Get("Content-Encoding"))
		}
		if node == "a" {
			return respond(200, chunk, "Content-Type", "text/event-stream"), nil // ends without its last record
		}
		return respond(200, chunk+"data: [DONE]\n\n", "Content-Type", "text/event-stream"), nil
	})
	body := `{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"seed":1,"temperature":0,"response_format":{"type":"json_object"}}`
	w := do(h, "POST", "/v1/chat/completions", string(encoder.EncodeAll([]byte(body), nil)), "Content-Encoding", "zstd")
	t.Log(w.Body)
}

func TestStreamFalseBehindWhitespace(t *testing.T) {
	h := newHouse(t, 1, nil, func(c *enginetest.Config) { c.Length = 60 })
	for _, body := range []string{
		"\n\n  {\"model\":\"m\",\"prompt\":\"x\",\"stream\" : false}",
		`{"stream":true,"model":"m","prompt":"x","Stream":false}`,
		`{"stream":false,"model":"m","prompt":"x","stream":null}`,
		`{"model":"m","prompt":"x","stream":false,"options":{"num_predict":1e300,"num_ctx":-1e300}} trailing`,
	} {
		code, text := h.ask(t, "/api/generate", body)
		t.Log(code, strings.Count(text, "\n"), text[:min(len(text), 150)])
	}
}

// stuck has the first node, and no room on another until the request's time is over.
type stuck struct{ inOrder }

func (s stuck) Acquire(ctx context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	if len(tried) == 0 {
		return s.inOrder.Acquire(ctx, r, tried)
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestADeadlineThatPassesWhileWaitingForAnotherNodeIsSaid(t *testing.T) {
	nodes := testNodes("a", "b")
	h := gatewayOf(t, stuck{inOrder(nodes)}, nodes, func(_ string, r *http.Request) (*http.Response, error) { return refusedDial(r) })
	if w := do(h, "POST", "/api/chat", `{"model":"m","messages":[{}]}`, "X-Deadline", "20ms"); w.Code != http.StatusGatewayTimeout {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestARecordingIsNoPrompt(t *testing.T) {
	form := "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n" + strings.Repeat("RIFF", 1<<18) + "\r\n--x--\r\n"
	r := httptest.NewRequest("POST", "/v1/audio/transcriptions", strings.NewReader(form))
	r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	req := &request{route: &route{path: "/v1/audio/transcriptions", multipart: true}}
	if err := req.parse(r, []byte(form)); err != nil || req.Model != "m" || req.PromptBytes != 0 {
		t.Errorf("%q, %d bytes of prompt, %v", req.Model, req.PromptBytes, err)
	}
}

func TestAnAliasTakesThePlaceOfTheNameInABodyThatWasChanged(t *testing.T) {
	for body, want := range map[string]string{
		`{"name":"alias","prompt":"p","stream":false}`:                 `{"seed":1,"name":"m","prompt":"p"}`,
		`{"prompt":"p","stream":false,"name":"x","model":"alias"}`:     `{"seed":1,"prompt":"p","name":"x","model":"m"}`,
		`{"model":"alias","prompt":"p","stream":false,"name":"other"}`: `{"seed":1,"model":"m","prompt":"p","name":"other"}`,
	} {
		req := &request{route: &route{}}
		if err := req.peek([]byte(body)); err != nil {
			t.Fatal(err)
		}
		req.replace([]byte(strings.ReplaceAll(want, `"m"`, `"alias"`)))
		if got := string(req.named("m").body); got != want {
			t.Errorf("%s became %s, want %s", body, got, want)
		}
	}
}

func TestAPageIsNoAnswerOfAModel(t *testing.T) {
	const page = "<html>Log in to use this network</html>"
	for path, asked := range map[string]string{"/api/chat": "ab", "/v1/chat/completions": "ab", "/v1/audio/transcriptions": "a"} {
		got := ""
		h := testGateway(t, func(node string, _ *http.Request) (*http.Response, error) {
			if got += node; node == "a" {
				return respond(200, page, "Content-Type", "text/html"), nil
			}
			return respond(200, "{}", "Content-Type", "application/json"), nil
		})
		body, kind := `{"model":"m","messages":[{}]}`, "application/json"
		if strings.Contains(path, "audio") {
			body, kind = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--x--\r\n", "multipart/form-data; boundary=x"
		}
		if w := do(h, "POST", path, body, "Content-Type", kind); got != asked || w.Code != 200 {
			t.Errorf("%s: asked %q, %d %s", path, got, w.Code, w.Body)
		}
	}
}

func TestAThinkingModelBehindAnAliasGetsASeed(t *testing.T) {
	nodes := testNodes("a")
	nodes[0].Models[1].Thinks = true // of the two, the second
	h := gatewayOf(t, aliased{inOrder(nodes)}, nodes, func(_ string, r *http.Request) (*http.Response, error) {
		text, _ := io.ReadAll(r.Body)
		return respond(200, string(text)), nil
	})
	if body := do(h, "POST", "/api/chat", `{"model":"gpt","messages":[{"role":"user","content":"x"}]}`).Body.String(); !strings.Contains(body, `"options":{"seed":`) {
		t.Errorf("the engine was sent %s", body)
	}
}
