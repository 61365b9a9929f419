package record

import "testing"

func TestOnlyAPartOfAnAnswerSaysSomething(t *testing.T) {
	t.Parallel()
	event := func(data string) string { return "data: " + data + "\n\n" }
	choice := func(index, delta string) string {
		return event(`{"id":"1","choices":[{"index":` + index + `,"delta":` + delta + `,"finish_reason":null}]}`)
	}
	for _, tc := range []struct {
		name string
		form Form
		rec  string
		says bool
	}{
		{"a comment", ChatCompletions, ": ping\n\n", false},
		{"who speaks", ChatCompletions, choice("0", `{"role":"assistant","content":"","reasoning_content":null,"tool_calls":[]}`), false},
		{"how far the prompt is read", ChatCompletions, event(`{"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}],"prompt_progress":{"processed":1}}`), false},
		{"counts alone", ChatCompletions, event(`{"id":"1","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":0}}`), false},
		{"text", ChatCompletions, choice("0", `{"content":"a"}`), true},
		{"thinking", ChatCompletions, choice("0", `{"reasoning":"a"}`), true},
		{"a call", ChatCompletions, choice("0", `{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}`), true},
		{"what we do not know", ChatCompletions, choice("0", `{"refusal":"no"}`), true},
		{"who speaks in another choice", ChatCompletions, choice("1", `{"role":"assistant","content":""}`), false},
		{"another choice's text", ChatCompletions, choice("1", `{"content":"a"}`), true},
		{"another choice's end", ChatCompletions, event(`{"id":"1","choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}`), true},
		{"the end", ChatCompletions, event(`[DONE]`), true},
		{"another text", Completions, event(`{"id":"1","choices":[{"index":1,"text":"a"}]}`), true},
		{"an empty line", Chat, "\n", false},
		{"nothing", Chat, `{"model":"m","message":{"role":"assistant","content":""},"done":false}` + "\n", false},
		{"log probabilities of what is held back", Chat, `{"model":"m","message":{"role":"assistant","content":""},"done":false,"logprobs":[{"token":"a"}]}` + "\n", true},
		{"the last line", Chat, `{"model":"m","message":{"role":"assistant","content":""},"done":true}` + "\n", true},
		{"the message's start", Messages, event(`{"type":"message_start","message":{"id":"1"}}`), false},
		{"a ping", Messages, event(`{"type":"ping"}`), false},
		{"a text block", Messages, event(`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`), false},
		{"a block of a tool of the server", Messages, event(`{"type":"content_block_start","index":0,"content_block":{"type":"server_tool_use","id":"1"}}`), true},
		{"a signature", Messages, event(`{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"a"}}`), true},
		{"the response's start", Responses, event(`{"type":"response.created","sequence_number":0,"response":{"id":"1"}}`), false},
		{"keepalive", Responses, event(`{"type":"keepalive","sequence_number":1}`), false},
		{"a refusal", Responses, event(`{"type":"response.refusal.delta","sequence_number":2,"delta":"a"}`), true},
	} {
		if e := NewTracker(tc.form, false).Follow([]byte(tc.rec)); e.Says() != tc.says || e.Garbage {
			t.Errorf("%s says something: %v (%+v)", tc.name, e.Says(), e)
		}
	}
}

func TestSeveralAnswersEndTogether(t *testing.T) {
	t.Parallel()
	tracker := NewTracker(ChatCompletions, false)
	for _, choice := range []string{`{"index":0,"delta":{"role":"assistant","content":"a"}}`, `{"index":1,"delta":{"role":"assistant","content":"a"}}`, `{"index":0,"delta":{},"finish_reason":"stop"}`} {
		tracker.Follow([]byte(`data: {"id":"1","choices":[` + choice + `]}` + "\n\n"))
	}
	if tracker.Finished() {
		t.Error("the first of two answers has ended, and the second is taken for whole")
	}
	if tracker.Follow([]byte("data: [DONE]\n\n")); !tracker.Finished() {
		t.Error("both have ended")
	}
}

func TestARecordsTokensAreCounted(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		form Form
		rec  string
		want int
	}{
		"text":                  {Chat, `{"model":"m","message":{"role":"assistant","content":"a b"},"done":false}`, 1},
		"nothing":               {Chat, `{"model":"m","message":{"role":"assistant","content":""},"done":false}`, 0},
		"Ollama's":              {Generate, `{"model":"m","response":"a b","done":false,"logprobs":[{"token":"a","top_logprobs":[{"token":"a"},{"token":"c"}]},{"token":" b"}]}`, 2},
		"of what is held back":  {Chat, `{"model":"m","message":{"role":"assistant","content":""},"done":false,"logprobs":[{"token":"a"}]}`, 1},
		"OpenAI's":              {ChatCompletions, `data: {"id":"1","choices":[{"index":0,"delta":{"content":"a b"},"logprobs":{"content":[{"token":"a"},{"token":" b"}],"refusal":null}}]}` + "\n\n", 2},
		"OpenAI's completion's": {Completions, `data: {"id":"1","choices":[{"index":0,"text":"a b","logprobs":{"tokens":["a"," b"],"token_logprobs":[-1,-2]}}]}` + "\n\n", 2},
	} {
		if e := NewTracker(tc.form, false).Follow([]byte(tc.rec)); e.Tokens() != tc.want {
			t.Errorf("%s: %d tokens, want %d", name, e.Tokens(), tc.want)
		}
	}
}
