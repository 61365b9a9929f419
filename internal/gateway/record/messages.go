package record

import "slices"

// messageState is what writing the rest of an answer in Anthropic's form needs.
type messageState struct {
	blocks []block // by index
}

// block is a content block.
type block struct {
	kind blockKind
	open bool
}

type blockKind uint8

const (
	unknownBlock blockKind = iota
	textBlock
	thinkingBlock
	toolBlock
)

func kindOf(contentType []byte) blockKind {
	switch string(contentType) {
	case "text":
		return textBlock
	case "thinking":
		return thinkingBlock
	case "tool_use":
		return toolBlock
	}
	return unknownBlock
}

// mostBlocks bounds what a senseless index can make us remember.
const mostBlocks = 1 << 12

// messageEvent is one event of Anthropic's form, in raw values.
type messageEvent struct {
	kind, delta, block, message, usage, fault []byte
	index                                     int
}

func parseMessages(data []byte) (e messageEvent, ok bool) {
	m := members{data: data}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "type":
			e.kind = inside(v)
		case "delta":
			e.delta = v
		case "content_block":
			e.block = v
		case "message":
			e.message = v
		case "usage":
			e.usage = v
		case "error":
			e.fault = v
		case "index":
			e.index = whole(v)
		}
	}
	return e, !m.bad && (e.kind != nil || e.fault != nil)
}

func (t *Tracker) followMessages(data []byte, ev *Event) {
	e, ok := parseMessages(data)
	if !ok {
		ev.Garbage = true
		return
	}
	switch string(e.kind) {
	case "message_start":
		t.begun = true
		if u := member(e.message, "usage"); u != nil {
			chunkUsage(u, ev)
		}
	case "content_block_start":
		t.startBlock(e.index, e.block, ev)
	case "content_block_delta":
		messageDelta(e.delta, ev)
	case "content_block_stop":
		if b := t.block(e.index); b != nil {
			ev.Tool = b.kind == toolBlock
			ev.ToolDone = ev.Tool
			b.open = false
		}
	case "message_delta":
		ev.Reason = word(inside(member(e.delta, "stop_reason")))
		t.finished = t.finished || ev.Reason != ""
		if e.usage != nil {
			chunkUsage(e.usage, ev)
		}
	case "message_stop":
		ev.Done = true
	case "ping":
	default:
		if e.fault != nil {
			ev.Failed, ev.Message = true, errorMessage(e.fault)
		}
	}
}

func (t *Tracker) startBlock(index int, content []byte, ev *Event) {
	if index >= mostBlocks {
		return
	}
	m := members{data: content}
	kind := unknownBlock
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "type":
			kind = kindOf(inside(v))
		case "text":
			ev.Text = inside(v)
		case "thinking":
			ev.Thinking = inside(v)
		}
	}
	ev.Tool, ev.Other = kind == toolBlock, kind == unknownBlock
	for len(t.message.blocks) <= index {
		t.message.blocks = append(t.message.blocks, block{})
	}
	t.message.blocks[index] = block{kind: kind, open: true}
}

func messageDelta(delta []byte, ev *Event) {
	m := members{data: delta}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "text":
			ev.Text = inside(v)
		case "thinking":
			ev.Thinking = inside(v)
		case "partial_json":
			ev.Tool = true
		case "type":
		default:
			ev.Other = true
		}
	}
}

// block returns the block with an index, nil if it was not started.
func (t *Tracker) block(index int) *block {
	if index >= len(t.message.blocks) {
		return nil
	}
	return &t.message.blocks[index]
}

func (t *Tracker) messageText(b []byte, ev Event) []byte {
	blocks := slices.Clone(t.message.blocks)
	say := func(kind blockKind, opening, delta string, text []byte) {
		if len(text) == 0 {
			return
		}
		last := len(blocks) - 1
		if last < 0 || !blocks[last].open || blocks[last].kind != kind {
			b = closeBlocks(b, blocks)
			last++
			blocks = append(blocks, block{kind: kind, open: true})
			b = appendIndexed(b, "content_block_start", last)
			b = closeSSE(append(append(b, opening...), '}'))
		}
		b = append(appendIndexed(b, "content_block_delta", last), delta...)
		b = closeSSE(append(appendRaw(b, text), "}}"...))
	}
	say(thinkingBlock, `,"content_block":{"type":"thinking","thinking":""}`, `,"delta":{"type":"thinking_delta","thinking":`, ev.Thinking)
	say(textBlock, `,"content_block":{"type":"text","text":""}`, `,"delta":{"type":"text_delta","text":`, ev.Text)
	return b
}

// closeBlocks appends the stops of the blocks that are open.
func closeBlocks(b []byte, blocks []block) []byte {
	for i := range blocks {
		if blocks[i].open {
			b = closeSSE(append(appendIndexed(b, "content_block_stop", i), '}'))
			blocks[i].open = false
		}
	}
	return b
}

// appendIndexed appends an event of a block up to its index.
func appendIndexed(b []byte, event string, index int) []byte {
	b = append(openSSE(b, event), `{"type":`...)
	b = appendRaw(b, []byte(event))
	return appendCount(b, "index", int64(index))
}

func (t *Tracker) messageEnd(b []byte, end End) []byte {
	b = closeBlocks(b, slices.Clone(t.message.blocks))
	if !t.finished {
		reason := "stop_sequence"
		switch {
		case t.called:
			reason = "tool_use"
		case end.Reason == "stop" || end.Reason == "":
			reason = "end_turn"
		case end.Reason == "length":
			reason = "max_tokens"
		}
		b = append(openSSE(b, "message_delta"), `{"type":"message_delta","delta":{"stop_reason":`...)
		b = append(appendRaw(b, []byte(reason)), `},"usage":{`...)
		if end.Prompt > 0 { // else what the message began with stands
			b = appendCount(b, "input_tokens", int64(end.Prompt))
		}
		b = closeSSE(append(appendCount(b, "output_tokens", int64(end.Output)), "}}"...))
	}
	return closeSSE(append(openSSE(b, "message_stop"), `{"type":"message_stop"}`...))
}

// rewriteMessages appends an event of another answer as one of this: only message_start has an id,
// and that is sent already.
func (t *Tracker) rewriteMessages(b, data []byte, ev Event) []byte {
	say := func(b, key, v []byte) []byte {
		switch string(key) {
		case "text":
			return appendRaw(b, ev.Text)
		case "thinking":
			return appendRaw(b, ev.Thinking)
		}
		return append(b, v...)
	}
	return rewrite(b, data, func(b, key, v []byte) []byte {
		if k := string(key); (k == "delta" || k == "content_block") && v[0] == '{' {
			return rewrite(b, v, say)
		}
		return append(b, v...)
	})
}
