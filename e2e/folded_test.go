package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

// wholeRequests ask for a whole answer that is long enough to be worth folding; a name that ends in
// "as it came" is of a request that an engine is not asked for as a stream.
var wholeRequests = []struct{ name, path, model, body string }{
	{"chat", "/v1/chat/completions", "noise", `"max_tokens":60`},
	{"chat without a limit, with a stop", "/v1/chat/completions", "noise", `"stop":["%s"]`},
	{"chat with a null", "/v1/chat/completions", "noise", `"max_tokens":60,"stream":null,"stream_options":null`},
	{"chat with counts", "/v1/chat/completions", "noise", `"max_tokens":60,"stream":false,"stream_options":{"include_usage":false}`},
	{"chat with log probabilities", "/v1/chat/completions", "noise", `"max_tokens":40,"logprobs":true,"top_logprobs":2`},
	{"chat with a seed", "/v1/chat/completions", "noise", `"max_tokens":50,"seed":7,"top_p":0.9,"frequency_penalty":0.5`},
	{"chat in JSON", "/v1/chat/completions", "noise", `"max_tokens":60,"response_format":{"type":"json_object"}`},
	{"chat with a wrong type", "/v1/chat/completions", "noise", `"temperature":"hot"`},
	{"chat of an unknown role", "/v1/chat/completions", "noise", `"messages":[{"role":"user","content":7}]`},
	{"chat in few tokens, as it came", "/v1/chat/completions", "noise", `"max_tokens":32`},
	{"completion", "/v1/completions", "noise", `"max_tokens":60`},
	{"completion with a stop", "/v1/completions", "noise", `"max_tokens":200,"stop":"%s"`},
	{"completion with counts", "/v1/completions", "noise", `"max_tokens":60,"stream_options":{"include_usage":true}`},
	{"completion with log probabilities, as it came", "/v1/completions", "noise", `"max_tokens":40,"logprobs":2`},
}

// ollamaRequests are those that only Ollamas are asked for as streams.
var ollamaRequests = []struct{ name, path, model, body string }{
	{"chat with tools that the model has not", "/v1/chat/completions", "noise", `"max_tokens":60,"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]`},
	{"chat that thinks", "/v1/chat/completions", "thinks", `"max_tokens":90,"reasoning_effort":"low"`},
	{"chat that only thinks", "/v1/chat/completions", "thinks", `"max_tokens":33,"reasoning_effort":"low","logprobs":true`},
	{"completion that thinks", "/v1/completions", "thinks", `"max_tokens":90`},
	{"messages", "/v1/messages", "noise", `"max_tokens":60`},
	{"messages with a stop", "/v1/messages", "noise", `"max_tokens":200,"stop_sequences":["%s"],"system":"Be brief."`},
	{"messages that think", "/v1/messages", "thinks", `"max_tokens":90,"thinking":{"type":"enabled","budget_tokens":1024}`},
	{"messages that only think", "/v1/messages", "thinks", `"max_tokens":33,"thinking":{"type":"enabled","budget_tokens":1024},"stream":false`},
	{"messages without a limit", "/v1/messages", "noise", `"system":"x"`},
	{"responses", "/v1/responses", "noise", `"max_output_tokens":60`},
	{"responses with settings", "/v1/responses", "noise", `"max_output_tokens":60,"instructions":"Be brief.","temperature":0,"top_p":0.5,"truncation":"auto","text":{"format":{"type":"text"}},"metadata":{"a":"b"}`},
	{"responses in JSON", "/v1/responses", "noise", `"max_output_tokens":60,"text":{"format":{"type":"json_schema","name":"n","strict":true,"schema":{"type":"object","properties":{"a":{"type":"string"}},"required":["a"]}}}`},
	{"responses that think", "/v1/responses", "thinks", `"max_output_tokens":90,"reasoning":{"effort":"low"}`},
	{"responses that only think", "/v1/responses", "thinks", `"max_output_tokens":33,"reasoning":{"effort":"low","summary":"auto"}`},
	{"responses in the background, as they came", "/v1/responses", "noise", `"max_output_tokens":60,"background":true`},
}

const wholeQuestion = "What floats?"

// wholeBody makes a request of them; the stop is what the model says after a while.
func wholeBody(path, model, more, stop string) string {
	if strings.Contains(more, "%s") {
		more = fmt.Sprintf(more, stop)
	}
	ask := fmt.Sprintf(`"messages":[{"role":"user","content":%q}]`, wholeQuestion)
	switch {
	case strings.Contains(more, `"messages"`):
		ask = `"user":"x"`
	case path == "/v1/completions":
		ask = fmt.Sprintf(`"prompt":%q`, wholeQuestion)
	case path == "/v1/responses":
		ask = fmt.Sprintf(`"input":%q`, wholeQuestion)
	}
	if !strings.Contains(more, `"temperature"`) {
		more = `"temperature":0,` + more
	}
	return fmt.Sprintf(`{"model":%q,%s,%s}`, model, ask, more)
}

// wholeAnswer reads a body, without ids, times, and what the cache had.
func wholeAnswer(t *testing.T, text string) any {
	t.Helper()
	v, err := enginetest.Replaced([]byte(text), func(key string, _ any) (any, bool) {
		return "…", slices.Contains([]string{"id", "created", "created_at", "completed_at", "timings", "prompt_tokens_details", "request_id"}, key)
	})
	if err != nil {
		t.Fatalf("no JSON: %v in %.500s", err, text)
	}
	return v
}

// compareWhole asks an engine directly and through a node, and wants the same status and the same
// members with the same values, of answers that came from the engine as a stream.
func compareWhole(t *testing.T, rec *recorder, engine, node string, requests []struct{ name, path, model, body string }, stop string) {
	folded := 0
	for i, tc := range requests {
		t.Run(tc.name, func(t *testing.T) {
			body := wholeBody(tc.path, tc.model, tc.body, stop)
			id := fmt.Sprintf("whole-%d-%d", len(requests), i)
			directStatus, directHeader, direct := askHeader(t, "POST", engine+tc.path, body, "Content-Type", "application/json", "Connection", "close")
			status, header, got := askHeader(t, "POST", node+tc.path, body, "X-Request-Id", id, "Content-Type", "application/json")
			if status != directStatus {
				t.Fatalf("status %d %s, directly %d %s", status, got, directStatus, direct)
			}
			if kind, want := header.Get("Content-Type"), directHeader.Get("Content-Type"); kind != want {
				t.Errorf("it is %q, directly %q", kind, want)
			}
			if diff := cmp.Diff(wholeAnswer(t, direct), wholeAnswer(t, got)); diff != "" {
				t.Errorf("another answer than directly (-direct +through the node):\n%s", diff)
			}
			if got[len(got)-1] != direct[len(direct)-1] {
				t.Errorf("it ends in %q, directly in %q", got[len(got)-1], direct[len(direct)-1])
			}
			sent := rec.answer(id)
			streamed := strings.HasPrefix(sent, "data: ") || strings.HasPrefix(sent, "event: ")
			if want := status == 200 && !strings.HasSuffix(tc.name, "came"); streamed != want {
				t.Errorf("status %d; it was asked for as a stream: %v: %.200s", status, streamed, sent)
			}
			if streamed {
				folded++
			}
		})
	}
	if folded < len(requests)/2 {
		t.Errorf("%d of %d answers were folded", folded, len(requests))
	}
}

func TestAFoldedAnswerIsTheOneThatAnOllamaGives(t *testing.T) {
	t.Parallel()
	engine := startOllama(t)
	continuationModels(t, engine)
	thinkingModel(t, []string{engine}, "thinks", wholeQuestion)
	rec := newRecorder(t, engine)
	_, node := startReadyNode(t, "--engine-url", rec.URL)
	compareWhole(t, rec, engine, node, wholeRequests, "a")
	compareWhole(t, rec, engine, node, ollamaRequests, "a")
}

func TestAFoldedAnswerIsTheOneThatALlamaServerGives(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	host, port, _ := strings.Cut(addr, ":")
	start(t, nil, llamaServer(t), "--host", host, "--port", port, "--model", filepath.Join(engineDir(t), "noise.gguf"), "--alias", "noise",
		"--ctx-size", "2048", "--parallel", "1")
	rec := newRecorder(t, "http://"+addr)
	_, node := startReadyNode(t, "--engine", "llama-server", "--engine-url", rec.URL)
	compareWhole(t, rec, "http://"+addr, node, wholeRequests, "a")
}
