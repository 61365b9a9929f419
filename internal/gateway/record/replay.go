package record

import "bytes"

// Replay holds another node's answer to the same request, which comes from its beginning, against
// what the client has: what it has is dropped, the rest goes on with the first answer's ids. The
// pieces may be cut otherwise and characters be escaped otherwise; what counts is the text.
type Replay struct {
	to, other *Tracker
	text      match
	thinking  match
	had       []byte // the thinking that the client had
	before    int    // how much of it was found before the last record
	nothing   bool   // the client had no text
	called    bool   // … but a call of a tool
	diverged  bool
	usage     Usage // as the other told
}

// Verdict is what became of a record of a replay.
type Verdict uint8

// The verdicts.
const (
	Suppressed Verdict = iota // the client has its like, or has no use for it
	Delivered                 // all or a part of it was appended
	Diverged                  // the answers differ: nothing was appended, and nothing more will be
)

// NewReplay returns a Replay into the answer that t follows, of which the client has text and
// thinking: escaped, as Follow told them and AppendText took them. Both must stay as they are while the
// Replay is in use.
func NewReplay(t *Tracker, text, thinking []byte) *Replay {
	return &Replay{
		to: t, other: NewTracker(t.form, t.usage),
		text: match{want: text}, thinking: match{want: thinking},
		had: thinking, nothing: len(text) == 0, called: t.called,
	}
}

// CaughtUp tells whether the other node has said all that the client has: from here on it says new things.
func (r *Replay) CaughtUp() bool { return r.text.all() && r.thinking.all() }

// Append appends what the client shall see of a record of the other node. The event is what the record
// says; of a record that was delivered, its Text and Thinking are what is new. The records of errors
// and of no form are suppressed: what they mean is the caller's decision.
func (r *Replay) Append(b, rec []byte) ([]byte, Event, Verdict) {
	ev := r.other.Follow(rec)
	return r.deliver(b, rec, ev)
}

func (r *Replay) deliver(b, rec []byte, ev Event) ([]byte, Event, Verdict) {
	if r.diverged {
		return b, ev, Diverged
	}
	if ev.Failed || ev.Garbage {
		return b, ev, Suppressed
	}
	if ev.Prompt+ev.Output > 0 {
		r.usage = ev.Usage
	}
	if !r.to.begun { // the client has nothing
		return r.to.AppendRecord(b, rec, ev, r.other), ev, Delivered
	}
	r.before = r.thinking.found(r.had)
	fresh, ok := ev, true
	if fresh.Thinking, ok = r.thinking.rest(ev.Thinking); ok {
		fresh.Text, ok = r.text.rest(ev.Text)
	}
	verdict := Diverged
	if ok {
		verdict = r.judge(rec, &ev, &fresh)
	}
	switch {
	case verdict == Diverged:
		r.diverged = true
		return b, ev, Diverged
	case verdict == Suppressed:
		return b, ev, Suppressed
	case ev.Done && !r.to.form.lines() && r.to.form != Responses: // closes whatever is still open
		return r.to.AppendEnd(b, End{Usage: r.usage}), fresh, Delivered
	}
	return r.to.AppendRecord(b, rec, fresh, r.other), fresh, Delivered
}

// judge decides about a record, whose fresh event has only the text that is new.
func (r *Replay) judge(rec []byte, ev, fresh *Event) Verdict {
	isNew := len(fresh.Text)+len(fresh.Thinking) > 0
	wasOld := len(fresh.Text)+len(fresh.Thinking) < len(ev.Text)+len(ev.Thinking)
	if wasOld {
		fresh.Logprobs = nil // they are of all of its text
	}
	p := r.part(rec, ev)
	ends := ev.Done || ev.Reason != "" || p == closing
	switch {
	case p == strange, ev.Tool && r.called:
		return Diverged
	case isNew && (p == sent || !r.CaughtUp()): // said where the client was told that nothing follows, or before the rest
		return Diverged
	case isNew:
		return Delivered
	case p == sent:
		return Suppressed
	case !r.CaughtUp() && (ends || ev.Tool):
		return Diverged // it does something else before it has said all that the client has
	case !r.CaughtUp():
		return Suppressed
	case wasOld && !ends && !ev.Tool:
		return Suppressed
	}
	return Delivered
}

// Restart goes on behind a divergence within the thinking, if the client has no text yet: it appends
// the other node's thinking from its beginning, with rec, the record that diverged. False: that cannot
// be, and nothing was appended. The event's Thinking is all that was appended.
func (r *Replay) Restart(b, rec []byte, ev Event) ([]byte, Event, bool) {
	if !r.diverged || !r.nothing || r.called || !r.to.thinks() {
		return b, ev, false
	}
	again := append([]byte{}, r.had[:r.before]...)
	r.diverged, r.text, r.thinking = false, match{}, match{}
	r.to.response.again = bytes.Clone(r.had)
	b = r.to.AppendText(b, Event{Thinking: again, CreatedAt: ev.CreatedAt})
	b, fresh, verdict := r.deliver(b, rec, ev)
	fresh.Thinking = append(again, fresh.Thinking...)
	return b, fresh, verdict != Diverged
}

// thinks tells whether more thinking can be said where the last was.
func (t *Tracker) thinks() bool {
	switch t.form {
	case Messages:
		n := len(t.message.blocks)
		return n > 0 && t.message.blocks[n-1].kind == thinkingBlock && t.message.blocks[n-1].open
	case Responses:
		return openItem(t.response.items, reasoningItem) != nil
	}
	return !t.finished
}

// part is what a record is in the structure of an answer.
type part uint8

const (
	plain   part = iota // says something, or nothing
	sent                // the client has its like
	opening             // begins what the client has not seen begin
	closing             // ends what the client has not seen end
	strange             // cannot be in an answer that goes on as this did
)

func (r *Replay) part(rec []byte, ev *Event) part {
	if r.to.form.lines() {
		return plain
	}
	e := parseSSE(rec)
	if !e.some || string(e.data) == "[DONE]" {
		return plain
	}
	switch r.to.form {
	case Messages:
		return r.messagePart(e.data)
	case Responses:
		return r.responsePart(e.data)
	}
	return r.chunkPart(ev)
}

func (r *Replay) chunkPart(ev *Event) part {
	t := r.to
	switch {
	case ev.Reason != "":
		return either(t.finished, closing)
	case ev.Tool || ev.Logprobs != nil || len(ev.Text)+len(ev.Thinking) > 0:
		return plain
	case ev.Prompt+ev.Output > 0:
		return either(t.chunk.counts, closing)
	}
	return either(t.chunk.role || t.begun && t.form == Completions, opening) // who speaks
}

// either is sent for a record whose like the client has, else p.
func either(has bool, p part) part {
	if has {
		return sent
	}
	return p
}

func (r *Replay) messagePart(data []byte) part {
	t := r.to
	e, _ := parseMessages(data)
	switch string(e.kind) {
	case "message_start":
		return either(t.begun, opening)
	case "message_delta":
		return either(t.finished, closing)
	case "content_block_start", "content_block_delta", "content_block_stop":
	default:
		return plain
	}
	mine, theirs := t.block(e.index), r.other.block(e.index)
	switch {
	case theirs == nil || mine != nil && mine.kind != theirs.kind:
		return strange
	case string(e.kind) == "content_block_start":
		if mine == nil && (!r.CaughtUp() || e.index != len(t.message.blocks)) {
			return strange
		}
		return either(mine != nil, opening)
	case mine == nil:
		return strange
	case string(e.kind) == "content_block_delta":
		return either(!mine.open, plain)
	}
	early := !r.CaughtUp() && mine.kind == thinkingBlock && r.thinking.all() // engines close it now, or at the end
	return either(!mine.open || early, closing)
}

func (r *Replay) responsePart(data []byte) part {
	t := r.to
	e, _ := parseResponses(data)
	switch string(e.kind) {
	case "response.created", "response.in_progress", "response.queued":
		return either(r.other.response.events <= t.response.events, opening)
	}
	theirs := r.other.item(&e)
	if theirs == nil {
		return plain
	}
	mine := t.counterpart(r.other, theirs)
	which := e.of()
	switch {
	case string(e.kind) == "response.output_item.added":
		if mine == nil && !r.CaughtUp() {
			return strange
		}
		return either(mine != nil, opening)
	case mine == nil:
		return strange
	case which == 0:
		return either(mine.sent&(textDone|itemDone) != 0, plain)
	case which == partAdded:
		return either(mine.sent&(partAdded|itemDone) != 0, opening)
	}
	early := !r.CaughtUp() && mine.kind == reasoningItem && r.thinking.all()
	return either(mine.sent&(which|itemDone) != 0 || early, closing)
}
