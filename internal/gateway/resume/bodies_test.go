package resume

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// sameJSON compares what two texts say.
func sameJSON(t *testing.T, got []byte, want string) {
	t.Helper()
	var a, b any
	if err := json.Unmarshal(got, &a); err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	if err := json.Unmarshal([]byte(want), &b); err != nil {
		t.Fatalf("%v: %s", err, want)
	}
	if diff := cmp.Diff(b, a); diff != "" {
		t.Errorf("differs (-want +got):\n%s", diff)
	}
}

func TestRenderAsksForThePromptOfTheSameRequest(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, path, body, wantPath, want string }{
		{"chat as the client wrote it", "/api/chat", ` {"model":"m", "Messages" : [{"role":"user","content":"a<b"}],"keep_alive":0,"STREAM":true,"new":{"b":1,"a":2.50},"options":{"num_ctx":9}} trailing`,
			"/api/chat", `{"model":"m","Messages":[{"role":"user","content":"a<b"}],"new":{"b":1,"a":2.5},"options":{"num_ctx":9},"_debug_render_only":true,"keep_alive":"5m","stream":false}`},
		{"generate by our other name", "/api/v1/generate", `{"model":"m","prompt":"x"}`,
			"/api/generate", `{"model":"m","prompt":"x","_debug_render_only":true,"keep_alive":"5m","stream":false}`},
		{"OpenAI's chat with its defaults", "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}]}`,
			"/api/chat", `{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"temperature":1,"top_p":1},"_debug_render_only":true,"keep_alive":"5m","stream":false}`},
		{"OpenAI's completion with its defaults", "/v1/completions", `{"model":"m","prompt":"x","suffix":"y","stop":"z"}`,
			"/api/generate", `{"model":"m","prompt":"x","suffix":"y","system":"","template":"","options":{"temperature":1,"top_p":1,"frequency_penalty":0,"presence_penalty":0,"stop":["z"]},"_debug_render_only":true,"keep_alive":"5m","stream":false}`},
		{"messages with thinking that the model cannot do", "/v1/messages", `{"model":"m","max_tokens":5,"system":"s","messages":[{"role":"user","content":"x"}],"thinking":{"type":"enabled"}}`,
			"/api/chat", `{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"x"}],"options":{"num_predict":5},"_debug_render_only":true,"keep_alive":"5m","stream":false}`},
		{"responses", "/v1/responses", `{"model":"m","instructions":"s","input":"x","max_output_tokens":5}`,
			"/api/chat", `{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"x"}],"options":{"num_predict":5,"temperature":1},"_debug_render_only":true,"keep_alive":"5m","stream":false}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path, body, err := Render(Answer{Path: tc.path, Body: []byte(tc.body)}, plain)
			if err != nil || path != tc.wantPath {
				t.Fatalf("%s %v, want %s", path, err, tc.wantPath)
			}
			sameJSON(t, body, tc.want)
		})
	}
}

func TestRenderWholeShowsAnAnswerThatHasBegun(t *testing.T) {
	t.Parallel()
	path, body, err := RenderWhole(Answer{
		Path: "/api/generate", Thinking: "Hm", Text: "Once",
		Body: []byte(`{"model":"m","prompt":"x","system":"s","images":["aGk="],"options":{"num_ctx":9},"shift":false,"think":"low"}`),
	}, thinking)
	if err != nil || path != "/api/chat" {
		t.Fatal(path, err)
	}
	sameJSON(t, body, `{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"x","images":["aGk="]},{"role":"assistant","thinking":"Hm","content":"ollamamax-goes-on-here"}],
		"options":{"num_ctx":9},"shift":false,"think":"low","_debug_render_only":true,"keep_alive":"5m","stream":false}`)
	if _, _, err := RenderWhole(Answer{Path: "/api/generate", Body: []byte(`{"prompt":"x","raw":true}`)}, thinking); err == nil {
		t.Error("a raw prompt has been rendered from messages")
	}
}

func TestReadRenderingTellsAnErrorFromAPrompt(t *testing.T) {
	t.Parallel()
	if r, err := ReadRendering([]byte(`{"model":"m","_debug_info":{"rendered_template":"a\u003cb","image_count":2}}`)); err != nil || r != (Rendering{"a<b", 2}) {
		t.Error(r, err)
	}
	for name, answer := range map[string]string{
		"an error": `{"error":"no such model"}`, "an answer": `{"model":"m","response":"x","done":true}`, "no JSON": `x`, "nothing": ``,
	} {
		if r, err := ReadRendering([]byte(answer)); err == nil {
			t.Errorf("%s is the prompt %q", name, r.Text)
		}
	}
}

func TestRawBodyGoesOnAsTheRequestWas(t *testing.T) {
	t.Parallel()
	const chat = `"messages":[{"role":"user","content":"x"}]`
	for _, tc := range []struct {
		name, path, body string
		rendered         Rendering
		facts            Facts
		want             string
	}{
		{"chat with all there is", "/api/chat", chat + `,"options":{"num_predict":9,"seed":3,"stop":["z"],"num_ctx":99,"mirostat":1},"keep_alive":"7s","logprobs":true,"top_logprobs":2,"shift":false,"truncate":false`, Rendering{Text: "<p>"}, plain,
			`{"prompt":"<p>Once","options":{"num_predict":7,"seed":3,"stop":["z"],"num_ctx":99,"mirostat":1},"keep_alive":"7s","logprobs":true,"top_logprobs":2,"shift":false,"truncate":false}`},
		{"no limit", "/api/chat", chat, Rendering{Text: "<p>"}, plain, `{"prompt":"<p>Once","options":{}}`},
		{"a limit of none", "/api/chat", chat + `,"options":{"num_predict":-1}`, Rendering{Text: "<p>"}, plain, `{"prompt":"<p>Once","options":{"num_predict":-1}}`},
		{"the model's limit", "/api/chat", chat, Rendering{Text: "<p>"}, Facts{Kind: cluster.Ollama, NumPredict: 3}, `{"prompt":"<p>Once","options":{"num_predict":1}}`},
		{"loaded for ever", "/api/chat", chat + `,"keep_alive":-1`, Rendering{Text: "<p>"}, plain, `{"prompt":"<p>Once","options":{},"keep_alive":"2562047h47m16.854775807s"}`},
		{"images", "/api/chat", `"messages":[{"role":"user","content":"x","images":["aGk="]},{"role":"user","content":"y","images":["aG8="]}]`, Rendering{"[img-0]x[img-1]y", 2}, plain,
			`{"prompt":"[img-0]x[img-1]yOnce","options":{},"images":["aGk=","aG8="]}`},
		{"a token that renderer and tokenizer add", "/v1/chat/completions", chat + `,"temperature":0`, Rendering{Text: "<s><p>"}, Facts{Kind: cluster.Ollama, Renderer: "r", BOS: "<s>"}, `{"prompt":"<p>Once","options":{"temperature":0,"top_p":1}}`},
		{"a token that the template adds too", "/api/chat", chat, Rendering{Text: "<s><p>"}, Facts{Kind: cluster.Ollama, BOS: "<s>"}, `{"prompt":"<s><p>Once","options":{}}`},
		{"a token that the client added too", "/api/generate", `"prompt":"x","raw":true`, Rendering{Text: "<s><p>"}, Facts{Kind: cluster.Ollama, Renderer: "r", BOS: "<s>"}, `{"prompt":"<s><p>Once","options":{}}`},
		{"completion", "/v1/completions", `"prompt":"x","max_tokens":4,"logprobs":2,"frequency_penalty":0.1`, Rendering{Text: "<p>"}, plain,
			`{"prompt":"<p>Once","options":{"num_predict":2,"temperature":1,"top_p":1,"frequency_penalty":0.1,"presence_penalty":0},"logprobs":true,"top_logprobs":2}`},
		{"messages", "/v1/messages", chat + `,"max_tokens":5,"stop_sequences":["z"],"top_k":4`, Rendering{Text: "<p>"}, plain, `{"prompt":"<p>Once","options":{"num_predict":3,"stop":["z"],"top_k":4}}`},
		{"responses", "/v1/responses", `"input":"x"`, Rendering{Text: "<p>"}, plain, `{"prompt":"<p>Once","options":{"temperature":1}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			body, err := RawBody(Answer{Path: tc.path, Body: []byte(`{"model":"m",` + tc.body + `}`), Text: "Once", Pieces: 2}, tc.rendered, tc.facts)
			if err != nil {
				t.Fatal(err)
			}
			want := `{"model":"m","raw":true,"stream":true,"think":false,"suffix":"","system":"","template":"",` + strings.TrimPrefix(tc.want, "{")
			sameJSON(t, body, want)
		})
	}
}

func TestRawBodyRefusesWhatItCannotJoin(t *testing.T) {
	t.Parallel()
	const picture = `"messages":[{"role":"user","content":"x","images":["aGk="]}]`
	for name, tc := range map[string]struct {
		body     string
		rendered Rendering
	}{
		"an image was cut off":                  {picture, Rendering{"x", 0}},
		"the file's template renders the image": {picture, Rendering{"<__media__>x", 1}},
		"an image's place is written twice":     {picture, Rendering{"[img-0]x[img-0]", 1}},
		"nothing is left":                       {hello + `,"options":{"num_predict":2}`, Rendering{"x", 0}},
	} {
		if body, err := RawBody(Answer{Path: "/api/chat", Body: []byte("{" + tc.body + "}"), Text: "Once", Pieces: 2}, tc.rendered, plain); err == nil {
			t.Errorf("%s: %s", name, body)
		}
	}
}

func TestProbedBodyTakesOnlyWhatTheTemplateAdds(t *testing.T) {
	t.Parallel()
	a := Answer{Path: "/api/chat", Body: []byte(`{"model":"m",` + hello + `}`), Thinking: " Hm\n", Text: "Once ", Pieces: 3}
	for _, tc := range []struct{ name, plain, whole, prompt string }{
		{"closed behind the text", "<u>x<a><think>", "<u>x<a><think>Hm</think>" + sentinel + "<end><a>", "<u>x<a><think>Hm</think>Once "},
		{"open behind the text", "<u>x<a>", "<u>x<a><c>Hm</c>" + sentinel, "<u>x<a><c>Hm</c>Once "},
		{"thinking is left out", "<u>x<a>", "<u>x<a>" + sentinel, ""},
		{"thinking is opened elsewhere", "<u>x<a><think>", "<u>x<a>" + sentinel, ""},
		{"the text is left out", "<u>x<a>", "<u>x<a>Hm", ""},
		{"the text is shown twice", "<u>x<a>", "<u>x<a>Hm" + sentinel + sentinel, ""},
		{"the text is in the prompt already", "<u>" + sentinel + "<a>", "<u>" + sentinel + "<a>Hm:" + sentinel, "<u>" + sentinel + "<a>Hm:Once "},
	} {
		body, err := ProbedBody(a, Rendering{Text: tc.plain}, Rendering{Text: tc.whole}, thinking)
		var got struct{ Prompt string }
		if err == nil {
			err = json.Unmarshal(body, &got)
		}
		if got.Prompt != tc.prompt || (err == nil) != (tc.prompt != "") {
			t.Errorf("%s: %q %v, want %q", tc.name, got.Prompt, err, tc.prompt)
		}
	}
}

func TestPrefillBodyIsTheRequestWithTheTextAtItsEnd(t *testing.T) {
	t.Parallel()
	const goesOn = `,"continue_final_message":true,"add_generation_prompt":false,"stream":true}`
	for _, tc := range []struct {
		name, path, body string
		facts            Facts
		want             string
	}{
		{"chat", "/v1/chat/completions", hello + `,"max_tokens":9,"seed":12345678901234567890,"stream_options":{"include_usage":true}`, llama,
			`{"messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":"Once"}],"max_tokens":7,"seed":12345678901234567890,"stream_options":{"include_usage":true}` + goesOn},
		{"every limit there is", "/v1/chat/completions", hello + `,"max_tokens":9,"max_completion_tokens":5,"n_predict":null`, vllm,
			`{"messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":"Once"}],"max_tokens":3,"max_completion_tokens":3,"n_predict":null` + goesOn},
		{"chat that the client had begun", "/v1/chat/completions", `"messages":[{"role":"assistant","content":"So: ","name":"a"}]`, llama,
			`{"messages":[{"role":"assistant","name":"a","content":"So: Once"}]` + goesOn},
		{"chat whose last message is closed", "/v1/chat/completions", `"messages":[{"role":"assistant","content":"So: "}]`, vllm,
			`{"messages":[{"role":"assistant","content":"So: "},{"role":"assistant","content":"Once"}]` + goesOn},
		{"chat that the client had begun, in vLLM's words", "/v1/chat/completions", `"messages":[{"role":"assistant","content":"So: "}],"continue_final_message":true`, vllm,
			`{"messages":[{"role":"assistant","content":"So: Once"}]` + goesOn},
		{"messages", "/v1/messages", hello + `,"system":"s","max_tokens":9`, llama,
			`{"messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":"Once"}],"system":"s","max_tokens":7` + goesOn},
		{"responses", "/v1/responses", `"input":"Hello","max_output_tokens":9`, llama,
			`{"input":[{"type":"message","role":"user","content":"Hello"},{"type":"message","role":"assistant","content":[{"type":"output_text","text":"Once"}]}],"max_output_tokens":7` + goesOn},
		{"completion", "/v1/completions", `"prompt":"He said: \u00e9<\"","max_tokens":9`, openAI, `{"prompt":"He said: \u00e9<\"Once","max_tokens":7,"stream":true}`},
		{"completion of one text in a list", "/v1/completions", `"prompt":["Hello "]`, openAI, `{"prompt":"Hello Once","stream":true}`},
		{"the last of two prompts", "/v1/completions", `"prompt":"a","prompt":"b"`, openAI, `{"prompt":"bOnce","stream":true}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			body, err := PrefillBody(Answer{Path: tc.path, Body: []byte("{" + tc.body + "}"), Text: "Once", Pieces: 2}, tc.facts)
			if err != nil {
				t.Fatal(err)
			}
			sameJSON(t, body, tc.want)
		})
	}
	for name, body := range map[string]string{"tokens": `{"prompt":[1,2]}`, "no prompt": `{}`, "nothing left": `{"prompt":"a","max_tokens":2}`, "no object": `[]`} {
		if got, err := PrefillBody(Answer{Path: "/v1/completions", Body: []byte(body), Text: "Once", Pieces: 2}, openAI); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
}
