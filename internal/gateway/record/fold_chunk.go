package record

// chunkFold is what folding chunks, OpenAI's older forms, needs. What is not known here goes into the
// body as the last chunk that had it told it.
type chunkFold struct {
	whole    memberList // of the body
	choice   memberList // of its choice
	message  memberList // … and of that one's message
	usage    []byte
	thinking []string // the keys that thinking has
	logprobs []byte   // elements
	listed   bool     // there are log probabilities
	calls    []callFold
}

// callFold is a call of a tool, whose arguments may come in pieces.
type callFold struct {
	index     []byte // raw, nil if the engine counts none
	call      memberList
	function  memberList
	arguments []byte // the inside of a JSON string
}

// addChunk collects one chunk.
func (f *Fold) addChunk(data []byte) {
	c := &f.chunk
	m := members{data: data}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "choices":
			c.whole.set(key, nil)
			e := elements{data: v}
			for choice, ok := e.next(); ok; choice, ok = e.next() {
				if whole(member(choice, "index")) == 0 {
					c.addChoice(choice)
				}
			}
		case "object":
			if f.form == ChatCompletions {
				v = []byte(`"chat.completion"`)
			}
			c.whole.set(key, v)
		case "usage":
			if v[0] == '{' {
				c.usage = append(c.usage[:0], v...)
			}
		case "id", "created":
			if c.whole.get(string(key)) == nil {
				c.whole.set(key, v)
			}
		default:
			c.whole.set(key, v)
		}
	}
}

func (c *chunkFold) addChoice(choice []byte) {
	m := members{data: choice}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "delta":
			c.choice.set([]byte("message"), nil)
			c.addDelta(v)
		case "text":
			c.choice.set(key, nil)
		case "logprobs":
			if v[0] == '{' {
				c.listed = true
				c.logprobs = concat(c.logprobs, member(v, "content"))
			} else {
				c.choice.set(key, v)
			}
		case "finish_reason":
			if !isNull(v) || c.choice.get("finish_reason") == nil {
				c.choice.set(key, v)
			}
		default:
			c.choice.set(key, v)
		}
	}
}

func (c *chunkFold) addDelta(delta []byte) {
	m := members{data: delta}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "content":
		case "reasoning", "reasoning_content":
			if len(inside(v)) > 0 && (len(c.thinking) == 0 || c.thinking[len(c.thinking)-1] != string(key)) {
				c.addThinking(string(key))
			}
		case "tool_calls":
			e := elements{data: v}
			for piece, ok := e.next(); ok; piece, ok = e.next() {
				c.addCall(piece)
			}
		default:
			c.message.set(key, v)
		}
	}
}

func (c *chunkFold) addThinking(key string) {
	for _, k := range c.thinking {
		if k == key {
			return
		}
	}
	c.thinking = append(c.thinking, key)
}

// addCall collects a call, or a piece of the one with the same index.
func (c *chunkFold) addCall(piece []byte) {
	index := member(piece, "index")
	var call *callFold
	if index != nil && len(inside(member(piece, "id"))) == 0 {
		for i := range c.calls {
			if string(c.calls[i].index) == string(index) {
				call = &c.calls[i]
			}
		}
	}
	if call == nil {
		if len(c.calls) == mostMembers {
			return
		}
		c.calls = append(c.calls, callFold{index: append([]byte(nil), index...)})
		call = &c.calls[len(c.calls)-1]
	}
	said := func(v []byte) bool { return !isNull(v) && string(v) != `""` }
	m := members{data: piece}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "function":
			call.call.set(key, nil)
			m := members{data: v}
			for key, v, ok := m.next(); ok; key, v, ok = m.next() {
				switch {
				case string(key) == "arguments":
					call.function.set(key, nil)
					call.arguments = append(call.arguments, inside(v)...)
				case said(v) || call.function.get(string(key)) == nil:
					call.function.set(key, v)
				}
			}
		default:
			if said(v) || call.call.get(string(key)) == nil {
				call.call.set(key, v)
			}
		}
	}
}

// chunkBody appends the body.
func (f *Fold) chunkBody(b []byte) []byte {
	c := &f.chunk
	if len(c.whole) == 0 {
		return b
	}
	ollama := string(c.whole.get("system_fingerprint")) == `"fp_ollama"`
	b = append(b, '{')
	for _, m := range c.whole {
		if m.key == "choices" {
			b = append(f.appendChoice(append(appendMember(b, m.key, nil), '['), ollama), ']')
		} else {
			b = appendMember(b, m.key, m.value)
		}
	}
	switch {
	case c.usage != nil:
		b = appendMember(b, "usage", c.usage)
	case ollama: // an answer that never ended
		b = appendMember(b, "usage", []byte(`{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}`))
	}
	return ended(append(b, '}'), ollama)
}

func (f *Fold) appendChoice(b []byte, ollama bool) []byte {
	c := &f.chunk
	b = append(b, '{')
	for _, m := range c.choice {
		switch m.key {
		case "text":
			b = appendRaw(appendMember(b, m.key, nil), f.text)
		case "message":
			b = f.appendChatMessage(appendMember(b, m.key, nil), ollama)
		case "logprobs":
			if !c.listed {
				b = appendMember(b, m.key, m.value)
			}
		default:
			b = appendMember(b, m.key, m.value)
		}
	}
	if c.listed {
		b = append(append(append(appendMember(b, "logprobs", nil), `{"content":[`...), c.logprobs...), "]}"...)
	}
	return append(b, '}')
}

func (f *Fold) appendChatMessage(b []byte, ollama bool) []byte {
	c := &f.chunk
	b = c.message.append(append(b, '{'))
	if len(f.text) == 0 && len(c.calls) > 0 && !ollama {
		b = appendMember(b, "content", []byte("null"))
	} else {
		b = appendRaw(appendMember(b, "content", nil), f.text)
	}
	for _, key := range c.thinking {
		b = appendRaw(appendMember(b, key, nil), f.thinking)
	}
	for i := range c.calls {
		if i == 0 {
			b = append(appendMember(b, "tool_calls", nil), '[')
		} else {
			b = append(b, ',')
		}
		b = c.calls[i].append(b, ollama)
	}
	if len(c.calls) > 0 {
		b = append(b, ']')
	}
	return append(b, '}')
}

// append appends the call. Only Ollama counts them in a body, too.
func (call *callFold) append(b []byte, counted bool) []byte {
	b = append(b, '{')
	for _, m := range call.call {
		switch m.key {
		case "index":
			if counted {
				b = appendMember(b, m.key, m.value)
			}
		case "function":
			b = append(appendMember(b, m.key, nil), '{')
			for _, m := range call.function {
				if m.key == "arguments" {
					b = appendRaw(appendMember(b, m.key, nil), call.arguments)
				} else {
					b = appendMember(b, m.key, m.value)
				}
			}
			b = append(b, '}')
		default:
			b = appendMember(b, m.key, m.value)
		}
	}
	return append(b, '}')
}
