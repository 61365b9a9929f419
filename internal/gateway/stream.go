package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/gateway/record"
)

// stream is an answer on its way to the client, record by record, from one node or from several one
// after the other. What the client has is kept, so that another node can go on from there.
type stream struct {
	g       *Gateway
	x       *exchange
	req     *request
	client  client
	form    record.Form
	tracker *record.Tracker // of what the client has
	fold    *fold           // the client does not want a stream: nothing goes out before the end
	own     []byte          // records that we wrote, before they go out

	text, thinking []byte // what the client has, as it stands inside JSON strings
	pieces         int    // tokens of that, as far as its records show them
	called         bool   // a whole tool call went out
	same           int    // how many pieces in a row were equal
	last           []byte // the piece before
	onlyAgain      bool   // an engine has refused to go on behind the text: replay
	long           bool   // too long to be kept: cannot be resumed

	fixed   bool      // it cannot leave its node
	settled time.Time // until when it is not tried again to have it leave
	stayed  int       // how often that was tried in vain

	half halfRecord // the last record, if it ends in the middle of a character: it waits for the next
	gaps gaps
}

// halfRecord is a record that was followed and not yet delivered, and what it would have brought.
type halfRecord struct{ bytes, text, thinking, pieces int }

// fold collects the records of an answer that the client wants whole.
type fold struct {
	*record.Fold
	tracker *record.Tracker
}

func newFold(f record.Form) *fold { return &fold{record.NewFold(f), record.NewTracker(f, false)} }

// follow passes an answer on to the client to its end, whatever becomes of its node.
func (g *Gateway) follow(x *exchange, req *request, a *answer) {
	s := &stream{g: g, x: x, req: req, form: a.form, tracker: record.NewTracker(a.form, req.usage),
		client: client{x: x, control: http.NewResponseController(x.w), timeout: g.cfg.Timeouts.Write}}
	if req.folded {
		s.fold = newFold(a.form)
	}
	if broken := s.pass(a); broken != nil {
		s.mend(a, broken)
	}
}

// errGone says that the client has left.
var errGone = errors.New("client is gone")

// breakError is how a stream broke.
type breakError struct {
	kind  string // for metrics: reset, error, truncated, frozen, garbage or drained
	err   error
	next  *rest     // of a drained one: another node goes on already,
	since time.Time // which was asked to then
}

func (e *breakError) Error() string { return e.err.Error() }
func (e *breakError) Unwrap() error { return e.err }

// pass passes the first node's records on as they came. It returns nil when the answer ended or the
// client left, else how the stream broke: then all whole records before the break have been
// delivered, and nothing after it.
func (s *stream) pass(a *answer) *breakError {
	for {
		rec, broken := s.next(a)
		if rec == nil {
			return broken
		}
		e := s.tracker.Follow(rec)
		switch {
		case e.Failed && s.repeated() && s.fold == nil:
			a.at = a.n
			_ = s.write(a) // the answer ends here, whether the client is there or not
			return nil
		case e.Failed && s.repeated() && e.Message == "": // else it says why it broke, and nobody was told yet
			s.folded()
			return nil
		case e.Failed, e.Garbage:
			if s.write(a) != nil {
				s.left(a)
				return nil
			}
			s.dropHalf()
			return brokenBy(e)
		}
		s.hear(a, e)
		s.count(&a.outcome, e)
		before := s.pieces
		s.keep(e, 0)
		s.half = halfRecord{}
		if e.Half && !e.Done && s.fold == nil && !s.long {
			s.half = halfRecord{len(rec), len(e.Text), len(e.Thinking), s.pieces - before}
		}
		if s.fold != nil {
			s.fold.Add(rec, e)
		}
		a.at += len(rec)
		if e.Done {
			s.end(a)
			return nil
		}
	}
}

// maxFolded bounds what is held of an answer that goes to the client whole: enough for many log
// probabilities a token.
const maxFolded = 16 * maxRecord

// next returns the next whole record, which begins at a.at; nil when there is none, and without a
// break when the client has left or was told why the answer ends. What was followed so far goes to the
// client before the engine is waited for.
func (s *stream) next(a *answer) ([]byte, *breakError) {
	if s.fold != nil && s.fold.Size() > maxFolded {
		a.outcome.Result = cluster.Failed
		s.fail(fmt.Sprintf("node %s sends an answer of more than %d bytes: ask for it as a stream, or limit it", a.node.Name, maxFolded))
		return nil, nil
	}
	for {
		rest := (*a.buf)[a.at:a.n]
		if n := a.form.Split(rest); n > 0 {
			return rest[:n], nil
		}
		if a.err == io.EOF && len(rest) > 0 { // a last record without its end, which more may follow
			a.terminate()
			return (*a.buf)[a.at:a.n], nil
		}
		if s.write(a) != nil {
			s.left(a)
			return nil, nil
		}
		if a.err != nil {
			return nil, s.ended(a)
		}
		if moved := s.leave(a); moved != nil {
			return nil, moved
		}
		a.watch.within(s.patience(a, &s.gaps))
		if err := a.read(); err != nil {
			return nil, &breakError{kind: "garbage", err: err}
		}
	}
}

// ended tells how a body ended that has no terminal record; nil when nobody is to blame.
func (s *stream) ended(a *answer) *breakError {
	var frozen *frozenError
	s.dropHalf()
	switch {
	case s.x.ctx.Err() != nil:
		s.left(a)
		s.interrupted()
		return nil
	case a.err == io.EOF && s.repeated(): // Ollama ends so when a model repeats itself for ever
		if s.fold != nil {
			s.folded()
		}
		return nil
	case a.err == io.EOF:
		return &breakError{kind: "truncated", err: errors.New("answer ended without its last record")}
	case errors.As(a.cause(), &frozen):
		return &breakError{kind: "frozen", err: frozen}
	}
	return &breakError{kind: "reset", err: a.err}
}

func brokenBy(e record.Event) *breakError {
	if e.Garbage {
		return &breakError{kind: "garbage", err: errors.New("engine sent what is no record of its route")}
	}
	return &breakError{kind: "error", err: fmt.Errorf("engine said: %s", e.Message)}
}

// repeated tells whether the last pieces were all equal, as often as Ollama allows.
func (s *stream) repeated() bool { return s.same >= mostEqual }

const mostEqual = 30

// keep remembers what a record brought to the client, which had so many pieces when its node began.
func (s *stream) keep(e record.Event, before int) {
	s.called = s.called || e.ToolDone
	s.fixed = s.fixed || e.Tool // how far a call has come is in no text
	s.pieces += e.Tokens()
	if len(e.Text) == 0 && len(e.Thinking) == 0 {
		return
	}
	if e.Output > 0 { // it counts them itself
		s.pieces = max(s.pieces, before+e.Output)
	}
	s.x.progress.pieces.Store(int64(s.pieces))
	piece := e.Text
	if len(piece) == 0 {
		piece = e.Thinking
	}
	if bytes.Equal(piece, s.last) {
		s.same++
	} else {
		s.same = 1
		s.last = append(s.last[:0], piece...)
	}
	if s.long || int64(len(s.text)+len(s.thinking)+len(piece)) > s.g.cfg.Resume.MaxBytes {
		s.long, s.text, s.thinking = true, nil, nil
		return
	}
	s.text = append(s.text, e.Text...)
	s.thinking = append(s.thinking, e.Thinking...)
}

// count takes in what a record says of the answer's cost.
func (s *stream) count(o *cluster.Outcome, e record.Event) {
	if e.Prompt > 0 || e.Output > 0 {
		o.PromptTokens, o.OutputTokens = e.Prompt, e.Output
	}
	if e.Total+e.Prefill+e.Eval > 0 {
		o.Load, o.Prefill, o.Eval, o.Total = e.Load, e.Prefill, e.Eval, e.Total
	}
}

// write sends the client what was followed and not yet passed on: the first node's own bytes, and
// what we wrote of others'.
func (s *stream) write(a *answer) error {
	to := a.at - s.half.bytes
	b := (*a.buf)[a.out:to]
	a.out = to
	if s.own != nil {
		a.out = a.at
		b = s.own
		s.own = s.own[:0]
	}
	if len(b) == 0 || s.fold != nil {
		return nil
	}
	return s.client.write(b, true)
}

// dropHalf forgets a record that was not delivered since it ends in the middle of a character: whoever
// goes on says the whole one.
func (s *stream) dropHalf() {
	if s.half.bytes == 0 {
		return
	}
	s.tracker.Forget(s.half.text, s.half.thinking)
	s.text = s.text[:len(s.text)-s.half.text]
	s.thinking = s.thinking[:len(s.thinking)-s.half.thinking]
	s.pieces -= s.half.pieces
	s.half = halfRecord{}
}

// left notes that the client went away in the middle: what the engine did for it says little of the
// engine.
func (s *stream) left(a *answer) {
	a.outcome.Result, a.outcome.OutputTokens = cluster.Abandoned, s.pieces
}

// end passes the terminal record on, the last thing that the client gets, and lets the engine end its
// body, so that the connection can be used again.
func (s *stream) end(a *answer) {
	if a.outcome.OutputTokens == 0 {
		a.outcome.OutputTokens = s.pieces
	}
	a.outcome.MeanGap, a.outcome.MaxGap = s.gaps.mean(), s.gaps.max
	s.g.refresh(s.x.ctx, s.req, a.node)
	if s.fold != nil {
		s.folded()
	} else if s.write(a) != nil {
		s.left(a)
		return
	}
	a.watch.within(endWithin, 0)
	for a.err == nil && a.n == a.at {
		if a.read() != nil {
			return
		}
	}
	if a.n > a.at {
		s.g.deps.Log.Warn("engine went on after its last record; the rest is dropped", "id", s.x.id, "node", a.node.Name)
	}
}

// folded sends the whole answer as one body.
func (s *stream) folded() {
	body := s.fold.AppendBody(nil)
	s.x.w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	s.x.start(http.StatusOK)
	_ = s.client.write(body, false) // a client that is gone has no use for it
}

// endWithin is how long an engine may take to end a body after its last record.
const endWithin = time.Second

// client is where an answer goes.
type client struct {
	x       *exchange
	control *http.ResponseController
	timeout time.Duration
	armed   time.Time
	gone    bool
}

// write sends bytes to the client, with flush at once. A client that takes nothing for too long is
// gone.
func (c *client) write(b []byte, flush bool) error {
	if c.gone {
		return errGone
	}
	if now := time.Now(); now.Sub(c.armed) > time.Second {
		_ = c.control.SetWriteDeadline(now.Add(c.timeout)) // servers that cannot set deadlines have none
		c.armed = now
	}
	n, err := c.x.w.Write(b)
	c.x.bytes += int64(n)
	if err == nil && flush {
		err = c.control.Flush()
	}
	if err != nil {
		c.gone = true
		return errGone
	}
	return nil
}

// hear takes in the silence before a record that has a part of the answer.
func (s *stream) hear(a *answer, e record.Event) {
	pauses := s.pauses(a)
	gap := a.hear(e)
	if gap == 0 || pauses && (e.Tool || e.Done || s.req.format && len(e.Text) > 0) {
		return
	}
	s.gaps.add(gap)
}

// patience is how long the engine may now be silent, after such gaps, and how long if its node says that it answers.
func (s *stream) patience(a *answer, after *gaps) (bound, while time.Duration) {
	stall := &a.lease.Stall
	switch {
	case a.outcome.First == 0:
		return stall.First, 0
	case s.pauses(a):
		return after.bound(*stall), max(stall.Whole, stall.First, stall.Ceiling)
	}
	return after.bound(*stall), 0
}

// pauses tells whether the engine may be silent in the middle of an answer while it generates: an Ollama,
// and others but a llama-server, show a tool's call only when it is whole; an Ollama whose model has
// thought begins anew, with the grammar.
func (s *stream) pauses(a *answer) bool {
	switch a.node.Engine.Kind {
	case cluster.LlamaServer:
		return false
	case cluster.Ollama:
		return s.req.tools || s.req.format && len(s.thinking) > 0 && !a.spoke
	}
	return s.req.tools
}

// gaps are the silences between a stream's pieces.
type gaps struct {
	sum time.Duration
	max time.Duration
	n   int
}

func (p *gaps) add(gap time.Duration) {
	p.sum += gap
	p.max = max(p.max, gap)
	p.n++
}

func (p *gaps) mean() time.Duration {
	if p.n == 0 {
		return 0
	}
	return p.sum / time.Duration(p.n)
}

// fewGaps is how many gaps say little of a stream.
const fewGaps = 8

// bound is how long the next silence may be: what was learned of other streams, or what this one has
// shown itself, whichever is more patient.
func (p *gaps) bound(s cluster.Stall) time.Duration {
	if s.Next == 0 && p.n < fewGaps {
		return s.Ceiling
	}
	return min(max(s.Floor, s.Next, 16*p.mean(), 3*p.max), s.Ceiling)
}
