package enginetest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestAFormattedAnswerIsOneJSONObjectThatEndsAtItsLimit(t *testing.T) {
	r, stop := start(t, Config{Length: 12, ThinkLength: 3})
	defer stop()
	object := func(text string) map[string]string {
		t.Helper()
		var m map[string]string
		if err := json.Unmarshal([]byte(text), &m); err != nil || !strings.HasPrefix(text, "{") {
			t.Errorf("%v in %q", err, text)
		}
		return m
	}
	const schema = `{"type":"object"}`
	for _, row := range []struct {
		path, body, key string
		members         int
	}{
		{"/api/generate", `{"model":"llama","prompt":"Hi","format":"json"`, "response", 12},
		{"/api/generate", `{"model":"qwen","prompt":"Hi","format":` + schema, "response", 12}, // does not think
		{"/api/chat", `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"format":` + schema + `,"options":{"num_predict":5}`, "content", 5},
		{"/api/chat", `{"model":"qwen","messages":[{"role":"user","content":"Hi"}],"format":"json"`, "content", 9},
		{"/v1/chat/completions", `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"response_format":{"type":"json_object"}`, "content", 12},
		{"/v1/chat/completions", `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"max_tokens":1,"response_format":{"type":"json_schema","json_schema":{"schema":` + schema + `}}`, "content", 1},
		{"/v1/responses", `{"model":"llama","input":"Hi","text":{"format":{"type":"json_schema","schema":` + schema + `}}`, "text", 12},
	} {
		got := r.post(row.path, row.body+`,"stream":false}`)
		_, rest, _ := strings.Cut(got, `"`+row.key+`":"{`)
		text := parse[string](t, `"{`+rest)
		if m := object(text); len(m) != row.members {
			t.Errorf("%s: %d members in %q, want %d", row.path, len(m), text, row.members)
		}
	}
	pieces, last := pieceList(t, r.post("/api/chat", `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"format":"json"}`))
	if len(object(strings.Join(pieces, ""))) != 12 || len(pieces) != 12 || last.Eval != 12 || !strings.HasPrefix(pieces[1], `, "k1":"`) {
		t.Errorf("streamed %q, %d tokens", pieces, last.Eval)
	}
	for _, format := range []string{`"xml"`, `5`, `[]`} {
		status, got := r.do("POST", "/api/chat", `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"format":`+format+`}`)
		if status != 500 || !strings.Contains(got, "invalid format: ") {
			t.Errorf("format %s: %d %s", format, status, got)
		}
	}
	for _, format := range []string{`null`, `""`} {
		if got := r.post("/api/generate", `{"model":"llama","prompt":"Hi","stream":false,"format":`+format+`}`); strings.Contains(got, "{\\\"k0") {
			t.Errorf("format %s: %s", format, got)
		}
	}
}

func TestARawContinuationWithAFormatBeginsAnotherObject(t *testing.T) {
	r, stop := start(t, Config{Length: 12})
	defer stop()
	const body = `{"model":"llama","messages":[{"role":"user","content":"Hi"}]`
	rendered := parse[record](t, r.post("/api/chat", body+`,"_debug_render_only":true}`)).Debug.Rendered
	pieces, _ := pieceList(t, r.post("/api/chat", body+`,"format":"json"}`))
	rest, _ := pieceList(t, r.post("/api/generate", `{"model":"llama","raw":true,"format":"json","prompt":`+quoteJSON(rendered+strings.Join(pieces[:5], ""))+`}`))
	if slices.Equal(rest, pieces[5:]) || !strings.HasPrefix(rest[0], `{"k0":"`) || json.Valid([]byte(strings.Join(pieces[:5], "")+strings.Join(rest, ""))) {
		t.Errorf("continued with %q", rest)
	}
}
