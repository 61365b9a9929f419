package enginetest

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"time"
)

// runnerDied is Ollama's text when llama-server ends under a request.
const runnerDied = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, check ollama server logs for details"

// dialect turns pieces into the records of one kind of answer. The methods append to b.
type dialect interface {
	failer
	// contentTypes returns those of a stream and of a whole answer.
	contentTypes() (stream, whole string)
	// piece is the record of one piece; json is text inside a JSON string.
	piece(b []byte, text, json string) []byte
	// end is the terminal record.
	end(b []byte, r *result) []byte
	// whole is the answer that is not streamed.
	whole(b []byte, text string, r *result) []byte
}

// call is one request for tokens, in whatever dialect.
type call struct {
	model     Model
	text      string   // the whole prompt, rendered
	images    []string // base64; part of the prompt for the answer, but not for counts or cache
	limit     int      // pieces; below 0 means Config.Length
	stop      []string
	stream    bool
	context   int // num_ctx, 0 for the default
	keepAlive *time.Duration
	strictLen bool // refuse, not cut, a prompt longer than the context ("truncate": false)
}

// result is what the terminal record tells.
type result struct {
	reason       string // stop or length
	promptTokens int
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
	if err := a.gate(); err != nil {
		return err
	}
	l, err := s.load(a, c)
	if err != nil {
		return err
	}
	defer s.catalog.release(l, s.keepAlive(c.keepAlive))
	res.load = time.Since(begin)

	evaluating := time.Now()
	if err := s.prefill(a, sl, c.model.Digest, c.text, res.promptTokens); err != nil {
		return err
	}
	res.prefill = time.Since(evaluating)

	generating := time.Now()
	text, err := s.speak(a, sl, c, d, &res)
	if err != nil {
		return err
	}
	res.eval, res.total = time.Since(generating), time.Since(begin)
	if c.stream {
		return a.record(d.end((*a.buf)[:0], &res))
	}
	_, contentType := d.contentTypes()
	return a.body(contentType, d.whole((*a.buf)[:0], string(text), &res))
}

// prefill evaluates what the slot does not hold of text.
func (s *Server) prefill(a *answer, sl *slot, digest, text string, total int) error {
	fresh := sl.prefill(digest, text, total)
	s.count.promptTokens.Add(int64(total))
	s.count.prefilledTokens.Add(int64(fresh))
	if s.cfg.Prefill <= 0 {
		return nil
	}
	return a.sleep(time.Duration(float64(fresh)/s.cfg.Prefill*float64(time.Second)), false)
}

// speak generates the answer's pieces, streams them if asked to, and returns the answer. It grows
// in the slot, which remembers it with the prompt.
func (s *Server) speak(a *answer, sl *slot, c *call, d dialect, res *result) ([]byte, error) {
	defer func() { s.count.generatedTokens.Add(int64(res.tokens)) }()
	if c.stream {
		contentType, _ := d.contentTypes()
		a.stream(contentType)
	}
	h := newTextHash(s.cfg.Seed, c.model.Digest)
	for _, img := range c.images {
		h = h.write(img).write("\x00")
	}
	h = h.write(c.text)

	limit := c.limit
	res.reason = "length"
	if limit < 0 {
		limit = max(s.cfg.Length-spoken(c.text), 0)
		res.reason = "stop"
	}
	prompt, out := len(sl.text), 0 // where the answer begins; how much of it went out
	wait := s.cfg.FirstToken
	for ; res.tokens < limit; wait = s.cfg.TokenGap {
		if err := a.sleep(wait, true); err != nil {
			return nil, err
		}
		p := h.next()
		h = h.write(p.text)
		sl.text = append(sl.text, p.text...)
		res.tokens++
		if len(c.stop) > 0 {
			text := sl.text[prompt:]
			ready, stopped := untilStop(text[out:], c.stop)
			if ready > 0 && c.stream {
				if err := a.record(d.piece((*a.buf)[:0], string(text[out:out+ready]), quoted(string(text[out:out+ready])))); err != nil {
					return nil, err
				}
			}
			out += ready
			if stopped {
				res.reason = "stop"
				return text[:out], nil
			}
			continue
		}
		if c.stream {
			if err := a.record(d.piece((*a.buf)[:0], p.text, p.json)); err != nil {
				return nil, err
			}
		} else if err := a.gatePassing(res.tokens); err != nil {
			return nil, err
		}
	}
	text := sl.text[prompt:]
	if len(c.stop) > 0 && c.stream && out < len(text) {
		if err := a.record(d.piece((*a.buf)[:0], string(text[out:]), quoted(string(text[out:])))); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// gatePassing looks now and then whether the client of an unstreamed answer is still there.
func (a *answer) gatePassing(tokens int) error {
	if tokens&63 != 0 {
		return nil
	}
	return a.ctx.Err()
}

// untilStop returns how many bytes of text may go out: up to a stop sequence, or up to what could
// become one.
func untilStop(text []byte, stop []string) (ready int, stopped bool) {
	ready = len(text)
	for _, seq := range stop {
		if i := bytes.Index(text, []byte(seq)); i >= 0 && (i < ready || !stopped) {
			ready, stopped = i, true
		}
	}
	if stopped {
		return ready, true
	}
	for _, seq := range stop {
		for n := min(len(seq)-1, len(text)); n > 0; n-- {
			if string(text[len(text)-n:]) == seq[:n] {
				ready = min(ready, len(text)-n)
				break
			}
		}
	}
	return ready, false
}

// spoken returns how many pieces of the answer the prompt holds already: those after the last
// place where the template lets the assistant speak.
func spoken(text string) int {
	_, after, ok := cutLast(text, turnAssistant)
	if !ok {
		return 0
	}
	return strings.Count(after, " ")
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
