package gateway

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// timed is a piece of a stream, and the silence before it.
type timed struct {
	after time.Duration
	text  string
}

// times repeats pieces.
func times(n int, pieces ...timed) []timed { return slices.Repeat(pieces, n) }

// telling is a stream that comes piece by piece. Then it ends, or is silent if the last piece is "".
func telling(r *http.Request, kind string, pieces []timed) *http.Response {
	reader, writer := io.Pipe()
	context.AfterFunc(r.Context(), func() { _ = writer.CloseWithError(context.Cause(r.Context())) })
	go func() {
		for _, p := range pieces {
			select {
			case <-time.After(p.after):
			case <-r.Context().Done():
				return
			}
			if p.text == "" {
				return
			}
			if _, err := io.WriteString(writer, p.text); err != nil {
				return
			}
		}
		_ = writer.Close()
	}()
	resp := respond(http.StatusOK, "", "Content-Type", kind)
	resp.Body = reader
	return resp
}

// stalls lends slots in order with one bound of silence each, and keeps how they were given back.
type stalls struct {
	inOrder
	cluster.Stall
	outcomes *[]cluster.Outcome
}

func (s stalls) Acquire(_ context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	if lease := s.Try(r, tried); lease != nil {
		return lease, nil
	}
	return nil, cluster.ErrNobody
}

func (s stalls) Try(r *cluster.Request, tried []cluster.NodeID) *cluster.Lease {
	lease := s.inOrder.Try(r, tried)
	if lease != nil {
		lease.Stall = s.Stall
		lease.Done = func(o cluster.Outcome) { *s.outcomes = append(*s.outcomes, o) }
	}
	return lease
}

// askOf sends a request to a gateway whose nodes, a letter each, are engines of a kind, and returns what the
// client gets, the nodes that were asked and how the attempts went.
func askOf(t *testing.T, names string, kind cluster.EngineKind, bounds cluster.Stall, path, body string, serve func(node string, r *http.Request) (*http.Response, error)) (text, nodes string, outcomes []cluster.Outcome) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var list []*cluster.Node
		for id := range strings.SplitSeq(names, "") {
			list = append(list, &cluster.Node{ID: cluster.NodeID(id), Name: id, Condition: cluster.Alive, State: cluster.Active,
				Engine: &cluster.Engine{Kind: kind, Condition: cluster.EngineReady, Routes: []string{path}}, Models: []cluster.Model{{Name: "m", Digest: "1"}}})
		}
		mux := gatewayOf(t, stalls{list, bounds, &outcomes}, list, func(node string, r *http.Request) (*http.Response, error) {
			nodes += node
			return serve(node, r)
		})
		text = do(mux, "POST", path, body).Body.String()
		synctest.Wait()
	})
	return text, nodes, outcomes
}

const (
	chatChunk  = `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}` + "\n\n"
	chatRole   = `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}` + "\n\n"
	chatStop   = `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n" + "data: [DONE]\n\n"
	chatPing   = ":\n\n"
	chatStream = `{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"temperature":0}`
	events     = "text/event-stream"
	lines      = "application/x-ndjson"
)

func TestAPromptThatIsReadIsNoFrozenEngine(t *testing.T) {
	for name, first := range map[string]string{
		"a comment": chatPing, "who speaks": chatRole,
		"how far the prompt is read": `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}],"prompt_progress":{"total":100,"cache":0,"processed":10}}` + "\n\n",
	} {
		t.Run(name, func(t *testing.T) {
			pieces := slices.Concat([]timed{{time.Second, first}, {5 * time.Second, first}, {5 * time.Second, chatChunk}}, times(9, timed{20 * time.Millisecond, chatChunk}), []timed{{0, chatStop}})
			text, nodes, outcomes := askOf(t, "ab", cluster.LlamaServer, cluster.Stall{First: time.Minute, Next: time.Second, Floor: time.Second, Ceiling: time.Minute}, "/v1/chat/completions", chatStream,
				func(_ string, r *http.Request) (*http.Response, error) { return telling(r, events, pieces), nil })
			if got := listen(t, "/v1/chat/completions", text); nodes != "a" || got.text != "aaaaaaaaaa" || got.ends != 1 || got.failures != 0 {
				t.Fatalf("asked %s: %+v\n%.500s", nodes, got, text)
			}
			if o := outcomes[0]; o.First != 11*time.Second || o.MaxGap != 20*time.Millisecond {
				t.Errorf("the first token after %v, the longest gap %v: want 11s and 20ms", o.First, o.MaxGap)
			}
		})
	}
}

func TestTheTimeToTheFirstTokenIsNoGap(t *testing.T) {
	pieces := slices.Concat([]timed{{5 * time.Second, chatChunk}}, times(9, timed{20 * time.Millisecond, chatChunk}), []timed{{0, chatStop}})
	_, _, outcomes := askOf(t, "a", cluster.LlamaServer, cluster.Stall{First: time.Minute, Next: time.Second, Floor: time.Second, Ceiling: time.Minute}, "/v1/chat/completions", chatStream,
		func(_ string, r *http.Request) (*http.Response, error) { return telling(r, events, pieces), nil })
	if o := outcomes[0]; o.First != 5*time.Second || o.MaxGap != 20*time.Millisecond {
		t.Errorf("the first token after %v, the longest gap %v: want 5s and 20ms", o.First, o.MaxGap)
	}
}

func TestAFrozenEngineIsNotSavedByTheServerInFrontOfIt(t *testing.T) {
	for name, tc := range map[string]struct {
		tokens int
		every  time.Duration
		want   cluster.Result
	}{
		"in the prompt":     {0, time.Second, cluster.Silent},
		"behind ten tokens": {10, time.Second, cluster.Failed},
		"pinging fast":      {10, 30 * time.Millisecond, cluster.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			pieces := slices.Concat([]timed{{0, chatPing}}, times(tc.tokens, timed{20 * time.Millisecond, chatChunk}), times(1000, timed{tc.every, chatPing}))
			text, nodes, outcomes := askOf(t, "ab", cluster.LlamaServer, cluster.Stall{First: 10 * time.Second, Next: time.Second, Floor: time.Second, Ceiling: time.Minute}, "/v1/chat/completions", chatStream,
				func(node string, r *http.Request) (*http.Response, error) {
					if node == "b" {
						return telling(r, events, []timed{{0, chatChunk}, {0, chatStop}}), nil
					}
					return telling(r, events, pieces), nil
				})
			if nodes != "ab" || outcomes[0].Result != tc.want || listen(t, "/v1/chat/completions", text).ends != 1 {
				t.Errorf("asked %s, %+v\n%.500s", nodes, outcomes, text)
			}
		})
	}
}

func TestASilenceInWhichAnOllamaWritesIsNoFrozenEngine(t *testing.T) {
	line := func(message string) string {
		return `{"model":"m","created_at":"T","message":{"role":"assistant","content":"",` + message + `},"done":false}` + "\n"
	}
	const chat = `{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"temperature":0},`
	const end = `{"model":"m","created_at":"T","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}` + "\n"
	const tools = chat + `"tools":[{"type":"function","function":{"name":"f"}}]}`
	call := line(`"tool_calls":[{"function":{"name":"f","arguments":{}}}]`)
	text := `{"model":"m","created_at":"T","message":{"role":"assistant","content":"{}"},"done":false}` + "\n"
	for _, tc := range []struct {
		name, body string
		pieces     []timed
		frozen     bool
	}{
		{"a call", tools, []timed{{3 * time.Second, call}, {0, end}}, false},
		{"a call with the end", tools, []timed{{3 * time.Second, call + end}}, false},
		{"what became no call", tools, []timed{{3 * time.Second, end}}, false},
		{"a grammar behind the thinking", chat + `"format":"json"}`, []timed{{3 * time.Second, text}, {20 * time.Millisecond, text}, {20 * time.Millisecond, end}}, false},
		{"for ever", tools, []timed{{time.Second, ""}}, true},
		{"without tools", chat + `"tools":[]}`, []timed{{3 * time.Second, text}, {0, end}}, true},
		{"in the grammar", chat + `"format":"json"}`, []timed{{20 * time.Millisecond, text}, {3 * time.Second, text}, {0, end}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pieces := slices.Concat(times(10, timed{20 * time.Millisecond, line(`"thinking":"a"`)}), tc.pieces)
			text, nodes, outcomes := askOf(t, "ab", cluster.Ollama, cluster.Stall{First: 10 * time.Second, Next: time.Second, Floor: time.Second, Ceiling: 30 * time.Second, Whole: time.Minute}, "/api/chat", tc.body,
				func(node string, r *http.Request) (*http.Response, error) { return telling(r, lines, pieces), nil })
			if tc.frozen {
				if len(nodes) < 2 {
					t.Errorf("another silence was waited for: asked %s\n%s", nodes, text)
				}
				return
			}
			if got := listen(t, "/api/chat", text); nodes != "a" || got.ends != 1 || got.thinking != "aaaaaaaaaa" {
				t.Fatalf("asked %s: %+v\n%.300s", nodes, got, text)
			}
			if o := outcomes[0]; o.MaxGap != 20*time.Millisecond || o.Result != cluster.Answered {
				t.Errorf("%+v: its longest gap between two tokens was 20ms", o)
			}
		})
	}
}

var soon = cluster.Stall{First: 10 * time.Second, Next: time.Second, Floor: time.Second, Ceiling: 30 * time.Second}

func TestASilenceThatAnEngineSurvivesIsLearned(t *testing.T) {
	tokens := times(10, timed{20 * time.Millisecond, chatChunk})
	first := true
	text, nodes, outcomes := askOf(t, "a", cluster.LlamaServer, soon, "/v1/chat/completions", chatStream, func(_ string, r *http.Request) (*http.Response, error) {
		if first {
			first = false
			return telling(r, events, append(tokens, timed{3 * time.Second, chatChunk})), nil
		}
		return telling(r, events, slices.Concat(tokens, []timed{{3 * time.Second, chatChunk}, {0, chatStop}})), nil
	})
	if got := listen(t, "/v1/chat/completions", text); nodes != "aa" || got.text != strings.Repeat("a", 21) || got.ends != 1 {
		t.Fatalf("asked %s: %+v\n%.300s", nodes, got, text)
	}
	if o := outcomes[1]; o.MaxGap < time.Second {
		t.Errorf("the pair is taught a longest gap of %v", o.MaxGap)
	}
}

func TestABrokenStreamDoesNotWaitAtTheNodeThatFroze(t *testing.T) {
	var back time.Time
	text, nodes, _ := askOf(t, "ab", cluster.LlamaServer, soon, "/v1/chat/completions", chatStream, func(node string, r *http.Request) (*http.Response, error) {
		switch {
		case back.IsZero():
			back = time.Now().Add(3 * time.Second)
			return telling(r, events, []timed{{0, chatChunk}, {0, ""}}), nil
		case node == "a":
			return telling(r, events, []timed{{0, ""}}), nil
		case time.Now().Before(back):
			return refusedDial(r)
		}
		return telling(r, events, []timed{{0, chatChunk}, {0, chatStop}}), nil
	})
	if got := listen(t, "/v1/chat/completions", text); strings.Count(nodes, "a") != 1 || got.text != "aa" || got.ends != 1 {
		t.Errorf("asked %s: %+v\n%.300s", nodes, got, text)
	}
}

func TestABrokenStreamAsksNobodyTooOften(t *testing.T) {
	const again = `{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"temperature":0,"response_format":{"type":"json_object"}}`
	for name, tc := range map[string]struct {
		body string
		b    func(*http.Request) (*http.Response, error)
		most int // questions to b
	}{
		"one that is down":              {chatStream, refusedDial, 7},
		"one that asks for ten seconds": {chatStream, func(*http.Request) (*http.Response, error) { return respond(503, "busy", "Retry-After", "10"), nil }, 2},
		"one that refuses the request":  {again, func(*http.Request) (*http.Response, error) { return respond(400, "no"), nil }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			begun := false
			text, nodes, _ := askOf(t, "ab", cluster.LlamaServer, soon, "/v1/chat/completions", tc.body, func(node string, r *http.Request) (*http.Response, error) {
				switch {
				case !begun:
					begun = true
					return telling(r, events, []timed{{0, chatChunk}}), nil
				case node == "a":
					return refusedDial(r)
				}
				return tc.b(r)
			})
			if n := strings.Count(nodes, "b"); n < 1 || n > tc.most || listen(t, "/v1/chat/completions", text).failures != 1 {
				t.Errorf("asked %s, the other node more than %d times\n%.1000s", nodes, tc.most, text)
			}
		})
	}
}

func TestNodesThatHangOneAfterTheOtherAreNotAskedBeyondTheWait(t *testing.T) {
	var broke, asked time.Time
	text, nodes, _ := askOf(t, "abc", cluster.LlamaServer, soon, "/v1/chat/completions", chatStream, func(node string, r *http.Request) (*http.Response, error) {
		if broke.IsZero() {
			broke = time.Now()
			return telling(r, events, []timed{{0, chatChunk}}), nil // and no end
		}
		if node == "a" {
			return refusedDial(r)
		}
		asked = time.Now()
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	})
	wait := Default().Resume.Wait
	if last := asked.Sub(broke); !strings.ContainsAny(nodes, "bc") || last > wait || listen(t, "/v1/chat/completions", text).failures != 1 {
		t.Errorf("asked %s, the last one %v after the break: an answer waits for %v\n%.300s", nodes, last, wait, text)
	}
}

func TestARecordWithoutItsEndIsNotGluedToTheNext(t *testing.T) {
	for name, tc := range map[string]struct{ path, kind, body, rec, end string }{
		"a line":             {"/api/generate", lines, `{"model":"m","prompt":"x","format":"json"}`, `{"model":"m","created_at":"T","response":"a","done":false}`, "\n"},
		"an event":           {"/v1/chat/completions", events, chatStream, strings.TrimRight(chatChunk, "\n"), "\n\n"},
		"an event in a line": {"/v1/chat/completions", events, chatStream, strings.TrimSuffix(chatChunk, "\n"), "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			begun := false
			text, _, _ := askOf(t, "ab", cluster.LlamaServer, soon, tc.path, tc.body, func(_ string, r *http.Request) (*http.Response, error) {
				if begun {
					return refusedDial(r)
				}
				begun = true
				return telling(r, tc.kind, []timed{{0, tc.rec + tc.end}, {0, tc.rec}}), nil
			})
			if got := listen(t, tc.path, text); got.text != "aa" || got.failures != 1 {
				t.Errorf("%+v\n%s", got, text)
			}
		})
	}
}

func TestALimitHoldsForTokensNotForRecords(t *testing.T) {
	for name, tc := range map[string]struct{ text, more string }{
		"with log probabilities": {`"logprobs":{"content":[{"token":"a"},{"token":"b"}]},`, ""},
		"with counts":            {"", `,"usage":{"prompt_tokens":1,"completion_tokens":2}`},
	} {
		t.Run(name, func(t *testing.T) {
			rec := `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,` + tc.text + `"delta":{"content":"ab"},"finish_reason":null}]` + tc.more + "}\n\n"
			var rest []byte
			askOf(t, "ab", cluster.LlamaServer, soon, "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"temperature":0,"max_tokens":5}`,
				func(node string, r *http.Request) (*http.Response, error) {
					if node == "a" {
						return telling(r, events, []timed{{0, rec}}), nil
					}
					rest, _ = io.ReadAll(r.Body)
					return telling(r, events, []timed{{0, chatStop}}), nil
				})
			if !strings.Contains(string(rest), `"max_tokens":3`) {
				t.Errorf("two of five tokens were said, and the rest is asked for by %s", rest)
			}
		})
	}
}
