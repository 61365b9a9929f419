package record

// messageFold is what folding events of Anthropic's form needs.
type messageFold struct {
	message memberList // of the body
	ends    memberList // what message_delta tells: stop_reason and the like
	usage   memberList
	blocks  []blockFold // by index
}

// blockFold is a content block as it began, and what came of it later.
type blockFold struct {
	kind  blockKind
	block memberList
	input []byte // the inside of a JSON string
}

// addMessages collects one event.
func (f *Fold) addMessages(data []byte) {
	e, ok := parseMessages(data)
	if !ok {
		return
	}
	g := &f.message
	switch string(e.kind) {
	case "message_start":
		g.message.merge(e.message)
		g.usage.merge(g.message.get("usage"))
	case "content_block_start":
		if e.index >= mostBlocks {
			return
		}
		for len(g.blocks) <= e.index {
			g.blocks = append(g.blocks, blockFold{})
		}
		b := blockFold{}
		b.block.merge(e.block)
		b.kind = kindOf(inside(b.block.get("type")))
		g.blocks[e.index] = b
	case "content_block_delta":
		if e.index >= len(g.blocks) {
			return
		}
		b := &g.blocks[e.index]
		m := members{data: e.delta}
		for key, v, ok := m.next(); ok; key, v, ok = m.next() {
			switch string(key) {
			case "partial_json":
				b.input = append(b.input, inside(v)...)
			case "signature":
				b.block.set(key, v)
			}
		}
	case "message_delta":
		g.ends.merge(e.delta)
		g.usage.merge(e.usage)
	}
}

// messageBody appends the body: thinking, text, and then the calls, as engines say them that do not
// stream.
func (f *Fold) messageBody(b []byte) []byte {
	g := &f.message
	if len(g.message) == 0 {
		return b
	}
	b = append(b, '{')
	for _, m := range g.message {
		switch m.key {
		case "content":
			b = f.appendContent(appendMember(b, m.key, nil))
			for _, m := range g.ends {
				if g.message.get(m.key) == nil {
					b = appendMember(b, m.key, m.value)
				}
			}
		case "usage":
			b = append(g.usage.append(append(appendMember(b, m.key, nil), '{')), '}')
		default:
			v := m.value
			if with := g.ends.get(m.key); with != nil {
				v = with
			}
			b = appendMember(b, m.key, v)
		}
	}
	return ended(append(b, '}'), f.messageOfOllama())
}

// messageOfOllama tells whether it is Ollama that answers: it leaves out what it does not know yet.
func (f *Fold) messageOfOllama() bool { return f.message.message.get("stop_reason") == nil }

func (f *Fold) appendContent(b []byte) []byte {
	g := &f.message
	start := len(b)
	b = append(b, '[')
	b = f.appendSaid(b, thinkingBlock, "thinking", f.thinking)
	b = f.appendSaid(b, textBlock, "text", f.text)
	for i := range g.blocks {
		if of := &g.blocks[i]; of.kind != thinkingBlock && of.kind != textBlock && len(of.block) > 0 {
			b = of.append(separated(b))
		}
	}
	if len(b) == start+1 && f.messageOfOllama() {
		return append(b[:start], "null"...)
	}
	return append(b, ']')
}

// appendSaid appends the block of a kind, if it says something, with all that blocks of its kind said.
func (f *Fold) appendSaid(b []byte, kind blockKind, key string, said []byte) []byte {
	if len(said) == 0 {
		return b
	}
	for i := range f.message.blocks {
		of := &f.message.blocks[i]
		if of.kind != kind {
			continue
		}
		b = append(separated(b), '{')
		for _, m := range of.block {
			if m.key == key {
				b = appendRaw(appendMember(b, key, nil), said)
			} else {
				b = appendMember(b, m.key, m.value)
			}
		}
		return append(b, '}')
	}
	return b
}

// append appends a block of another kind, with its input if it has one that is JSON.
func (of *blockFold) append(b []byte) []byte {
	input := unescape(nil, of.input)
	if end := skip(input, space(input, 0), 0); end < 0 || space(input, end) != len(input) {
		input = nil
	}
	if of.kind == toolBlock && input == nil && of.block.get("input") == nil {
		input = []byte("{}")
	}
	b = append(b, '{')
	for _, m := range of.block {
		if m.key != "input" || input == nil {
			b = appendMember(b, m.key, m.value)
		}
	}
	if input != nil {
		b = appendMember(b, "input", input)
	}
	return append(b, '}')
}

// separated appends a comma to the elements of an array that is open, if there are any.
func separated(b []byte) []byte {
	if b[len(b)-1] != '[' {
		b = append(b, ',')
	}
	return b
}
