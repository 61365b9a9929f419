package record

import "strconv"

// counterpart returns this answer's item for one of another answer: the one of the same kind that
// comes in the same place among its kind; nil if there is none yet.
func (t *Tracker) counterpart(other *Tracker, of *item) *item {
	nth := 0
	for i := range other.response.items {
		it := &other.response.items[i]
		if it == of {
			break
		}
		if it.kind == of.kind {
			nth++
		}
	}
	for i := range t.response.items {
		if it := &t.response.items[i]; it.kind == of.kind {
			if nth == 0 {
				return it
			}
			nth--
		}
	}
	return nil
}

// rewriteResponses appends an event of another answer as one of this.
func (t *Tracker) rewriteResponses(b, data []byte, ev Event, other *Tracker) []byte {
	e, ok := parseResponses(data)
	if !ok {
		return append(b, data...)
	}
	var mine *item
	if theirs := other.item(&e); theirs != nil {
		mine = t.counterpart(other, theirs)
	}
	rewriteItem := func(b, v []byte) []byte { return t.rewriteItem(b, v, other) }
	b = rewrite(b, data, func(b, key, v []byte) []byte {
		switch string(key) {
		case "sequence_number":
			if !t.response.numbered {
				return nil
			}
			return strconv.AppendInt(b, int64(t.response.sequence), 10)
		case "output_index":
			switch {
			case !t.response.indexed:
				return nil
			case mine != nil:
				return strconv.AppendInt(b, int64(mine.index), 10)
			}
		case "content_index", "summary_index":
			if !t.response.indexed {
				return nil
			}
		case "item_id":
			return appendRaw(b, t.idFor(other, inside(v)))
		case "item":
			return rewriteItem(b, v)
		case "text":
			if mine != nil && mine.kind == reasoningItem {
				return appendRaw(b, t.allThinking(inside(v)))
			}
		case "part":
			if mine != nil && mine.kind == reasoningItem && v[0] == '{' && e.of() == partDone {
				return rewrite(b, v, t.thinkingText)
			}
		case "delta":
			switch {
			case ev.Text != nil:
				return appendRaw(b, ev.Text)
			case ev.Thinking != nil:
				return appendRaw(b, ev.Thinking)
			}
		case "response":
			if v[0] == '{' {
				return t.rewriteResponse(b, v, rewriteItem)
			}
		}
		return append(b, v...)
	})
	return append(t.numbers(b[:len(b)-1], &e, mine), '}')
}

// numbers appends the numbers that this answer's events have and another engine's lack.
func (t *Tracker) numbers(b []byte, e *responseEvent, mine *item) []byte {
	if t.response.numbered && !e.numbered {
		b = appendCount(b, "sequence_number", int64(t.response.sequence))
	}
	if !t.response.indexed || e.indexed || e.itemID == nil && e.item == nil {
		return b
	}
	index := t.nextIndex()
	if mine != nil {
		index = mine.index
	}
	b = appendCount(b, "output_index", int64(index))
	if mine != nil && mine.kind == messageItem && e.itemID != nil {
		b = appendCount(b, "content_index", 0)
	}
	return b
}

// idFor returns this answer's id of an item that another answer calls id.
func (t *Tracker) idFor(other *Tracker, id []byte) []byte {
	if theirs := other.item(&responseEvent{itemID: id}); theirs != nil {
		if mine := t.counterpart(other, theirs); mine != nil {
			return mine.id
		}
	}
	return id
}

// rewriteItem appends an item of another answer as this one's.
func (t *Tracker) rewriteItem(b, item []byte, other *Tracker) []byte {
	if item[0] != '{' {
		return append(b, item...)
	}
	kind, _ := itemOf(item)
	return rewrite(b, item, func(b, key, v []byte) []byte {
		switch string(key) {
		case "id":
			return appendRaw(b, t.idFor(other, inside(v)))
		case "summary", "content":
			if kind == reasoningItem && v[0] == '[' {
				return rewriteFirst(b, v, t.thinkingText)
			}
		case "encrypted_content": // Ollama's is the thinking
			if kind == reasoningItem && len(inside(v)) > 0 {
				return appendRaw(b, t.allThinking(inside(v)))
			}
		}
		return append(b, v...)
	})
}

// thinkingText is for rewrite: the text is all that was thought.
func (t *Tracker) thinkingText(b, key, v []byte) []byte {
	if string(key) == "text" {
		return appendRaw(b, t.allThinking(inside(v)))
	}
	return append(b, v...)
}

// allThinking returns the thinking of another answer with what this one had said before it.
func (t *Tracker) allThinking(theirs []byte) []byte {
	return append(t.response.again[:len(t.response.again):len(t.response.again)], theirs...)
}

// rewriteResponse appends the response object of another answer as this one's.
func (t *Tracker) rewriteResponse(b, response []byte, rewriteItem func(b, item []byte) []byte) []byte {
	b = rewrite(b, response, func(b, key, v []byte) []byte {
		switch string(key) {
		case "id", "created_at", "model":
			if first := member(t.response.object, string(key)); first != nil {
				v = first
			}
		case "output":
			if v[0] != '[' {
				break
			}
			b = append(b, '[')
			e := elements{data: v}
			for one, ok := e.next(); ok; one, ok = e.next() {
				if b[len(b)-1] != '[' {
					b = append(b, ',')
				}
				b = rewriteItem(b, one)
			}
			return append(b, ']')
		}
		return append(b, v...)
	})
	b = b[:len(b)-1]
	m := members{data: t.response.object}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		if member(response, string(key)) == nil { // another engine says less
			b = appendMember(b, string(key), v)
		}
	}
	return append(b, '}')
}
