package record

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// said is an Event that can be compared.
func said(ev Event) string {
	var b strings.Builder
	put := func(format string, args ...any) { fmt.Fprintf(&b, " "+format, args...) }
	if len(ev.Text) > 0 {
		put("text=%s", ev.Text)
	}
	if len(ev.Thinking) > 0 {
		put("thinking=%s", ev.Thinking)
	}
	if ev.Half {
		put("half")
	}
	if ev.Tool {
		put("tool")
	}
	if ev.ToolDone {
		put("whole")
	}
	if ev.Done {
		put("done")
	}
	if ev.Reason != "" {
		put("reason=%s", ev.Reason)
	}
	if ev.Failed {
		put("failed=%s", ev.Message)
	}
	if ev.Garbage {
		put("garbage")
	}
	if ev.Prompt+ev.Output > 0 {
		put("%d+%d", ev.Prompt, ev.Output)
	}
	for _, d := range []time.Duration{ev.Load, ev.Prefill, ev.Eval, ev.Total} {
		if d > 0 {
			put("%v", d)
		}
	}
	if ev.Logprobs != nil {
		put("logprobs=%s", ev.Logprobs)
	}
	return strings.TrimSpace(b.String())
}

func TestRecordsSayWhatTheyMean(t *testing.T) {
	const (
		chunk = `data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"fp_ollama","choices":[`
		text  = `data: {"id":"a","object":"text_completion","created":1,"model":"m","system_fingerprint":"fp_ollama","choices":[`
	)
	for _, row := range []struct {
		name string
		form Form
		rec  string
		want string
	}{
		{"text", Generate, `{"model":"m","created_at":"T","response":"a\u003c","done":false}` + "\n", `text=a\u003c`},
		{"CRLF", Generate, `{"model":"m","response":"a","done":false}` + "\r\n", `text=a`},
		{"thinking", Generate, `{"model":"m","response":"","thinking":"hm","done":false}` + "\n", `thinking=hm`},
		{"last", Generate, `{"model":"m","response":"","done":true,"done_reason":"length","context":[1,2],"total_duration":4,"load_duration":1,"prompt_eval_count":5,"prompt_eval_duration":2,"eval_count":6,"eval_duration":3}` + "\n",
			`done reason=length 5+6 1ns 2ns 3ns 4ns`},
		{"log probabilities", Generate, `{"response":"a","done":false,"logprobs":[{"token":"a"}]}` + "\n", `text=a logprobs=[{"token":"a"}]`},
		{"the error of a dead runner", Generate, `{"error":"an error was encountered while running the model: unexpected EOF"}` + "\n",
			`failed=an error was encountered while running the model: unexpected EOF`},
		{"empty line", Generate, "\n", ``},
		{"half a line", Generate, `{"model":"m","response":"a`, `garbage`},
		{"two values", Generate, `{"response":"a","done":false} {}` + "\n", `garbage`},
		{"another object", Generate, `{"status":"success"}` + "\n", `garbage`},
		{"no object", Generate, `[1]` + "\n", `garbage`},
		{"no literal", Generate, `{"response":"a","done":fals}` + "\n", `garbage`},
		{"page", Generate, "<html>\n", `garbage`},
		{"half a character", Generate, `{"response":"a\ud83e","done":false}` + "\n", `text=a\ud83e half`},
		{"text", Chat, `{"model":"m","message":{"role":"assistant","content":"a"},"done":false}` + "\n", `text=a`},
		{"thinking", Chat, `{"message":{"role":"assistant","content":"","thinking":"hm"},"done":false}` + "\n", `thinking=hm`},
		{"call", Chat, `{"message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{}}}]},"done":false}` + "\n", `tool whole`},
		{"no call", Chat, `{"message":{"role":"assistant","content":"a","tool_calls":[ ]},"done":false}` + "\n", `text=a`},
		{"no message", Chat, `{"message":7,"done":false}` + "\n", ``},

		{"role", ChatCompletions, chunk + `{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}` + "\n\n", ``},
		{"text", ChatCompletions, chunk + `{"index":0,"delta":{"content":"a"},"finish_reason":null}]}` + "\n\n", `text=a`},
		{"CRLF, no space, an id", ChatCompletions, "id: 7\r\n" + strings.Replace(chunk, ": ", ":", 1) + `{"index":0,"delta":{"content":"a"},"finish_reason":null}]}` + "\r\n\r\n", `text=a`},
		{"two data lines", ChatCompletions, "data: {\"choices\":\ndata: [{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n", `text=a`},
		{"thinking", ChatCompletions, chunk + `{"index":0,"delta":{"content":"","reasoning":"hm"},"finish_reason":null}]}` + "\n\n", `thinking=hm`},
		{"thinking of llama-server", ChatCompletions, chunk + `{"index":0,"delta":{"reasoning_content":"hm"},"finish_reason":null}]}` + "\n\n", `thinking=hm`},
		{"text with the finish, as vLLM may", ChatCompletions, chunk + `{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":"stop","stop_reason":null}]}` + "\n\n", `text=a reason=stop`},
		{"another choice", ChatCompletions, chunk + `{"index":1,"delta":{"content":"b"},"finish_reason":null}]}` + "\n\n", ``},
		{"whole call", ChatCompletions, chunk + `{"index":0,"delta":{"content":"","tool_calls":[{"id":"c","index":0,"type":"function","function":{"name":"f","arguments":"{\"a\":\"}\\\"\"}"}}]},"finish_reason":null}]}` + "\n\n", `tool whole`},
		{"begin of a call", ChatCompletions, chunk + `{"index":0,"delta":{"tool_calls":[{"id":"c","index":0,"function":{"name":"f","arguments":"{\"a\":\"}"}}]},"finish_reason":null}]}` + "\n\n", `tool`},
		{"log probabilities", ChatCompletions, chunk + `{"index":0,"delta":{"content":"a"},"finish_reason":null,"logprobs":{"content":[]}}]}` + "\n\n", `text=a logprobs={"content":[]}`},
		{"usage", ChatCompletions, chunk + `],"usage":{"prompt_tokens":5,"completion_tokens":6,"total_tokens":11}}` + "\n\n", `5+6`},
		{"timings", ChatCompletions, chunk + `{"index":0,"delta":{},"finish_reason":"length"}],"timings":{"cache_n":3,"prompt_n":2,"prompt_ms":1.5,"predicted_n":6,"predicted_ms":3}}` + "\n\n", `reason=length 5+6 1.5ms 3ms`},
		{"end", ChatCompletions, "data: [DONE]\n\n", `done`},
		{"end without a blank line", ChatCompletions, "data: [DONE]", `done`},
		{"comment", ChatCompletions, ": ping\n\n", ``},
		{"event without data", ChatCompletions, "event: x\n\n", ``},
		{"error", ChatCompletions, `data: {"error":{"message":"a \"b\"","type":"api_error","param":null,"code":null}}` + "\n\n", `failed=a "b"`},
		{"error in words", ChatCompletions, `data: {"error":"no"}` + "\n\n", `failed=no`},
		{"error of old", ChatCompletions, `data: {"object":"error","message":"no","code":500}` + "\n\n", `failed=no`},
		{"what Ollama writes when its runner died", ChatCompletions, strings.Replace(chunk, `"m"`, `""`, 1) + `{"index":0,"delta":{"content":""},"finish_reason":null}]}` + "\n\n", `failed=`},
		{"a server that names no model", ChatCompletions, `data: {"model":"","choices":[{"index":0,"delta":{"role":"assistant"}}]}` + "\n\n", ``},
		{"page", ChatCompletions, "<html>\n\n", `garbage`},
		{"no JSON", ChatCompletions, "data: {\"choices\":[{]}\n\n", `garbage`},
		{"no chunk", ChatCompletions, "data: {\"status\":1}\n\n", `garbage`},

		{"text", Completions, text + `{"text":"a","index":0,"finish_reason":null}]}` + "\n\n", `text=a`},
		{"finish", Completions, text + `{"text":"","index":0,"finish_reason":"length"}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}` + "\n\n", `reason=length`},
		{"what Ollama writes when its runner died", Completions, strings.Replace(text, `"m"`, `""`, 1) + `{"text":"","index":0,"finish_reason":null}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}` + "\n\n", `failed=`},

		{"start", Messages, "event: message_start\ndata: " + `{"type":"message_start","message":{"id":"msg_1","usage":{"cache_read_input_tokens":51,"input_tokens":1,"output_tokens":0}}}` + "\n\n", `52+0`},
		{"block", Messages, "event: content_block_start\ndata: " + `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}` + "\n\n", ``},
		{"block of a call", Messages, "event: content_block_start\ndata: " + `{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c","name":"f","input":{}}}` + "\n\n", `tool`},
		{"text", Messages, "event: content_block_delta\ndata: " + `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}` + "\n\n", `text=a`},
		{"thinking", Messages, "event: content_block_delta\ndata: " + `{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}` + "\n\n", `thinking=hm`},
		{"arguments", Messages, "event: content_block_delta\ndata: " + `{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{"}}` + "\n\n", `tool`},
		{"finish", Messages, "event: message_delta\ndata: " + `{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"input_tokens":5,"output_tokens":6}}` + "\n\n", `reason=end_turn 5+6`},
		{"end", Messages, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", `done`},
		{"ping", Messages, "event: ping\ndata: {\"type\": \"ping\"}\n\n", ``},
		{"what is not known yet", Messages, "event: x\ndata: {\"type\": \"x\"}\n\n", ``},
		{"error", Messages, "event: error\ndata: " + `{"type":"error","error":{"type":"overloaded_error","message":"no"}}` + "\n\n", `failed=no`},
		{"a block of no message", Messages, "data: " + `{"type":"content_block_start","index":4000000000,"content_block":{"type":"text","text":""}}` + "\n\n", ``},
		{"no event", Messages, "data: {}\n\n", `garbage`},

		{"begin", Responses, "event: response.created\ndata: " + `{"type":"response.created","response":{"id":"resp_1"},"sequence_number":0}` + "\n\n", ``},
		{"text", Responses, "event: response.output_text.delta\ndata: " + `{"type":"response.output_text.delta","item_id":"msg_1","delta":"a"}` + "\n\n", `text=a`},
		{"thinking", Responses, "event: response.reasoning_summary_text.delta\ndata: " + `{"type":"response.reasoning_summary_text.delta","delta":"hm"}` + "\n\n", `thinking=hm`},
		{"thinking of llama-server", Responses, "data: " + `{"type":"response.reasoning_text.delta","delta":"hm"}` + "\n\n", `thinking=hm`},
		{"arguments", Responses, "data: " + `{"type":"response.function_call_arguments.delta","delta":"{"}` + "\n\n", `tool`},
		{"whole arguments", Responses, "data: " + `{"type":"response.function_call_arguments.done","arguments":"{}"}` + "\n\n", `tool whole`},
		{"item of a call", Responses, "data: " + `{"type":"response.output_item.added","item":{"type":"function_call","id":"fc_1"}}` + "\n\n", `tool`},
		{"end", Responses, "data: " + `{"type":"response.completed","response":{"status":"completed","usage":{"input_tokens":5,"output_tokens":6,"input_tokens_details":{"cached_tokens":4}}}}` + "\n\n", `done reason=completed 5+6`},
		{"end at a limit", Responses, "data: " + `{"type":"response.incomplete","response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}` + "\n\n", `done reason=max_output_tokens`},
		{"failed", Responses, "data: " + `{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"no"}}}` + "\n\n", `failed=no`},
		{"error", Responses, "data: " + `{"type":"error","code":"server_error","message":"no","param":null}` + "\n\n", `failed=no`},
		{"error of llama-server", Responses, "data: " + `{"error":{"code":500,"message":"no","type":"server_error"}}` + "\n\n", `failed=no`},
		{"epilogue", Responses, "data: [DONE]\n\n", ``},
	} {
		t.Run(fmt.Sprintf("%d %s", row.form, row.name), func(t *testing.T) {
			if got := said(NewTracker(row.form, false).Follow([]byte(row.rec))); got != row.want {
				t.Errorf("%s says %q, want %q", row.rec, got, row.want)
			}
		})
	}
}

func TestCallsInPiecesAreSeenToEnd(t *testing.T) {
	tr := NewTracker(ChatCompletions, false)
	var got []string
	for _, piece := range []string{
		`{"index":0,"id":"a","function":{"name":"f","arguments":"{\"a\":"}}`,
		`{"index":0,"function":{"arguments":" [{}, \"}\\\\\"]"}}`,
		`{"index":0,"function":{"arguments":"}"}}`,
		`{"index":1,"id":"b","function":{"name":"g","arguments":"{"}}`,
	} {
		got = append(got, said(tr.Follow([]byte(`data: {"choices":[{"index":0,"delta":{"tool_calls":[`+piece+"]}}]}\n\n"))))
	}
	if diff := cmp.Diff([]string{"tool", "tool", "tool whole", "tool"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestSplitCutsWholeRecords(t *testing.T) {
	for _, row := range []struct {
		name, data string
		form       Form
		want       int
	}{
		{"nothing", "", Generate, 0}, {"half a line", "{}", Generate, 0}, {"line", "{}\n{}\n", Generate, 3}, {"empty line", "\n{}\n", Chat, 1},
		{"nothing", "", Messages, 0}, {"a line", "data: {}\n", Messages, 0}, {"event", "data: {}\n\ndata", Messages, 10},
		{"CRLF", "data: {}\r\n\r\nx", Messages, 12}, {"half a CRLF", "data: {}\r\n\r", Messages, 0}, {"mixed", "data: {}\r\n\nx", Messages, 11},
		{"two lines", "event: e\ndata: {}\n\n", Messages, 19}, {"blank line", "\ndata: {}\n\n", Messages, 1}, {"comment", ": ping\n\n", Messages, 8},
	} {
		if got := row.form.Split([]byte(row.data)); got != row.want {
			t.Errorf("%s %q: %d, want %d", row.name, row.data, got, row.want)
		}
	}
}

func TestHalfCharactersAreSeen(t *testing.T) {
	for text, want := range map[string]bool{
		``: false, `a`: false, `é`: false, "\xc3": true, "a\xf0\x9f\xa6": true, "�": true, `\ufffd`: true, `\uFFFD`: true,
		`\ud83e`: true, `\uD83E`: true, `\ud83e\udd99`: false, `\\ud83e`: false, `\\\ud83e`: true, `\u00e9`: false, `\\ufffd`: false, `ufffd1`: false,
	} {
		if got := half([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestFormsAreThoseOfTheRoutesThatGenerate(t *testing.T) {
	for path, want := range map[string]Form{"/api/generate": Generate, "/api/chat": Chat, "/v1/chat/completions": ChatCompletions,
		"/v1/completions": Completions, "/v1/responses": Responses, "/v1/messages": Messages} {
		if got, ok := FormOf(path); got != want || !ok {
			t.Errorf("%s: %v, %v", path, got, ok)
		}
	}
	if _, ok := FormOf("/api/embed"); ok {
		t.Error("/api/embed generates")
	}
}

// TestWholeBodiesSayWhatTheirStreamsDo compares the bodies that engines gave with the streams of the same requests.
func TestWholeBodiesSayWhatTheirStreamsDo(t *testing.T) {
	for _, c := range captures(t) {
		body, err := os.ReadFile(filepath.Join("testdata", strings.Replace(c.name, "-usage", "", 1)+".whole"))
		if err != nil {
			t.Fatal(err)
		}
		f := factsOf(c, split(t, c.form, c.stream))
		ev := c.form.Whole(body)
		text, thinking := string(unescape(nil, f.text)), string(unescape(nil, f.thinking))
		if calls := callsTool(c, split(t, c.form, c.stream)); c.form == Responses && calls {
			text = string(unescape(nil, ev.Text)) // Ollama leaves the text out
			if !ev.Tool {
				t.Errorf("%s: no call", c.name)
			}
		} else if ev.Tool != calls || ev.ToolDone != calls {
			t.Errorf("%s: a call: %v %v, want %v", c.name, ev.Tool, ev.ToolDone, calls)
		}
		if got := string(unescape(nil, ev.Text)); got != text && strings.TrimSpace(got) != strings.TrimSpace(text) {
			t.Errorf("%s: text %q, want %q", c.name, got, text)
		}
		if got := string(unescape(nil, ev.Thinking)); strings.TrimSpace(got) != strings.TrimSpace(thinking) {
			t.Errorf("%s: thinking %q, want %q", c.name, got, thinking)
		}
		if ev.Prompt == 0 || ev.Output != f.end.Output && f.end.Output > 0 || ev.Reason == "" || !ev.Done || ev.Failed || ev.Garbage {
			t.Errorf("%s: %s", c.name, said(ev))
		}
	}
}

func TestBodiesOfErrorsAreSeen(t *testing.T) {
	for _, row := range []struct {
		form Form
		body string
		want string
	}{
		{Chat, `{"error":"no"}`, "failed=no"},
		{ChatCompletions, `{"error":{"message":"no","type":"api_error","param":null,"code":null}}`, "failed=no"},
		{Messages, `{"type":"error","error":{"type":"api_error","message":"no"},"request_id":"r"}`, "failed=no"},
		{Responses, `{"error":{"message":"no"}}`, "failed=no"},
		{Messages, `<html>`, "garbage"}, {Responses, `{}`, "garbage"}, {Generate, ``, "garbage"}, {Completions, `{"choices"`, "garbage"},
	} {
		if got := said(row.form.Whole([]byte(row.body))); got != row.want {
			t.Errorf("%d %s: %s, want %s", row.form, row.body, got, row.want)
		}
	}
}

var varying = regexp.MustCompile(`"(created_at":"[^"]*|id":"call_[^"]*|\w+_duration":\d+)`)

// TestFoldMakesTheBodyThatOllamaGives compares it byte for byte, but for times and ids.
func TestFoldMakesTheBodyThatOllamaGives(t *testing.T) {
	n := 0
	for _, c := range captures(t) {
		if !c.form.lines() {
			continue
		}
		n++
		want, err := os.ReadFile(filepath.Join("testdata", c.name+".whole"))
		if err != nil {
			t.Fatal(err)
		}
		fold, tr := NewFold(c.form), NewTracker(c.form, false)
		for _, rec := range split(t, c.form, c.stream) {
			fold.Add(rec, tr.Follow(rec))
		}
		got := varying.ReplaceAll(fold.AppendBody(nil), []byte("_"))
		want = varying.ReplaceAll(want, []byte("_"))
		if c.name == "chat-tool" { // the order of its arguments is drawn
			got = []byte(strings.Replace(string(got), `"unit":"\u003cC\u003e","city":"Köln"`, `"city":"Köln","unit":"\u003cC\u003e"`, 1))
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	if n < 6 {
		t.Errorf("%d captures", n)
	}
}

func TestErrorsEndAStreamInItsDialect(t *testing.T) {
	for _, row := range []struct {
		name   string
		form   Form
		before string
		want   string
	}{
		{"line", Chat, "", `{"error":"a \"b\""}` + "\n"},
		{"chunk", ChatCompletions, "", `data: {"error":{"message":"a \"b\"","type":"api_error","param":null,"code":null}}` + "\n\n"},
		{"message", Messages, "", "event: error\n" + `data: {"type":"error","error":{"type":"overloaded_error","message":"a \"b\""}}` + "\n\n"},
		{"response that was not begun", Responses, "", "event: error\n" + `data: {"type":"error","code":"server_error","message":"a \"b\"","param":null}` + "\n\n"},
		{"response", Responses, `data: {"type":"response.created","response":{"id":"resp_1","status":"in_progress","error":null,"output":[]},"sequence_number":0}` + "\n\n",
			"event: response.failed\n" + `data: {"type":"response.failed","sequence_number":1,"response":{"id":"resp_1","status":"failed","error":{"code":"server_error","message":"a \"b\""},"output":[]}}` + "\n\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := NewTracker(row.form, false)
			if row.before != "" {
				tr.Follow([]byte(row.before))
			}
			got := tr.AppendError(nil, 503, `a "b"`)
			if diff := cmp.Diff(row.want, string(got)); diff != "" {
				t.Error(diff)
			}
			if ev := NewTracker(row.form, false).Follow(got); !ev.Failed || ev.Message != `a "b"` {
				t.Errorf("it says %s", said(ev))
			}
			if more := tr.AppendEnd(nil, End{}); len(more) > 0 {
				t.Errorf("an end behind an error: %s", more)
			}
			if more := tr.AppendError(nil, 503, "again"); len(more) > 0 {
				t.Errorf("two errors: %s", more)
			}
		})
	}
}
