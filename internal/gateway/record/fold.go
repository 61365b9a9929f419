package record

import "bytes"

// Fold collects the records of an answer into the one body that its engine gives to a request that
// wants no stream. Of Responses it is Ollama's body that is made.
type Fold struct {
	form           Form
	text, thinking []byte
	more           int // about how many bytes were collected besides

	line     lineFold
	chunk    chunkFold
	message  messageFold
	response responseFold
}

// NewFold returns an empty Fold.
func NewFold(f Form) *Fold { return &Fold{form: f} }

// Add collects what a record says, which ev tells. An error, and what is no record, is left out.
func (f *Fold) Add(rec []byte, ev Event) {
	if ev.Failed || ev.Garbage || space(rec, 0) == len(rec) {
		return
	}
	f.text = append(f.text, ev.Text...)
	f.thinking = append(f.thinking, ev.Thinking...)
	if ev.Tool || len(rec) > largeRecord {
		f.more += len(rec) - len(ev.Text) - len(ev.Thinking)
	} else {
		f.more += len(ev.Logprobs)
	}
	if f.form.lines() {
		f.addLine(rec, ev)
		return
	}
	e := parseSSE(rec)
	if !e.some || string(e.data) == "[DONE]" {
		return
	}
	switch f.form {
	case ChatCompletions, Completions:
		f.addChunk(e.data)
	case Messages:
		f.addMessages(e.data)
	case Responses:
		f.addResponses(e.data)
	}
}

const (
	// largeRecord is the length from which a record counts whole: something of it may be held.
	largeRecord = 16 << 10
	// mostMembers is how many members of one object are held, and how many calls of tools: they are looked
	// for one by one.
	mostMembers = 256
)

// Text and Thinking return what was collected, escaped: valid until the next Add.
func (f *Fold) Text() []byte { return f.text }

// Thinking is as Text.
func (f *Fold) Thinking() []byte { return f.thinking }

// Size is about how many bytes the body has so far.
func (f *Fold) Size() int { return len(f.text) + len(f.thinking) + f.more }

// AppendBody appends the body; nothing if nothing was added.
func (f *Fold) AppendBody(b []byte) []byte {
	switch f.form {
	case Generate, Chat:
		return f.lineBody(b)
	case ChatCompletions, Completions:
		return f.chunkBody(b)
	case Messages:
		return f.messageBody(b)
	}
	return f.responseBody(b)
}

// ended appends the end of the line with which Ollama's bodies of the /v1 forms end.
func ended(b []byte, ollama bool) []byte {
	if ollama {
		b = append(b, '\n')
	}
	return b
}

// concat appends the elements of a raw JSON array to those of another.
func concat(to, from []byte) []byte {
	e := elements{data: from}
	for v, ok := e.next(); ok; v, ok = e.next() {
		if len(to) > 0 {
			to = append(to, ',')
		}
		to = append(to, v...)
	}
	return to
}

// appendList appends a member that is an array, if it has elements.
func appendList(b []byte, key string, elements []byte) []byte {
	if len(elements) == 0 {
		return b
	}
	return append(append(append(appendMember(b, key, nil), '['), elements...), ']')
}

// memberList is an object's members, the last value of each in the place of the first.
type memberList []memberOf

type memberOf struct {
	key   string
	value []byte // raw
}

// get returns a member's value, nil if there is none.
func (l memberList) get(key string) []byte {
	for i := range l {
		if l[i].key == key {
			return l[i].value
		}
	}
	return nil
}

// set takes a copy of a member's value. Members beyond the most are left out.
func (l *memberList) set(key, value []byte) {
	for i := range *l {
		if m := &(*l)[i]; m.key == string(key) {
			m.value = append(m.value[:0], value...)
			return
		}
	}
	if len(*l) < mostMembers {
		*l = append(*l, memberOf{string(key), bytes.Clone(value)})
	}
}

// merge sets the members of an object.
func (l *memberList) merge(object []byte) {
	m := members{data: object}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		l.set(key, v)
	}
}

// append appends the list as members of an object that is open.
func (l memberList) append(b []byte) []byte {
	for _, m := range l {
		b = appendMember(b, m.key, m.value)
	}
	return b
}
