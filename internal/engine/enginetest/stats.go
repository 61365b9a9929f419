package enginetest

import "sync/atomic"

// Stats is what a server has done since it was made.
type Stats struct {
	Requests  int64 `json:"requests"`       // on inference routes, refused ones (FaultRefuse) excluded
	InFlight  int   `json:"in_flight"`      // holding a slot now
	Waiting   int   `json:"waiting"`        // in the queue now
	Peak      int   `json:"peak_in_flight"` // the most that held a slot at once
	Rejected  int64 `json:"rejected"`       // 503 because the queue was full
	Completed int64 `json:"completed"`      // answers sent whole
	Cancelled int64 `json:"cancelled"`      // clients that left before their answer was whole
	Faulted   int64 `json:"faulted"`        // answers that a fault spoilt
	Loads     int64 `json:"loads"`          // models loaded

	PromptTokens    int64 `json:"prompt_tokens"`    // in all prompts
	PrefilledTokens int64 `json:"prefilled_tokens"` // of them, not found in the prompt cache
	GeneratedTokens int64 `json:"generated_tokens"` // pieces generated

	Renders int64            `json:"renders"` // prompts shown: _debug_render_only, and llama-server's /apply-template
	Raw     int64            `json:"raw"`     // raw requests to generate
	Paths   map[string]int64 `json:"paths"`   // all requests by path, but for paths without any and unknown ones
}

type counters struct {
	requests, rejected, completed, cancelled, faulted, loads atomic.Int64
	promptTokens, prefilledTokens, generatedTokens           atomic.Int64
	renders, raw                                             atomic.Int64
}

// Stats returns the counts so far; they are not taken at one instant.
func (s *Server) Stats() Stats {
	c := &s.count
	st := Stats{
		Requests: c.requests.Load(), Rejected: c.rejected.Load(), Completed: c.completed.Load(),
		Cancelled: c.cancelled.Load(), Faulted: c.faulted.Load(), Loads: c.loads.Load(),
		PromptTokens: c.promptTokens.Load(), PrefilledTokens: c.prefilledTokens.Load(),
		GeneratedTokens: c.generatedTokens.Load(), Renders: c.renders.Load(), Raw: c.raw.Load(),
		Paths: map[string]int64{},
	}
	for path, n := range s.paths {
		if n := n.Load(); n > 0 {
			st.Paths[path] = n
		}
	}
	st.InFlight, st.Waiting, st.Peak = s.slots.load()
	return st
}
