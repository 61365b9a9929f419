package record

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

// fold makes a body of a stream.
func fold(t testing.TB, f Form, stream []byte) []byte {
	t.Helper()
	fold, tr := NewFold(f), NewTracker(f, false)
	for _, rec := range split(t, f, stream) {
		fold.Add(rec, tr.Follow(rec))
	}
	return fold.AppendBody(nil)
}

// parsed reads a body without what differs when an engine is asked twice: ids, times, and what its
// cache had.
func parsed(t testing.TB, body []byte) any {
	t.Helper()
	v, err := enginetest.Replaced(body, func(key string, value any) (any, bool) {
		switch key {
		case "id", "call_id", "created", "created_at", "completed_at", "timings", "prompt_tokens_details", "input_tokens_details":
			return "…", true
		case "arguments": // Ollama draws the order of their members
			var arguments any
			if s, ok := value.(string); ok && json.Unmarshal([]byte(s), &arguments) == nil && arguments != nil {
				return arguments, true
			}
			return value, value != nil
		}
		return nil, false
	})
	if err != nil {
		t.Fatalf("body %s: %v", body, err)
	}
	return v
}

// TestFoldMakesTheBodyThatItsEngineGives compares what a recorded stream is folded into with the
// recorded body of the same request that wanted no stream: all members, but for ids and times.
func TestFoldMakesTheBodyThatItsEngineGives(t *testing.T) {
	n := 0
	for _, c := range captures(t) {
		chunks := c.form == ChatCompletions || c.form == Completions
		if c.form.lines() || chunks && !c.usage || c.form == Responses && strings.Contains(c.name, "llama") {
			continue // another test's, or what nobody folds: a stream whose counts were not asked for, and other engines' responses
		}
		n++
		want, err := os.ReadFile(filepath.Join("testdata", strings.TrimSuffix(c.name, "-usage")+".whole"))
		if err != nil {
			t.Fatal(err)
		}
		got := fold(t, c.form, c.stream)
		if diff := cmp.Diff(parsed(t, want), parsed(t, got)); diff != "" {
			t.Errorf("%s (-engine +folded): %s", c.name, diff)
		}
	}
	if n < 14 {
		t.Errorf("%d captures", n)
	}
}

func TestWhatAFoldHoldsOfASenselessStreamIsBounded(t *testing.T) {
	members := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"k%d":1`, i)
		}
		return b.String()
	}
	for name, tc := range map[string]struct {
		form Form
		rec  string
		n    int
		held bool // … rather than left out
	}{
		"members":           {ChatCompletions, `data: {"choices":[{"index":0,"delta":{"content":"x"}}]` + members(5000) + "}\n\n", 1, false},
		"members of calls":  {ChatCompletions, `data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0` + members(5000) + "}]}}]}\n\n", 1, false},
		"calls":             {ChatCompletions, `data: {"choices":[{"index":0,"delta":{"tool_calls":[` + strings.Repeat(`{"index":0,"id":"a"},`, 5000) + `{"index":1}]}}]}` + "\n\n", 1, false},
		"items":             {Responses, `data: {"type":"response.output_item.done","item":{"type":"x","y":"` + strings.Repeat("y", 200) + `"},"response":{"output":[]}}` + "\n\n", 20_000, false},
		"log probabilities": {ChatCompletions, `data: {"choices":[{"index":0,"delta":{},"logprobs":{"content":[` + strings.Repeat(`{"logprob":-1},`, 500) + `{}]}}]}` + "\n\n", 20, true},
		"of a line":         {Generate, `{"response":"","done":false,"logprobs":[` + strings.Repeat(`{"logprob":-1},`, 500) + "{}]}\n", 20, true},
		"large blocks":      {Messages, `data: {"type":"content_block_start","index":0,"content_block":{"type":"x","y":"` + strings.Repeat("y", 100_000) + `"}}` + "\n\n", 20, true},
	} {
		fold, tr := NewFold(tc.form), NewTracker(tc.form, false)
		for range tc.n {
			fold.Add([]byte(tc.rec), tr.Follow([]byte(tc.rec)))
		}
		sent := tc.n * len(tc.rec)
		if tc.held && fold.Size() < sent*9/10 {
			t.Errorf("%s: %d bytes are held of %d", name, fold.Size(), sent)
		}
		if body := fold.AppendBody(nil); !tc.held && len(body) > sent/4 {
			t.Errorf("%s: a body of %d bytes of %d", name, len(body), sent)
		}
	}
}
