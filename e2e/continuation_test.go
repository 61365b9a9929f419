package e2e

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ollamamax/ollamamax/internal/gateway/resume"
)

const goTemplate = `{{- range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>`

// continuationModels are the ways in which a model's prompts come about.
func continuationModels(t *testing.T, url string) {
	t.Helper()
	noise := filepath.Join(engineDir(t), "noise.gguf")
	create(t, url, "noise", noise) // llama-server's own chat template
	createFrom(t, url, "go", "noise", map[string]any{"template": goTemplate})
	createFrom(t, url, "full", "noise", map[string]any{
		"template": goTemplate, "system": "You are a lighthouse.", "messages": []map[string]string{{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}},
		"parameters": map[string]any{"num_predict": 90, "num_ctx": 1024, "stop": []string{"~~"}, "repeat_penalty": 1.3, "repeat_last_n": 32},
	})
	create(t, url, "bos", withBOS(t, noise, "<|startoftext|>", ""))
	createFrom(t, url, "bos-go", "bos", map[string]any{"template": "<|startoftext|>" + goTemplate})
	createFrom(t, url, "bos-built-in", "bos", map[string]any{"renderer": "lfm2"})
	createFrom(t, url, "built-in", "noise", map[string]any{"renderer": "qwen3-coder", "parser": "qwen3-coder"})
	create(t, url, "jinja", withBOS(t, noise, "<s>", `{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}`))
}

func TestAnAnswerCutAnywhereGoesOnAsItWouldHaveGoneOn(t *testing.T) {
	first, second := startOllama(t), startOllama(t)
	continuationModels(t, first)
	continuationModels(t, second)
	cut, equal := 0, 0
	const chat = `"messages":[{"role":"user","content":"Where is the harbour?"}]`
	const turns = `"messages":[{"role":"system","content":"Be short."},{"role":"user","content":"Hé <b>&amp;</b> \u2028 \"x\""},{"role":"assistant","content":"Ho"},{"role":"user","content":"And now?"}]`
	for _, tc := range []struct{ name, path, model, body string }{
		{"chat", "/api/chat", "noise", chat + `,"options":{"temperature":0,"num_predict":100}`},
		{"chat of many turns", "/api/chat", "go", turns + `,"options":{"temperature":0,"num_predict":100}`},
		{"chat without a limit but the model's", "/api/chat", "full", chat + `,"options":{"temperature":0}`},
		{"chat with penalties", "/api/chat", "go", turns + `,"options":{"temperature":0,"num_predict":90,"repeat_penalty":1.5,"frequency_penalty":0.7,"presence_penalty":0.4,"repeat_last_n":48}`},
		{"chat with log probabilities", "/api/chat", "go", chat + `,"logprobs":true,"top_logprobs":2,"options":{"temperature":0,"num_predict":60}`},
		{"chat of a tokenizer that adds a token", "/api/chat", "bos", chat + `,"options":{"temperature":0,"num_predict":60}`},
		{"chat whose template and tokenizer add a token", "/api/chat", "bos-go", chat + `,"options":{"temperature":0,"num_predict":60}`},
		{"chat whose renderer and tokenizer add a token", "/api/chat", "bos-built-in", turns + `,"options":{"temperature":0,"num_predict":60}`},
		{"chat of built-in renderer and parser", "/v1/chat/completions", "built-in", chat + `,"temperature":0,"max_tokens":60`},
		{"chat by the file's own template", "/api/chat", "jinja", turns + `,"options":{"temperature":0,"num_predict":60}`},
		{"generate", "/api/generate", "noise", `"prompt":"The sea","options":{"temperature":0,"num_predict":100}`},
		{"generate by a template, with a system prompt", "/api/generate", "full", `"prompt":"The sea","system":"Be brief.","options":{"temperature":0,"num_predict":70}`},
		{"generate by the client's template", "/api/generate", "go", `"prompt":"The sea","template":"({{ .System }}){{ .Prompt }}:","options":{"temperature":0,"num_predict":70}`},
		{"generate raw", "/api/generate", "go", `"prompt":"<|user|>The sea","raw":true,"options":{"temperature":0,"num_predict":70}`},
		{"generate with a context", "/api/generate", "go", `"prompt":"The sea","context":[104,105],"options":{"temperature":0,"num_predict":70}`},
		{"generate by the file's own template", "/api/generate", "jinja", `"prompt":"The sea","options":{"temperature":0,"num_predict":70}`},
		{"OpenAI's chat", "/v1/chat/completions", "noise", chat + `,"temperature":0,"max_tokens":100`},
		{"OpenAI's chat with more", "/v1/chat/completions", "full", turns + `,"temperature":0,"max_tokens":80,"frequency_penalty":0.5,"presence_penalty":0.3,"logprobs":true`},
		{"OpenAI's chat of parts", "/v1/chat/completions", "go", `"messages":[{"role":"user","content":[{"type":"text","text":"One"},{"type":"text","text":"Two"}]}],"temperature":0,"max_tokens":80`},
		{"completion", "/v1/completions", "go", `"prompt":"The sea","temperature":0,"max_tokens":80,"frequency_penalty":0.3`},
		{"completion by the file's own template", "/v1/completions", "jinja", `"prompt":"The sea","temperature":0,"max_tokens":80`},
		{"messages", "/v1/messages", "noise", `"system":"Be short.",` + chat + `,"temperature":0,"max_tokens":80`},
		{"messages with thinking that the model cannot do", "/v1/messages", "full", `"thinking":{"type":"enabled","budget_tokens":1024},` + chat + `,"temperature":0,"max_tokens":80`},
		{"responses", "/v1/responses", "noise", `"input":"Where is the harbour?","temperature":0,"max_output_tokens":80`},
		{"responses of many turns", "/v1/responses", "go", `"instructions":"Be short.","input":[{"role":"user","content":"Hi"},{"role":"assistant","content":[{"type":"output_text","text":"Ho"}]},{"role":"user","content":"And now?"}],"temperature":0,"max_output_tokens":80`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCut(t, first, second, tc.path, tc.model, fmt.Sprintf(`{"model":%q,"stream":true,%s}`, tc.model, tc.body))
			if tc.model == "built-in" {
				c.method = resume.Probe
			}
			cuts := rand.New(rand.NewPCG(uint64(len(tc.name)), 1)).Perm(len(c.whole.pieces) - 2)[:5]
			for _, at := range append(cuts, 0, len(c.whole.pieces)-2) {
				cut++
				if c.check(t, at+1) {
					equal++
				}
			}
			c.control(t, 3)
		})
	}
	t.Logf("of %d answers %d were equal to their end", cut, equal)
	if 10*equal < 8*cut {
		t.Errorf("rounding decided too many: of %d answers %d were equal to their end", cut, equal)
	}
}

func TestAStopSequenceHoldsAcrossTheCut(t *testing.T) {
	first, second := startOllama(t), startOllama(t)
	continuationModels(t, first)
	continuationModels(t, second)
	const chat = `"messages":[{"role":"user","content":"Where is the ship?"}]`
	for _, tc := range []struct{ path, free, stop string }{
		{"/api/chat", chat + `,"options":{"temperature":0,"num_predict":60}`, chat + `,"options":{"temperature":0,"num_predict":100,"stop":["~~~",%q]}`},
		{"/api/generate", `"prompt":"A ship","options":{"temperature":0,"num_predict":60}`, `"prompt":"A ship","options":{"temperature":0,"num_predict":100,"stop":[%q]}`},
		{"/v1/chat/completions", chat + `,"temperature":0,"max_tokens":60`, chat + `,"temperature":0,"max_tokens":100,"stop":%q`},
		{"/v1/completions", `"prompt":"A ship","temperature":0,"max_tokens":60`, `"prompt":"A ship","temperature":0,"max_tokens":100,"stop":[%q]`},
		{"/v1/messages", chat + `,"temperature":0,"max_tokens":60`, chat + `,"temperature":0,"max_tokens":100,"stop_sequences":[%q]`},
		{"/v1/responses", `"input":"A ship","temperature":0,"max_output_tokens":60`, `"input":"A ship","temperature":0,"max_output_tokens":100`},
	} {
		t.Run(tc.path, func(t *testing.T) {
			model := "go"
			free := streamed(t, first, tc.path, fmt.Sprintf(`{"model":%q,"stream":true,%s}`, model, tc.free)).text()
			stop := free[40:43]
			if strings.Index(free, stop) != 40 {
				t.Fatalf("%q is said twice: %q", stop, free)
			}
			body := tc.stop
			if strings.Contains(body, "%q") {
				body = fmt.Sprintf(body, stop)
			} else { // this route has no stop sequences but the model's
				model = "stops"
				for _, url := range []string{first, second} {
					createFrom(t, url, model, "go", map[string]any{"parameters": map[string]any{"stop": []string{stop}}})
				}
			}
			c := newCut(t, first, second, tc.path, model, fmt.Sprintf(`{"model":%q,"stream":true,%s}`, model, body))
			if text := c.whole.text(); text != free[:40] {
				t.Fatalf("stopped before %q it says %q, want %q", stop, text, free[:40])
			}
			for _, at := range []int{1, 13, 28, len(c.whole.pieces) - 1, len(c.whole.pieces)} {
				c.check(t, at)
			}
			c.control(t, 3)
		})
	}
}
