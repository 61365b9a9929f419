package resume

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestWithSeedLeavesEveryOtherByte(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, path, body, want string }{
		{"chat without options", "/api/chat", ` { "model" : "m" } `, ` { "model" : "m" ,"options":{"seed":7}} `},
		{"chat by our other name", "/api/v1/chat", `{"model":"m"}`, `{"model":"m","options":{"seed":7}}`},
		{"an empty object", "/api/generate", `{}`, `{"options":{"seed":7}}`},
		{"options", "/api/generate", `{"options":{"temperature":1.50},"prompt":"é"}`, `{"options":{"temperature":1.50,"seed":7},"prompt":"é"}`},
		{"empty options", "/api/generate", `{"options": { } ,"a":1}`, `{"options": { "seed":7} ,"a":1}`},
		{"options in capitals", "/api/chat", `{"Options":{"top_k":1}}`, `{"Options":{"top_k":1,"seed":7}}`},
		{"no options", "/api/chat", `{"options":null}`, `{"options":{"seed":7}}`},
		{"options twice", "/api/chat", `{"options":{"top_k":1},"options":{"top_p":1}}`, `{"options":{"top_k":1},"options":{"top_p":1,"seed":7}}`},
		{"options elsewhere", "/api/chat", `{"messages":[{"options":{}}]}`, `{"messages":[{"options":{}}],"options":{"seed":7}}`},
		{"no seed in the options", "/api/chat", `{"options":{"seed":null,"top_k":1}}`, `{"options":{"seed":7,"top_k":1}}`},
		{"options that are none", "/api/chat", `{"options":3}`, `{"options":3}`},
		{"OpenAI's chat", "/v1/chat/completions", "{\"model\":\"m\"\n}\n", "{\"model\":\"m\"\n,\"seed\":7}\n"},
		{"OpenAI's chat, none", "/v1/chat/completions", `{"seed": null ,"model":"m"}`, `{"seed": 7 ,"model":"m"}`},
		{"completion", "/v1/completions", `{"prompt":"\"}"}`, `{"prompt":"\"}","seed":7}`},
		{"messages", "/v1/messages", `{"model":"m"}`, `{"model":"m"}`},
		{"responses", "/v1/responses", `{"model":"m"}`, `{"model":"m"}`},
		{"something behind it", "/v1/completions", `{"prompt":"x"}{"prompt":"y"}`, `{"prompt":"x","seed":7}{"prompt":"y"}`},
		{"no object", "/api/chat", `[1]`, `[1]`},
		{"half an object", "/api/chat", `{"model":`, `{"model":`},
		{"nothing", "/api/chat", ``, ``},
	} {
		if got := string(WithSeed(tc.path, []byte(tc.body), 7)); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestASeedIsNeededWhereAReplayIsDrawn(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, path, body string
		facts            Facts
		want             bool
	}{
		{"plain text", "/api/chat", hello, plain, false},
		{"thinking", "/api/chat", hello, thinking, true},
		{"thinking without chance", "/api/chat", hello + `,"options":{"temperature":0}`, thinking, false},
		{"thinking without chance, in OpenAI's words", "/v1/completions", `"prompt":"x","temperature":0.0`, thinking, false},
		{"thinking with a seed", "/api/chat", hello + `,"options":{"seed":0}`, thinking, false},
		{"thinking with a seed in one of two options", "/api/chat", hello + `,"options":{"seed":0},"options":{"top_k":1}`, thinking, false},
		{"thinking with a seed that is none", "/api/chat", hello + `,"options":{"seed":null}`, thinking, true},
		{"thinking switched off", "/api/chat", hello + `,"think":false`, thinking, false},
		{"tools", "/v1/chat/completions", hello + "," + tool, plain, true},
		{"tools with a seed", "/v1/chat/completions", hello + `,"seed":3,` + tool, plain, false},
		{"format", "/api/generate", `"prompt":"x","format":"json"`, plain, true},
		{"images", "/api/generate", `"prompt":"x","images":["aGk="]`, plain, true},
		{"an answer that Ollama takes apart", "/api/chat", hello, Facts{Kind: cluster.Ollama, Parser: "p"}, true},
		{"a route without a seed", "/v1/messages", hello + `,"max_tokens":1`, thinking, false},
		{"another route without a seed", "/v1/responses", `"input":"x"`, thinking, false},
		{"what Ollama refuses", "/api/chat", `"messages":7`, thinking, false},
		{"llama-server's chat", "/v1/chat/completions", hello, llama, true},
		{"llama-server's chat without chance", "/v1/chat/completions", hello + `,"temperature":0`, llama, false},
		{"llama-server's completion", "/v1/completions", `"prompt":"x"`, llama, false},
		{"llama-server's tools", "/v1/chat/completions", hello + "," + tool, llama, true},
		{"vLLM's chat", "/v1/chat/completions", hello, vllm, true},
		{"an unknown engine's chat", "/v1/chat/completions", hello, openAI, true},
		{"an unknown engine's chat without chance", "/v1/chat/completions", hello + `,"temperature":0`, openAI, false},
		{"an unknown engine's completion", "/v1/completions", `"prompt":"x"`, openAI, false},
		{"an unknown engine's completion of tokens", "/v1/completions", `"prompt":[1]`, openAI, true},
		{"embeddings", "/v1/embeddings", `"input":"x"`, thinking, false},
	} {
		if got := NeedsSeed(tc.path, []byte("{"+tc.body+"}"), tc.facts); got != tc.want {
			t.Errorf("%s: %t", tc.name, got)
		}
	}
}

func TestReadShowKnowsTheModel(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, answer string
		want         Facts
		verbose      bool
	}{
		{"a plain model", `{"template":"{{ .Prompt }}","capabilities":["completion"],"model_info":{"tokenizer.ggml.add_bos_token":true,"tokenizer.ggml.bos_token_id":1}}`, plain, false},
		{"one that thinks, with a limit", `{"capabilities":["completion","thinking"],"parameters":"stop                           \"x y\"\nnum_predict                    42\ntop_k 1","model_info":{}}`, Facts{Kind: cluster.Ollama, Thinks: true, NumPredict: 42}, false},
		{"one with the template of its file", `{"template":"{% for m in messages %}","model_info":{}}`, Facts{Kind: cluster.Ollama, Jinja: true}, false},
		{"one of built-in parts", `{"modelfile":"# x\nFROM /a b\nTEMPLATE {{ .Prompt }}\nRENDERER r\nPARSER p\n","model_info":{"tokenizer.ggml.add_bos_token":false}}`, Facts{Kind: cluster.Ollama, Renderer: "r", Parser: "p"}, false},
		{"one of built-in parts, in fields", `{"renderer":"r","parser":"p","modelfile":"RENDERER x","model_info":{}}`, Facts{Kind: cluster.Ollama, Renderer: "r", Parser: "p"}, false},
		{"one whose texts look like commands", `{"modelfile":"SYSTEM \"\"\"a\nRENDERER evil \"quoted\"\n\"\"\"\nTEMPLATE \"x\nPARSER evil\ny\"\nMESSAGE user \"z\nPARSER evil\"\nPARSER p\n","model_info":{}}`, Facts{Kind: cluster.Ollama, Parser: "p"}, false},
		{"a tokenizer that adds its token, briefly", `{"modelfile":"RENDERER r","model_info":{"tokenizer.ggml.add_bos_token":true,"tokenizer.ggml.bos_token_id":1,"tokenizer.ggml.tokens":null}}`, Facts{Kind: cluster.Ollama, Renderer: "r"}, true},
		{"a tokenizer that adds its token, cut short", `{"modelfile":"RENDERER r","model_info":{"tokenizer.ggml.add_bos_token":true,"tokenizer.ggml.bos_token_id":1,"tokenizer.ggml.tokens":[]}}`, Facts{Kind: cluster.Ollama, Renderer: "r"}, true},
		{"a tokenizer that adds its token", `{"modelfile":"RENDERER r","model_info":{"tokenizer.ggml.add_bos_token":true,"tokenizer.ggml.bos_token_id":1,"tokenizer.ggml.tokens":["a","<s>"]}}`, Facts{Kind: cluster.Ollama, Renderer: "r", BOS: "<s>"}, false},
		{"a tokenizer that adds it whatever it says", `{"modelfile":"RENDERER r","model_info":{"tokenizer.ggml.add_bos_token":false,"tokenizer.ggml.pre":"lfm2","tokenizer.ggml.bos_token_id":0,"tokenizer.ggml.tokens":["<s>","b"]}}`, Facts{Kind: cluster.Ollama, Renderer: "r", BOS: "<s>"}, false},
		{"an old gpt-oss", `{"details":{"family":"gptoss"},"capabilities":["thinking"],"model_info":{}}`, Facts{Kind: cluster.Ollama, Thinks: true, Parser: "harmony"}, false},
	} {
		got, verbose, err := ReadShow([]byte(tc.answer))
		if err != nil || verbose != tc.verbose {
			t.Errorf("%s: verbose %t, %v", tc.name, verbose, err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", tc.name, diff)
		}
	}
	for name, answer := range map[string]string{"an error": `{"error":"x"}`, "no JSON": `{"model_info":{}`, "nothing": ``} {
		if f, _, err := ReadShow([]byte(answer)); err == nil {
			t.Errorf("%s shows %+v", name, f)
		}
	}
}

func TestEnginesThatGoOnAreKnownByTheirOwner(t *testing.T) {
	t.Parallel()
	for v1, want := range map[string]bool{
		`{"id":"m","owned_by":"vllm"}`: true, `{"id":"m","owned_by":"sglang"}`: true, `{"id":"vllm","owned_by":"organization_owner"}`: false, `{}`: false, ``: false,
	} {
		if got := Continues([]byte(v1)); got != want {
			t.Errorf("%s: %t", v1, got)
		}
	}
}

// FuzzNothingPanics also holds WithSeed to its promise, and every body that is made to be JSON.
func FuzzNothingPanics(f *testing.F) {
	for _, body := range []string{
		`{"model":"m",` + hello + `,"options":{"num_predict":9}}`, `{"prompt":["a"],"max_tokens":3,"suffix":"x"}`, `{"input":[{"role":"assistant","content":[]}],"tools":[{}]}`,
		`{"messages":[{"role":"assistant","content":"x","tool_calls":[{"function":{"arguments":"{"}}]}],"system":[{"type":"text"}],"max_tokens":1}`, `{"a\"b":null,"":{}}`, `{"options":{"seed":null}}`, `[]`, ``, `{`, "\xff",
	} {
		f.Add(body, "Once", "Hm", 2)
	}
	f.Fuzz(func(t *testing.T, body, text, thought string, pieces int) {
		for _, path := range []string{"/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/x"} {
			for _, facts := range []Facts{plain, thinking, llama, vllm, openAI, {}} {
				a := Answer{Path: path, Body: []byte(body), Text: text, Thinking: thought, Pieces: pieces}
				Decide(a, facts)
				limitOf(path, a.Body, facts)
				NeedsSeed(path, a.Body, facts)
				_, render, err1 := Render(a, facts)
				_, whole, err2 := RenderWhole(a, facts)
				raw, err3 := RawBody(a, Rendering{Text: body}, facts)
				probed, err4 := ProbedBody(a, Rendering{Text: body}, Rendering{Text: body + thought + sentinel}, facts)
				prefill, err5 := PrefillBody(a, facts)
				made := [][]byte{render, whole, raw, probed, prefill}
				for i, err := range []error{err1, err2, err3, err4, err5} {
					if err == nil && !json.Valid(made[i]) {
						t.Errorf("%s %+v: body %d of %q is no JSON: %q", path, facts, i, body, made[i])
					}
				}
			}
			if seeded := WithSeed(path, []byte(body), 7); json.Valid([]byte(body)) && !json.Valid(seeded) {
				t.Errorf("%s: %q with a seed is no JSON: %q", path, body, seeded)
			}
			if stream, ok := AsStream(path, []byte(body)); ok && json.Valid([]byte(body)) && !json.Valid(stream) {
				t.Errorf("%s: %q as a stream is no JSON: %q", path, body, stream)
			}
		}
		_, _ = ReadRendering([]byte(body))
		_, _, _ = ReadShow([]byte(body))
		Continues([]byte(body))
	})
}
