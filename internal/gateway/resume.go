package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/gateway/record"
	"github.com/ollamamax/ollamamax/internal/gateway/resume"
)

// Resume says how answers go on whose node broke. Needs a restart.
type Resume struct {
	// Attempts is how often one answer may go on elsewhere; 0: never. Default 3.
	Attempts int `yaml:"attempts"`
	// MaxBytes is how much of an answer's text is kept for that; a longer one breaks with its node.
	// Default 1 MiB.
	MaxBytes int64 `yaml:"max_bytes"`
	// Wait is how long a broken answer waits for a node that can go on with it. Default 15s.
	Wait time.Duration `yaml:"wait"`
	// DrainGrace is how long the answers of a node that an operator drains may take to end there; then
	// they go on at other nodes, as far as others can. Default 30s; 0: they move at once.
	DrainGrace time.Duration `yaml:"drain_grace"`
	// Thinking says what becomes of an answer that broke while its model was thinking, if another node
	// thinks otherwise: restart the thinking (the default), or error.
	Thinking string `yaml:"thinking"`
	// Seed gives a seed to requests that could not be repeated without one. Default true.
	Seed bool `yaml:"seed"`
}

// The values of gateway.resume.thinking.
const (
	thinkingRestart = "restart"
	thinkingError   = "error"
)

func defaultResume() Resume {
	return Resume{Attempts: 3, MaxBytes: 1 << 20, Wait: 15 * time.Second, DrainGrace: 30 * time.Second, Thinking: thinkingRestart, Seed: true}
}

// Validate returns what is wrong with the settings, for an operator.
func (r Resume) Validate() error {
	switch {
	case r.Attempts < 0 || r.MaxBytes < 0 || r.Wait < 0:
		return fmt.Errorf("gateway.resume is {attempts: %d, max_bytes: %d, wait: %v}: give no negative values; attempts: 0 turns it off", r.Attempts, r.MaxBytes, r.Wait)
	case r.DrainGrace < 0:
		return fmt.Errorf("gateway.resume.drain_grace is %v: give a duration, 0 to have answers leave a drained node at once", r.DrainGrace)
	case r.Thinking != thinkingRestart && r.Thinking != thinkingError:
		return fmt.Errorf("gateway.resume.thinking is %q: use restart or error", r.Thinking)
	}
	return nil
}

// mend has other nodes go on with an answer until it ends, or cannot be ended.
func (s *stream) mend(a *answer, broken *breakError) {
	digest, window := modelDigest(a.node, s.req.Key()), s.window(a.node)
	turns := turns{}
	defer func() { a.close() }()
	for attempt := 1; ; attempt++ {
		began, failed := time.Now(), a.node
		var frozen *frozenError
		silent := errors.As(broken.err, &frozen)
		next := broken.next
		if next != nil { // the attempts are for those that fail
			began, attempt = broken.since, attempt-1
			s.left(a)
			a.close()
		} else {
			a.outcome.Result = cluster.Failed
			if silent && a.outcome.First == 0 {
				a.outcome.Result = cluster.Silent
			}
			a.close()
			if s.x.ctx.Err() != nil {
				s.interrupted()
				return
			}
			if s.tracker.Finished() { // only closing records are missing
				s.finish(record.End{Usage: record.Usage{Output: s.pieces}}) // as far as it can be told
				s.log(broken, failed, "finish", "", time.Since(began))
				return
			}
			s.failedAt(failed.ID, turns, digest, silent, 0)
			var err error
			next, err = s.resume(attempt, turns, digest, window)
			switch {
			case err != nil:
				s.giveUp(broken, failed, err)
				return
			case next == nil: // the limit was reached: nothing is left to say
				s.log(broken, failed, "finish", "", time.Since(began))
				return
			}
		}
		pause := time.Since(began)
		s.x.progress.resumes.Add(1)
		s.x.progress.broke.Store(&broken.kind)
		s.x.progress.node.Store(&next.node.Name)
		s.g.metrics.pause.Observe(pause.Seconds())
		s.log(broken, failed, next.method.String(), next.node.Name, pause)
		s.gaps = gaps{}
		if silent && next.node.ID == failed.ID { // it was no frozen engine: others' prompts, or too much work
			s.gaps.max = frozen.silent
		}
		a = next.answer
		if next.method == resume.Replay {
			broken = s.replay(next)
		} else {
			broken = s.goOn(next)
		}
		if broken == nil {
			return
		}
	}
}

// log counts a resume and says it in one line.
func (s *stream) log(broken *breakError, failed *cluster.Node, method, node string, pause time.Duration) {
	s.g.metrics.resumes.WithLabelValues(broken.kind, method).Inc()
	s.g.deps.Log.Info("stream broke and goes on", "id", s.x.id, "broke", broken.kind, "why", broken, "failed", failed.Name,
		"method", method, "node", node, "pieces", s.pieces, "pause", pause)
}

// giveUp tells the client, in its dialect, that its answer does not go on.
func (s *stream) giveUp(broken *breakError, failed *cluster.Node, err error) {
	if s.x.ctx.Err() != nil {
		s.interrupted()
		return
	}
	s.g.metrics.resumes.WithLabelValues(broken.kind, "failed").Inc()
	s.fail(fmt.Sprintf("node %s failed in the middle of the answer (%v), and no other could go on with it: %v", failed.Name, broken, err))
}

// interrupted ends an answer whose time is over or that an operator cancelled; a client that left is
// told nothing.
func (s *stream) interrupted() {
	switch cause := context.Cause(s.x.ctx); {
	case s.fold != nil: // nothing of it has gone to the client
		s.g.fail(s.x, cause)
	case errors.Is(cause, errCancelled):
		s.fail(cause.Error())
	case errors.Is(cause, context.DeadlineExceeded):
		s.fail("the request's deadline passed in the middle of the answer")
	}
}

// fail ends the answer with the dialect's error.
func (s *stream) fail(message string) {
	if s.fold != nil {
		s.g.fail(s.x, &refusal{status: http.StatusBadGateway, message: message})
		return
	}
	s.x.cut = true
	_ = s.client.write(s.tracker.AppendError(nil, http.StatusBadGateway, message), true) // nobody else is to be told
}

// finish writes the closing records that are missing.
func (s *stream) finish(end record.End) {
	end.Text, end.Thinking = s.text, s.thinking
	s.emit(func(b []byte) []byte { return s.tracker.AppendEnd(b, end) })
	if s.fold != nil {
		s.folded()
		return
	}
	_ = s.client.write(s.own, true) // the answer ends here, whether the client is there or not
}

// emit appends records of ours to what is to go out.
func (s *stream) emit(write func([]byte) []byte) {
	before := len(s.own)
	s.own = write(s.own)
	if s.fold == nil {
		return
	}
	for b := s.own[before:]; len(b) > 0; {
		n := s.form.Split(b)
		if n == 0 {
			n = len(b)
		}
		s.fold.Add(b[:n], s.fold.tracker.Follow(b[:n]))
		b = b[n:]
	}
	s.own = s.own[:0]
}

// turns is which nodes have failed to go on with an answer, and when each may be asked again.
type turns map[cluster.NodeID]turn

type turn struct {
	at    time.Time
	pause time.Duration // before it, twice as long each time
	last  bool          // it comes after all others: it hung, or will not
}

// notYet returns the nodes that are not to be asked now.
func (t turns) notYet(now time.Time) (ids []cluster.NodeID) {
	for id, turn := range t {
		if now.Before(turn.at) {
			ids = append(ids, id)
		}
	}
	return ids
}

// failedAt notes that a node has failed, which is asked again after a pause, of at least so long. One that
// was silent would be waited for while others come back: it has to wait for half of the time that there is,
// unless no other holds the model.
func (s *stream) failedAt(id cluster.NodeID, t turns, digest string, silent bool, least time.Duration) {
	now, pause := time.Now(), max(resumeEvery, 2*t[id].pause)
	t[id] = turn{now.Add(max(pause, least)), pause, silent}
	if until := now.Add(s.g.cfg.Resume.Wait / 2); silent && t[id].at.Before(until) && s.elsewhere(t, digest) {
		t[id] = turn{until, pause, silent}
	}
}

// elsewhere tells whether a node holds the model that does not come last.
func (s *stream) elsewhere(t turns, digest string) bool {
	return slices.ContainsFunc(s.g.deps.View().Replicas(s.req.Key()), func(r cluster.Replica) bool {
		return r.Model.Kin() == digest && !t[r.Node.ID].last
	})
}

// resume finds a node that goes on with the answer, at first one of those that have not failed, and reads
// the first record of the rest. It returns nil if nothing is left to say, and then has said so.
func (s *stream) resume(attempt int, t turns, digest string, window int) (*rest, error) {
	limit := s.g.cfg.Resume
	switch {
	case limit.Attempts == 0:
		return nil, errors.New("gateway.resume.attempts is 0")
	case attempt > limit.Attempts:
		return nil, fmt.Errorf("it has gone on %d times already", attempt-1)
	case s.long && s.fold == nil:
		return nil, fmt.Errorf("the answer is longer than %d bytes", limit.MaxBytes)
	}
	ctx, cancel := context.WithTimeout(s.x.ctx, limit.Wait)
	defer cancel()
	ticker := time.NewTicker(resumeEvery)
	defer ticker.Stop()
	for id, turn := range t { // one that has failed may be back: an engine that was started again
		if soon := time.Now().Add(resumeEvery); turn.at.Before(soon) {
			turn.at = soon
			t[id] = turn
		}
	}
	r := s.remainder(digest, window)
	again := s.onlyAgain
	last := errors.New("no other node holds the same model and is well")
	for asked := false; !asked || ctx.Err() == nil; asked = true {
		if lease := s.g.deps.Try(&r, t.notYet(time.Now())); lease != nil {
			next, over, err := s.ask(s.x.ctx, lease)
			switch {
			case over:
				s.finish(record.End{Reason: "length", Usage: record.Usage{Output: s.pieces}})
				return nil, nil
			case err == nil:
				if next.method == resume.Replay && s.fold != nil {
					s.anew(next)
				}
				return next, nil
			}
			var final *noWayError
			if errors.As(err, &final) || s.x.ctx.Err() != nil {
				return nil, err
			}
			last = fmt.Errorf("node %s: %w", lease.Node.Name, err)
			if s.onlyAgain && !again {
				again = true
				continue
			}
			var no unwillingError
			errors.As(err, &no)
			s.failedAt(lease.Node.ID, t, digest, errors.Is(err, errFrozen) || errors.Is(err, context.DeadlineExceeded), no.after)
			if no.forGood {
				t[lease.Node.ID] = turn{at: time.Now().Add(2 * limit.Wait), last: true}
				if !s.elsewhere(t, digest) {
					return nil, last
				}
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil, last
		case <-ticker.C:
		}
	}
	return nil, last
}

// remainder is the request for the rest of the answer, as far as a choice of nodes goes. It needs the context that the
// answer began with, or less, if prompt and answer surely fit.
func (s *stream) remainder(digest string, window int) cluster.Request {
	r := s.req.Request
	limit := r.MaxTokens
	if limit == 0 {
		limit = s.pieces + usualRest
	}
	if r.NumCtx > 0 {
		window = min(window, r.NumCtx)
	}
	r.MinContext = min(window, (r.PromptBytes+r.ImageBytes)/leastBytesPerToken+limit)
	r.Urgent, r.Pinned, r.Digest = true, true, digest
	r.PromptBytes += len(s.text)
	return r
}

const (
	usualRest          = 2048 // tokens for which there must be room, where no limit was asked for
	leastBytesPerToken = 2
)

// resumeEvery is how often a broken answer looks for a node, when none was there, and how soon it comes
// back to one that failed for the first time.
const resumeEvery = 250 * time.Millisecond

// noWayError says that no node can go on, whichever.
type noWayError struct{ why string }

func (e *noWayError) Error() string { return e.why }

// unwillingError is what an engine answered that does not go on with an answer.
type unwillingError struct {
	status  int
	text    string
	after   time.Duration // it asked to be left alone for so long
	forGood bool          // it does not take the client's request
}

func (e unwillingError) Error() string { return fmt.Sprintf("answered %d: %s", e.status, e.text) }

// ask has a node go on with the answer, while ctx lasts. over tells that nothing is left to say.
func (s *stream) ask(ctx context.Context, lease *cluster.Lease) (next *rest, over bool, err error) {
	answered := false
	defer func() {
		if !answered {
			lease.Done(cluster.Outcome{})
		}
	}()
	facts, err := s.facts(ctx, lease)
	if err != nil {
		return nil, false, err
	}
	before := resume.Answer{Path: s.req.Path, Body: s.req.text, Pieces: s.pieces, ToolDone: s.called,
		Text: unescaped(s.text), Thinking: unescaped(s.thinking)}
	method, why := resume.Decide(before, facts)
	switch {
	case method == resume.None && s.fold != nil: // the client has nothing of it: it is made anew
		method = resume.Replay
	case method == resume.None:
		return nil, false, &noWayError{why}
	}
	if method == resume.Finish {
		return nil, true, nil
	}
	if s.onlyAgain {
		method = resume.Replay
	}
	req, err := s.continuation(ctx, lease, method, before, facts)
	if err != nil {
		s.g.deps.Log.Debug("cannot go on behind the text; asking for the whole answer again", "id", s.x.id, "node", lease.Node.Name, "why", err)
		method, req = resume.Replay, s.again()
	}
	answered = true // the attempt gives the slot back
	a, err := s.g.attempt(ctx, s.x, req, lease)
	if err != nil {
		return nil, false, err
	}
	if !a.follows {
		no := unwillingError{status: a.resp.StatusCode, text: string((*a.buf)[:min(a.n, 200)]), after: retryAfter(a.resp.Header)} // the buffer is another's after close
		a.close()
		switch {
		case no.status >= http.StatusInternalServerError || no.status == http.StatusTooManyRequests:
		case method != resume.Replay:
			s.onlyAgain = true // an engine that does not go on this way may still answer the request itself
		default:
			no.forGood = no.status >= http.StatusBadRequest && no.status != http.StatusNotFound && no.status != http.StatusRequestTimeout
		}
		return nil, false, no
	}
	next = &rest{answer: a, method: method, pieces: s.pieces}
	if method == resume.Replay {
		next.replay = record.NewReplay(s.tracker, bytes.Clone(s.text), bytes.Clone(s.thinking))
	}
	return next, false, nil
}

// anew forgets an answer that broke and of which the client has nothing yet, since another node says it
// from its beginning, and perhaps otherwise.
func (s *stream) anew(r *rest) {
	s.tracker = record.NewTracker(s.form, s.req.usage)
	s.fold = newFold(s.form)
	s.text, s.thinking, s.last = nil, nil, nil
	s.pieces, s.same, s.called, s.onlyAgain, s.long, s.fixed = 0, 0, false, false, false, false
	r.pieces, r.replay = 0, record.NewReplay(s.tracker, nil, nil)
}

// again is the client's request once more.
func (s *stream) again() *request {
	req := *s.req
	req.body, req.stream, req.derived = req.text, true, true // which is not compressed
	return &req
}

// continuation makes the request for the rest of an answer.
func (s *stream) continuation(ctx context.Context, lease *cluster.Lease, method resume.Method, before resume.Answer, facts resume.Facts) (*request, error) {
	switch method {
	case resume.Replay:
		return s.again(), nil
	case resume.Prefill:
		body, err := resume.PrefillBody(before, facts)
		if err != nil {
			return nil, err
		}
		return s.derived(s.req.Path, body), nil
	}
	path, body, err := resume.Render(before, facts)
	if err != nil {
		return nil, err
	}
	plain, err := s.render(ctx, lease, path, body)
	if err != nil {
		return nil, err
	}
	if method == resume.Raw {
		body, err = resume.RawBody(before, plain, facts)
	} else {
		if path, body, err = resume.RenderWhole(before, facts); err != nil {
			return nil, err
		}
		var whole resume.Rendering
		if whole, err = s.render(ctx, lease, path, body); err != nil {
			return nil, err
		}
		body, err = resume.ProbedBody(before, plain, whole, facts)
	}
	if err != nil {
		return nil, err
	}
	return s.derived("/api/generate", body), nil
}

// render asks an engine how it would render a prompt.
func (s *stream) render(ctx context.Context, lease *cluster.Lease, path string, body []byte) (resume.Rendering, error) {
	text, err := s.call(ctx, lease, path, body)
	if err != nil {
		return resume.Rendering{}, err
	}
	return resume.ReadRendering(text)
}

// derived is a request of ours to an engine.
func (s *stream) derived(path string, body []byte) *request {
	req := *s.req
	req.Path, req.body, req.text, req.stream, req.derived, req.folded = path, body, body, true, true, false
	return &req
}

// call sends a request of ours and returns the answer's body. It may take as long as a first piece,
// since it may have the model loaded.
func (s *stream) call(ctx context.Context, lease *cluster.Lease, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, lease.Stall.First)
	defer cancel()
	resp, err := s.g.send(lease.Node, s.g.outgoing(ctx, s.x, s.derived(path, body)))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxCalled+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read answer of %s: %w", path, err)
	case len(text) > maxCalled:
		return nil, fmt.Errorf("read answer of %s: longer than %d bytes", path, maxCalled)
	case resp.Header.Get(refusedHeader) != "" && lease.Node.ID != s.g.deps.View().Self:
		return nil, refusedError(resp.Header.Get(refusedHeader))
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("ask %s: status %d: %.200s", path, resp.StatusCode, text)
	}
	return text, nil
}

// maxCalled bounds the answer to a request of ours: a whole vocabulary is some megabytes.
const maxCalled = 64 << 20

// facts returns what must be known of a node's model to go on with its answers. What an Ollama shows
// of a digest is asked once.
func (s *stream) facts(ctx context.Context, lease *cluster.Lease) (resume.Facts, error) {
	node := lease.Node
	model, _ := node.Model(s.req.Key())
	if node.Engine.Kind != cluster.Ollama {
		return resume.Facts{Kind: node.Engine.Kind, Continues: resume.Continues(model.V1)}, nil
	}
	if known, ok := s.g.shown.Load(model.Digest); ok && model.Digest != "" {
		return known.(resume.Facts), nil
	}
	ctx, cancel := context.WithTimeout(ctx, max(s.g.cfg.Resume.Wait, time.Second)) // it loads nothing
	defer cancel()
	for _, verbose := range []bool{false, true} {
		body, err := json.Marshal(map[string]any{"model": s.req.Model, "verbose": verbose})
		if err != nil {
			return resume.Facts{}, err
		}
		text, err := s.call(ctx, lease, "/api/show", body)
		if err != nil {
			return resume.Facts{}, err
		}
		facts, more, err := resume.ReadShow(text)
		if err != nil {
			return resume.Facts{}, err
		}
		if !more || verbose {
			s.g.shown.Store(model.Digest, facts)
			return facts, nil
		}
	}
	return resume.Facts{}, nil // not reached
}

// modelDigest is the digest of a node's model, or what else its kin have.
func modelDigest(n *cluster.Node, canonical string) string {
	m, _ := n.Model(canonical)
	return m.Kin()
}

// window is the context that a node has loaded a request's model with; 0 if that is not known.
func (s *stream) window(n *cluster.Node) int {
	if now := s.g.deps.View().Node(n.ID); now != nil {
		n = now
	}
	l, _ := n.LoadedModel(s.req.Key())
	return l.ContextLength
}

// unescaped returns the text of what stands inside a JSON string.
func unescaped(inside []byte) string {
	if bytes.IndexByte(inside, '\\') < 0 {
		return string(inside)
	}
	var text string
	quoted := append(append(append(make([]byte, 0, len(inside)+2), '"'), inside...), '"')
	if err := json.Unmarshal(quoted, &text); err != nil {
		text, err = strconv.Unquote(string(quoted))
		if err != nil {
			return string(inside) // an engine's own way to write strings
		}
	}
	return text
}
