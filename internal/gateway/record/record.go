// Package record knows the wire forms in which the six routes that generate answer: it cuts a
// stream into records, says what each means, and writes the rest of an answer in the same form
// and with the same ids after the node that began it died.
//
// It is pure: bytes in, bytes and values out. It reads nothing, waits for nothing and has no
// clock; whoever calls it bounds the length of a record. The types of the dialects are not
// declared here: a record is walked over, and what is not understood passes on as it came.
//
// A client sees the first node's bytes unchanged. A Tracker follows them, and remembers what the
// rest needs: ids, model, open blocks, what was sent already. When that stream breaks, another
// node either continues the text (Tracker.AppendText writes it in the client's form), or gives
// the same answer from its beginning (a Replay drops what the client has and rewrites what it
// has not). Tracker.AppendEnd closes an answer, Tracker.AppendError breaks it off. All of these
// follow what they write, so that an answer may break more than once. Fold collects a stream
// into the body of a request that did not ask for one.
//
// Invariants: an answer has one terminal record; no character is lost or doubled; an id that the
// client has seen keeps its meaning. Start reading at Event, then Tracker.Follow.
package record

import (
	"bytes"
	"time"
)

// Form is the wire form of a route's answer.
type Form uint8

// The forms, each named after its route.
const (
	Generate        Form = iota // /api/generate
	Chat                        // /api/chat
	ChatCompletions             // /v1/chat/completions
	Completions                 // /v1/completions
	Responses                   // /v1/responses
	Messages                    // /v1/messages
)

// FormOf returns the form of a route's answer; false for a route that does not generate.
func FormOf(path string) (Form, bool) {
	switch path {
	case "/api/generate":
		return Generate, true
	case "/api/chat":
		return Chat, true
	case "/v1/chat/completions":
		return ChatCompletions, true
	case "/v1/completions":
		return Completions, true
	case "/v1/responses":
		return Responses, true
	case "/v1/messages":
		return Messages, true
	}
	return 0, false
}

// lines tells whether a stream of this form is lines of JSON; the others are server-sent events.
func (f Form) lines() bool { return f == Generate || f == Chat }

// Split returns the length of the first whole record of data: a line with its newline, or an
// event with its blank line. 0 means that there is none yet. What is left when a stream has
// ended is its last record, whole or not: Follow tells.
func (f Form) Split(data []byte) int {
	if f.lines() {
		return bytes.IndexByte(data, '\n') + 1
	}
	for start := 0; ; {
		n := bytes.IndexByte(data[start:], '\n')
		if n < 0 {
			return 0
		}
		if n == 0 || n == 1 && data[start] == '\r' {
			return start + n + 1
		}
		start += n + 1
	}
}

// Terminator is what a last record lacks of which Split knows no end.
func (f Form) Terminator(rec []byte) string {
	if f.lines() || bytes.HasSuffix(rec, []byte("\n")) {
		return "\n"
	}
	return "\n\n"
}

// Event is what one record says. Its byte slices are parts of the record: copy what must outlive it.
type Event struct {
	Text     []byte // the inside of a JSON string, still escaped
	Thinking []byte // as Text
	// Half says that Text or Thinking ends in the middle of a character. A record held back until
	// the next one leaves the client no half character if the stream breaks between them.
	Half     bool
	Tool     bool // carries a call of a tool, or a part of one
	ToolDone bool // a call is complete with this record
	Other    bool // carries a part of the answer that is none of these: of another choice, a refusal, a picture
	// Done marks the terminal record. A stream may end without one: then it broke.
	Done   bool
	Reason string // why the generation ended, in the dialect's word
	// Failed marks the dialect's error record, and the empty piece without a model that Ollama
	// writes in place of one. Message is what it says, if anything.
	Failed  bool
	Message string
	Garbage bool // no record of this form
	Usage
	Logprobs  []byte // raw JSON
	CreatedAt []byte // the time in a record of the /api forms, as it is written
}

// Says tells whether a record carries a part of the answer or its end. What does not, such as a comment,
// who speaks, or how far the prompt is read, shows that an engine is there, not that it generates.
func (e *Event) Says() bool {
	return len(e.Text)+len(e.Thinking) > 0 || e.Tool || e.Done || e.Reason != "" || e.Logprobs != nil || e.Other || e.Failed
}

// Tokens returns how many tokens a record of an answer has, as far as it shows: those whose log
// probabilities it tells, else one if it says text or thinking. Of a chunk that counts those of the whole
// answer up to it, that is Output.
func (e *Event) Tokens() (n int) {
	list := e.Logprobs
	if len(list) > 0 && list[0] == '{' {
		if list = member(e.Logprobs, "content"); list == nil {
			list = member(e.Logprobs, "tokens")
		}
	}
	if len(list) > 0 && list[0] == '[' {
		for each := (elements{data: list}); ; n++ {
			if _, more := each.next(); !more {
				break
			}
		}
	}
	if n == 0 && len(e.Text)+len(e.Thinking) > 0 {
		return 1
	}
	return n
}

// Usage is what a generation took, as far as the engine says: zero is not told.
type Usage struct {
	Prompt, Output             int           // tokens
	Load, Prefill, Eval, Total time.Duration // /api forms; of llama-server Prefill and Eval
}
