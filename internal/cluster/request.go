package cluster

import (
	"errors"
	"time"
)

// Request is what a decision needs to know of a client's request: never its text.
type Request struct {
	ID    string // the client's X-Request-Id, or ours
	Path  string // the client's route, such as /api/chat
	Model string // as the client wrote it; "" when the route has none
	// Canonical is the model's one spelling, if somebody has made it; see Key.
	Canonical string
	// Infers tells that it takes a slot of an engine, for which it may have to wait.
	Infers bool
	// Reads tells that the answer is not generated: embeddings.
	Reads bool

	PromptBytes int // length of what the model has to read, with its quotes and keys
	ImageBytes  int // length of the pictures in it, which are not counted there
	MaxTokens   int // the most tokens that the answer may have; 0: no limit was asked for
	NumCtx      int // the context length that the client asks for; 0: the engine's choice
	// Runner is a digest of the options that make an engine load its model anew when they change;
	// 0: the engine's choice.
	Runner uint64
	// Prefix is the prompt's beginning in growing pieces, the longest last: two prompts with the same
	// digest begin with the same bytes.
	Prefix []Prefix

	Labels     map[string]string // a node must have them all
	Pinned     bool              // only replicas of the Kin Digest, else those of the digest that stands for the name
	Digest     string            // "" is that of models that have none
	MinContext int               // only nodes that have the model loaded with so much context, or would; 0: any
	Caller     string            // who asks, for fairness; never logged
	Priority   Priority
	Deadline   time.Time // the zero time: none
	// Again tells that it has had its turn once, at a node that then failed: it goes before those who
	// have not.
	Again bool
	// Urgent is the rest of an answer that a client is reading: it waits for nobody.
	Urgent bool
}

// Key returns the one spelling of the model's name.
func (r *Request) Key() string {
	if r.Canonical != "" {
		return r.Canonical
	}
	return CanonicalModel(r.Model)
}

// Prefix is a piece of a prompt from its beginning on.
type Prefix struct {
	Digest uint64
	Bytes  int
}

// Priority is how urgent a client says that its request is.
type Priority int8

// The priorities, of which Normal is the zero value.
const (
	Low    Priority = -1
	Normal Priority = 0
	High   Priority = 1
)

// String returns the word that clients use.
func (p Priority) String() string {
	switch {
	case p < Normal:
		return "low"
	case p > Normal:
		return "high"
	}
	return "normal"
}

// Lease is a node's slot, lent to one attempt.
type Lease struct {
	Node  *Node
	Stall Stall
	// Began says that the answer's first piece has come. It may be nil, and is called at most once.
	Began func()
	// Done gives the slot back and says how it went. It must be called exactly once.
	Done func(Outcome)
}

// Stall bounds how long an engine may be silent before it must be taken for frozen.
type Stall struct {
	First time.Duration // until an answer's first piece
	Whole time.Duration // until the end of an answer that does not stream, or of a call that is shown whole; 0: unbounded
	Next  time.Duration // between two pieces, as learned; 0: unknown
	// Floor and Ceiling bound what a stream's own gaps make of Next.
	Floor, Ceiling time.Duration
}

// Result says how an attempt went, as far as its node is concerned.
type Result int8

// The results of an attempt.
const (
	Abandoned  Result = iota // the client left, or nobody needs the answer any more: nobody's fault
	Answered                 // whole, or refused for a reason that lies in the request
	Failed                   // the node or its engine broke, or said nonsense
	Overloaded               // the engine answered that it cannot now, or not in time
	Silent                   // the engine did not begin in time
)

// Outcome is what an attempt has shown. Zero figures are unknown.
type Outcome struct {
	Result     Result
	RetryAfter time.Duration // what an overloaded engine asked for

	First           time.Duration // from sending the request to the answer's first piece
	MeanGap, MaxGap time.Duration // between two pieces of a stream

	// What the engine says itself.
	PromptTokens, OutputTokens int
	Load, Prefill, Eval, Total time.Duration
}

// ErrNobody says that no node can serve a request, whether busy or not.
var ErrNobody = errors.New("no node can serve this")

// NoRoomError says that a request was not let to wait for a slot, since it would wait in vain.
type NoRoomError struct {
	Why        string
	RetryAfter time.Duration // by which there should be room
}

func (e *NoRoomError) Error() string { return e.Why }
