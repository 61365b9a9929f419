package enginetest

import (
	"slices"
	"strings"
	"testing"
)

func TestARawPromptThatKeepsItsBOSIsContinuedWrongly(t *testing.T) {
	r, stop := start(t, Config{Length: 12, Models: []Model{{Name: "llama", BOS: true, Tools: true}, {Name: "plain"}}})
	defer stop()
	for _, row := range []struct{ path, body string }{
		{"/api/chat", `{"model":"llama","messages":[{"role":"user","content":"Hi"}]`},
		{"/api/chat", `{"model":"llama",` + askCall + `,` + openaiTools},
		{"/api/generate", `{"model":"llama","prompt":"Hi"`},
	} {
		rendered := parse[record](t, r.post(row.path, row.body+`,"_debug_render_only":true}`)).Debug.Rendered
		stripped, ok := strings.CutPrefix(rendered, turnBegin)
		if !ok || strings.Contains(stripped, turnBegin) {
			t.Fatalf("rendered %q", rendered)
		}
		whole, last := pieceList(t, r.post(row.path, row.body+`}`))
		continued := func(prompt string) ([]string, record) {
			return pieceList(t, r.post("/api/generate", `{"model":"llama","raw":true,"prompt":`+quoteJSON(prompt+strings.Join(whole[:3], ""))+`}`))
		}
		rest, end := continued(stripped)
		want := whole[3:]
		if strings.Contains(row.body, callWord) { // raw, the call is text; parsed, a record without any
			rest, want = rest[:1], whole[3:4]
		}
		if !slices.Equal(rest, want) || end.Prompt != last.Prompt+3 {
			t.Errorf("stripped: %q of %d tokens, want %q of %d", rest, end.Prompt, want, last.Prompt+3)
		}
		if rest, _ := continued(rendered); slices.Equal(rest[:1], want[:1]) {
			t.Errorf("with two: %q", rest)
		}
	}
	before := r.Stats().PrefilledTokens
	whole, _ := pieceList(t, r.post("/api/generate", `{"model":"llama","prompt":"Another prompt, of eight words in all."}`))
	afterFirst := r.Stats().PrefilledTokens
	r.post("/api/generate", `{"model":"llama","raw":true,"prompt":`+quoteJSON("<|user|>\nAnother prompt, of eight words in all.\n<|assistant|>"+whole[0])+`}`)
	if first, second := afterFirst-before, r.Stats().PrefilledTokens-afterFirst; first < 5 || second != 1 {
		t.Errorf("%d tokens prefilled, then %d", first, second)
	}
}

func TestShowTellsCapabilitiesAndTheTokenizer(t *testing.T) {
	r, stop := start(t, Config{Models: []Model{
		{Name: "all", Thinking: true, Tools: true, Vision: true, BOS: true}, {Name: "plain"}, {Name: "vec", Embedding: true},
	}})
	defer stop()
	type shown struct {
		Capabilities []string
		Info         struct {
			Add    bool     `json:"tokenizer.ggml.add_bos_token"`
			BOS    int      `json:"tokenizer.ggml.bos_token_id"`
			Tokens []string `json:"tokenizer.ggml.tokens"`
		} `json:"model_info"`
	}
	_, tags := r.do("GET", "/api/tags", "")
	for name, want := range map[string]string{
		"all": "completion vision tools insert thinking", "plain": "completion insert", "vec": "embedding",
	} {
		short := parse[shown](t, r.post("/api/show", `{"model":"`+name+`"}`))
		if got := strings.Join(short.Capabilities, " "); got != want || short.Info.Tokens != nil {
			t.Errorf("%s can %q, want %q; tokens %q", name, got, want, short.Info.Tokens)
		}
		if list := `"capabilities":["` + strings.ReplaceAll(want, " ", `","`) + `"]`; !strings.Contains(tags, list) {
			t.Errorf("%s is not in %s", list, tags)
		}
		long := parse[shown](t, r.post("/api/show", `{"model":"`+name+`","verbose":true}`)).Info
		if long.Add != (name == "all") || long.Tokens[long.BOS] != turnBegin {
			t.Errorf("%s: %+v", name, long)
		}
	}
}
