package enginetest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// llamaChunk is an object of llama-server's, streamed or whole.
type llamaChunk struct {
	Object, Model, ID string
	Fingerprint       string `json:"system_fingerprint"`
	Choices           []struct {
		Delta, Message struct {
			Role      string
			Content   *string
			Reasoning string          `json:"reasoning_content"`
			Calls     json.RawMessage `json:"tool_calls"`
		}
		Text   string
		Finish *string `json:"finish_reason"`
	}
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
	}
	Timings *struct {
		Cached    int `json:"cache_n"`
		Prompt    int `json:"prompt_n"`
		Predicted int `json:"predicted_n"`
	}
}

func startLlama(t *testing.T, m Model) (*rig, func()) {
	return start(t, Config{Kind: KindLlamaServer, Models: []Model{m}, Slots: 2, Length: 12, ThinkLength: 3})
}

func TestALlamaServersStreamBeginsWithARoleAndEndsWithTimings(t *testing.T) {
	r, stop := startLlama(t, Model{Name: "noise"})
	defer stop()
	const body = `{"messages":[{"role":"user","content":"Hi"}],"max_tokens":3`
	whole := parse[llamaChunk](t, r.post("/v1/chat/completions", body+`}`))
	text := *whole.Choices[0].Message.Content
	if whole.Object != "chat.completion" || whole.Model != "noise" || *whole.Choices[0].Finish != "length" || Tokens(text) != 3 ||
		whole.Usage.Prompt != 3 || whole.Usage.Completion != 3 || whole.Timings.Prompt != 3 || whole.Timings.Predicted != 3 {
		t.Errorf("whole %+v", whole)
	}
	for _, usage := range []bool{false, true} {
		extra := ""
		if usage {
			extra = `,"stream_options":{"include_usage":true}`
		}
		es := events(r.post("/v1/chat/completions", body+`,"model":"any","stream":true`+extra+`}`))
		if want := 6; len(es) != want && !usage || usage && len(es) != want+1 || es[len(es)-1].data != "[DONE]" {
			t.Fatalf("events %q", es)
		}
		if !strings.HasPrefix(es[0].data, `{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"created":`) {
			t.Errorf("first %s", es[0].data)
		}
		got := ""
		for _, e := range es[1:4] {
			c := parse[llamaChunk](t, e.data)
			got += *c.Choices[0].Delta.Content
			if c.Object != "chat.completion.chunk" || c.Choices[0].Delta.Role != "" || c.Fingerprint != "b11669-fake" || c.Timings != nil {
				t.Errorf("chunk %s", e.data)
			}
		}
		if got != text {
			t.Errorf("streamed %q, whole %q", got, text)
		}
		finish, last := parse[llamaChunk](t, es[4].data), parse[llamaChunk](t, es[len(es)-2].data)
		if *finish.Choices[0].Finish != "length" || !strings.Contains(es[4].data, `"delta":{}`) || last.Timings == nil || (last.Usage != nil) != usage {
			t.Errorf("last %s, %s", es[4].data, es[len(es)-2].data)
		}
		if usage && (len(last.Choices) != 0 || last.Usage.Completion != 3 || last.Timings.Cached != 2) {
			t.Errorf("usage %s", es[len(es)-2].data)
		}
	}
	es := events(r.post("/v1/completions", `{"prompt":"<|user|>\nHi\n<|assistant|>","max_tokens":3,"stream":true}`))
	got := ""
	for _, e := range es[:len(es)-1] {
		got += parse[llamaChunk](t, e.data).Choices[0].Text
	}
	if last := parse[llamaChunk](t, es[len(es)-2].data); len(es) != 5 || got != text || last.Usage.Completion != 3 || *last.Choices[0].Finish != "length" || last.Timings == nil {
		t.Errorf("completion %q", es)
	}
}

func TestALlamaServerContinuesTheAssistantsLastMessage(t *testing.T) {
	r, stop := startLlama(t, Model{Name: "qwen", Thinking: true})
	defer stop()
	for _, thinks := range []bool{true, false} {
		const user = `{"role":"user","content":[{"type":"text","text":"Hi"},{"type":"text","text":"you"}]}`
		off := fmt.Sprintf(`,"chat_template_kwargs":{"enable_thinking":%v}`, thinks)
		prompt := func(messages string) string {
			return parse[struct{ Prompt string }](t, r.post("/apply-template", `{"messages":[`+messages+`]`+off+`}`)).Prompt
		}
		var thinking, content []string
		for _, e := range events(r.post("/v1/chat/completions", `{"stream":true,"messages":[`+user+`]`+off+`}`)) {
			if e.data == "[DONE]" {
				break
			}
			switch d := parse[llamaChunk](t, e.data).Choices[0].Delta; {
			case d.Reasoning != "":
				thinking = append(thinking, d.Reasoning)
			case d.Content != nil:
				content = append(content, *d.Content)
			}
		}
		tail := ""
		after := strings.Join(content[:4], "")
		if (len(thinking) == 3) != thinks || len(content)+len(thinking) != 12 {
			t.Fatalf("%q, %q", thinking, content)
		} else if thinks {
			tail = `,"reasoning_content":` + quoteJSON(strings.Join(thinking, ""))
			after = thinkOpen + strings.Join(thinking, "") + thinkClose + after
		}
		messages := user + `,{"role":"assistant","content":` + quoteJSON(strings.Join(content[:4], "")) + tail + `}`
		if got, want := prompt(messages), prompt(user)+after; got != want {
			t.Errorf("prompt %q, want %q", got, want)
		}
		streamed := ""
		for _, e := range events(r.post("/v1/chat/completions", `{"stream":true,"messages":[`+messages+`]`+off+`}`)) {
			if e.data != "[DONE]" {
				if d := parse[llamaChunk](t, e.data).Choices[0].Delta; d.Content != nil {
					streamed += *d.Content
				}
			}
		}
		if want := strings.Join(content[4:], ""); streamed != want {
			t.Errorf("continued with %q, want %q", streamed, want)
		}
		whole := parse[llamaChunk](t, r.post("/v1/chat/completions", `{"messages":[`+messages+`]`+off+`}`)).Choices[0].Message
		if *whole.Content != strings.Join(content, "") || whole.Reasoning != strings.Join(thinking, "") {
			t.Errorf("whole %q after %q", *whole.Content, whole.Reasoning)
		}
	}
}

func TestALlamaServerTellsWhatItIsAndErrsInItsOwnWords(t *testing.T) {
	r, stop := startLlama(t, Model{Name: "noise", Tools: true, ContextLength: 8})
	defer stop()
	got := r.post("/v1/chat/completions", `{"stream":true,`+askCall+`,`+openaiTools+`,"max_tokens":9}`)
	if !strings.Contains(got, `"delta":{"tool_calls":[{"index":0,"id":"call_`) || !strings.Contains(got, `"finish_reason":"tool_calls"`) {
		t.Errorf("call %s", got)
	}
	if got := r.post("/v1/chat/completions", `{`+askCall+`,`+openaiTools+`}`); !strings.Contains(got, `"tool_calls":[{"type":"function","function":{"name":"get_weather","arguments":"{\"number\":`) {
		t.Errorf("whole call %s", got)
	}
	for _, row := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"GET /health", "", 200, `{"status":"ok"}`},
		{"GET /props", "", 200, `"total_slots":2`},
		{"GET /props", "", 200, `"build_info":"b11669-fake"`},
		{"GET /props", "", 200, `"n_ctx":8`},
		{"GET /v1/models", "", 200, `"id":"noise"`},
		{"GET /v1/models/noise", "", 404, `{"error":{"message":"File Not Found","type":"not_found_error","code":404}}`},
		{"GET /v1/chat/completions", "", 404, `File Not Found`},
		{"POST /api/chat", "{}", 404, `File Not Found`},
		{"POST /v1/responses", "{}", 404, `File Not Found`},
		{"POST /v1/embeddings", "", 501, `{"error":{"code":501,"message":"This server does not support embeddings. Start it with ` + "`--embeddings`" + `","type":"not_supported_error"}}`},
		{"POST /v1/chat/completions", "", 400, `"type":"invalid_request_error"`},
		{"POST /v1/chat/completions", `{}`, 400, `{"error":{"code":400,"message":"'messages' is required","type":"invalid_request_error"}}`},
		{"POST /v1/completions", `{}`, 400, `"code":400`},
		{"POST /v1/chat/completions", `{"messages":[{"role":"user","content":"a b c d e f g h i"}]}`, 400, `"message":"request (11 tokens) exceeds the available context size (8 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":11,"n_ctx":8}`},
		{"POST /v1/chat/completions", `{"messages":[{"role":"assistant","content":"x"},{"role":"assistant","content":"y"}]}`, 400, `2 or more assistant messages`},
	} {
		method, path, _ := strings.Cut(row.path, " ")
		if status, got := r.do(method, path, row.body); status != row.status || !strings.Contains(got, row.want) {
			t.Errorf("%s %s: %d %s, want %d %s", row.path, row.body, status, got, row.status, row.want)
		}
	}
	if got := parse[llamaChunk](t, r.post("/v1/completions", `{"prompt":"Hi","max_tokens":0}`)); got.Usage.Completion != 1 {
		t.Errorf("max_tokens 0: %+v", got.Usage)
	}
	r.SetFault(Fault{Kind: FaultError500, After: 2})
	_, got, err := r.read(t.Context(), "/v1/chat/completions", `{"messages":[{"role":"user","content":"Hi"}],"stream":true}`)
	if err != nil || !strings.HasSuffix(got, "data: {\"error\":{\"code\":500,\"message\":\"Compute error.\",\"type\":\"server_error\"}}\n\n") {
		t.Errorf("an error in mid-stream: %v, %q", err, got)
	}
	embed, stop := startLlama(t, Model{Name: "vec", Embedding: true})
	defer stop()
	if got := embed.post("/v1/embeddings", `{"input":"x"}`); !strings.Contains(got, `"embedding":[`) {
		t.Errorf("embedding %s", got)
	}
	if got := embed.post("/v1/embeddings", `{"input":"x","encoding_format":"base64"}`); !strings.Contains(got, `"embedding":"`) || !strings.Contains(got, `"encoding_format":"base64"`) {
		t.Errorf("embedding %s", got)
	}
	embed.post("/v1/chat/completions", `{"messages":[{"role":"user","content":"Hi"}]}`)
}
