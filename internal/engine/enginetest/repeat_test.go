package enginetest

import (
	"slices"
	"strings"
	"testing"
)

func TestARepeatingModelIsCutAfter31EqualPiecesWithoutATerminalRecord(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	for _, row := range []struct{ path, body, piece, terminal, whole, absent string }{
		{"/api/generate", `{"model":"llama","prompt":"REPEAT it"`, `"response":" `, `"done":true`, `"done":false}`, "count"},
		{"/api/generate", `{"model":"llama","raw":true,"prompt":"REPEAT it"`, `"response":" `, `"done":true`, `"done":false}`, "count"},
		{"/api/chat", `{"model":"qwen","messages":[{"role":"user","content":"REPEAT"}]`, `"content":" `, `"done":true`, `},"done":false}`, "count"},
		{"/v1/chat/completions", `{"model":"llama","messages":[{"role":"user","content":"REPEAT"}]`, `"content":" `, `[DONE]`, `"finish_reason":null}],"usage":{"prompt_tokens":0,"completion_tokens":0,`, `"stop"`},
		{"/v1/completions", `{"model":"llama","prompt":"REPEAT"`, `"text":" `, `[DONE]`, `"finish_reason":null}],"usage":{"prompt_tokens":0,`, `"stop"`},
		{"/v1/messages", `{"model":"llama","max_tokens":99,"messages":[{"role":"user","content":"REPEAT"}]`, `"text":" `, `message_stop`, `"usage":{"input_tokens":0,"output_tokens":0}`, "stop_reason"},
		{"/v1/responses", `{"model":"llama","input":"REPEAT"`, `"delta":" `, `response.completed`, `"status":"completed"`, `"output_tokens":64`},
	} {
		status, got, err := r.read(t.Context(), row.path, row.body+`,"stream":true}`)
		parts := strings.Split(got, row.piece)
		if n := len(parts) - 1; status != 200 || err != nil || n < 31 || strings.Contains(got, row.terminal) {
			t.Fatalf("%s: %d, %v, %d pieces in %q", row.path, status, err, n, got)
		}
		word := func(part string) string { w, _, _ := strings.Cut(part, `"`); return w }
		tail := parts[len(parts)-31:]
		for _, part := range tail {
			if word(part) != word(tail[0]) {
				t.Errorf("%s: pieces %q and %q", row.path, word(part), word(tail[0]))
			}
		}
		if !strings.HasPrefix(row.body, `{"model":"qwen"`) && len(parts) != 32 {
			t.Errorf("%s: %d pieces", row.path, len(parts)-1)
		}
		if got := r.post(row.path, row.body+`,"stream":false}`); !strings.Contains(got, row.whole) || strings.Contains(got, row.absent) || strings.Count(got, " "+word(tail[0])) != 31 {
			t.Errorf("%s whole: %s", row.path, got)
		}
	}
	if pieces, last := pieceList(t, r.post("/api/generate", `{"model":"llama","prompt":"REPEAT","options":{"num_predict":31}}`)); len(pieces) != 31 || last.DoneReason != "length" {
		t.Errorf("%d pieces, %+v", len(pieces), last)
	}
}

func TestARepetitionIsContinuedWithTheSamePiece(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	limited := func(prompt, limit string) []string {
		out, _ := pieceList(t, r.post("/api/generate", `{"model":"llama","raw":true,"prompt":`+quoteJSON(prompt)+`,"options":{"num_predict":`+limit+`}}`))
		return out
	}
	const prompt = "<|user|>\nREPEAT\n<|assistant|>"
	whole := limited(prompt, "9")
	if rest := limited(prompt+strings.Join(whole[:4], ""), "5"); !slices.Equal(rest, whole[4:]) || rest[0] != whole[0] {
		t.Errorf("%q after %q", rest, whole[:4])
	}
	llama, stop := startLlama(t, Model{Name: "m"})
	defer stop()
	if got := llama.post("/v1/chat/completions", `{"messages":[{"role":"user","content":"REPEAT"}],"max_tokens":60}`); !strings.Contains(got, `"completion_tokens":60`) {
		t.Errorf("a llama-server has no guard: %s", got)
	}
}
