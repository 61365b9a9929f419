package enginetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// anthropicErrors is how /v1/messages tells errors.
type anthropicErrors struct{}

func (anthropicErrors) fail(w http.ResponseWriter, status int, message string) {
	kind := "api_error"
	switch status {
	case http.StatusBadRequest:
		kind = "invalid_request_error"
	case http.StatusUnauthorized:
		kind = "authentication_error"
	case http.StatusForbidden:
		kind = "permission_error"
	case http.StatusNotFound:
		kind = "not_found_error"
	case http.StatusTooManyRequests:
		kind = "rate_limit_error"
	case http.StatusServiceUnavailable:
		kind = "overloaded_error"
	}
	writeBytes(w, status, typeBareJSON, []byte(`{"type":"error","error":{"type":"`+kind+
		`","message":"`+quoted(message)+`"},"request_id":"req_`+hexDigest(message)[:24]+"\"}\n"))
}

func (anthropicErrors) died(b []byte) []byte { return b }

type messagesRequest struct {
	Model     string `json:"model"`
	MaxTokens int    `json:"max_tokens"`
	System    blocks `json:"system"`
	Messages  []struct {
		Role    string `json:"role"`
		Content blocks `json:"content"`
	} `json:"messages"`
	Stream bool            `json:"stream"`
	Stop   []string        `json:"stop_sequences"`
	Tools  json.RawMessage `json:"tools"`
}

// blocks is a content: a string or a list of blocks, of which text, images and results of tools
// become part of the prompt.
type blocks []block

type block struct {
	Type    string          `json:"type"`
	Text    string          `json:"text"`
	Content blocks          `json:"content"`
	Name    string          `json:"name"`
	Input   json.RawMessage `json:"input"`
	Source  struct {
		Data string `json:"data"`
	} `json:"source"`
}

func (c *blocks) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*c = blocks{{Type: "text", Text: s}}
		return nil
	}
	return json.Unmarshal(b, (*[]block)(c))
}

// flatten returns the text and images of c.
func (c blocks) flatten() (text string, images []string) {
	var b strings.Builder
	for _, bl := range c {
		switch bl.Type {
		case "text", "input_text", "output_text":
			b.WriteString(bl.Text)
		case "image":
			images = append(images, bl.Source.Data)
		case "tool_use":
			fmt.Fprintf(&b, "<|call|>%s%s", bl.Name, bl.Input)
		case "tool_result":
			inner, more := bl.Content.flatten()
			b.WriteString("<|result|>" + inner)
			images = append(images, more...)
		}
	}
	return b.String(), images
}

func (s *Server) v1Messages(w http.ResponseWriter, r *http.Request) {
	errs := anthropicErrors{}
	var req messagesRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	switch {
	case req.Model == "":
		errs.fail(w, http.StatusBadRequest, "model is required")
		return
	case req.MaxTokens <= 0:
		errs.fail(w, http.StatusBadRequest, "max_tokens is required and must be positive")
		return
	case len(req.Messages) == 0:
		errs.fail(w, http.StatusBadRequest, "messages is required")
		return
	}
	var msgs []message
	bytes := 0
	if text, _ := req.System.flatten(); text != "" {
		msgs = append(msgs, message{Role: "system", Content: text})
		bytes += len(text)
	}
	for _, m := range req.Messages {
		text, images := m.Content.flatten()
		msgs = append(msgs, message{Role: strings.ToLower(m.Role), Content: text, Images: images})
		bytes += len(m.Role) + len(text)
	}
	m, ok := s.chatModel(w, errs, req.Model, "chat")
	if !ok {
		return
	}
	c := &call{model: m.Model, limit: req.MaxTokens, stop: texts(req.Stop).sequences(), stream: req.Stream}
	c.text, c.images = render(msgs, req.Tools, s.contextLength(c))
	s.generate(w, r, c, &messagesDialect{
		id: fmt.Sprintf("msg_%024x", s.seq.Add(1)), model: quoted(req.Model), estimate: max(bytes/4, 1),
	})
}

// messagesDialect writes the events of /v1/messages.
type messagesDialect struct {
	anthropicErrors
	id, model string // model is quoted
	estimate  int    // of input tokens: a quarter of the bytes, as Ollama has it
	begun     bool
	block     bool // the text block is open
}

func (d *messagesDialect) contentTypes() (stream, whole string) { return typeSSE, typeBareJSON }

func (d *messagesDialect) piece(b []byte, _, json string) []byte {
	b = d.begin(b)
	if !d.block {
		d.block = true
		b = append(b, `event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

`...)
	}
	b = append(b, "event: content_block_delta\n"+`data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"`...)
	return append(append(b, json...), "\"}}\n\n"...)
}

func (d *messagesDialect) begin(b []byte) []byte {
	if d.begun {
		return b
	}
	d.begun = true
	b = append(b, "event: message_start\n"+`data: {"type":"message_start","message":{"id":"`+d.id+
		`","type":"message","role":"assistant","model":"`+d.model+`","content":[],`...)
	return append(appendInt(b, `"usage":{"input_tokens":`, int64(d.estimate)), ",\"output_tokens\":0}}}\n\n"...)
}

func (d *messagesDialect) end(b []byte, r *result) []byte {
	b = d.begin(b)
	if d.block {
		b = append(b, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n"...)
	}
	b = append(b, "event: message_delta\n"+`data: {"type":"message_delta","delta":{"stop_reason":"`+stopReason(r)+`"},`...)
	b = append(d.usage(b, r), "}\n\n"...)
	return append(b, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"...)
}

func (d *messagesDialect) usage(b []byte, r *result) []byte {
	b = appendInt(b, `"usage":{"input_tokens":`, int64(r.promptTokens))
	return append(appendInt(b, `,"output_tokens":`, int64(r.tokens)), '}')
}

func stopReason(r *result) string {
	if r.reason == "length" {
		return "max_tokens"
	}
	return "end_turn"
}

func (d *messagesDialect) whole(b []byte, text string, r *result) []byte {
	b = append(b, `{"id":"`+d.id+`","type":"message","role":"assistant","model":"`+d.model+
		`","content":[{"type":"text","text":"`+quoted(text)+`"}],"stop_reason":"`+stopReason(r)+`",`...)
	return append(d.usage(b, r), "}\n"...)
}
