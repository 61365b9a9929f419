package record

// Whole says what a body means that was not streamed. Its Text and Thinking are all there are; of
// several parts they are put together in a copy.
func (f Form) Whole(body []byte) Event {
	var ev Event
	if space(body, 0) == len(body) {
		return Event{Garbage: true}
	}
	t := NewTracker(f, false)
	switch f {
	case Generate, Chat:
		t.followLine(body, &ev)
	case ChatCompletions, Completions:
		t.followChunk(body, &ev)
	case Messages:
		wholeMessage(body, &ev)
	case Responses:
		wholeResponse(body, &ev)
	}
	ev.Done = !ev.Failed && !ev.Garbage
	if ev.Tool {
		ev.ToolDone = true
	}
	return ev
}

func wholeMessage(body []byte, ev *Event) {
	known := false
	m := members{data: body}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "content":
			known = true
			wholeContent(v, ev)
		case "stop_reason":
			ev.Reason = word(inside(v))
		case "usage":
			chunkUsage(v, ev)
		case "error":
			ev.Failed, known = true, true
			ev.Message = errorMessage(v)
		}
	}
	if m.bad || !known {
		*ev = Event{Garbage: true}
	}
}

// wholeContent reads the blocks of a message, or the parts of an item.
func wholeContent(content []byte, ev *Event) {
	e := elements{data: content}
	for one, ok := e.next(); ok; one, ok = e.next() {
		m := members{data: one}
		thinking := false
		for key, v, ok := m.next(); ok; key, v, ok = m.next() {
			switch string(key) {
			case "type":
				kind := string(inside(v))
				ev.Tool = ev.Tool || kind == "tool_use"
				thinking = kind == "reasoning_text" || kind == "summary_text"
			case "thinking":
				ev.Thinking = joined(ev.Thinking, inside(v))
			}
		}
		if text := inside(member(one, "text")); thinking {
			ev.Thinking = joined(ev.Thinking, text)
		} else {
			ev.Text = joined(ev.Text, text)
		}
	}
}

func joined(a, b []byte) []byte {
	if len(a) == 0 {
		return b
	}
	return append(a[:len(a):len(a)], b...)
}

func wholeResponse(body []byte, ev *Event) {
	known := false
	m := members{data: body}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "output":
			known = true
			e := elements{data: v}
			for one, ok := e.next(); ok; one, ok = e.next() {
				kind, _ := itemOf(one)
				ev.Tool = ev.Tool || kind == otherItem
				wholeContent(member(one, "content"), ev)
				wholeContent(member(one, "summary"), ev)
			}
		case "error":
			if !isNull(v) {
				ev.Failed, known = true, true
				ev.Message = errorMessage(v)
			}
		case "timings":
			chunkTimings(v, ev)
		}
	}
	if m.bad || !known {
		*ev = Event{Garbage: true}
		return
	}
	responseEnd(body, ev)
}
