package enginetest

import (
	"encoding/json"
	"strconv"
	"time"
)

// responsesDialect writes the events of /v1/responses.
type responsesDialect struct {
	openaiErrors
	req      *responsesRequest
	number   string // in all ids
	created  int64
	sequence int64
	begun    bool
	index    int64             // of the item that is open, or the next
	items    []json.RawMessage // those that are complete
	thinking []byte            // so far; nil while no reasoning item is open
	text     []byte            // so far; nil while no message is open
	tools    bool              // a call went out
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
	object := `"response":` + d.object("in_progress", []json.RawMessage{}, nil)
	return d.event(d.event(b, "response.created", object), "response.in_progress", object)
}

// at are the members that place an event in the item that is open.
func (d *responsesDialect) at(item, part string) string {
	return `"item_id":"` + item + d.number + `","output_index":` + strconv.FormatInt(d.index, 10) + `,"` + part + `":0`
}

func (d *responsesDialect) item(b []byte, kind, item string) []byte {
	return d.event(b, kind, `"output_index":`+strconv.FormatInt(d.index, 10)+`,"item":`+item)
}

func (d *responsesDialect) piece(b []byte, text, json string) []byte {
	b = d.finishThinking(d.begin(b))
	if d.text == nil {
		d.text = []byte{}
		b = d.item(b, "response.output_item.added", `{"id":"msg_`+d.number+`","type":"message","status":"in_progress","role":"assistant","content":[]}`)
		b = d.event(b, "response.content_part.added", d.at("msg_", "content_index")+`,"part":`+d.part(""))
	}
	d.text = append(d.text, text...)
	return d.event(b, "response.output_text.delta", d.at("msg_", "content_index")+`,"delta":"`+json+`","logprobs":[]`)
}

func (d *responsesDialect) thought(b []byte, text, json string) []byte {
	b = d.begin(b)
	if d.thinking == nil {
		d.thinking = []byte{}
		b = d.item(b, "response.output_item.added", `{"id":"rs_`+d.number+`","type":"reasoning","summary":[]}`)
	}
	d.thinking = append(d.thinking, text...)
	return d.event(b, "response.reasoning_summary_text.delta", d.at("rs_", "summary_index")+`,"delta":"`+json+`"`)
}

func (d *responsesDialect) finishThinking(b []byte) []byte {
	if d.thinking == nil {
		return b
	}
	text := string(d.thinking)
	item := d.reasoning("rs_", text)
	b = d.event(b, "response.reasoning_summary_text.done", d.at("rs_", "summary_index")+`,"text":"`+quoted(text)+`"`)
	b = d.item(b, "response.output_item.done", string(item))
	d.items, d.thinking = append(d.items, item), nil
	d.index++
	return b
}

// called emits a call as Ollama 0.33 does: a message before it that is open gets no end, and the
// call has its index.
func (d *responsesDialect) called(b []byte, c *toolCall) []byte {
	b = d.finishThinking(d.begin(b))
	d.tools = true
	item := d.call("fc_"+d.number+"_0", "completed", c.Arguments, c)
	b = d.item(b, "response.output_item.added", string(d.call("fc_"+d.number+"_0", "in_progress", "", c)))
	at := `"item_id":"fc_` + d.number + `_0","output_index":` + strconv.FormatInt(d.index, 10)
	b = d.event(b, "response.function_call_arguments.delta", at+`,"delta":"`+quoted(c.Arguments)+`"`)
	b = d.event(b, "response.function_call_arguments.done", at+`,"arguments":"`+quoted(c.Arguments)+`"`)
	b = d.item(b, "response.output_item.done", string(item))
	d.items = append(d.items, item)
	d.index++
	return b
}

func (d *responsesDialect) part(text string) string {
	return `{"type":"output_text","text":"` + quoted(text) + `","annotations":[],"logprobs":[]}`
}

func (d *responsesDialect) message(text string) json.RawMessage {
	return json.RawMessage(`{"id":"msg_` + d.number + `","type":"message","status":"completed","role":"assistant","content":[` + d.part(text) + `]}`)
}

func (d *responsesDialect) reasoning(id, text string) json.RawMessage {
	return json.RawMessage(`{"id":"` + id + d.number + `","type":"reasoning","summary":[{"type":"summary_text","text":"` +
		quoted(text) + `"}],"encrypted_content":"` + quoted(text) + `"}`)
}

func (d *responsesDialect) call(id, status, arguments string, c *toolCall) json.RawMessage {
	return json.RawMessage(`{"id":"` + id + `","type":"function_call","status":"` + status + `","call_id":"` + c.ID +
		`","name":"` + quoted(c.Name) + `","arguments":"` + quoted(arguments) + `"}`)
}

func (d *responsesDialect) end(b []byte, r *result) []byte {
	b = d.finishThinking(d.begin(b))
	output := append([]json.RawMessage{}, d.items...)
	if d.text != nil {
		text := string(d.text)
		item := d.message(text)
		output = append(output, item)
		if !d.tools {
			b = d.event(b, "response.output_text.done", d.at("msg_", "content_index")+`,"text":"`+quoted(text)+`","logprobs":[]`)
			b = d.event(b, "response.content_part.done", d.at("msg_", "content_index")+`,"part":`+d.part(text))
			b = d.item(b, "response.output_item.done", string(item))
		}
	}
	return d.event(b, "response.completed", `"response":`+d.object("completed", output, r))
}

// whole leaves out the text of an answer that calls a tool, as Ollama 0.33 does.
func (d *responsesDialect) whole(b []byte, s said, r *result) []byte {
	output := []json.RawMessage{}
	if s.thinking != "" {
		output = append(output, d.reasoning("rs_resp_", s.thinking))
	}
	if s.call != nil {
		output = append(output, d.call("fc_resp_"+d.number+"_0", "completed", s.call.Arguments, s.call))
	} else {
		output = append(output, d.message(s.content))
	}
	return append(append(b, d.object("completed", output, r)...), '\n')
}

// object is the response as a whole; r is nil while it is in progress.
func (d *responsesDialect) object(status string, output []json.RawMessage, r *result) string {
	tools := d.req.Tools
	if len(tools) == 0 {
		tools = json.RawMessage("[]")
	}
	o := map[string]any{
		"id": "resp_" + d.number, "object": "response", "created_at": d.created, "completed_at": nil,
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
	if len(d.req.Text.Format) > 0 {
		o["text"] = map[string]any{"format": d.req.Text.Format}
	}
	if r := d.req.Reasoning; r.Effort != "" || r.Summary != "" {
		o["reasoning"] = map[string]any{"effort": orNil(r.Effort), "summary": orNil(r.Summary)}
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

func orNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}
