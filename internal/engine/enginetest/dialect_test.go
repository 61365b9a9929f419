package enginetest

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestStreamsHaveTheirDialectsRecords(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	type v1 struct {
		Object  string `json:"object"`
		Choices []struct {
			Text    string            `json:"text"`
			Delta   map[string]string `json:"delta"`
			Message message           `json:"message"`
			Finish  *string           `json:"finish_reason"`
		} `json:"choices"`
		Usage struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
		} `json:"usage"`
	}
	chat := `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"max_tokens":3`

	want := parse[v1](t, r.post("/v1/chat/completions", chat+`}`))
	answer := want.Choices[0].Message.Content
	if want.Object != "chat.completion" || *want.Choices[0].Finish != "length" || want.Usage.Completion != 3 || Tokens(answer) != 3 {
		t.Errorf("whole chat completion %+v", want)
	}

	t.Run("chat completions", func(t *testing.T) {
		es := events(r.post("/v1/chat/completions", chat+`,"stream":true,"stream_options":{"include_usage":true}}`))
		if len(es) != 6 || es[5].data != "[DONE]" {
			t.Fatalf("events %q", es)
		}
		text := ""
		for i, e := range es[:3] {
			c := parse[v1](t, e.data)
			text += c.Choices[0].Delta["content"]
			if role := c.Choices[0].Delta["role"]; (role == "assistant") != (i == 0) || c.Object != "chat.completion.chunk" || c.Choices[0].Finish != nil {
				t.Errorf("chunk %d: %s", i, e.data)
			}
		}
		if text != answer {
			t.Errorf("streamed %q, whole %q", text, answer)
		}
		if c := parse[v1](t, es[3].data); len(c.Choices[0].Delta) != 0 || *c.Choices[0].Finish != "length" {
			t.Errorf("finish %s", es[3].data)
		}
		if c := parse[v1](t, es[4].data); len(c.Choices) != 0 || c.Usage != want.Usage {
			t.Errorf("usage %s", es[4].data)
		}
	})
	t.Run("completions", func(t *testing.T) {
		body := `{"model":"llama","prompt":"Hi","max_tokens":3`
		if c := parse[v1](t, r.post("/v1/completions", body+`}`)); c.Choices[0].Text != answer || c.Object != "text_completion" {
			t.Errorf("whole %+v, want the text %q", c, answer)
		}
		es := events(r.post("/v1/completions", body+`,"stream":true}`))
		if len(es) != 5 || es[4].data != "[DONE]" || *parse[v1](t, es[3].data).Choices[0].Finish != "length" {
			t.Fatalf("events %q", es)
		}
	})
	t.Run("messages", func(t *testing.T) {
		es := events(r.post("/v1/messages", chat+`,"stream":true}`))
		var names []string
		text := ""
		for _, e := range es {
			names = append(names, e.name)
			d := parse[struct {
				Type  string `json:"type"`
				Delta struct {
					Text   string `json:"text"`
					Reason string `json:"stop_reason"`
				} `json:"delta"`
			}](t, e.data)
			if d.Type != e.name {
				t.Errorf("event %s has type %s", e.name, d.Type)
			}
			text += d.Delta.Text
			if d.Delta.Reason != "" && d.Delta.Reason != "max_tokens" {
				t.Errorf("stop reason %s", d.Delta.Reason)
			}
		}
		if want := []string{"message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_delta", "content_block_stop", "message_delta", "message_stop"}; !slices.Equal(names, want) || text != answer {
			t.Errorf("%q with %q, want %q with %q", names, text, want, answer)
		}
		whole := r.post("/v1/messages", chat+`}`)
		if !strings.Contains(whole, `"content":[{"type":"text","text":`+quoteJSON(answer)) {
			t.Errorf("whole %s", whole)
		}
	})
	t.Run("responses", func(t *testing.T) {
		body := `{"model":"llama","input":"Hi","max_output_tokens":3`
		es := events(r.post("/v1/responses", body+`,"stream":true}`))
		var names []string
		for i, e := range es {
			names = append(names, strings.TrimPrefix(e.name, "response."))
			d := parse[struct {
				Type   string `json:"type"`
				Number int    `json:"sequence_number"`
			}](t, e.data)
			if d.Type != e.name || d.Number != i {
				t.Errorf("event %d %s: type %s, number %d", i, e.name, d.Type, d.Number)
			}
		}
		if want := []string{"created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed"}; !slices.Equal(names, want) {
			t.Errorf("%q, want %q", names, want)
		}
		for _, b := range []string{es[len(es)-1].data, r.post("/v1/responses", body+`}`)} {
			if !strings.Contains(b, `"text":`+quoteJSON(answer)) || !strings.Contains(b, `"output_tokens":3`) {
				t.Errorf("completed %s", b)
			}
		}
	})
	t.Run("ollama streams unless told not to", func(t *testing.T) {
		body := `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"options":{"num_predict":3}`
		pieces, last := pieceList(t, r.post("/api/chat", body+`}`))
		if strings.Join(pieces, "") != answer || last.DoneReason != "length" || last.Prompt != want.Usage.Prompt {
			t.Errorf("%q, %+v", pieces, last)
		}
		if whole := parse[record](t, r.post("/api/chat", body+`,"stream":false}`)); whole.Message.Content != answer || !whole.Done {
			t.Errorf("whole %+v", whole)
		}
	})
}

func TestErrorsSpeakTheCallersDialect(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	for _, row := range []struct {
		name, path, body string
		status           int
		want             string
	}{
		{"generate unknown", "/api/generate", `{"model":"nope"}`, 404, `{"error":"model 'nope' not found"}`},
		{"generate without model", "/api/generate", `{}`, 404, `{"error":"model '' not found"}`},
		{"generate empty", "/api/generate", ``, 400, `{"error":"missing request body"}`},
		{"generate not JSON", "/api/generate", `hello`, 400, `{"error":"invalid character 'h' looking for beginning of value"}`},
		{"generate bad name", "/api/generate", `{"model":"a b"}`, 400, `{"error":"invalid model name"}`},
		{"chat unknown", "/api/chat", `{"model":"nope"}`, 404, `{"error":"model 'nope' not found"}`},
		{"chat without model", "/api/chat", `{}`, 400, `{"error":"model is required"}`},
		{"chat with an embedding model", "/api/chat", `{"model":"vectors","messages":[{"role":"user"}]}`, 400, `{"error":"\"vectors\" does not support chat"}`},
		{"embed unknown", "/api/embed", `{"model":"nope"}`, 404, `{"error":"model \"nope\" not found, try pulling it first"}`},
		{"embed with a language model", "/api/embed", `{"model":"llama","input":"x"}`, 501, "{\"error\":\"This server does not support embeddings. Start it with `--embeddings`\"}"},
		{"v1 unknown", "/v1/chat/completions", `{"model":"nope","messages":[{"role":"user","content":""}]}`, 404, `{"error":{"message":"model 'nope' not found","type":"not_found_error","param":null,"code":null}}` + "\n"},
		{"v1 empty", "/v1/chat/completions", ``, 400, `{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}` + "\n"},
		{"v1 without messages", "/v1/chat/completions", `{"model":"llama"}`, 400, `{"error":{"message":"[] is too short - 'messages'","type":"invalid_request_error","param":null,"code":null}}` + "\n"},
		{"messages without limit", "/v1/messages", `{"model":"llama"}`, 400, `{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens is required and must be positive"},"request_id":"req_`},
		{"delete unknown", "DELETE /api/delete", `{"model":"nope"}`, 404, `{"error":"model 'nope' not found"}`},
		{"show unknown", "/api/show", `{"model":"nope"}`, 404, `{"error":"model 'nope:latest' not found"}`},
		{"wrong method", "GET /api/generate", ``, 405, "405 method not allowed"},
		{"wrong path", "/api/nothing", ``, 404, "404 page not found"},
	} {
		t.Run(row.name, func(t *testing.T) {
			method, path, ok := strings.Cut(row.path, " ")
			if !ok {
				method, path = http.MethodPost, row.path
			}
			if status, b := r.do(method, path, row.body); status != row.status || !strings.HasPrefix(b, row.want) {
				t.Errorf("%d %s\nwant %d %s", status, b, row.status, row.want)
			}
		})
	}
}

func TestRenderingIsInTheAnswersThatOllamaPutsItIn(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	const rendered = "<|user|>\nHi\n<|assistant|>"
	chat := `{"model":"llama","_debug_render_only":true,"messages":[{"role":"user","content":"Hi"}]}`
	for path, body := range map[string]string{
		"/api/chat": chat, "/v1/chat/completions": chat,
		"/api/generate": `{"model":"llama","_debug_render_only":true,"prompt":"Hi"}`,
	} {
		if got := parse[record](t, r.post(path, body)).Debug.Rendered; got != rendered {
			t.Errorf("%s: %q", path, got)
		}
	}
	if got := r.Stats(); got.GeneratedTokens != 0 {
		t.Errorf("%d tokens generated", got.GeneratedTokens)
	}
}

func TestAnOpenAIServerServesOnlyItsOwnRoutes(t *testing.T) {
	r, stop := start(t, Config{Kind: KindOpenAI, Models: []Model{{Name: "org/Model-1"}}})
	defer stop()
	if status, _ := r.do("POST", "/api/chat", `{}`); status != 404 {
		t.Errorf("/api/chat: %d", status)
	}
	if status, b := r.do("GET", "/health", ""); status != 200 || b != `{"status":"ok"}` {
		t.Errorf("/health: %d %s", status, b)
	}
	if status, b := r.do("GET", "/v1/models/org%2FModel-1", ""); status != 200 || !strings.Contains(b, `"id":"org/Model-1"`) {
		t.Errorf("model: %d %s", status, b)
	}
	type completion struct {
		Choices []struct{ Text string }
	}
	text := func(prompt, limit string) string {
		return parse[completion](t, r.post("/v1/completions", `{"model":"org/Model-1","max_tokens":`+limit+`,"prompt":`+quoteJSON(prompt)+`}`)).Choices[0].Text
	}
	if whole, begin := text("Hi", "9"), text("Hi", "4"); begin+text("Hi"+begin, "5") != whole {
		t.Error("a raw completion does not continue")
	}
}

func TestStrictServersRefuseForeignHostsAndOrigins(t *testing.T) {
	r, stop := start(t, Config{Strict: true})
	defer stop()
	for _, row := range []struct {
		host, origin string
		status       int
	}{
		{"localhost:11434", "", 200}, {"127.0.0.1", "http://localhost:3000", 200}, {"[::1]:80", "app://x", 200},
		{"10.0.0.7:11434", "", 200}, {"example.com", "", 403}, {"localhost", "http://example.com", 403},
	} {
		req, _ := http.NewRequest(http.MethodGet, "http://localhost/", nil)
		req.Host = row.host
		if row.origin != "" {
			req.Header.Set("Origin", row.origin)
		}
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != row.status {
			t.Errorf("Host %q, Origin %q: %d, want %d", row.host, row.origin, resp.StatusCode, row.status)
		}
	}
}
