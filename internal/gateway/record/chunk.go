package record

import (
	"bytes"
	"time"
)

// chunkState is what writing the rest of an answer in chunks, OpenAI's older forms, needs.
type chunkState struct {
	head, tail []byte // the members before and behind the choices
	idle       []byte // what a chunk that tells no counts has as usage, raw: null, or noughts
	id         []byte // these four raw
	created    []byte
	model      []byte
	print      []byte // system_fingerprint
	thinking   []byte // the key of thinking: reasoning, or reasoning_content
	role       bool   // the client was told who speaks
	told       bool   // … before the last record that was Half
	counts     bool   // … and how many tokens there were
}

func (t *Tracker) followChunk(data []byte, ev *Event) {
	var choices, model, print, usage, timings, object []byte
	known := false
	m := members{data: data}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "choices":
			choices, known = v, true
		case "model":
			model = v
		case "system_fingerprint":
			print = v
		case "object":
			object = v
		case "usage":
			usage, known = v, true
		case "timings":
			timings = v
		case "error":
			if !isNull(v) {
				ev.Failed, known = true, true
				ev.Message = errorMessage(v)
			}
		}
	}
	if string(object) == `"error"` { // as vLLM once did
		ev.Failed, known = true, true
		ev.Message = errorMessage(data)
	}
	if m.bad || !known {
		*ev = Event{Garbage: true}
		return
	}
	if ev.Failed {
		return
	}
	said := t.followChoices(choices, ev)
	if len(usage) > 0 && usage[0] == '{' {
		chunkUsage(usage, ev)
		t.chunk.counts = t.chunk.counts || ev.Prompt+ev.Output > 0
	}
	if timings != nil {
		chunkTimings(timings, ev)
	}
	if string(model) == `""` && string(print) == `"fp_ollama"` && !said && ev.Prompt+ev.Output == 0 { // its runner died
		ev.Failed = true
		return
	}
	if !t.begun {
		t.beginChunks(data, ev)
	}
}

// followChoices reads the one choice that there is: requests for several (n) have no rest that
// could be written. It tells whether the choice says anything at all.
func (t *Tracker) followChoices(choices []byte, ev *Event) (said bool) {
	e := elements{data: choices}
	for choice, ok := e.next(); ok; choice, ok = e.next() {
		var delta []byte
		index := 0
		one := Event{}
		m := members{data: choice}
		for key, v, ok := m.next(); ok; key, v, ok = m.next() {
			switch string(key) {
			case "index":
				index = whole(v)
			case "text":
				one.Text = inside(v)
			case "delta", "message":
				delta = v
			case "finish_reason":
				one.Reason = word(inside(v))
			case "logprobs":
				if v[0] == '{' {
					one.Logprobs = v
				}
			}
		}
		if index != 0 {
			t.several = true
			ev.Other = ev.Other || len(one.Text) > 0 || one.Reason != "" || one.Logprobs != nil || saysOther(delta)
			continue
		}
		ev.Text, ev.Reason, ev.Logprobs = one.Text, one.Reason, one.Logprobs
		if len(delta) > 0 && delta[0] == '{' {
			t.followDelta(delta, ev)
		}
		t.finished = t.finished || ev.Reason != ""
		ev.ToolDone = ev.ToolDone || ev.Reason == "tool_calls" && t.called
	}
	return len(ev.Text) > 0 || len(ev.Thinking) > 0 || ev.Tool || ev.Reason != "" || ev.Logprobs != nil
}

func (t *Tracker) followDelta(delta []byte, ev *Event) {
	m := members{data: delta}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "role":
			t.chunk.role = true
		case "content":
			ev.Text = inside(v)
		case "reasoning", "reasoning_content":
			if s := inside(v); len(s) > 0 {
				ev.Thinking = s
				if t.chunk.thinking == nil {
					t.chunk.thinking = bytes.Clone(key)
				}
			}
		case "tool_calls":
			if filled(v) {
				ev.Tool = true
				ev.ToolDone = t.arguments.calls(v)
			}
		case "function_call": // what tool_calls replaced
			ev.Tool = ev.Tool || v[0] == '{'
		default:
			ev.Other = ev.Other || !empty(v)
		}
	}
}

// saysOther tells whether the delta of another choice than the first has a part of its answer.
func saysOther(delta []byte) bool {
	m := members{data: delta}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		if string(key) != "role" && !empty(v) {
			return true
		}
	}
	return false
}

// chunkUsage reads counts, in the words of any of OpenAI's and Anthropic's forms.
func chunkUsage(usage []byte, ev *Event) {
	m := members{data: usage}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "prompt_tokens", "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens":
			ev.Prompt += whole(v) // Anthropic's input_tokens are those that no cache had
		case "completion_tokens", "output_tokens":
			ev.Output = whole(v)
		}
	}
}

// chunkTimings reads what llama-server tells besides.
func chunkTimings(timings []byte, ev *Event) {
	prompt, output := 0, 0
	m := members{data: timings}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "prompt_n", "cache_n":
			prompt += whole(v)
		case "predicted_n":
			output = whole(v)
		case "prompt_ms":
			ev.Prefill = time.Duration(decimal(v) * float64(time.Millisecond))
		case "predicted_ms":
			ev.Eval = time.Duration(decimal(v) * float64(time.Millisecond))
		}
	}
	if ev.Prompt+ev.Output == 0 {
		ev.Prompt, ev.Output = prompt, output
	}
}

// beginChunks remembers the members of the first chunk that every chunk has.
func (t *Tracker) beginChunks(data []byte, ev *Event) {
	t.begun = true
	c := &t.chunk
	at := &c.head
	m := members{data: data}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		switch string(key) {
		case "choices":
			at = &c.tail
			continue
		case "usage":
			if isNull(v) || v[0] == '{' && ev.Prompt+ev.Output == 0 {
				c.idle = bytes.Clone(v)
			}
			continue
		case "id":
			c.id = bytes.Clone(v)
		case "created":
			c.created = bytes.Clone(v)
		case "model":
			c.model = bytes.Clone(v)
		case "system_fingerprint":
			c.print = bytes.Clone(v)
		case "object", "service_tier":
		default:
			continue
		}
		*at = appendMember(*at, string(key), v)
	}
}
