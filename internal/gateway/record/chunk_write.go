package record

import "bytes"

// appendChunk appends a chunk with the given choices.
func (t *Tracker) appendChunk(b []byte, choices func([]byte) []byte, usage []byte) []byte {
	c := &t.chunk
	b = append(append(openSSE(b, ""), '{'), c.head...)
	b = choices(appendMember(b, "choices", nil))
	if len(c.tail) > 0 {
		b = append(append(b, ','), c.tail...)
	}
	if usage != nil {
		b = appendMember(b, "usage", usage)
	}
	return closeSSE(append(b, '}'))
}

// appendChoice appends a chunk with one choice.
func (t *Tracker) appendChoice(b, delta []byte, reason string, logprobs []byte) []byte {
	return t.appendCounted(b, delta, reason, logprobs, t.chunk.idle)
}

// appendCounted is appendChoice with a usage.
func (t *Tracker) appendCounted(b, delta []byte, reason string, logprobs, usage []byte) []byte {
	return t.appendChunk(b, func(b []byte) []byte {
		if t.form == Completions {
			b = append(appendRaw(append(b, `[{"text":`...), delta), `,"index":0,"finish_reason":`...)
		} else {
			b = append(append(append(b, `[{"index":0,"delta":{`...), delta...), `},"finish_reason":`...)
		}
		if reason == "" {
			b = append(b, "null"...)
		} else {
			b = appendString(b, reason)
		}
		if logprobs != nil && t.form == ChatCompletions {
			if logprobs[0] == '[' { // of an /api form
				b = append(append(append(b, `,"logprobs":{"content":`...), logprobs...), '}')
			} else {
				b = append(append(b, `,"logprobs":`...), logprobs...)
			}
		}
		return append(b, `}]`...)
	}, usage)
}

func (t *Tracker) chunkText(b []byte, ev Event) []byte {
	if t.form == Completions {
		if len(ev.Text) > 0 {
			b = t.appendChoice(b, ev.Text, "", nil)
		}
		return b
	}
	role := t.chunk.role
	delta := func() []byte {
		if role {
			return nil
		}
		role = true
		return []byte(`"role":"assistant"`)
	}
	logprobs := ev.Logprobs
	if len(ev.Thinking) > 0 {
		key := string(t.chunk.thinking)
		if key == "" {
			key = "reasoning"
		}
		d := delta()
		if key == "reasoning" && len(ev.Text) == 0 { // as Ollama does
			d = append(appendDelta(d, "content"), `""`...)
		}
		b = t.appendChoice(b, appendRaw(appendDelta(d, key), ev.Thinking), "", logprobs)
		logprobs = nil
	}
	if len(ev.Text) > 0 || logprobs != nil {
		b = t.appendChoice(b, appendRaw(appendDelta(delta(), "content"), ev.Text), "", logprobs)
	}
	return b
}

func appendDelta(d []byte, key string) []byte {
	if len(d) > 0 {
		d = append(d, ',')
	}
	return append(append(append(d, '"'), key...), '"', ':')
}

func (t *Tracker) chunkEnd(b []byte, end End) []byte {
	if t.form == ChatCompletions && !t.chunk.role {
		b = t.appendChoice(b, []byte(`"role":"assistant","content":""`), "", nil)
	}
	usage := appendCount([]byte{'{'}, "prompt_tokens", int64(end.Prompt))
	usage = appendCount(usage, "completion_tokens", int64(end.Output))
	usage = append(appendCount(usage, "total_tokens", int64(end.Prompt+end.Output)), '}')
	counted := t.chunk.counts
	if !t.finished {
		reason := end.Reason
		if reason == "" {
			reason = "stop"
		}
		if reason == "stop" && t.called {
			reason = "tool_calls"
		}
		with := t.chunk.idle
		if t.form == Completions && bytes.HasPrefix(inside(t.chunk.id), []byte("chatcmpl-")) { // a llama-server, which tells them unasked
			with, counted = usage, true
		}
		b = t.appendCounted(b, nil, reason, nil, with)
	}
	if t.usage && !counted {
		b = t.appendChunk(b, func(b []byte) []byte { return append(b, "[]"...) }, usage)
	}
	return append(b, "data: [DONE]\n\n"...)
}

// rewriteChunk appends a chunk of another answer as one of this.
func (t *Tracker) rewriteChunk(b, data []byte, ev Event) []byte {
	c := &t.chunk
	delta := func(b, key, v []byte) []byte {
		switch string(key) {
		case "role":
			if c.role {
				return nil
			}
		case "content":
			if inside(v) != nil {
				return appendRaw(b, ev.Text)
			}
		case "reasoning", "reasoning_content":
			if len(ev.Thinking) == 0 {
				return nil
			}
			return appendRaw(b, ev.Thinking)
		}
		return append(b, v...)
	}
	choice := func(b, key, v []byte) []byte {
		switch string(key) {
		case "text":
			return appendRaw(b, ev.Text)
		case "delta":
			if v[0] == '{' {
				return rewrite(b, v, delta)
			}
		case "logprobs":
			if ev.Logprobs == nil {
				return append(b, "null"...)
			}
		}
		return append(b, v...)
	}
	return rewrite(b, data, func(b, key, v []byte) []byte {
		with := v
		switch string(key) {
		case "id":
			with = c.id
		case "created":
			with = c.created
		case "model":
			with = c.model
		case "system_fingerprint":
			with = c.print
		case "choices":
			if v[0] == '[' {
				return rewriteFirst(b, v, choice)
			}
		}
		if with == nil {
			return nil
		}
		return append(b, with...)
	})
}
