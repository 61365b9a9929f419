package record

import "bytes"

// responseState is what writing the rest of an answer in OpenAI's newer form needs.
type responseState struct {
	object   []byte // the response in the first event, raw
	events   int    // opening events (created, in_progress, queued) that were sent
	sequence int    // the next sequence_number
	numbered bool   // the events have a sequence_number
	indexed  bool   // … and an output_index
	items    []item
	again    []byte // thinking that was said before another node's began anew: its closing events lack it
}

// item is an item of the response's output.
type item struct {
	kind  itemKind
	id    []byte // the inside of a JSON string
	index int    // output_index
	text  int    // length of what it said, escaped
	sent  itemEvents
	plain bool   // its thinking is reasoning_text, not a summary
	raw   []byte // of a kind that is not ours to write: the whole item
}

type itemKind uint8

const (
	otherItem itemKind = iota
	messageItem
	reasoningItem
	itemKinds int = iota
)

// itemEvents are the events of an item of which there is one each.
type itemEvents uint8

const (
	partAdded itemEvents = 1 << iota
	textDone
	partDone
	itemDone
)

// responseEvent is one event of OpenAI's newer form, in raw values.
type responseEvent struct {
	kind, itemID, item, delta, text, response, fault, message []byte
	sequence, index                                           int
	numbered, indexed                                         bool
	timings                                                   []byte
}

func parseResponses(data []byte) (e responseEvent, ok bool) {
	m := members{data: data}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "type":
			e.kind = inside(v)
		case "sequence_number":
			e.sequence, e.numbered = whole(v), true
		case "output_index":
			e.index, e.indexed = whole(v), true
		case "item_id":
			e.itemID = inside(v)
		case "item":
			e.item = v
		case "delta":
			e.delta = v
		case "text":
			e.text = v
		case "response":
			e.response = v
		case "error":
			e.fault = v
		case "message":
			e.message = v
		case "timings":
			e.timings = v
		}
	}
	return e, !m.bad && (e.kind != nil || e.fault != nil)
}

// of tells which event this is of those of which an item has one each, 0 if none.
func (e *responseEvent) of() itemEvents {
	switch string(e.kind) {
	case "response.content_part.added", "response.reasoning_summary_part.added":
		return partAdded
	case "response.output_text.done", "response.reasoning_summary_text.done", "response.reasoning_text.done":
		return textDone
	case "response.content_part.done", "response.reasoning_summary_part.done":
		return partDone
	case "response.output_item.done":
		return itemDone
	}
	return 0
}

func (t *Tracker) followResponses(data []byte, ev *Event) {
	e, ok := parseResponses(data)
	if !ok {
		ev.Garbage = true
		return
	}
	r := &t.response
	if e.numbered {
		r.numbered = true
	}
	r.indexed = r.indexed || e.indexed || e.numbered // who counts events counts items, too
	switch string(e.kind) {
	case "response.created", "response.in_progress", "response.queued":
		r.events++
		if !t.begun {
			t.begun = true
			r.object = bytes.Clone(e.response)
		}
	case "response.output_item.added":
		t.addItem(&e, ev)
	case "response.output_text.delta":
		ev.Text = inside(e.delta)
		if it := t.item(&e); it != nil {
			it.text += len(ev.Text)
		}
	case "response.reasoning_summary_text.delta", "response.reasoning_text.delta":
		ev.Thinking = inside(e.delta)
		if it := t.item(&e); it != nil {
			it.text += len(ev.Thinking)
			it.plain = string(e.kind) == "response.reasoning_text.delta"
		}
	case "response.function_call_arguments.delta", "response.custom_tool_call_input.delta":
		ev.Tool = true
	case "response.function_call_arguments.done", "response.custom_tool_call_input.done":
		ev.Tool, ev.ToolDone = true, true
	case "response.completed", "response.incomplete":
		ev.Done = true
		responseEnd(e.response, ev)
		if e.timings != nil {
			chunkTimings(e.timings, ev)
		}
	case "response.failed", "error":
		ev.Failed = true
		fault := e.fault
		if e.response != nil {
			fault = member(e.response, "error")
		}
		if len(fault) > 0 {
			ev.Message = errorMessage(fault)
		} else {
			ev.Message = string(unescape(nil, inside(e.message)))
		}
	default:
		if e.kind == nil { // an error without a type, as llama-server writes it
			ev.Failed, ev.Message = true, errorMessage(e.fault)
		}
		ev.Other = bytes.HasPrefix(e.kind, []byte("response."))
	}
	if e.numbered && !ev.Failed { // else the client does not see it
		r.sequence = e.sequence + 1
	}
	if which := e.of(); which != 0 {
		t.itemEvent(&e, which, ev)
	}
}

func (t *Tracker) addItem(e *responseEvent, ev *Event) {
	if len(t.response.items) == mostBlocks {
		return
	}
	it := item{index: e.index}
	if !e.indexed {
		it.index = len(t.response.items)
	}
	it.kind, it.id = itemOf(e.item)
	it.id = bytes.Clone(it.id)
	ev.Tool = it.kind == otherItem
	t.response.items = append(t.response.items, it)
}

func itemOf(raw []byte) (kind itemKind, id []byte) {
	m := members{data: raw}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "type":
			switch string(inside(v)) {
			case "message":
				kind = messageItem
			case "reasoning":
				kind = reasoningItem
			}
		case "id":
			id = inside(v)
		}
	}
	return kind, id
}

// item returns the item that an event belongs to, nil if it was not added.
func (t *Tracker) item(e *responseEvent) *item {
	id := e.itemID
	if id == nil && e.item != nil {
		_, id = itemOf(e.item)
	}
	items := t.response.items
	for i := len(items) - 1; i >= 0; i-- {
		if id != nil && bytes.Equal(items[i].id, id) || id == nil && e.indexed && items[i].index == e.index {
			return &items[i]
		}
	}
	return nil
}

func (t *Tracker) itemEvent(e *responseEvent, which itemEvents, ev *Event) {
	it := t.item(e)
	if it == nil {
		return
	}
	it.sent |= which
	switch {
	case it.kind == otherItem && which == itemDone:
		it.raw = bytes.Clone(e.item)
		ev.Tool, ev.ToolDone = true, true
	case it.kind == messageItem && which == textDone && !filled(member(t.response.object, "tools")):
		t.finished = true // with tools, a call may follow
	}
}

// responseEnd reads what the last event tells of the whole answer.
func responseEnd(response []byte, ev *Event) {
	m := members{data: response}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "status":
			if ev.Reason == "" {
				ev.Reason = string(inside(v))
			}
		case "incomplete_details":
			if reason := inside(member(v, "reason")); reason != nil {
				ev.Reason = string(reason)
			}
		case "usage":
			chunkUsage(v, ev)
		}
	}
}
