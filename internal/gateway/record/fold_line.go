package record

import "bytes"

// lineFold is what folding the records of the /api forms needs: the body of a request with
// "stream": false is the last record, with all text, thinking, calls and log probabilities.
type lineFold struct {
	last            []byte
	calls, logprobs []byte
}

func (f *Fold) addLine(rec []byte, ev Event) {
	l := &f.line
	if ev.Tool {
		from := rec
		if f.form == Chat {
			from = member(rec, "message")
		}
		l.calls = concat(l.calls, member(from, "tool_calls"))
	}
	l.logprobs = concat(l.logprobs, ev.Logprobs)
	l.last = append(l.last[:0], rec...)
}

// lineBody appends the body, its members in Ollama's order.
func (f *Fold) lineBody(b []byte) []byte {
	l := &f.line
	if l.last == nil {
		return b
	}
	figure := func(key []byte) bool { // in Chat, behind the log probabilities
		return f.form == Chat && (bytes.HasSuffix(key, []byte("_duration")) || bytes.HasSuffix(key, []byte("_count")))
	}
	b = f.appendMembers(append(b, '{'), l.last, func(key []byte) bool { return !figure(key) })
	b = appendList(b, "logprobs", l.logprobs)
	return append(f.appendMembers(b, l.last, figure), '}')
}

// appendMembers appends those of a record's members that are wanted.
func (f *Fold) appendMembers(b, object []byte, want func(key []byte) bool) []byte {
	m := members{data: object}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		if !want(key) {
			continue
		}
		switch string(key) {
		case "response", "content":
			b = appendRaw(appendMember(b, string(key), nil), f.text)
			if len(f.thinking) > 0 {
				b = appendRaw(appendMember(b, "thinking", nil), f.thinking)
			}
		case "message":
			b = f.appendMessage(appendMember(b, "message", nil), v)
		case "tool_calls":
			b = appendList(b, "tool_calls", f.line.calls)
		case "thinking", "logprobs":
		default:
			b = appendMember(b, string(key), v)
		}
	}
	return b
}

func (f *Fold) appendMessage(b, message []byte) []byte {
	early := func(key []byte) bool {
		return string(key) == "role" || string(key) == "content" || string(key) == "images"
	}
	b = f.appendMembers(append(b, '{'), message, early)
	b = appendList(b, "tool_calls", f.line.calls)
	return append(f.appendMembers(b, message, func(key []byte) bool { return !early(key) && string(key) != "tool_calls" }), '}')
}
