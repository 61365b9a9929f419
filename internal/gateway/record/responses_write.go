package record

import (
	"bytes"
	"strconv"
	"time"
)

// openEvent appends an event up to its own members.
func (t *Tracker) openEvent(b []byte, kind string, sequence *int) []byte {
	b = appendRaw(append(openSSE(b, kind), `{"type":`...), []byte(kind))
	if t.response.numbered {
		b = appendCount(b, "sequence_number", int64(*sequence))
		*sequence++
	}
	return b
}

// ofItem appends the members that tell which item an event belongs to.
func (t *Tracker) ofItem(b []byte, it *item, id bool) []byte {
	if t.response.indexed {
		b = appendCount(b, "output_index", int64(it.index))
	}
	if id {
		b = appendRaw(appendMember(b, "item_id", nil), it.id)
		if t.response.indexed && it.kind == messageItem {
			b = append(b, `,"content_index":0`...)
		}
	}
	return b
}

func (t *Tracker) responseText(b []byte, ev Event) []byte {
	sequence := t.response.sequence
	items := t.response.items
	say := func(kind itemKind, text []byte) {
		if len(text) == 0 {
			return
		}
		it := openItem(items, kind)
		if it == nil {
			added := t.newItem(kind, len(items))
			items = append(items[:len(items):len(items)], added)
			it = &added
			b = t.addedEvents(b, it, &sequence)
		}
		b = t.openEvent(b, deltaKind(it), &sequence)
		b = t.ofItem(b, it, true)
		if kind == reasoningItem && !it.plain {
			b = append(b, `,"summary_index":0`...)
		}
		b = append(appendRaw(appendMember(b, "delta", nil), text), logprobs(kind)...)
		b = closeSSE(append(b, '}'))
	}
	say(reasoningItem, ev.Thinking)
	say(messageItem, ev.Text)
	return b
}

func deltaKind(it *item) string {
	switch {
	case it.kind == messageItem:
		return "response.output_text.delta"
	case it.plain:
		return "response.reasoning_text.delta"
	}
	return "response.reasoning_summary_text.delta"
}

// logprobs is the member that an event of a message's text has and one of thinking has not.
func logprobs(kind itemKind) string {
	if kind == messageItem {
		return `,"logprobs":[]`
	}
	return ""
}

// openItem returns the last item if it is of a kind and not done, else nil: nothing is said in an
// item behind which another has begun.
func openItem(items []item, kind itemKind) *item {
	if n := len(items); n > 0 && items[n-1].kind == kind && items[n-1].sent&(textDone|itemDone) == 0 {
		return &items[n-1]
	}
	return nil
}

// newItem makes an item of ours, with an id made of the response's.
func (t *Tracker) newItem(kind itemKind, n int) item {
	prefix := "msg_"
	if kind == reasoningItem {
		prefix = "rs_"
	}
	id := append([]byte(prefix), bytes.TrimPrefix(inside(member(t.response.object, "id")), []byte("resp_"))...)
	id = strconv.AppendInt(append(id, '_'), int64(n), 10)
	return item{kind: kind, id: id, index: max(t.nextIndex(), n)}
}

// nextIndex returns the output_index of a new item.
func (t *Tracker) nextIndex() int {
	index := 0
	for _, it := range t.response.items {
		index = max(index, it.index+1)
	}
	return index
}

func (t *Tracker) addedEvents(b []byte, it *item, sequence *int) []byte {
	b = t.ofItem(t.openEvent(b, "response.output_item.added", sequence), it, false)
	b = appendRaw(append(b, `,"item":{"id":`...), it.id)
	if it.kind == reasoningItem {
		return closeSSE(append(b, `,"type":"reasoning","summary":[]}}`...))
	}
	b = closeSSE(append(b, `,"type":"message","status":"in_progress","role":"assistant","content":[]}}`...))
	b = t.ofItem(t.openEvent(b, "response.content_part.added", sequence), it, true)
	return closeSSE(append(appendPart(append(b, `,"part":`...), nil), '}'))
}

// appendPart appends the content of a message item.
func appendPart(b, text []byte) []byte {
	return append(appendRaw(append(b, `{"type":"output_text","text":`...), text), `,"annotations":[],"logprobs":[]}`...)
}

// appendItem appends an item that is done.
func appendItem(b []byte, it *item, text []byte) []byte {
	switch {
	case it.raw != nil:
		return append(b, it.raw...)
	case it.kind == messageItem:
		b = appendRaw(append(b, `{"id":`...), it.id)
		b = append(b, `,"type":"message","status":"completed","role":"assistant","content":[`...)
		return append(appendPart(b, text), `]}`...)
	}
	b = append(appendRaw(append(b, `{"id":`...), it.id), `,"type":"reasoning","summary":[`...)
	if it.plain {
		b = append(b, `],"content":[{"type":"reasoning_text","text":`...)
		return append(appendRaw(b, text), `}],"encrypted_content":""}`...)
	}
	b = append(appendRaw(append(b, `{"type":"summary_text","text":`...), text), `}],"encrypted_content":`...)
	return append(appendRaw(b, text), '}') // as Ollama does
}

// texts cuts the answer's text and thinking into those of its items.
func texts(items []item, end End) [][]byte {
	out := make([][]byte, len(items))
	for i, it := range items {
		from := &end.Text
		switch it.kind {
		case reasoningItem:
			from = &end.Thinking
		case otherItem:
			continue
		}
		n := min(it.text, len(*from))
		out[i], *from = (*from)[:n], (*from)[n:]
	}
	return out
}

func (t *Tracker) responseEnd(b []byte, end End) []byte {
	sequence := t.response.sequence
	items := t.response.items
	said := texts(items, end)
	for i := range items {
		if it := &items[i]; it.kind != otherItem {
			b = t.doneEvents(b, it, said[i], &sequence)
		}
	}
	b = t.openEvent(b, "response.completed", &sequence)
	b = appendMember(b, "response", nil)
	b = t.appendResponse(b, "completed", func(b []byte) []byte {
		b = append(b, '[')
		for i := range items {
			if items[i].kind == otherItem && items[i].raw == nil {
				continue // a call that never became whole
			}
			if b[len(b)-1] != '[' {
				b = append(b, ',')
			}
			b = appendItem(b, &items[i], said[i])
		}
		return append(b, ']')
	}, &end, "")
	return closeSSE(append(b, '}'))
}

// doneEvents appends those of an item's closing events that were not sent.
func (t *Tracker) doneEvents(b []byte, it *item, text []byte, sequence *int) []byte {
	if it.sent&(textDone|itemDone) == 0 {
		kind := "response.output_text.done"
		if it.kind == reasoningItem {
			kind = "response.reasoning_summary_text.done"
			if it.plain {
				kind = "response.reasoning_text.done"
			}
		}
		b = t.ofItem(t.openEvent(b, kind, sequence), it, true)
		if it.kind == reasoningItem && !it.plain {
			b = append(b, `,"summary_index":0`...)
		}
		b = append(appendRaw(appendMember(b, "text", nil), text), logprobs(it.kind)...)
		b = closeSSE(append(b, '}'))
	}
	if it.kind == messageItem && it.sent&(partDone|itemDone) == 0 {
		b = t.ofItem(t.openEvent(b, "response.content_part.done", sequence), it, true)
		b = closeSSE(append(appendPart(append(b, `,"part":`...), text), '}'))
	}
	if it.sent&itemDone == 0 {
		b = t.ofItem(t.openEvent(b, "response.output_item.done", sequence), it, false)
		b = closeSSE(append(appendItem(append(b, `,"item":`...), it, text), '}'))
	}
	return b
}

// appendResponse appends the response as its first event had it, with another status, output and
// usage, and the error that it ended with, if any. Members that the first event had not are added.
func (t *Tracker) appendResponse(b []byte, status string, output func([]byte) []byte, end *End, fault string) []byte {
	values := map[string][]byte{"status": appendRaw(nil, []byte(status)), "output": output(nil)}
	if fault != "" {
		values["error"] = append(appendString([]byte(`{"code":"server_error","message":`), fault), '}')
	} else {
		usage := appendCount([]byte{'{'}, "input_tokens", int64(end.Prompt))
		usage = appendCount(append(usage, `,"input_tokens_details":{"cached_tokens":0}`...), "output_tokens", int64(end.Output))
		usage = appendCount(append(usage, `,"output_tokens_details":{"reasoning_tokens":0}`...), "total_tokens", int64(end.Prompt+end.Output))
		values["usage"] = append(usage, '}')
	}
	object := t.response.object
	if len(object) == 0 || object[0] != '{' {
		object = []byte(`{"object":"response"}`)
	}
	b = rewrite(b, object, func(b, key, v []byte) []byte {
		if string(key) == "completed_at" && fault == "" {
			return append(b, completedAt(end.CreatedAt, object)...)
		}
		if with, ok := values[string(key)]; ok {
			delete(values, string(key))
			return append(b, with...)
		}
		return append(b, v...)
	})
	b = b[:len(b)-1]
	for _, key := range [...]string{"status", "output", "error", "usage"} {
		if with, ok := values[key]; ok {
			b = appendMember(b, key, with)
		}
	}
	return append(b, '}')
}

// completedAt returns the time in seconds, as a raw number: that of the last record, if it has one.
func completedAt(created, object []byte) []byte {
	if at, err := time.Parse(time.RFC3339Nano, string(created)); err == nil {
		return strconv.AppendInt(nil, at.Unix(), 10)
	}
	if at := member(object, "created_at"); at != nil {
		return at
	}
	return []byte("null")
}

func (t *Tracker) responseError(b []byte, message string) []byte {
	sequence := t.response.sequence
	if !t.begun {
		b = appendString(append(t.openEvent(b, "error", &sequence), `,"code":"server_error","message":`...), message)
		return closeSSE(append(b, `,"param":null}`...))
	}
	b = appendMember(t.openEvent(b, "response.failed", &sequence), "response", nil)
	b = t.appendResponse(b, "failed", func(b []byte) []byte { return append(b, "[]"...) }, nil, message)
	return closeSSE(append(b, '}'))
}
