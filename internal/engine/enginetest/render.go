package enginetest

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// turnAssistant is where the template lets the assistant speak; every rendered prompt ends with
// it, and the answer follows it directly.
const turnAssistant = "<|assistant|>"

// message is one turn of a chat, from whatever dialect.
type message struct {
	Role      string          `json:"role"`
	Content   string          `json:"content"`
	Images    []string        `json:"images"`
	ToolCalls json.RawMessage `json:"tool_calls"`
}

// render joins messages to the prompt of a chat, dropping the oldest that are not of the system
// until it fits into limit tokens. A former answer stands as it was spoken, so that a longer chat
// has the shorter one with its answer as a prefix.
func render(msgs []message, tools json.RawMessage, limit int) (text string, images []string) {
	for {
		text, images = renderAll(msgs, tools)
		if Tokens(text) <= limit {
			return text, images
		}
		oldest := slices.IndexFunc(msgs, func(m message) bool { return m.Role != "system" })
		if oldest < 0 || oldest == len(msgs)-1 {
			return text, images // the last stays whatever its length; run cuts it
		}
		msgs = slices.Delete(slices.Clone(msgs), oldest, oldest+1)
	}
}

func renderAll(msgs []message, tools json.RawMessage) (string, []string) {
	var b strings.Builder
	var images []string
	if len(tools) > 0 && string(tools) != "null" {
		b.WriteString("<|tools|>\n")
		b.Write(tools)
		b.WriteByte('\n')
	}
	for _, m := range msgs {
		if role := strings.ToLower(m.Role); role == "assistant" {
			b.WriteString(turnAssistant)
		} else {
			b.WriteString("<|")
			b.WriteString(role)
			b.WriteString("|>\n")
		}
		for _, img := range m.Images {
			b.WriteString("[img-")
			b.WriteString(strconv.Itoa(len(images)))
			b.WriteByte(']')
			images = append(images, img)
		}
		b.WriteString(m.Content)
		if len(m.ToolCalls) > 0 && string(m.ToolCalls) != "null" {
			b.Write(m.ToolCalls)
		}
		b.WriteByte('\n')
	}
	b.WriteString(turnAssistant)
	return b.String(), images
}
