package enginetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

const (
	toolsOpen = "<|tools|>\n"
	callOpen  = " <|call|>" // how the model begins to call a tool
	callAfter = 4           // pieces of content before it does
	callWord  = "CALL"      // what makes it do so, in the user's last message
)

// tool is what a template shows of a tool's declaration: the same in all dialects, so that a
// request translated from one to the other renders alike.
type tool struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Parameters  []string `json:"parameters,omitempty"` // their names, sorted
}

// parseTools reads a list of tools as any dialect writes it.
func parseTools(raw json.RawMessage) []tool {
	type declared struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Parameters  schema `json:"parameters"`
		InputSchema schema `json:"input_schema"` // Anthropic's
	}
	var list []struct {
		declared
		Function *declared `json:"function"` // Ollama's and OpenAI's
	}
	if len(raw) == 0 || json.Unmarshal(raw, &list) != nil {
		return nil
	}
	out := make([]tool, 0, len(list))
	for _, t := range list {
		d := t.declared
		if t.Function != nil {
			d = *t.Function
		}
		out = append(out, tool{d.Name, d.Description, append(d.Parameters.names(), d.InputSchema.names()...)})
	}
	return out
}

type schema struct {
	Properties map[string]json.RawMessage `json:"properties"`
}

func (s schema) names() []string { return slices.Sorted(maps.Keys(s.Properties)) }

func writeTools(b *strings.Builder, tools []tool) {
	if len(tools) == 0 {
		return
	}
	list, err := json.Marshal(tools)
	if err != nil {
		panic(err) // strings always marshal
	}
	b.WriteString(toolsOpen)
	b.Write(list)
	b.WriteByte('\n')
}

// toolToCall returns the tool that the model is going to call after this prompt: the first one, if
// the last turn before the assistant's is the user's and has the word CALL.
func toolToCall(text string) string {
	list, ok := strings.CutPrefix(strings.TrimPrefix(text, turnBegin), toolsOpen)
	if !ok {
		return ""
	}
	before, _, _ := cutLast(text, turnAssistant)
	_, turn, ok := cutLast(before, turnUser)
	if !ok || strings.Contains(turn, "\n<|") || !hasWord(turn, callWord) {
		return ""
	}
	list, _, _ = strings.Cut(list, "\n")
	var tools []tool
	if json.Unmarshal([]byte(list), &tools) != nil || len(tools) == 0 {
		return ""
	}
	return tools[0].Name
}

// hasWord says whether word stands in s with no letter or digit beside it.
func hasWord(s, word string) bool {
	plain := func(i int) bool {
		if i < 0 || i >= len(s) {
			return false
		}
		c := s[i] | 0x20
		return c >= 'a' && c <= 'z' || s[i] >= '0' && s[i] <= '9'
	}
	for from := 0; ; {
		i := strings.Index(s[from:], word)
		if i < 0 {
			return false
		}
		from += i + len(word)
		if !plain(from-len(word)-1) && !plain(from) {
			return true
		}
	}
}

// toolCall is a model's wish to have a tool run.
type toolCall struct {
	ID, Name  string
	Arguments string // JSON, an object
}

// newCall makes the call that follows the text of h. Arguments have no white space.
func newCall(h textHash, name string) *toolCall {
	p := h.next()
	return &toolCall{
		ID: fmt.Sprintf("call_%08x", rand.Uint32()), Name: name, // Ollama's ids are random too
		Arguments: fmt.Sprintf(`{"number":%d,"word":"%s"}`, uint64(h)%1000, p.json[1:]),
	}
}

// raw is the call as the model writes it: one token.
func (c *toolCall) raw() string {
	return callOpen + `{"name":"` + quoted(c.Name) + `","arguments":` + c.Arguments + "}"
}

// UnmarshalJSON takes Ollama's form, whose arguments are an object, and OpenAI's, a string.
func (c *toolCall) UnmarshalJSON(b []byte) error {
	var v struct {
		ID       string `json:"id"`
		Function struct {
			Name      string          `json:"name"`
			Arguments json.RawMessage `json:"arguments"`
		} `json:"function"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	args := v.Function.Arguments
	var text string
	if json.Unmarshal(args, &text) == nil && text != "" {
		args = json.RawMessage(text)
	}
	*c = toolCall{ID: v.ID, Name: v.Function.Name, Arguments: canonical(args)}
	return nil
}

// canonical returns a JSON object without white space, its keys sorted, and {} for nothing.
func canonical(raw json.RawMessage) string {
	var v map[string]any
	if json.Unmarshal(raw, &v) != nil || v == nil {
		return "{}"
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // it was JSON
	}
	return string(b)
}
