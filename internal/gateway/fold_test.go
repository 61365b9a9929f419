package gateway

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
	"github.com/ollamamax/ollamamax/internal/gateway/record"
)

// wholeBody reads a body without what differs between two answers to the same request: ids and times,
// and what only the engine that began an answer could tell of its cache.
func wholeBody(t *testing.T, text string) any {
	t.Helper()
	v, err := enginetest.Replaced([]byte(text), func(key string, _ any) (any, bool) {
		switch key {
		case "created_at", "created", "completed_at", "id", "call_id", "total_duration", "load_duration", "prompt_eval_duration",
			"eval_duration", "timings", "prompt_tokens_details":
			return nil, true
		}
		return nil, false
	})
	if err != nil {
		t.Fatalf("no JSON: %s", text)
	}
	return v
}

// resumed is how many answers went on by a method.
func (h *house) resumed(t *testing.T, method string) (n float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(h.gateway.metrics.resumes)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "method" && label.GetValue() == method {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

func TestABrokenAnswerThatIsWantedWholeGoesOnElsewhere(t *testing.T) {
	h := newHouse(t, 3, nil, func(c *enginetest.Config) { c.Length = 40 })
	for _, path := range generating {
		body := bodyFor(path, "m", "tell me", `"stream":false`)
		_, text := h.ask(t, path, body)
		want := wholeBody(t, text)
		before := h.resumed(t, "raw")
		for _, kind := range []enginetest.FaultKind{enginetest.FaultReset, enginetest.FaultTruncate, enginetest.FaultError500, enginetest.FaultGarbage, enginetest.FaultFreeze} {
			for _, after := range []int{1, 2, 17, 39, 40} {
				t.Run(fmt.Sprint(path, " ", kind, " after ", after), func(t *testing.T) {
					h.engines[0].SetFault(enginetest.Fault{Kind: kind, After: after})
					defer h.engines[0].SetFault(enginetest.Fault{})
					status, text := h.ask(t, path, body)
					if path == "/v1/messages" && after == 40 { // no engine is asked for what is over: the prompt's length is the first one's guess
						text = strings.Replace(text, `"input_tokens":2,`, `"input_tokens":4,`, 1)
					}
					if diff := cmp.Diff(want, wholeBody(t, text)); status != 200 || diff != "" {
						t.Errorf("status %d (-unbroken +broken): %s", status, diff)
					}
				})
			}
		}
		if n := h.resumed(t, "raw") - before; n < 20 {
			t.Errorf("%s: %v of 25 answers went on behind their text", path, n)
		}
	}
}

func TestABrokenWholeAnswerOfEnginesOfOpenAIsRoutesGoesOn(t *testing.T) {
	for _, kind := range []enginetest.Kind{enginetest.KindLlamaServer, enginetest.KindOpenAI} {
		h := newHouse(t, 2, nil, func(c *enginetest.Config) { c.Kind = kind; c.Length = 40 })
		for _, path := range []string{"/v1/chat/completions", "/v1/completions"} {
			body := bodyFor(path, "m", "tell me", `"temperature":0,"max_tokens":40`)
			_, text := h.ask(t, path, body)
			want := wholeBody(t, text)
			if !strings.Contains(text, `"usage":{`) {
				t.Errorf("%s %s tells no counts: %s", kind, path, text)
			}
			for _, after := range []int{1, 9, 39} {
				h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: after})
				status, text := h.ask(t, path, body)
				if diff := cmp.Diff(want, wholeBody(t, text)); status != 200 || diff != "" {
					t.Errorf("%s %s after %d: %d (-unbroken +broken): %s", kind, path, after, status, diff)
				}
			}
			h.engines[0].SetFault(enginetest.Fault{})
		}
		if n := h.resumed(t, "prefill"); n != 6 {
			t.Errorf("%s: %v of 6 answers went on behind their text", kind, n)
		}
	}
}

// TestAWholeAnswerThatCannotGoOnIsMadeAnew breaks answers behind a call, and sampled ones without a
// seed: of a stream neither can go on.
func TestAWholeAnswerThatCannotGoOnIsMadeAnew(t *testing.T) {
	h := newHouse(t, 2, func(c *Config) { c.Resume.Seed = false; c.Resume.Thinking = thinkingError }, func(c *enginetest.Config) { c.Length = 40; c.Sampling = true })
	for _, tc := range []struct{ path, model, more, want string }{
		{"/api/chat", "tools", `"options":{"temperature":1},"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}]`, `"tool_calls":[{`},
		{"/v1/chat/completions", "tools", `"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}]`, `"finish_reason":"tool_calls"`},
		{"/v1/messages", "tools", `"tools":[{"name":"weather","input_schema":{"type":"object"}}]`, `"type":"tool_use"`},
		{"/v1/responses", "tools", `"tools":[{"type":"function","name":"weather","parameters":{"type":"object"}}]`, `"type":"function_call"`},
		{"/v1/chat/completions", "thinks", `"temperature":1`, `"reasoning":"`},
		{"/v1/messages", "thinks", `"temperature":1,"thinking":{"type":"enabled","budget_tokens":1000}`, `"thinking":"`},
		{"/v1/responses", "thinks", `"temperature":1`, `"summary_text"`},
	} {
		before := h.resumed(t, "replay")
		for after := 1; after < 8; after++ {
			h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: after})
			status, text := h.ask(t, tc.path, bodyFor(tc.path, tc.model, "CALL it", tc.more+`,"stream":false`))
			if status != 200 || strings.Count(text, tc.want) != 1 {
				t.Errorf("%s %s after %d: %d %s", tc.path, tc.model, after, status, text)
			}
		}
		if h.resumed(t, "replay") == before {
			t.Errorf("%s %s: nothing was made anew: the test shows nothing", tc.path, tc.model)
		}
	}
}

func TestWhatCannotBeFoldedIsAskedForAsItCame(t *testing.T) {
	h := newHouse(t, 2, nil, func(c *enginetest.Config) { c.Kind = enginetest.KindLlamaServer; c.Length = 40 })
	h.engines[0].SetFault(enginetest.Fault{Kind: enginetest.FaultReset, After: 5})
	for form, want := range map[record.Form]bool{record.Chat: true, record.ChatCompletions: true, record.Completions: true, record.Messages: false, record.Responses: false} {
		if h.gateway.folds("m", form) != want {
			t.Errorf("form %d of a llama-server is folded: %v", form, !want)
		}
	}
	for _, more := range []string{`"n":2`, `"max_tokens":32`, `"store":true`} {
		if status, text := h.ask(t, "/v1/chat/completions", bodyFor("/v1/chat/completions", "m", "tell me", more)); status != 200 {
			t.Errorf("%s: %d %s", more, status, text)
		}
	}
	for _, method := range []string{"raw", "prefill", "replay"} {
		if n := h.resumed(t, method); n != 0 {
			t.Errorf("%v streams went on by %s: nobody had asked for one", n, method)
		}
	}
}

// TestARepeatingModelsWholeAnswerIsWhatItsEngineSays: the engine ends it without saying why.
func TestARepeatingModelsWholeAnswerIsWhatItsEngineSays(t *testing.T) {
	h := newHouse(t, 3, nil, nil)
	for _, path := range generating {
		body := bodyFor(path, "m", "REPEAT it", `"stream":false`)
		direct := directly(t, h, path, body)
		status, text := h.ask(t, path, body)
		if path == "/v1/messages" { // the stream began with a guess
			text = regexp.MustCompile(`"input_tokens":\d+`).ReplaceAllString(text, `"input_tokens":0`)
		}
		if diff := cmp.Diff(wholeBody(t, direct), wholeBody(t, text)); status != 200 || diff != "" {
			t.Errorf("%s: %d (-engine +folded): %s", path, status, diff)
		}
	}
}

func TestWhatAFoldedAnswerTookIsLearned(t *testing.T) {
	h := newHouse(t, 1, nil, func(c *enginetest.Config) { c.Length = 40 })
	for _, path := range generating {
		h.ask(t, path, bodyFor(path, "m", "tell me", `"stream":false`))
		if o := h.outcome.Load(); o == nil || o.Result != cluster.Answered || o.First == 0 || o.PromptTokens != 4 || o.OutputTokens != 40 || o.MeanGap == 0 {
			t.Errorf("%s: %+v", path, o)
		}
	}
}
