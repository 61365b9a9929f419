package resume

import (
	"encoding/json"
	"errors"

	"github.com/tidwall/gjson"
)

// PrefillBody returns the client's request, streamed, with the delivered text at its end, for the
// client's own route. A llama-server goes on in a last message of the assistant, and a new one heeds
// continue_final_message even if it was started to do otherwise; a vLLM or SGLang goes on if told so.
func PrefillBody(a Answer, f Facts) ([]byte, error) {
	r, err := read(a.Path, a.Body, f)
	if err != nil {
		return nil, err
	}
	if !r.appendable {
		return nil, errors.New("lengthen a prompt: it does not end in one text")
	}
	var fields []field
	switch r.path {
	case pathCompletions:
		prompt := r.get("prompt")
		if prompt.IsArray() {
			prompt = prompt.Get("0")
		}
		fields = append(fields, field{"prompt", prompt.Str + a.Text})
	case pathResponses:
		fields = append(fields, field{"input", lengthenedInput(r.get("input"), a.Text)})
	default:
		messages, err := r.lengthenedMessages(a.Text, f)
		if err != nil {
			return nil, err
		}
		fields = append(fields, field{"messages", messages})
	}
	if r.path != pathCompletions {
		fields = append(fields, field{"continue_final_message", true}, field{"add_generation_prompt", false})
	}
	if limit := r.limit(f); limit >= 0 {
		rest := limit - a.Pieces
		if rest <= 0 {
			return nil, errors.New("lengthen a prompt: nothing is left of the limit of tokens")
		}
		for _, name := range r.limits() {
			if r.get(name).Type == gjson.Number {
				fields = append(fields, field{name, rest})
			}
		}
	}
	return edit(r.body, append(fields, field{"stream", true})...)
}

// lengthenedMessages returns the messages with the text as the last of them, or at the end of the last
// if the client had begun the answer itself.
func (r *request) lengthenedMessages(text string, f Facts) ([]json.RawMessage, error) {
	var messages []json.RawMessage
	list := r.get("messages")
	for _, m := range list.Array() {
		messages = append(messages, json.RawMessage(m.Raw))
	}
	if fromAssistant(list) && r.continued(f) {
		begun := lastOf(list)
		longer, err := edit([]byte(begun.Raw), field{"content", begun.Get("content").Str + text})
		if err != nil {
			return nil, err
		}
		messages[len(messages)-1] = longer
		return messages, nil
	}
	m, err := marshal(struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}{"assistant", text})
	return append(messages, m), err
}

// lengthenedInput is lengthenedMessages in the form of /v1/responses, where a single text may stand
// for the user's message.
func lengthenedInput(input gjson.Result, text string) []any {
	type message struct {
		Type    string `json:"type"`
		Role    string `json:"role"`
		Content any    `json:"content"`
	}
	var items []any
	if input.Type == gjson.String {
		items = append(items, message{"message", "user", input.Str})
	} else {
		for _, item := range input.Array() {
			items = append(items, json.RawMessage(item.Raw))
		}
	}
	type part struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	return append(items, message{"message", "assistant", []part{{"output_text", text}}})
}
