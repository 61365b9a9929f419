package enginetest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	askCall     = `"messages":[{"role":"user","content":"Please CALL it"}]`
	openaiTools = `"tools":[{"type":"function","function":{"name":"get_weather","description":"d","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}},{"type":"function","function":{"name":"other"}}]`
	claudeTools = `"tools":[{"name":"get_weather","description":"d","input_schema":{"type":"object","properties":{"city":{"type":"string"}}}},{"name":"other"}]`
	flatTools   = `"tools":[{"type":"function","name":"get_weather","description":"d","parameters":{"type":"object","properties":{"city":{"type":"string"}}}},{"type":"function","name":"other"}]`
)

func TestAToolIsCalledAfterSomeTextInEveryDialect(t *testing.T) {
	r, stop := start(t, Config{Models: []Model{{Name: "llama", Tools: true}}})
	defer stop()
	whole := parse[record](t, r.post("/api/chat", `{"model":"llama","stream":false,`+askCall+`,`+openaiTools+`}`))
	if len(whole.Message.ToolCalls) != 1 || Tokens(whole.Message.Content) != callAfter || whole.Eval != callAfter+1 || whole.DoneReason != "stop" {
		t.Fatalf("%+v", whole)
	}
	call, text := whole.Message.ToolCalls[0], quoteJSON(whole.Message.Content)
	var args map[string]any
	if err := json.Unmarshal([]byte(call.Arguments), &args); err != nil || call.Name != "get_weather" || len(args) != 2 {
		t.Fatalf("call %+v: %v", call, err)
	}
	quotedArgs := quoteJSON(call.Arguments)
	for _, row := range []struct {
		path, body string
		stream     []string // in this order
		whole      []string
		absent     string // from the whole answer
	}{
		{"/api/chat", askCall + `,` + openaiTools,
			[]string{`"content":" `, `"message":{"role":"assistant","content":"","tool_calls":[{"id":"call_`, `","function":{"index":0,"name":"get_weather","arguments":` + call.Arguments + `}}]},"done":false}`, `"done":true,"done_reason":"stop"`},
			[]string{`"message":{"role":"assistant","content":` + text + `,"tool_calls":[{"id":"call_`, `"done":true,"done_reason":"stop"`}, "NONE"},
		{"/v1/chat/completions", askCall + `,` + openaiTools,
			[]string{`"content":" `, `"delta":{"content":"","tool_calls":[{"id":"call_`, `","index":0,"type":"function","function":{"name":"get_weather","arguments":` + quotedArgs + `}}]},"finish_reason":null`, `"delta":{},"finish_reason":"tool_calls"`},
			[]string{`"message":{"role":"assistant","content":` + text + `,"tool_calls":[{"id":"call_`, `"function":{"name":"get_weather","arguments":` + quotedArgs + `}}]},"finish_reason":"tool_calls"`}, "NONE"},
		{"/v1/messages", askCall + `,"max_tokens":50,` + claudeTools,
			[]string{`"index":0,"delta":{"type":"text_delta"`, `content_block_stop","index":0`, `"index":1,"content_block":{"type":"tool_use","id":"call_`, `"name":"get_weather","input":{}}`,
				`"index":1,"delta":{"type":"input_json_delta","partial_json":` + quotedArgs, `content_block_stop","index":1`, `"stop_reason":"tool_use"`, "message_stop"},
			[]string{`{"type":"text","text":` + text + `},{"type":"tool_use","id":"call_`, `"name":"get_weather","input":` + call.Arguments + `}],"stop_reason":"tool_use"`}, "NONE"},
		// Ollama gives the call the index of the message before it, which it leaves open, and leaves the
		// text out of a whole answer.
		{"/v1/responses", `"input":"Please CALL it",` + flatTools,
			[]string{"output_text.delta", "response.output_item.added", `"output_index":0,"item":{"id":"fc_`, `"status":"in_progress","call_id":"call_`, `"name":"get_weather","arguments":""}`,
				"response.function_call_arguments.delta", `"delta":` + quotedArgs, "response.function_call_arguments.done", `"arguments":` + quotedArgs, "response.output_item.done", `"status":"completed"`, "response.completed", `"type":"function_call"`, `"type":"message"`},
			[]string{`"output":[{"id":"fc_resp_`, `"type":"function_call","status":"completed","call_id":"call_`, `"name":"get_weather","arguments":` + quotedArgs + `}]`}, `"type":"message"`},
	} {
		t.Run(row.path, func(t *testing.T) {
			got := r.post(row.path, `{"model":"llama","stream":true,`+row.body+`}`)
			rest := got
			for _, want := range row.stream {
				var ok bool
				if _, rest, ok = strings.Cut(rest, want); !ok {
					t.Fatalf("%s is missing or too early in %s", want, got)
				}
			}
			got = r.post(row.path, `{"model":"llama","stream":false,`+row.body+`}`)
			for _, want := range row.whole {
				if !strings.Contains(got, want) || strings.Contains(got, row.absent) {
					t.Errorf("whole %s, want %s", got, want)
				}
			}
		})
	}
}

func TestOnlyAUsersLastWordCallsATool(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	asked := `{"role":"user","content":"CALL"}`
	for _, row := range []struct {
		name, messages, tools string
		calls                 bool
	}{
		{"asked", asked, openaiTools, true},
		{"asked in a sentence", `{"role":"user","content":"now CALL, please"}`, openaiTools, true},
		{"not asked", `{"role":"user","content":"Hi"}`, openaiTools, false},
		{"another word", `{"role":"user","content":"RECALLED"}`, openaiTools, false},
		{"no tools", asked, `"tools":[]`, false},
		{"asked before", asked + `,{"role":"assistant","content":"no"},{"role":"user","content":"Hi"}`, openaiTools, false},
		{"answered", asked + `,{"role":"assistant","content":"","tool_calls":[{"function":{"name":"get_weather","arguments":{}}}]},{"role":"tool","content":"rain"}`, openaiTools, false},
		{"begun", asked + `,{"role":"assistant","content":" some text"}`, openaiTools, true},
	} {
		got := r.post("/api/chat", `{"model":"qwen","messages":[`+row.messages+`],`+row.tools+`}`)
		if strings.Contains(got, `"tool_calls"`) != row.calls {
			t.Errorf("%s: %s", row.name, got)
		}
	}
	for _, path := range []string{"/api/chat", "/v1/chat/completions"} {
		status, got := r.do("POST", path, `{"model":"llama","messages":[`+asked+`],`+openaiTools+`}`)
		if status != 400 || !strings.Contains(got, "registry.ollama.ai/library/llama:latest does not support tools") {
			t.Errorf("%s of a model without tools: %d %s", path, status, got)
		}
	}
}

func TestARawPromptCutBeforeACallIsContinuedWithIt(t *testing.T) {
	r, stop := start(t, Config{ThinkLength: 3})
	defer stop()
	body := `{"model":"qwen",` + askCall + `,` + openaiTools
	rendered := parse[record](t, r.post("/api/chat", body+`,"_debug_render_only":true}`)).Debug.Rendered
	whole := parse[record](t, r.post("/api/chat", body+`,"stream":false}`))
	raw, last := pieceList(t, r.post("/api/generate", `{"model":"qwen","raw":true,"prompt":`+quoteJSON(rendered)+`}`))
	text := thinkOpen + whole.Message.Thinking + thinkClose + whole.Message.Content + whole.Message.ToolCalls[0].raw()
	if got := strings.Join(raw, ""); got != text || last.Eval != whole.Eval || last.DoneReason != "stop" {
		t.Fatalf("raw %q, want %q", got, text)
	}
	for k := range len(raw) + 1 {
		rest, last := pieceList(t, r.post("/api/generate", `{"model":"qwen","raw":true,"prompt":`+quoteJSON(rendered+strings.Join(raw[:k], ""))+`}`))
		if !slices.Equal(rest, raw[k:]) || last.Prompt+last.Eval != whole.Prompt+whole.Eval {
			t.Errorf("after %d pieces: %q, want %q; %d+%d tokens", k, rest, raw[k:], last.Prompt, last.Eval)
		}
	}
}

func TestEveryDialectRendersTheSamePrompt(t *testing.T) {
	r, stop := start(t, Config{Models: []Model{{Name: "qwen", Thinking: true, Tools: true}}})
	defer stop()
	count := func(path, body string) (n int) {
		got := r.post(path, body)
		for _, key := range []string{`"prompt_eval_count":`, `"prompt_tokens":`, `"input_tokens":`} {
			if _, rest, ok := strings.Cut(got, key); ok {
				if _, err := fmt.Sscan(rest, &n); err != nil {
					t.Fatal(err)
				}
			}
		}
		return n
	}
	answer := func(path, body string) string {
		m := parse[struct {
			Message message
			Choices []struct{ Message message }
			Content []struct{ Text string }
			Output  []struct{ Content []struct{ Text string } }
		}](t, r.post(path, body))
		switch {
		case len(m.Choices) > 0:
			return m.Choices[0].Message.Content
		case len(m.Content) > 0:
			return m.Content[len(m.Content)-1].Text
		case len(m.Output) > 0:
			return m.Output[len(m.Output)-1].Content[0].Text
		}
		return m.Message.Content
	}
	api := `{"model":"qwen","stream":false,"think":false,"options":{"num_predict":5},"messages":[{"role":"system","content":"S"},{"role":"user","content":"one","images":["QUJD"]},
		{"role":"assistant","thinking":"hm","content":"two","tool_calls":[{"function":{"name":"get_weather","arguments":{"city": "Paris","n":[1, 2.50]}}}]},
		{"role":"tool","content":"rain"},{"role":"user","content":"three"}],` + openaiTools + `}`
	want, tokens := answer("/api/chat", api), count("/api/chat", api)
	for path, body := range map[string]string{
		"/v1/messages": `{"model":"qwen","max_tokens":5,"thinking":{"type":"disabled"},"system":"S","messages":[{"role":"user","content":[{"type":"text","text":"one"},{"type":"image","source":{"data":"QUJD"}}]},
			{"role":"assistant","content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"two"},{"type":"tool_use","id":"x","name":"get_weather","input":{"city":"Paris","n":[1,2.5]}}]},
			{"role":"user","content":[{"type":"tool_result","tool_use_id":"x","content":"rain"},{"type":"text","text":"three"}]}],` + claudeTools + `}`,
		"/v1/responses": `{"model":"qwen","max_output_tokens":5,"reasoning":{"effort":"none"},"instructions":"S","input":[{"role":"user","content":[{"type":"input_text","text":"one"},{"type":"input_image","image_url":"data:image/png;base64,QUJD"}]},
			{"type":"reasoning","encrypted_content":"hm"},{"type":"message","role":"assistant","content":"two"},{"type":"function_call","call_id":"x","name":"get_weather","arguments":"{\"n\":[1,2.5],\"city\":\"Paris\"}"},
			{"type":"function_call_output","call_id":"x","output":"rain"},{"role":"user","content":"three"}],` + flatTools + `}`,
	} {
		if got := answer(path, body); got != want || want == "" || count(path, body) != tokens {
			t.Errorf("%s: %q of %d tokens, want %q of %d", path, got, count(path, body), want, tokens)
		}
	}
	// What the assistant says between a call and its result is a part of the message that calls.
	late := `{"model":"qwen","max_output_tokens":5,"reasoning":{"effort":"none"},"input":[{"role":"user","content":"a"},{"type":"function_call","call_id":"x","name":"f","arguments":"{}"},
		{"type":"message","role":"assistant","content":"late"},{"type":"function_call_output","call_id":"x","output":"rain"}]}`
	joined := `{"model":"qwen","stream":false,"think":false,"options":{"num_predict":5},"messages":[{"role":"user","content":"a"},
		{"role":"assistant","content":"late","tool_calls":[{"function":{"name":"f","arguments":{}}}]},{"role":"tool","content":"rain"}]}`
	if got, want := answer("/v1/responses", late), answer("/api/chat", joined); got != want || want == "" {
		t.Errorf("/v1/responses: %q, want %q", got, want)
	}
	// OpenAI's parts become messages of their own, as in Ollama.
	api = `{"model":"qwen","stream":false,"think":false,"options":{"num_predict":5},"messages":[{"role":"user","content":"one"},{"role":"user","images":["QUJD"]},
		{"role":"assistant","thinking":"hm","content":"two","tool_calls":[{"function":{"name":"get_weather","arguments":{"city":"Paris"}}}]},{"role":"tool","content":"rain"}],` + openaiTools + `}`
	v1 := `{"model":"qwen","max_tokens":5,"reasoning_effort":"none","messages":[{"role":"user","content":[{"type":"text","text":"one"},{"type":"image_url","image_url":{"url":"data:image/png;base64,QUJD"}}]},
		{"role":"assistant","reasoning":"hm","content":"two","tool_calls":[{"id":"x","type":"function","function":{"name":"get_weather","arguments":"{\"city\": \"Paris\"}"}}]},{"role":"tool","tool_call_id":"x","content":"rain"}],` + openaiTools + `}`
	if got, want := answer("/v1/chat/completions", v1), answer("/api/chat", api); got != want || want == "" {
		t.Errorf("/v1/chat/completions: %q, want %q", got, want)
	}
}
