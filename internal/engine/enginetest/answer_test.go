package enginetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestAnswerIsAFunctionOfTheWholePrompt(t *testing.T) {
	a, stopA := start(t, Config{})
	defer stopA()
	b, stopB := start(t, Config{Slots: 3})
	defer stopB()
	ask := func(r *rig, model, prompt string) string {
		return parse[record](t, r.post("/api/generate", fmt.Sprintf(`{"model":%q,"prompt":%q,"stream":false}`, model, prompt))).Response
	}
	first := ask(a, "llama", "Why is the sky blue?")
	if again := ask(a, "llama", "Why is the sky blue?"); again != first {
		t.Errorf("the second time %q, the first %q", again, first)
	}
	if other := ask(b, "LLAMA:latest", "Why is the sky blue?"); other != first {
		t.Errorf("another server answered %q, want %q", other, first)
	}
	if changed := ask(a, "llama", "why is the sky blue?"); changed == first {
		t.Error("a changed first byte did not change the answer")
	}
	b.AddModel(Model{Name: "llama", Digest: strings.Repeat("ab", 32)})
	if changed := ask(b, "llama", "Why is the sky blue?"); changed == first {
		t.Error("another digest did not change the answer")
	}
	if words := strings.Fields(first); len(slices.Compact(slices.Sorted(slices.Values(words)))) < len(words)/2 {
		t.Errorf("the answer repeats itself: %q", first)
	}
}

func TestRawContinuationYieldsExactlyTheRemainingPieces(t *testing.T) {
	r, stop := start(t, Config{Length: 40})
	defer stop()
	for _, row := range []struct{ name, path, body string }{
		{"generate", "/api/generate", `{"model":"llama","system":"Be brief.","prompt":"Tell me\tmore."`},
		{"generate limited", "/api/generate", `{"model":"llama","prompt":"Tell me","options":{"num_predict":25}`},
		{"chat", "/api/chat", `{"model":"llama","messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":" yes, you"},{"role":"user","content":"Go on"}]`},
		{"suffix", "/api/generate", `{"model":"llama","prompt":"func f(","suffix":") {}"`},
		{"template", "/api/generate", `{"model":"llama","system":"S","prompt":"Hi","template":"[{{ .System }}] {{ .Prompt }}\n<|user|>"`},
		{"context", "/api/generate", `{"model":"llama","prompt":"Hi","context":[3,1,2]`},
		{"images", "/api/chat", `{"model":"llama","messages":[{"role":"user","content":"See","images":["QUJD"]}]`},
	} {
		t.Run(row.name, func(t *testing.T) {
			rendered := parse[record](t, r.post(row.path, row.body+`,"_debug_render_only":true}`)).Debug
			whole, last := pieceList(t, r.post(row.path, row.body+`}`))
			if Tokens(rendered.Rendered) != last.Prompt || len(whole) != last.Eval {
				t.Errorf("counts %d+%d, want %d+%d", last.Prompt, last.Eval, Tokens(rendered.Rendered), len(whole))
			}
			images := ""
			if rendered.Images > 0 {
				images = `,"images":["QUJD"]`
			}
			for _, k := range []int{0, 1, 7, len(whole) - 1} {
				limit := ""
				if last.DoneReason == "length" {
					limit = fmt.Sprintf(`,"options":{"num_predict":%d}`, len(whole)-k)
				}
				prompt := rendered.Rendered + strings.Join(whole[:k], "")
				cont := func(prompt string) ([]string, record) {
					return pieceList(t, r.post("/api/generate", `{"model":"llama","raw":true,"prompt":`+quoteJSON(prompt)+images+limit+`}`))
				}
				rest, end := cont(prompt)
				if !slices.Equal(rest, whole[k:]) {
					t.Fatalf("after %d pieces:\n%q\nwant\n%q", k, rest, whole[k:])
				}
				if end.DoneReason != last.DoneReason || end.Prompt != last.Prompt+k || end.Eval != last.Eval-k {
					t.Errorf("after %d pieces: %s %d+%d, want %s %d+%d", k, end.DoneReason, end.Prompt, end.Eval, last.DoneReason, last.Prompt+k, last.Eval-k)
				}
				if control, _ := cont("X" + prompt[1:]); slices.Equal(control, whole[k:]) {
					t.Error("the control with a changed prompt continued alike")
				}
			}
		})
	}
}

func TestStopSequencesAreNeverSentEvenWhenTheySpanPieces(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	whole, _ := pieceList(t, r.post("/api/generate", `{"model":"llama","prompt":"x"}`))
	all := strings.Join(whole, "")
	seq := all[len(whole[0])+len(whole[1])-2 : len(whole[0])+len(whole[1])+3]
	want, _, _ := strings.Cut(all, seq)
	for _, stream := range []bool{true, false} {
		got, last := pieceList(t, r.post("/api/generate", fmt.Sprintf(`{"model":"llama","prompt":"x","stream":%v,"options":{"stop":["never seen",%s]}}`, stream, quoteJSON(seq))))
		text := strings.Join(got, "") + last.Response
		if text != want || last.DoneReason != "stop" {
			t.Errorf("stream %v: %q (%s), want %q", stream, text, last.DoneReason, want)
		}
	}
}

func TestAPromptLongerThanTheContextLosesItsOldestMessages(t *testing.T) {
	r, stop := start(t, Config{Context: 11})
	defer stop()
	body := `{"model":"llama","stream":false,"messages":[{"role":"system","content":"S"},{"role":"user","content":"one two three four five six"},{"role":"user","content":"last"}]`
	if got := parse[record](t, r.post("/api/chat", body+`,"_debug_render_only":true}`)).Debug.Rendered; got != "<|system|>\nS\n<|user|>\nlast\n<|assistant|>" {
		t.Errorf("rendered %q", got)
	}
	if got := parse[record](t, r.post("/api/chat", body+`,"options":{"num_ctx":50}}`)); got.Prompt != 12 {
		t.Errorf("with num_ctx 50 the prompt has %d tokens, want 12", got.Prompt)
	}
	long := strings.Repeat(" x", 30)
	if got := parse[record](t, r.post("/api/generate", fmt.Sprintf(`{"model":"llama","raw":true,"stream":false,"prompt":%q}`, long))); got.Prompt != 11 {
		t.Errorf("a raw prompt was cut to %d tokens, want 11", got.Prompt)
	}
	if status, b := r.do("POST", "/api/generate", fmt.Sprintf(`{"model":"llama","raw":true,"truncate":false,"prompt":%q}`, long)); status != 400 || !strings.Contains(b, "exceeds the context length") {
		t.Errorf("truncate false: %d %s", status, b)
	}
}

func TestTemplateAndContextAreInTheRendering(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	for body, want := range map[string]string{
		`"prompt":"Hi","system":"S","template":"{{ .System }}: {{ .Prompt }}"`: "S: Hi<|assistant|>",
		`"prompt":"Hi","context":[3,14]`:                                       " t3 t14<|user|>\nHi\n<|assistant|>",
		`"prompt":"a","suffix":"b"`:                                            "<|prefix|>a<|suffix|>b<|assistant|>",
	} {
		got := parse[record](t, r.post("/api/generate", `{"model":"llama","_debug_render_only":true,`+body+`}`)).Debug.Rendered
		if got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
	if status, got := r.do("POST", "/api/generate", `{"model":"llama","prompt":"x","template":"{{"}`); status != 500 || !strings.Contains(got, "error") {
		t.Errorf("a wrong template: %d %s", status, got)
	}
}
