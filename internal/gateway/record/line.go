package record

import (
	"bytes"
	"time"
)

// lineState is what writing the rest of an answer of the /api forms needs.
type lineState struct {
	head    []byte   // the members before created_at
	role    []byte   // raw
	created [48]byte // the last record's time
	n       int      // of created
}

func (t *Tracker) followLine(rec []byte, ev *Event) {
	if space(rec, 0) == len(rec) {
		return
	}
	var message, calls []byte
	known := false
	m := members{data: rec}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "response":
			ev.Text, known = inside(v), true
		case "thinking":
			ev.Thinking = inside(v)
		case "message":
			message, known = v, true
		case "tool_calls":
			calls = v
		case "done":
			ev.Done, known = isTrue(v), true
		case "created_at":
			ev.CreatedAt = inside(v)
		case "error":
			ev.Failed, known = true, true
			ev.Message = errorMessage(v)
		default:
			usageMember(&ev.Usage, ev, key, v)
		}
	}
	if m.bad || !known {
		*ev = Event{Garbage: true}
		return
	}
	if t.form == Chat {
		ev.Text, ev.Thinking, calls = nil, nil, nil
		if len(message) > 0 && message[0] == '{' {
			calls = t.followChatMessage(message, ev)
		}
	}
	if filled(calls) {
		ev.Tool, ev.ToolDone = true, true
	}
	if !ev.Failed && !t.begun {
		t.begin(rec)
	}
	if len(ev.CreatedAt) <= len(t.line.created) {
		t.line.n = copy(t.line.created[:], ev.CreatedAt)
	}
}

func (t *Tracker) followChatMessage(message []byte, ev *Event) (calls []byte) {
	m := members{data: message}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "content":
			ev.Text = inside(v)
		case "thinking":
			ev.Thinking = inside(v)
		case "tool_calls":
			calls = v
		case "role":
			if t.line.role == nil {
				t.line.role = bytes.Clone(v)
			}
		}
	}
	return calls
}

// usageMember reads what the last record of an /api form tells.
func usageMember(u *Usage, ev *Event, key, v []byte) {
	switch string(key) {
	case "done_reason":
		ev.Reason = word(inside(v))
	case "logprobs":
		if filled(v) {
			ev.Logprobs = v
		}
	case "prompt_eval_count":
		u.Prompt = whole(v)
	case "eval_count":
		u.Output = whole(v)
	case "load_duration":
		u.Load = time.Duration(whole(v))
	case "prompt_eval_duration":
		u.Prefill = time.Duration(whole(v))
	case "eval_duration":
		u.Eval = time.Duration(whole(v))
	case "total_duration":
		u.Total = time.Duration(whole(v))
	}
}

// word returns the inside of a JSON string as a string, without allocating for the usual ones.
func word(inside []byte) string {
	switch string(inside) {
	case "":
		return ""
	case "stop":
		return "stop"
	case "length":
		return "length"
	case "load":
		return "load"
	case "unload":
		return "unload"
	case "tool_calls":
		return "tool_calls"
	case "end_turn":
		return "end_turn"
	case "max_tokens":
		return "max_tokens"
	case "stop_sequence":
		return "stop_sequence"
	case "tool_use":
		return "tool_use"
	}
	return string(unescape(nil, inside))
}

// errorMessage reads an error, which is a text or an object with one.
func errorMessage(v []byte) string {
	if v[0] == '{' {
		v = member(v, "message")
	}
	return string(unescape(nil, inside(v)))
}

// begin remembers the first record's head.
func (t *Tracker) begin(rec []byte) {
	t.begun = true
	m := members{data: rec}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "model", "remote_model", "remote_host":
			t.line.head = appendMember(t.line.head, string(key), v)
		}
	}
}

// openLine appends a record up to its text.
func (t *Tracker) openLine(b, created, text, thinking []byte) []byte {
	b = append(b, '{')
	b = append(b, t.line.head...)
	if len(created) == 0 {
		created = t.line.created[:t.line.n]
	}
	if len(created) > 0 {
		b = appendRaw(appendMember(b, "created_at", nil), created)
	}
	if t.form == Chat {
		b = appendMember(b, "message", nil)
		b = append(b, `{"role":`...)
		if t.line.role != nil {
			b = append(b, t.line.role...)
		} else {
			b = append(b, `"assistant"`...)
		}
		b = appendRaw(append(b, `,"content":`...), text)
	} else {
		b = appendRaw(appendMember(b, "response", nil), text)
	}
	if len(thinking) > 0 {
		b = appendRaw(append(b, `,"thinking":`...), thinking)
	}
	if t.form == Chat {
		b = append(b, '}')
	}
	return b
}

func (t *Tracker) lineText(b []byte, ev Event) []byte {
	if len(ev.Text) == 0 && len(ev.Thinking) == 0 && ev.Logprobs == nil {
		return b
	}
	b = t.openLine(b, ev.CreatedAt, ev.Text, ev.Thinking)
	b = append(b, `,"done":false`...)
	if ev.Logprobs != nil {
		b = appendMember(b, "logprobs", ev.Logprobs)
	}
	return append(b, '}', '\n')
}

func (t *Tracker) lineEnd(b []byte, end End) []byte {
	b = append(t.openLine(b, end.CreatedAt, nil, nil), `,"done":true`...)
	if end.Reason != "" {
		b = appendString(append(b, `,"done_reason":`...), end.Reason)
	}
	for _, n := range [...]struct {
		key string
		n   int64
	}{
		{"total_duration", int64(end.Total)}, {"load_duration", int64(end.Load)},
		{"prompt_eval_count", int64(end.Prompt)}, {"prompt_eval_duration", int64(end.Prefill)},
		{"eval_count", int64(end.Output)}, {"eval_duration", int64(end.Eval)},
	} {
		if n.n > 0 {
			b = appendCount(b, n.key, n.n)
		}
	}
	return append(b, '}', '\n')
}

// rewriteLine appends a record of another answer as one of this.
func (t *Tracker) rewriteLine(b, rec []byte, ev Event) []byte {
	message := func(b, key, v []byte) []byte {
		switch string(key) {
		case "content":
			return appendRaw(b, ev.Text)
		case "thinking":
			if len(ev.Thinking) == 0 {
				return nil
			}
			return appendRaw(b, ev.Thinking)
		case "role":
			if t.line.role != nil {
				return append(b, t.line.role...)
			}
		}
		return append(b, v...)
	}
	return rewrite(b, rec, func(b, key, v []byte) []byte {
		switch string(key) {
		case "model":
			if model := member(t.lineHead(), "model"); model != nil {
				return append(b, model...)
			}
		case "response":
			return appendRaw(b, ev.Text)
		case "thinking":
			return message(b, key, v)
		case "message":
			if v[0] == '{' {
				return rewrite(b, v, message)
			}
		case "logprobs":
			if ev.Logprobs == nil {
				return nil
			}
		}
		return append(b, v...)
	})
}

// lineHead returns the head as an object.
func (t *Tracker) lineHead() []byte {
	return append(append([]byte{'{'}, t.line.head...), '}')
}
