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
	Stream      bool            `json:"stream"`
	Stop        []string        `json:"stop_sequences"`
	Tools       json.RawMessage `json:"tools"`
	Temperature *float64        `json:"temperature"`
	Thinking    struct {
		Type string `json:"type"`
	} `json:"thinking"`
	Output struct {
		Effort string `json:"effort"`
	} `json:"output_config"`
}

// blocks is a content: a string or a list of blocks.
type blocks []block

type block struct {
	Type     string          `json:"type"`
	Text     string          `json:"text"`
	Thinking string          `json:"thinking"`
	Content  blocks          `json:"content"`
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Input    json.RawMessage `json:"input"`
	ImageURL imageURL        `json:"image_url"` // OpenAI's
	Source   struct {
		Data string `json:"data"`
	} `json:"source"`
}

// imageURL is a string in /v1/responses, an object in chats.
type imageURL struct{ URL string }

func (u *imageURL) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &u.URL) == nil {
		return nil
	}
	type bare imageURL
	return json.Unmarshal(b, (*bare)(u))
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
		case "input_image":
			if _, data, ok := strings.Cut(bl.ImageURL.URL, ";base64,"); ok {
				images = append(images, data)
			}
		}
	}
	return b.String(), images
}

// messages turns one message of Anthropic's into Ollama's: each result of a tool is one of its own.
func (c blocks) messages(role string) []message {
	m := message{Role: role}
	m.Content, m.Images = c.flatten()
	var out []message
	for _, bl := range c {
		switch bl.Type {
		case "thinking":
			m.Thinking = bl.Thinking
		case "tool_use":
			m.ToolCalls = append(m.ToolCalls, toolCall{bl.ID, bl.Name, canonical(bl.Input)})
		case "tool_result":
			text, images := bl.Content.flatten()
			out = append(out, message{Role: "tool", Content: text, Images: images})
		}
	}
	if m.Content != "" || m.Images != nil || m.ToolCalls != nil || m.Thinking != "" {
		out = append(out, m)
	}
	return out
}

// think returns what the request says of thinking.
func (r *messagesRequest) think() think {
	switch {
	case r.Thinking.Type == "enabled":
		return think{true, true}
	case r.Thinking.Type == "disabled":
		return think{true, false}
	}
	switch strings.ToLower(strings.TrimSpace(r.Output.Effort)) {
	case "low", "medium", "high", "xhigh", "max":
		return think{true, true}
	}
	return think{}
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
		bytes += len(m.Role)
		for _, part := range m.Content.messages(strings.ToLower(m.Role)) {
			msgs = append(msgs, part)
			bytes += len(part.Content) + len(part.Thinking)
		}
	}
	m, ok := s.chatModel(w, errs, req.Model)
	if !ok {
		return
	}
	c := &call{
		model: m.Model, asked: req.Model, limit: req.MaxTokens, stop: texts(req.Stop).sequences(), stream: req.Stream,
		temperature: orDefault(req.Temperature, 0),
	}
	t := req.think()
	t.on = t.on && m.Thinking // asking one that does not think is no error here
	if !s.capable(w, errs, c, "chat", t, req.Tools) {
		return
	}
	s.render(c, s.template(c), msgs, req.Tools)
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
	index     int    // of the block that is open, or the next
	block     string // type of the block that is open; empty for none
	tools     bool   // a call went out
}

func (d *messagesDialect) contentTypes() (stream, whole string) { return typeSSE, typeBareJSON }

func (d *messagesDialect) piece(b []byte, _, json string) []byte {
	b = d.open(b, "text", `"text":""`)
	return d.delta(b, `"text_delta","text":"`, json)
}

func (d *messagesDialect) thought(b []byte, _, json string) []byte {
	b = d.open(b, "thinking", `"thinking":""`)
	return d.delta(b, `"thinking_delta","thinking":"`, json)
}

func (d *messagesDialect) called(b []byte, c *toolCall) []byte {
	d.tools = true
	b = d.close(b)
	b = d.open(b, "tool_use", `"id":"`+c.ID+`","name":"`+quoted(c.Name)+`","input":{}`)
	b = d.delta(b, `"input_json_delta","partial_json":"`, quoted(c.Arguments))
	return d.close(b)
}

// open makes sure that a block of that type is open; fields are JSON.
func (d *messagesDialect) open(b []byte, block, fields string) []byte {
	b = d.begin(b)
	if d.block == block {
		return b
	}
	b = d.close(b)
	d.block = block
	b = append(b, "event: content_block_start\n"+`data: {"type":"content_block_start"`...)
	b = append(append(appendInt(b, `,"index":`, int64(d.index)), `,"content_block":{"type":"`...), block...)
	return append(append(append(b, `",`...), fields...), "}}\n\n"...)
}

// delta adds to the open block.
func (d *messagesDialect) delta(b []byte, field, json string) []byte {
	b = append(b, "event: content_block_delta\n"+`data: {"type":"content_block_delta"`...)
	b = append(append(appendInt(b, `,"index":`, int64(d.index)), `,"delta":{"type":`...), field...)
	return append(append(b, json...), "\"}}\n\n"...)
}

// close ends the block that is open.
func (d *messagesDialect) close(b []byte) []byte {
	b = d.begin(b)
	if d.block == "" {
		return b
	}
	d.block = ""
	b = append(b, "event: content_block_stop\n"+`data: {"type":"content_block_stop"`...)
	b = append(appendInt(b, `,"index":`, int64(d.index)), "}\n\n"...)
	d.index++
	return b
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
	b = d.close(b)
	b = append(b, "event: message_delta\n"+`data: {"type":"message_delta","delta":{"stop_reason":"`+stopReason(r, d.tools)+`"},`...)
	b = append(d.usage(b, r), "}\n\n"...)
	return append(b, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"...)
}

func (d *messagesDialect) usage(b []byte, r *result) []byte {
	b = appendInt(b, `"usage":{"input_tokens":`, int64(r.promptTokens))
	return append(appendInt(b, `,"output_tokens":`, int64(r.tokens)), '}')
}

func stopReason(r *result, called bool) string {
	switch {
	case called:
		return "tool_use"
	case r.reason == "length":
		return "max_tokens"
	}
	return "end_turn"
}

func (d *messagesDialect) whole(b []byte, s said, r *result) []byte {
	b = append(b, `{"id":"`+d.id+`","type":"message","role":"assistant","model":"`+d.model+`","content":`...)
	var list []string
	if s.thinking != "" {
		list = append(list, `{"type":"thinking","thinking":"`+quoted(s.thinking)+`"}`)
	}
	if s.content != "" {
		list = append(list, `{"type":"text","text":"`+quoted(s.content)+`"}`)
	}
	if s.call != nil {
		list = append(list, `{"type":"tool_use","id":"`+s.call.ID+`","name":"`+quoted(s.call.Name)+`","input":`+s.call.Arguments+`}`)
	}
	if list == nil {
		b = append(b, "null"...)
	} else {
		b = append(b, "["+strings.Join(list, ",")+"]"...)
	}
	b = append(b, ',')
	if r.reason != "" {
		b = append(b, `"stop_reason":"`+stopReason(r, s.call != nil)+`",`...)
	}
	return append(d.usage(b, r), "}\n"...)
}
