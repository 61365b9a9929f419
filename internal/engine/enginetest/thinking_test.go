package enginetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// thoughtsAndWords parses a stream of /api/chat or /api/generate.
func thoughtsAndWords(t *testing.T, body string) (thoughts, words []string, last record) {
	t.Helper()
	for _, r := range lines(t, body) {
		if r.Done {
			return thoughts, words, r
		}
		th, w := r.Thinking+r.Message.Thinking, r.Response+r.Message.Content
		switch {
		case th != "" && w == "" && words == nil:
			thoughts = append(thoughts, th)
		case th == "" && w != "":
			words = append(words, w)
		default:
			t.Fatalf("record %+v after %d words", r, len(words))
		}
	}
	t.Fatalf("no terminal record in %q", body)
	return nil, nil, record{}
}

func TestARawPromptCutInsideAThinkingAnswerIsContinuedWithItsTags(t *testing.T) {
	r, stop := start(t, Config{Length: 14, ThinkLength: 5})
	defer stop()
	for _, row := range []struct{ path, body string }{
		{"/api/chat", `{"model":"qwen","messages":[{"role":"user","content":"Hi"}]`},
		{"/api/generate", `{"model":"qwen","prompt":"Hi"`},
	} {
		rendered := parse[record](t, r.post(row.path, row.body+`,"_debug_render_only":true}`)).Debug.Rendered
		thoughts, words, last := thoughtsAndWords(t, r.post(row.path, row.body+`}`))
		if len(thoughts) != 5 || len(words) != 9 || last.Eval != 14 || last.DoneReason != "stop" || !strings.HasSuffix(rendered, turnAssistant) {
			t.Fatalf("%s: %q, %q, %+v after %q", row.path, thoughts, words, last, rendered)
		}
		raw := append(slices.Clone(thoughts), words...)
		raw[0], raw[5] = thinkOpen+raw[0], thinkClose+raw[5]
		continued := func(prompt string) []string {
			rest, _ := pieceList(t, r.post("/api/generate", `{"model":"qwen","raw":true,"prompt":`+quoteJSON(prompt)+`}`))
			return rest
		}
		for k := range len(raw) + 1 {
			if rest := continued(rendered + strings.Join(raw[:k], "")); !slices.Equal(rest, raw[k:]) {
				t.Errorf("%s after %d pieces:\n%q\nwant\n%q", row.path, k, rest, raw[k:])
			}
		}
		// Whoever writes the tags himself gets the same.
		if rest := continued(rendered + thinkOpen); !slices.Equal(rest, append(slices.Clone(thoughts), raw[5:]...)) {
			t.Errorf("after an opening tag: %q", rest)
		}
		if rest := continued(rendered + strings.Join(raw[:5], "") + thinkClose); !slices.Equal(rest, words) {
			t.Errorf("after a closing tag: %q, want %q", rest, words)
		}
		if control := continued(rendered + strings.Join(raw[:7], "x")); slices.Equal(control, raw[7:]) {
			t.Error("a changed thought changed nothing")
		}
	}
}

func TestATrailingAssistantMessageIsContinuedUnlessTheTemplateClosesIt(t *testing.T) {
	for _, closes := range []bool{false, true} {
		r, stop := start(t, Config{ClosesAssistant: closes, Length: 20})
		defer stop()
		for _, row := range []struct{ name, model, think string }{
			{"thinking", "qwen", "true"}, {"thinking switched off", "qwen", "false"}, {"plain", "llama", "false"},
		} {
			t.Run(fmt.Sprintf("%s, closes %v", row.name, closes), func(t *testing.T) {
				body := `{"model":"` + row.model + `","think":` + row.think + `,"messages":[{"role":"user","content":"Hi"}`
				rendered := parse[record](t, r.post("/api/chat", body+`],"_debug_render_only":true}`)).Debug.Rendered
				thoughts, words, _ := thoughtsAndWords(t, r.post("/api/chat", body+`]}`))
				if (len(thoughts) == 8) != (row.think == "true") {
					t.Fatalf("thoughts %q", thoughts)
				}
				tail := ""
				if len(thoughts) > 0 {
					tail = `,"thinking":` + quoteJSON(strings.Join(thoughts, ""))
				}
				body += `,{"role":"assistant","content":` + quoteJSON(strings.Join(words[:3], "")) + tail + `}]`
				after := strings.Join(words[:3], "")
				if len(thoughts) > 0 {
					after = thinkOpen + strings.Join(thoughts, "") + thinkClose + after
				}
				got := parse[record](t, r.post("/api/chat", body+`,"_debug_render_only":true}`)).Debug.Rendered
				if want := rendered + after; (got == want) == closes {
					t.Errorf("rendered %q, without it %q", got, rendered)
				}
				if closes && !strings.Contains(got, turnEnd+"\n"+turnAssistant) {
					t.Errorf("not closed: %q", got)
				}
				if _, rest, _ := thoughtsAndWords(t, r.post("/api/chat", body+`}`)); slices.Equal(rest, words[3:]) == closes {
					t.Errorf("continued with %q, want %q", rest, words[3:])
				}
			})
		}
	}
}

func TestEveryDialectHasItsPlaceForThinking(t *testing.T) {
	r, stop := start(t, Config{ThinkLength: 2})
	defer stop()
	const chat = `{"model":"qwen","messages":[{"role":"user","content":"Hi"}]`
	thoughts, words, _ := thoughtsAndWords(t, r.post("/api/chat", chat+`,"options":{"num_predict":3}}`))
	th, w := quoteJSON(strings.Join(thoughts, "")), quoteJSON(words[0])
	first := quoteJSON(thoughts[0])
	for _, row := range []struct {
		path, body string
		order      []string // in the stream
		whole      string
	}{
		{"/api/generate", `{"model":"qwen","prompt":"Hi","options":{"num_predict":3}`,
			[]string{`"response":"","thinking":` + first + `,"done":false`, `"response":` + w + `,"done":false`},
			`"response":` + w + `,"thinking":` + th + `,"done":true`},
		{"/api/chat", chat + `,"options":{"num_predict":3}`,
			[]string{`"message":{"role":"assistant","content":"","thinking":` + first + `},"done":false`, `"message":{"role":"assistant","content":` + w + `},"done":false`},
			`"message":{"role":"assistant","content":` + w + `,"thinking":` + th + `},"done":true`},
		{"/v1/chat/completions", chat + `,"max_tokens":3`,
			[]string{`"delta":{"role":"assistant","content":"","reasoning":` + first + `}`, `"delta":{"content":` + w + `}`},
			`"message":{"role":"assistant","content":` + w + `,"reasoning":` + th + `}`},
		{"/v1/completions", `{"model":"qwen","prompt":"Hi","max_tokens":3`,
			[]string{`"text":""`, `"text":""`, `"text":` + w}, `"text":` + w},
		{"/v1/messages", chat + `,"max_tokens":3`,
			[]string{`"index":0,"content_block":{"type":"thinking","thinking":""}`, `"index":0,"delta":{"type":"thinking_delta","thinking":` + first, `content_block_stop","index":0`,
				`"index":1,"content_block":{"type":"text","text":""}`, `"index":1,"delta":{"type":"text_delta","text":` + w, `content_block_stop","index":1`},
			`"content":[{"type":"thinking","thinking":` + th + `},{"type":"text","text":` + w + `}]`},
		{"/v1/responses", `{"model":"qwen","input":"Hi","max_output_tokens":3`,
			[]string{"response.in_progress", `"output_index":0,"item":{"id":"rs_`, `event: response.reasoning_summary_text.delta`, `"output_index":0,"summary_index":0,"delta":` + first,
				`event: response.reasoning_summary_text.done`, `"text":` + th, `response.output_item.done`, `"output_index":1,"item":{"id":"msg_`,
				`"output_index":1,"content_index":0,"delta":` + w, "event: response.completed", `"type":"reasoning"`, `"type":"message"`},
			`"type":"reasoning","summary":[{"type":"summary_text","text":` + th + `}],"encrypted_content":` + th + `},{"id":"msg_`},
	} {
		t.Run(row.path, func(t *testing.T) {
			got := r.post(row.path, row.body+`,"stream":true}`)
			rest := got
			for _, want := range row.order {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("%s is missing or too early in %s", want, got)
				}
				rest = after
			}
			if got := r.post(row.path, row.body+`,"stream":false}`); !strings.Contains(got, row.whole) {
				t.Errorf("whole %s, want %s", got, row.whole)
			}
		})
	}
}

func TestThinkingIsSwitchedOffAndRefusedInEveryDialect(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	const rendered = "<|user|>\nHi\n<|assistant|><think></think>"
	for _, row := range []struct {
		path, body, off, on string
		refused             bool // by a model that does not think
	}{
		{"/api/chat", `"messages":[{"role":"user","content":"Hi"}],"options":{"num_predict":2}`, `"think":false`, `"think":"low"`, true},
		{"/api/generate", `"prompt":"Hi","options":{"num_predict":2}`, `"think":false`, `"think":true`, true},
		{"/v1/chat/completions", `"messages":[{"role":"user","content":"Hi"}],"max_tokens":2`, `"reasoning_effort":"none"`, `"reasoning_effort":"xhigh"`, true},
		{"/v1/chat/completions", `"messages":[{"role":"user","content":"Hi"}],"max_tokens":2`, `"reasoning":{"effort":"none"}`, `"reasoning":{"effort":"minimal"}`, true},
		{"/v1/messages", `"messages":[{"role":"user","content":"Hi"}],"max_tokens":2`, `"thinking":{"type":"disabled"}`, `"thinking":{"type":"enabled"}`, false},
		{"/v1/messages", `"messages":[{"role":"user","content":"Hi"}],"max_tokens":2`, `"thinking":{"type":"disabled"}`, `"output_config":{"effort":"High"}`, false},
		{"/v1/responses", `"input":"Hi","max_output_tokens":2`, `"reasoning":{"effort":"none"}`, `"reasoning":{"effort":"low"}`, true},
	} {
		pieces, _ := pieceList(t, r.post("/api/generate", `{"model":"qwen","raw":true,"prompt":`+quoteJSON(rendered)+`,"options":{"num_predict":2}}`))
		if got := r.post(row.path, `{"model":"qwen","stream":false,`+row.body+`,`+row.off+`}`); !strings.Contains(got, quoteJSON(pieces[0]+pieces[1])) {
			t.Errorf("%s %s: %s, want %q", row.path, row.off, got, pieces)
		}
		if got := r.post(row.path, `{"model":"qwen","stream":false,`+row.body+`,`+row.on+`}`); strings.Contains(got, quoteJSON(pieces[0]+pieces[1])) {
			t.Errorf("%s %s did not think: %s", row.path, row.on, got)
		}
		status, got := r.do("POST", row.path, `{"model":"llama","stream":false,`+row.body+`,`+row.on+`}`)
		if refused := status == 400 && strings.Contains(got, `\"llama\" does not support thinking`); refused != row.refused || !refused && status != 200 {
			t.Errorf("%s %s of a model that does not think: %d %s", row.path, row.on, status, got)
		}
	}
	for path, body := range map[string]string{
		"/api/chat": `{"model":"qwen","think":"lots"}`, "/api/generate": `{"model":"qwen","prompt":"x","think":1}`,
		"/v1/chat/completions": `{"model":"qwen","messages":[{"role":"user","content":""}],"reasoning_effort":"lots"}`,
	} {
		if status, got := r.do("POST", path, body); status != 400 || !strings.Contains(got, "must be") && !strings.Contains(got, "think must") {
			t.Errorf("%s: %d %s", path, status, got)
		}
	}
}

func TestStopSequencesAndLimitsHoldWhileThinking(t *testing.T) {
	r, stop := start(t, Config{ThinkLength: 4})
	defer stop()
	ask := func(options string) ([]string, []string, record) {
		return thoughtsAndWords(t, r.post("/api/chat", `{"model":"qwen","messages":[{"role":"user","content":"Hi"}],"options":`+options+`}`))
	}
	thoughts, words, _ := ask(`{"num_predict":8}`)
	if th, w, last := ask(`{"num_predict":3}`); len(th) != 3 || w != nil || last.DoneReason != "length" {
		t.Errorf("limited to 3: %q, %q, %s", th, w, last.DoneReason)
	}
	seq := thoughts[1][2:] + thoughts[2][:2]
	th, w, last := ask(`{"stop":["never",` + quoteJSON(seq) + `]}`)
	if got := strings.Join(th, ""); got != thoughts[0]+thoughts[1][:2] || w != nil || last.DoneReason != "stop" {
		t.Errorf("stop in a thought: %q, %q, %s", th, w, last.DoneReason)
	}
	seq = words[0][1:] + words[1]
	th, w, _ = ask(`{"stop":[` + quoteJSON(seq) + `]}`)
	if strings.Join(th, "") != strings.Join(thoughts, "") || strings.Join(w, "") != words[0][:1] {
		t.Errorf("stop in the content: %q, %q", th, w)
	}
	whole := parse[record](t, r.post("/api/chat", `{"model":"qwen","stream":false,"messages":[{"role":"user","content":"Hi"}],"options":{"stop":[`+quoteJSON(seq)+`]}}`))
	if whole.Message.Thinking != strings.Join(thoughts, "") || whole.Message.Content != words[0][:1] {
		t.Errorf("whole %+v", whole.Message)
	}
}
