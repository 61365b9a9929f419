package gateway

import (
	"bytes"
	"fmt"

	"github.com/ollamamax/ollamamax/internal/gateway/record"
	"github.com/ollamamax/ollamamax/internal/gateway/resume"
)

// rest is the rest of an answer, as another node gives it.
type rest struct {
	*answer
	method resume.Method
	replay *record.Replay // of a replay
	pieces int            // what the client had before
	ended  bool           // its last record was taken in when it caught up
}

// goOn passes the rest on that begins behind what the client has. It returns nil when the answer
// ended or the client left, else how it broke again.
func (s *stream) goOn(r *rest) *breakError {
	of := record.NewTracker(r.form, false)
	reason := ""
	if s.own == nil {
		s.own = make([]byte, 0, smallBuffer)
	}
	for {
		rec, broken := s.next(r.answer)
		if rec == nil {
			return broken
		}
		e := of.Follow(rec)
		if e.Failed || e.Garbage {
			if s.write(r.answer) != nil {
				s.left(r.answer)
				return nil
			}
			return brokenBy(e)
		}
		s.hear(r.answer, e)
		s.count(&r.outcome, e)
		if e.Reason != "" {
			reason = e.Reason
		}
		if len(e.Text) > 0 || len(e.Thinking) > 0 {
			s.emit(func(b []byte) []byte { return s.tracker.AppendText(b, e) })
			s.keep(e, r.pieces)
		}
		r.at += len(rec)
		if e.Done {
			usage := record.Usage{Load: e.Load, Prefill: e.Prefill, Eval: e.Eval, Total: e.Total}
			usage.Prompt, usage.Output = resume.Count(r.pieces, r.outcome.PromptTokens, r.outcome.OutputTokens)
			end := record.End{Reason: ollamaReason(reason), Usage: usage, CreatedAt: bytes.Clone(e.CreatedAt), Text: s.text, Thinking: s.thinking}
			s.emit(func(b []byte) []byte { return s.tracker.AppendEnd(b, end) })
			s.end(r.answer)
			return nil
		}
	}
}

// ollamaReason is why an answer ended, in Ollama's word.
func ollamaReason(reason string) string {
	switch reason {
	case "length", "max_tokens", "incomplete", "max_output_tokens":
		return "length"
	}
	return "stop"
}

// replay passes on what a node says anew of the whole answer, as far as the client does not have it.
func (s *stream) replay(r *rest) *breakError {
	if s.own == nil {
		s.own = make([]byte, 0, smallBuffer)
	}
	if r.ended {
		s.end(r.answer)
		return nil
	}
	for {
		rec, broken := s.next(r.answer)
		if rec == nil {
			return broken
		}
		var e record.Event
		var verdict record.Verdict
		s.emit(func(b []byte) []byte {
			b, e, verdict = r.replay.Append(b, rec)
			if verdict == record.Diverged && s.g.cfg.Resume.Thinking == thinkingRestart {
				var again bool
				if b, e, again = r.replay.Restart(b, rec, e); again {
					verdict = record.Delivered
				}
			}
			return b
		})
		switch {
		case e.Failed || e.Garbage:
			if s.write(r.answer) != nil {
				s.left(r.answer)
				return nil
			}
			return brokenBy(e)
		case verdict == record.Diverged:
			s.fail(fmt.Sprintf("node %s gives another answer to the same request: the first %d pieces cannot be joined with it", r.node.Name, s.pieces))
			return nil
		}
		s.hear(r.answer, e)
		s.count(&r.outcome, e)
		if verdict == record.Delivered {
			s.keep(e, 0)
		}
		r.at += len(rec)
		if e.Done {
			s.end(r.answer)
			return nil
		}
	}
}
