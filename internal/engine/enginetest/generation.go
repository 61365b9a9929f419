package enginetest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
)

// runnerDied is Ollama's text when llama-server ends under a request.
const runnerDied = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, check ollama server logs for details"

// dialect turns pieces into the records of one kind of answer. The methods append to b; a text that
// is called json stands inside a JSON string.
type dialect interface {
	failer
	// contentTypes returns those of a stream and of a whole answer.
	contentTypes() (stream, whole string)
	// piece is the record of one piece of content.
	piece(b []byte, text, json string) []byte
	// thought is the record of one piece of thinking.
	thought(b []byte, text, json string) []byte
	// called is the record of a tool call.
	called(b []byte, c *toolCall) []byte
	// end is the terminal record.
	end(b []byte, r *result) []byte
	// whole is the answer that is not streamed.
	whole(b []byte, s said, r *result) []byte
}

// said is an answer that is not streamed, as its parser has split it.
type said struct {
	thinking, content string
	call              *toolCall
}

// call is one request for tokens, in whatever dialect.
type call struct {
	model       Model
	asked       string   // the model's name as the client wrote it
	text        string   // the whole prompt, rendered
	images      []string // base64; part of the prompt for the answer, but not for counts or cache
	limit       int      // pieces; below 0 means Config.Length
	stop        []string
	stream      bool
	temperature float64
	seed        *int64 // nil and negative ones for any
	context     int    // num_ctx, 0 for the default
	keepAlive   *time.Duration
	strictLen   bool // refuse, not cut, a prompt longer than the context ("truncate": false)
	quiet       bool // a model that thinks is told not to
	raw         bool // nothing parses the answer
	object      bool // a grammar lets only a JSON object through
	unthought   bool // the grammar is there from the start: no thinking
}

// result is what the terminal record tells.
type result struct {
	reason       string // stop or length; empty for an answer that was cut
	cut          bool   // the model repeated itself: there is no terminal record
	promptTokens int
	fresh        int // prompt tokens that the cache did not hold
	tokens       int

	total, load, prefill, eval time.Duration
}

// generate answers c: a place in the queue, the model loaded, the prompt evaluated, then a piece
// at a time.
func (s *Server) generate(w http.ResponseWriter, r *http.Request, c *call, d dialect) {
	a := s.newAnswer(w, r, d)
	defer a.close()
	s.finish(a, s.run(a, c, d))
}

// finish counts how an answer ended, and tells the client if nothing was sent yet.
func (s *Server) finish(a *answer, err error) {
	switch {
	case err == nil:
		s.count.completed.Add(1)
	case errors.Is(err, errSpoilt): // counted and told where it happened
	case errors.Is(err, errQueueFull):
		s.count.rejected.Add(1)
		a.errs.fail(a.w, http.StatusServiceUnavailable, err.Error())
	case errors.Is(err, errTooLong):
		a.errs.fail(a.w, http.StatusBadRequest, err.Error())
	default: // the client's context or connection has ended
		s.count.cancelled.Add(1)
		if !a.begun {
			a.errs.fail(a.w, 499, "request canceled")
		}
	}
}

var errTooLong = errors.New("the input length exceeds the context length")

func (s *Server) run(a *answer, c *call, d dialect) error {
	begin := time.Now()
	if c.model.BOS && (c.raw || !strings.HasPrefix(c.text, turnBegin)) {
		c.text = turnBegin + c.text // as the tokenizer has it
	}
	res := result{promptTokens: Tokens(c.text)}
	if limit := s.contextLength(c); res.promptTokens > limit {
		if c.strictLen {
			return errTooLong
		}
		c.text = lastTokens(c.text, limit)
		res.promptTokens = limit
	}
	sl, err := s.slots.take(a.ctx, c.model.Digest, c.text)
	if err != nil {
		return err
	}
	defer s.slots.give(sl)
	if err := a.ctx.Err(); err != nil { // left while it waited
		return err
	}
	if s.cfg.Unaware {
		a.ctx = context.WithoutCancel(a.ctx)
	}
	if err := a.gate(); err != nil {
		return err
	}
	loading := time.Now() // an Ollama's load_duration is without the wait for a slot, its total_duration with it
	l, err := s.load(a, c)
	if err != nil {
		return err
	}
	defer s.catalog.release(l, s.keepAlive(c.keepAlive))
	res.load = time.Since(loading)

	evaluating := time.Now()
	if res.fresh, err = s.prefill(a, sl, c.model.Digest, c.text, res.promptTokens); err != nil {
		return err
	}
	res.prefill = time.Since(evaluating)

	generating := time.Now()
	answer, err := s.speak(a, sl, c, d, &res)
	if err != nil {
		return err
	}
	res.eval, res.total = time.Since(generating), time.Since(begin)
	switch {
	case res.cut && c.stream:
		return nil
	case res.cut: // it tells neither a reason nor counts
		res = result{}
	case c.stream:
		end := d.end((*a.buf)[:0], &res)
		if err := a.record(end); err != nil {
			return err
		}
		return a.again(end, d)
	}
	_, contentType := d.contentTypes()
	return a.body(contentType, d.whole((*a.buf)[:0], answer, &res))
}

// prefill evaluates what the slot does not hold of text, and returns how many tokens that is.
func (s *Server) prefill(a *answer, sl *slot, digest, text string, total int) (fresh int, err error) {
	fresh = sl.prefill(digest, text, total)
	s.count.promptTokens.Add(int64(total))
	s.count.prefilledTokens.Add(int64(fresh))
	if s.cfg.Prefill <= 0 {
		return fresh, nil
	}
	return fresh, a.sleep(time.Duration(float64(fresh)/s.cfg.Prefill*float64(time.Second)), false)
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func (s *Server) contextLength(c *call) int {
	n := c.context
	if n <= 0 {
		n = s.cfg.Context
	}
	return min(n, c.model.ContextLength)
}

func (s *Server) keepAlive(asked *time.Duration) time.Duration {
	if asked == nil {
		return s.cfg.KeepAlive
	}
	return *asked
}

// load makes sure that the model is loaded with the context that c needs.
func (s *Server) load(a *answer, c *call) (*loadedModel, error) {
	return s.catalog.use(a.ctx, c.model, s.contextLength(c), func() error {
		s.count.loads.Add(1)
		return a.sleep(s.cfg.LoadTime, false)
	})
}
