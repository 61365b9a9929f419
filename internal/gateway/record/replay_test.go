package record

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func line(text string) string {
	return `{"model":"second","created_at":"T2","response":"` + text + `","done":false}` + "\n"
}

func thinkingLine(text string) string {
	return `{"model":"second","created_at":"T2","response":"","thinking":"` + text + `","done":false}` + "\n"
}

const lastLine = `{"model":"second","created_at":"T2","response":"","done":true,"done_reason":"stop","prompt_eval_count":1,"eval_count":2}` + "\n"

// TestReplaysDeliverOnlyWhatIsNew shows a replay with lines: the texts that were delivered, cut by |.
func TestReplaysDeliverOnlyWhatIsNew(t *testing.T) {
	for _, row := range []struct {
		name, text, thinking string
		second               []string
		want                 string // ! diverged
	}{
		{"nothing was sent", "", "", []string{line("ab"), lastLine}, "ab|"},
		{"the same cuts", "abcd", "", []string{line("ab"), line("cd"), line("ef"), lastLine}, "ef|"},
		{"cut within", "abc", "", []string{line("ab"), line("cd"), lastLine}, "d|"},
		{"all in one", "abc", "", []string{line("abcd")}, "d"},
		{"all is known", "ab", "", []string{line("ab"), lastLine}, ""},
		{"other text", "abc", "", []string{line("ab"), line("x"), line("c")}, "!!"},
		{"ends too early", "abc", "", []string{line("ab"), lastLine}, "!"},
		{"an escape", `a\u003cb`, "", []string{line("a<"), line(`\u0062c`)}, "c"},
		{"the other way", "a<é", "", []string{line(`a\u003C\u00e9\n`)}, `\n`},
		{"a pair for a character", "🦙", "", []string{line(`\ud83e\udd99!`)}, "!"},
		{"a character for a pair", `\ud83e\udd99`, "", []string{line("🦙!")}, "!"},
		{"a pair in two pieces", "🦙", "", []string{line(`\ud83e`), line(`\udd99!`)}, "!"},
		{"half a pair, then another", "🦙x", "", []string{line(`\ud83e`), line(`a`)}, "!"},
		{"half a pair on both sides", `\ud83e`, "", []string{line(`\ud83e`), line(`\udd99`)}, `\udd99`},
		{"half a pair against all of it", `\ud83e`, "", []string{line("🦙")}, "!"},
		{"new halves wait for each other", "a", "", []string{line(`a\ud83e`), line(`\udd99!`)}, `\ud83e\udd99!`},
		{"a half that the client has as U+FFFD", "a�", "", []string{line("aé")}, "!"},
		{"bytes of a character in two pieces", "é", "", []string{line("\xc3"), line("\xa9!")}, "!"},
		{"the client has half of a character's bytes", "\xc3", "", []string{line("é")}, "!"},
		{"thinking", "", "hm", []string{thinkingLine("h"), thinkingLine("m so"), line("a"), lastLine}, " so|a|"},
		{"cut in the text", "a", "hm", []string{thinkingLine("hm"), line("ab"), lastLine}, "b|"},
		{"text before the thinking is all", "", "hm", []string{thinkingLine("h"), line("a")}, "!"},
		{"more thinking before known text", "a", "hm", []string{thinkingLine("hm!")}, "!"},
		{"no record, and an error", "a", "", []string{"<html>\n", `{"error":"no"}` + "\n", line("ab")}, "b"},
		{"a call where text was", "ab", "", []string{line("a"), `{"model":"second","response":"","tool_calls":[{}],"done":false}` + "\n"}, "!"},
		{"a call after the text", "a", "", []string{line("a"), `{"model":"second","response":"","tool_calls":[{}],"done":false}` + "\n"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := NewTracker(Generate, false)
			tr.Follow([]byte(`{"model":"first","created_at":"T1","response":"","done":false}` + "\n"))
			r := NewReplay(tr, []byte(row.text), []byte(row.thinking))
			var got []string
			for _, rec := range row.second {
				b, ev, v := r.Append(nil, []byte(rec))
				switch v {
				case Diverged:
					got = append(got, "!")
				case Suppressed:
					if len(b) > 0 {
						t.Errorf("suppressed, and appended %s", b)
					}
				case Delivered:
					if strings.Contains(string(b), "second") || !strings.Contains(string(b), "first") {
						t.Errorf("not the first's: %s", b)
					}
					got = append(got, string(ev.Text)+string(ev.Thinking))
				}
			}
			if strings.ReplaceAll(strings.Join(got, "|"), "!|!", "!!") != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
		})
	}
}

func TestACallIsNotMadeTwice(t *testing.T) {
	call := `{"message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f"}}]},"done":false}` + "\n"
	tr := NewTracker(Chat, false)
	tr.Follow([]byte(call))
	if b, _, v := NewReplay(tr, nil, nil).Append(nil, []byte(call)); v != Diverged || len(b) > 0 {
		t.Errorf("verdict %d: %s", v, b)
	}
}

func TestPartsOfARecordKeepWhatElseItSays(t *testing.T) {
	tr := NewTracker(ChatCompletions, false)
	tr.Follow([]byte(`data: {"id":"1","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"a"}}]}` + "\n\n"))
	r := NewReplay(tr, []byte("a"), nil)
	b, ev, v := r.Append(nil, []byte(`data: {"id":"2","created":2,"model":"n","x":{"y":[1]},"choices":[{"index":0,"delta":{"role":"assistant","content":"ab","z":1},"logprobs":{"content":[]},"stop_reason":null}]}`+"\n\n"))
	want := `data: {"id":"1","created":1,"model":"m","x":{"y":[1]},"choices":[{"index":0,"delta":{"content":"b","z":1},"logprobs":null,"stop_reason":null}]}` + "\n\n"
	if v != Delivered || string(ev.Text) != "b" || string(b) != want {
		t.Errorf("verdict %d: %s", v, b)
	}
}

// TestThinkingBeginsAgain has the other node think otherwise, before there was any text.
func TestThinkingBeginsAgain(t *testing.T) {
	for _, c := range captures(t) {
		if !strings.Contains(c.name, "think") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			recs := split(t, c.form, c.stream)
			want, ids := read(t, c.form, c.stream)
			whole := want.Thinking
			restarted := 0
			for n := 1; n < len(recs); n++ {
				b := breakAfter(c, recs[:n])
				if len(b.text) > 0 || len(b.thinking) == 0 {
					continue
				}
				first := string(unescape(nil, b.thinking))
				word, instead := "Hmm", "Umm"
				if strings.Contains(first, "Let's") {
					word, instead = "Let's", "Let us"
				}
				r := NewReplay(b.Tracker, nil, b.thinking)
				for _, rec := range otherIDs(c.form, recs) {
					rec = bytes.ReplaceAll(rec, []byte(word), []byte(instead))
					var ev Event
					var v Verdict
					b.sent, ev, v = r.Append(b.sent, rec)
					if v == Diverged {
						var ok bool
						if b.sent, ev, ok = r.Restart(b.sent, rec, ev); !ok {
							break
						}
						restarted++
						if len(ev.Thinking) == 0 {
							t.Error("the event does not tell the thinking that was said again")
						}
					}
				}
				if r.diverged { // its thinking was closed: there is no way back
					continue
				}
				got, gotIDs := read(t, c.form, b.sent)
				want.Thinking = first + strings.Replace(whole, word, instead, 1)
				if c.form == Messages {
					want.Prompt, got.Prompt = 0, 0
				}
				if !c.usage {
					want.Prompt, want.Output, got.Prompt, got.Output = 0, 0, 0, 0
				}
				if got != want || fmt.Sprint(gotIDs) != fmt.Sprint(ids) {
					t.Fatalf("after %d: %+v\nwant %+v", n, got, want)
				}
			}
			if restarted < 10 {
				t.Errorf("restarted %d times", restarted)
			}
		})
	}
}

func TestThinkingDoesNotBeginAgainBehindText(t *testing.T) {
	tr := NewTracker(Generate, false)
	tr.Follow([]byte(thinkingLine("hm")))
	tr.Follow([]byte(line("a")))
	r := NewReplay(tr, []byte("a"), []byte("hm"))
	rec := []byte(thinkingLine("ah"))
	_, ev, v := r.Append(nil, rec)
	if v != Diverged {
		t.Fatalf("verdict %d", v)
	}
	if b, _, ok := r.Restart(nil, rec, ev); ok || len(b) > 0 {
		t.Errorf("began again: %s", b)
	}
}

func TestRestsAreWrittenAsOllamaWrites(t *testing.T) {
	chunk := func(s string) string {
		return `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"fp","choices":[` + s + "]}\n\n"
	}
	logprobs := []byte(`[{"token":"b"}]`)
	for _, row := range []struct {
		name  string
		form  Form
		first string
		text  Event
		want  string
	}{
		{"line", Generate, line("a"), Event{Text: []byte("b"), Logprobs: logprobs, CreatedAt: []byte("T3")},
			`{"model":"second","created_at":"T3","response":"b","done":false,"logprobs":[{"token":"b"}]}` + "\n"},
		{"line without a time", Generate, line("a"), Event{Text: []byte("b"), Thinking: []byte("c")},
			`{"model":"second","created_at":"T2","response":"b","thinking":"c","done":false}` + "\n"},
		{"nothing", Generate, line("a"), Event{}, ""},
		{"message", Chat, `{"model":"m","created_at":"T","message":{"role":"assistant","content":""},"done":false}` + "\n", Event{Text: []byte(`\"`), Logprobs: logprobs},
			`{"model":"m","created_at":"T","message":{"role":"assistant","content":"\""},"done":false,"logprobs":[{"token":"b"}]}` + "\n"},
		{"chunk", ChatCompletions, chunk(`{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}`), Event{Text: []byte("b"), Logprobs: logprobs},
			chunk(`{"index":0,"delta":{"content":"b"},"finish_reason":null,"logprobs":{"content":[{"token":"b"}]}}`)},
		{"chunk that thinks", ChatCompletions, chunk(`{"index":0,"delta":{"role":"assistant"},"finish_reason":null}`), Event{Thinking: []byte("b")},
			chunk(`{"index":0,"delta":{"content":"","reasoning":"b"},"finish_reason":null}`)},
		{"chunk of both, the first", ChatCompletions, chunk(`{"index":0,"delta":{},"finish_reason":null}`), Event{Thinking: []byte("b"), Text: []byte("c")},
			chunk(`{"index":0,"delta":{"role":"assistant","reasoning":"b"},"finish_reason":null}`) + chunk(`{"index":0,"delta":{"content":"c"},"finish_reason":null}`)},
		{"chunk behind llama-server's thinking", ChatCompletions, chunk(`{"index":0,"delta":{"role":"assistant","reasoning_content":"x"},"finish_reason":null}`), Event{Thinking: []byte("b")},
			chunk(`{"index":0,"delta":{"reasoning_content":"b"},"finish_reason":null}`)},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := NewTracker(row.form, false)
			tr.Follow([]byte(row.first))
			if got := string(tr.AppendText(nil, row.text)); got != row.want {
				t.Errorf("\n%s, want\n%s", got, row.want)
			}
		})
	}
}

func TestARecordThatIsForgottenIsSaidByWhoGoesOn(t *testing.T) {
	t.Parallel()
	const half = `\ud83d`
	t.Run("who speaks", func(t *testing.T) {
		t.Parallel()
		tracker := NewTracker(ChatCompletions, false)
		e := tracker.Follow([]byte(`data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"` + half + `"},"finish_reason":null}]}` + "\n\n"))
		tracker.Follow([]byte(`data: {"error":{"message":"no"}}` + "\n\n"))
		tracker.Forget(len(e.Text), len(e.Thinking))
		if got := string(tracker.AppendText(nil, Event{Text: []byte("a")})); !e.Half || !strings.Contains(got, `"role":"assistant"`) {
			t.Errorf("%+v, then %s", e, got)
		}
	})
	t.Run("the number", func(t *testing.T) {
		t.Parallel()
		tracker := NewTracker(Responses, false)
		event := func(data string) Event { return tracker.Follow([]byte("data: {" + data + "}\n\n")) }
		event(`"type":"response.created","sequence_number":0,"response":{"id":"resp_1"}`)
		event(`"type":"response.output_item.added","sequence_number":1,"output_index":0,"item":{"type":"message","id":"msg_1"}`)
		event(`"type":"response.content_part.added","sequence_number":2,"output_index":0,"item_id":"msg_1"`)
		e := event(`"type":"response.output_text.delta","sequence_number":3,"output_index":0,"item_id":"msg_1","delta":"` + half + `"`)
		event(`"type":"response.failed","sequence_number":4,"response":{"error":{"message":"no"}}`)
		tracker.Forget(len(e.Text), len(e.Thinking))
		if got := string(tracker.AppendText(nil, Event{Text: []byte("a")})); !e.Half || !strings.Contains(got, `"sequence_number":3`) {
			t.Errorf("%+v, then %s", e, got)
		}
		if got := string(tracker.AppendEnd(nil, End{Text: []byte("a")})); strings.Count(got, `"text":"a"`) < 2 {
			t.Errorf("the text is not repeated in %s", got)
		}
	})
}
