package enginetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

type responsesRequest struct {
	Model        string          `json:"model"`
	Input        responsesInput  `json:"input"`
	Instructions string          `json:"instructions"`
	Stream       bool            `json:"stream"`
	MaxTokens    *int            `json:"max_output_tokens"`
	Tools        json.RawMessage `json:"tools"`
	Temperature  *float64        `json:"temperature"`
	TopP         *float64        `json:"top_p"`
	Truncation   *string         `json:"truncation"`
}

// responsesInput is a string, spoken by the user, or a list of items.
type responsesInput []responsesItem

type responsesItem struct {
	Type      string `json:"type"`
	Role      string `json:"role"`
	Content   blocks `json:"content"`
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
	Output    blocks `json:"output"`
}

func (in *responsesInput) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*in = responsesInput{{Type: "message", Role: "user", Content: blocks{{Type: "text", Text: s}}}}
		return nil
	}
	return json.Unmarshal(b, (*[]responsesItem)(in))
}

func (r *responsesRequest) messages() []message {
	var out []message
	if r.Instructions != "" {
		out = append(out, message{Role: "system", Content: r.Instructions})
	}
	for _, it := range r.Input {
		text, images := it.Content.flatten()
		switch it.Type {
		case "", "message":
			out = append(out, message{Role: it.Role, Content: text, Images: images})
		case "function_call":
			out = append(out, message{Role: "assistant", Content: "<|call|>" + it.Name + it.Arguments})
		case "function_call_output":
			text, images = it.Output.flatten()
			out = append(out, message{Role: "tool", Content: text, Images: images})
		}
	}
	return out
}

func (s *Server) v1Responses(w http.ResponseWriter, r *http.Request) {
	errs := openaiErrors{}
	var req responsesRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	m, ok := s.chatModel(w, errs, req.Model, "chat")
	if !ok {
		return
	}
	c := &call{model: m.Model, limit: -1, stream: req.Stream}
	if req.MaxTokens != nil {
		c.limit = *req.MaxTokens
	}
	c.text, c.images = render(req.messages(), req.Tools, s.contextLength(c))
	n := s.seq.Add(1)
	s.generate(w, r, c, &responsesDialect{
		req: &req, id: fmt.Sprint("resp_", n), item: fmt.Sprint("msg_", n), created: time.Now().Unix(),
	})
}

// responsesDialect writes the events of /v1/responses.
type responsesDialect struct {
	openaiErrors
	req      *responsesRequest
	id, item string
	created  int64
	sequence int64
	text     []byte // so far
	begun    bool
	opened   bool // the message item is open
}

func (d *responsesDialect) contentTypes() (stream, whole string) { return typeSSE, typeBareJSON }

// event appends one event; fields are the members of its data that come before type and number.
func (d *responsesDialect) event(b []byte, kind, fields string) []byte {
	b = append(append(append(b, "event: "...), kind...), "\ndata: {"...)
	b = append(append(append(b, fields...), `,"type":"`...), kind...)
	b = append(appendInt(b, `","sequence_number":`, d.sequence), "}\n\n"...)
	d.sequence++
	return b
}

func (d *responsesDialect) begin(b []byte) []byte {
	if d.begun {
		return b
	}
	d.begun = true
	object := `"response":` + d.object("in_progress", []any{}, nil)
	return d.event(d.event(b, "response.created", object), "response.in_progress", object)
}

// at are the members that place a delta of the only content of the only item.
func (d *responsesDialect) at() string {
	return `"item_id":"` + d.item + `","output_index":0,"content_index":0`
}

func (d *responsesDialect) piece(b []byte, text, json string) []byte {
	b = d.begin(b)
	if !d.opened {
		d.opened = true
		b = d.event(b, "response.output_item.added", `"output_index":0,"item":{"id":"`+d.item+
			`","type":"message","status":"in_progress","role":"assistant","content":[]}`)
		b = d.event(b, "response.content_part.added", d.at()+`,"part":`+d.part(""))
	}
	d.text = append(d.text, text...)
	return d.event(b, "response.output_text.delta", d.at()+`,"delta":"`+json+`","logprobs":[]`)
}

func (d *responsesDialect) part(text string) string {
	return `{"type":"output_text","text":"` + quoted(text) + `","annotations":[],"logprobs":[]}`
}

func (d *responsesDialect) end(b []byte, r *result) []byte {
	b = d.begin(b)
	output := []any{}
	if d.opened {
		text := string(d.text)
		item := d.message(text)
		output = append(output, item)
		b = d.event(b, "response.output_text.done", d.at()+`,"text":"`+quoted(text)+`","logprobs":[]`)
		b = d.event(b, "response.content_part.done", d.at()+`,"part":`+d.part(text))
		b = d.event(b, "response.output_item.done", `"output_index":0,"item":`+string(item))
	}
	return d.event(b, "response.completed", `"response":`+d.object("completed", output, r))
}

func (d *responsesDialect) message(text string) json.RawMessage {
	return json.RawMessage(`{"id":"` + d.item + `","type":"message","status":"completed","role":"assistant","content":[` + d.part(text) + `]}`)
}

func (d *responsesDialect) whole(b []byte, text string, r *result) []byte {
	return append(append(b, d.object("completed", []any{d.message(text)}, r)...), '\n')
}

// object is the response as a whole; r is nil while it is in progress.
func (d *responsesDialect) object(status string, output []any, r *result) string {
	tools := d.req.Tools
	if len(tools) == 0 {
		tools = json.RawMessage("[]")
	}
	o := map[string]any{
		"id": d.id, "object": "response", "created_at": d.created, "completed_at": nil,
		"status": status, "incomplete_details": nil, "model": d.req.Model,
		"previous_response_id": nil, "instructions": nil, "output": output, "error": nil,
		"tools": tools, "tool_choice": "auto", "truncation": orDefault(d.req.Truncation, "disabled"),
		"parallel_tool_calls": true, "text": map[string]any{"format": map[string]any{"type": "text"}},
		"top_p": orDefault(d.req.TopP, 1), "presence_penalty": 0, "frequency_penalty": 0,
		"top_logprobs": 0, "temperature": orDefault(d.req.Temperature, 1), "reasoning": nil,
		"usage": nil, "max_output_tokens": d.req.MaxTokens, "max_tool_calls": nil, "store": false,
		"background": false, "service_tier": "default", "metadata": map[string]any{},
		"safety_identifier": nil, "prompt_cache_key": nil,
	}
	if d.req.Instructions != "" {
		o["instructions"] = d.req.Instructions
	}
	if r != nil {
		o["completed_at"] = time.Now().Unix()
		o["usage"] = map[string]any{
			"input_tokens": r.promptTokens, "output_tokens": r.tokens, "total_tokens": r.promptTokens + r.tokens,
			"input_tokens_details":  map[string]any{"cached_tokens": 0},
			"output_tokens_details": map[string]any{"reasoning_tokens": 0},
		}
	}
	b, err := json.Marshal(o)
	if err != nil {
		panic(err) // only tools come from outside, and they were JSON
	}
	return string(b)
}

func orDefault[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}
