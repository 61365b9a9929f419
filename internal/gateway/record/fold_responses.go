package record

import "bytes"

// responseFold is what folding events of OpenAI's newer form needs.
type responseFold struct {
	object []byte            // the response as the last event that had one told it, raw
	ended  bool              // … which was the last of all
	ids    [itemKinds][]byte // of the first item of each kind, escaped
	calls  [][]byte          // items that are neither text nor thinking, raw
}

// addResponses collects one event.
func (f *Fold) addResponses(data []byte) {
	e, ok := parseResponses(data)
	if !ok {
		return
	}
	r := &f.response
	if len(e.response) > 0 && e.response[0] == '{' {
		r.object = append(r.object[:0], e.response...)
		r.ended = string(e.kind) == "response.completed" || string(e.kind) == "response.incomplete"
	}
	if e.item == nil || e.item[0] != '{' {
		return
	}
	kind, id := itemOf(e.item)
	switch {
	case kind != otherItem:
		if r.ids[kind] == nil {
			r.ids[kind] = append([]byte{}, id...)
		}
	case e.of() == itemDone && len(r.calls) < mostBlocks:
		r.calls = append(r.calls, bytes.Clone(e.item))
	}
}

// responseBody appends the body. Ollama's has one item of thinking, and either calls or one of text,
// which may be empty.
func (f *Fold) responseBody(b []byte) []byte {
	r := &f.response
	if r.object == nil {
		return b
	}
	b = rewrite(b, r.object, func(b, key, v []byte) []byte {
		switch string(key) {
		case "output":
			return f.appendOutput(b)
		case "status":
			if !r.ended { // and never will
				v = []byte(`"completed"`)
			}
		case "completed_at":
			if isNull(v) {
				v = completedAt(nil, r.object)
			}
		case "usage":
			if isNull(v) {
				v = []byte(`{"input_tokens":0,"input_tokens_details":{"cached_tokens":0},"output_tokens":0,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":0}`)
			}
		case "reasoning":
			if v[0] == '{' { // what is not given is left out
				return rewrite(b, v, func(b, key, v []byte) []byte {
					if isNull(v) {
						return nil
					}
					return append(b, v...)
				})
			}
		}
		return append(b, v...)
	})
	return ended(b, true)
}

func (f *Fold) appendOutput(b []byte) []byte {
	r := &f.response
	b = append(b, '[')
	if len(f.thinking) > 0 {
		b = appendItem(b, &item{kind: reasoningItem, id: r.ids[reasoningItem]}, f.thinking)
	}
	for _, call := range r.calls {
		b = append(separated(b), call...)
	}
	if len(r.calls) == 0 {
		id := r.ids[messageItem]
		if id == nil {
			id = append([]byte("msg_"), bytes.TrimPrefix(inside(member(r.object, "id")), []byte("resp_"))...)
		}
		b = appendItem(separated(b), &item{kind: messageItem, id: id}, f.text)
	}
	return append(b, ']')
}
