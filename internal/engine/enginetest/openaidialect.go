package enginetest

import "net/http"

// openaiDialect writes the records of /v1/chat/completions and /v1/completions.
type openaiDialect struct {
	openaiErrors
	id, model string // model is quoted
	created   int64
	chat      bool
	usage     bool // asked for in streams
	opened    bool // the chunk with the role went out
	tools     bool // a call went out
}

func (d *openaiDialect) contentTypes() (stream, whole string) { return typeSSE, typeBareJSON }

func (d *openaiDialect) piece(b []byte, _, json string) []byte {
	return d.delta(b, json, "", nil)
}

// thought has no place in a completion: Ollama sends an empty text.
func (d *openaiDialect) thought(b []byte, _, json string) []byte {
	return d.delta(b, "", json, nil)
}

func (d *openaiDialect) called(b []byte, c *toolCall) []byte {
	d.tools = true
	return d.delta(b, "", "", c)
}

// head writes an object as far as its choices.
func (d *openaiDialect) head(b []byte, chatObject string) []byte {
	b = append(append(append(b, `{"id":"`...), d.id...), `","object":"`...)
	if d.chat {
		b = append(b, chatObject...)
	} else {
		b = append(b, "text_completion"...)
	}
	b = appendInt(b, `","created":`, d.created)
	return append(append(append(b, `,"model":"`...), d.model...), `","system_fingerprint":"fp_ollama","choices":[`...)
}

// delta is one chunk that does not finish; what it holds is JSON.
func (d *openaiDialect) delta(b []byte, content, thinking string, c *toolCall) []byte {
	b = d.head(append(b, "data: "...), "chat.completion.chunk")
	if !d.chat {
		return append(d.finish(append(append(append(b, `{"text":"`...), content...), `","index":0`...), "null"), "\n\n"...)
	}
	b = append(b, `{"index":0,"delta":{`...)
	if !d.opened {
		d.opened = true
		b = append(b, `"role":"assistant",`...)
	}
	b = append(d.message(b, content, thinking, c), '}')
	return append(d.finish(b, "null"), "\n\n"...)
}

// message writes the members of a message or a delta after its role.
func (d *openaiDialect) message(b []byte, content, thinking string, c *toolCall) []byte {
	b = append(append(append(b, `"content":"`...), content...), '"')
	if thinking != "" {
		b = append(append(append(b, `,"reasoning":"`...), thinking...), '"')
	}
	if c != nil {
		b = append(append(append(b, `,"tool_calls":[{"id":"`...), c.ID...), `","index":0,"type":"function","function":{"name":"`...)
		b = append(append(append(b, quoted(c.Name)...), `","arguments":"`...), quoted(c.Arguments)...)
		b = append(b, `"}}]`...)
	}
	return b
}

// finish closes the only choice of a chunk and the chunk; reason is JSON.
func (d *openaiDialect) finish(b []byte, reason string) []byte {
	b = append(append(append(b, `,"finish_reason":`...), reason...), `}]`...)
	if d.usage && !d.chat {
		b = append(b, `,"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}`...)
	}
	return append(b, '}')
}

// reason returns why the answer ended, as JSON.
func (d *openaiDialect) reason(r *result, called bool) string {
	switch {
	case called && r.reason == "stop":
		return `"tool_calls"`
	case r.reason == "":
		return "null"
	}
	return `"` + r.reason + `"`
}

func (d *openaiDialect) end(b []byte, r *result) []byte {
	if d.chat && !d.opened {
		b = d.piece(b, "", "")
	}
	b = d.head(append(b, "data: "...), "chat.completion.chunk")
	if d.chat {
		b = append(b, `{"index":0,"delta":{}`...)
	} else {
		b = append(b, `{"text":"","index":0`...)
	}
	b = append(d.finish(b, d.reason(r, d.tools)), "\n\n"...)
	if d.usage {
		b = d.head(append(b, "data: "...), "chat.completion.chunk")
		b = append(d.counts(append(b, ']'), r), "}\n\n"...)
	}
	return append(b, "data: [DONE]\n\n"...)
}

func (d *openaiDialect) counts(b []byte, r *result) []byte {
	b = appendInt(b, `,"usage":{"prompt_tokens":`, int64(r.promptTokens))
	b = appendInt(b, `,"completion_tokens":`, int64(r.tokens))
	return append(appendInt(b, `,"total_tokens":`, int64(r.promptTokens+r.tokens)), '}')
}

func (d *openaiDialect) whole(b []byte, s said, r *result) []byte {
	b = d.head(b, "chat.completion")
	if d.chat {
		b = append(b, `{"index":0,"message":{"role":"assistant",`...)
		b = append(d.message(b, quoted(s.content), quoted(s.thinking), s.call), '}')
	} else {
		b = append(append(append(b, `{"text":"`...), quoted(s.content)...), `","index":0`...)
	}
	b = append(append(append(b, `,"finish_reason":`...), d.reason(r, s.call != nil)...), `}]`...)
	return append(d.counts(b, r), "}\n"...)
}

// died is the empty chunk without a model that Ollama sends; the stream then ends without [DONE].
func (d *openaiDialect) died(b []byte) []byte {
	d.opened, d.model = true, ""
	return d.piece(b, "", "")
}

// debug answers _debug_render_only. As in Ollama 0.33, only a whole chat completion carries the
// rendering: a completion and a stream have no field for it.
func (d *openaiDialect) debug(w http.ResponseWriter, c *call) {
	if c.stream {
		writeBytes(w, http.StatusOK, typeSSE, d.piece(nil, "", ""))
		return
	}
	if !d.chat {
		b := append(d.head(nil, ""), `{"text":"","index":0,"finish_reason":null}]`...)
		writeBytes(w, http.StatusOK, typeBareJSON, append(d.counts(b, &result{}), "}\n"...))
		return
	}
	b := append(d.head(nil, "chat.completion"), `{"index":0,"message":{"role":"","content":""},"finish_reason":null}]`...)
	b = append(d.counts(b, &result{}), `,"_debug_info":{"rendered_template":"`+quoted(c.text)+`"`...)
	if len(c.images) > 0 {
		b = appendInt(b, `,"image_count":`, int64(len(c.images)))
	}
	writeBytes(w, http.StatusOK, typeBareJSON, append(b, "}}\n"...))
}
