// Package resume says how the rest of an answer that broke off is asked of another engine. It makes
// request bodies and reads small answers; it sends nothing, and knows no time.
//
// Decide names the Method. Of these only Raw and Probe take more than one request:
//
//   - Raw: ask the target for the prompt it would render (Render, ReadRendering), then have it go on
//     behind that prompt and the delivered text (RawBody).
//   - Probe: as Raw, with a second rendering (RenderWhole) that shows how the model's own template
//     writes what stood before the text, such as the thinking (ProbedBody).
//   - Prefill: the client's own request with the delivered text at its end (PrefillBody).
//   - Replay: the client's own request once more; what equals the delivered text is for the gateway to
//     suppress. NeedsSeed and WithSeed make requests repeatable before they are sent at first.
//
// Invariants: what the first engine was told, the second is told too, down to the defaults, which
// differ between dialects: Ollama's own converters make of a /v1 request what Ollama would make of
// it. A limit of tokens holds for the whole answer. What cannot be joined exactly is an error, never
// another answer. A failing Raw, Probe or Prefill leaves Replay.
package resume

import (
	"strings"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Answer is a client's request and how much of its answer the client has.
type Answer struct {
	Path string // the client's route
	Body []byte // JSON, not compressed, as it was sent to the first engine
	// Text and Thinking are what was delivered, decoded.
	Text, Thinking string
	// Pieces counts the tokens delivered, of text or thinking: the records that had any, or, where the
	// records have logprobs, those. A record may hold several tokens (a character of several, a stop
	// sequence that came to nothing), so that records alone count too few rather than too many.
	Pieces int
	// ToolDone tells that a complete tool call went out.
	ToolDone bool
}

// Facts is what must be known of the model and of the engine that is to go on. ReadShow reads those
// of an Ollama.
type Facts struct {
	Kind cluster.EngineKind

	Thinks     bool   // the model can think, and does unless told otherwise
	Renderer   string // Ollama's built-in renderer of the model's prompts; "" for a template
	Parser     string // Ollama's built-in parser of the model's answers; "" for none
	Jinja      bool   // the prompts of chats are made by the template in the model's file
	BOS        string // the token that both the renderer and the tokenizer put in front of a prompt; "" for none
	NumPredict int    // the model's own limit of tokens; 0 for none

	// Continues tells of an engine of kind openai that it is known to heed continue_final_message.
	// Others would close the delivered text and begin anew.
	Continues bool
}

// Method is how the rest of an answer is got.
type Method int

// The methods; see the package comment for what each takes.
const (
	None    Method = iota // there is no way: the client's dialect's error
	Finish                // nothing is left of the limit: the gateway ends the answer itself, with "length"
	Raw                   // go on behind the rendered prompt
	Probe                 // go on behind the rendered prompt and what the template puts before the text
	Prefill               // the same request with the text at its end
	Replay                // the same request from its beginning
)

func (m Method) String() string {
	return [...]string{"none", "finish", "raw", "probe", "prefill", "replay"}[m]
}

// Decide returns the method for an answer on a target, and why it is no better one ("" for Raw and
// Prefill). An answer of which nothing was delivered is begun anew.
func Decide(a Answer, f Facts) (Method, string) {
	r, err := read(a.Path, a.Body, f)
	switch {
	case err != nil:
		return None, err.Error()
	case a.ToolDone:
		return None, "a tool call went out"
	case r.choices > 1:
		return None, "the client asked for several answers at once"
	}
	if limit := r.limit(f); limit >= 0 && a.Pieces >= limit && a.Pieces > 0 {
		return Finish, "the limit of tokens is reached"
	}
	switch {
	case a.Text == "" && a.Thinking == "":
		return Replay, "nothing was delivered"
	case a.Text == "":
		return Replay, "it broke off while thinking"
	case r.tools:
		return Replay, "the request has tools"
	case r.format:
		return Replay, "the request has a format, and a grammar cannot begin in the middle"
	}
	if f.Kind == cluster.Ollama {
		return r.decideOllama(a, f)
	}
	return r.decideOther(a, f)
}

// decideOllama decides between Raw and Probe: a model that thinks, or whose answers Ollama takes apart,
// may have written more before the text than the text shows.
func (r *request) decideOllama(a Answer, f Facts) (Method, string) {
	switch n := r.native; {
	case n == nil:
		return Replay, "Ollama's converters do not read this request"
	case a.Thinking != "" && !n.chatLike():
		return Replay, "the model has thought, and this prompt is not made of messages"
	case a.Thinking != "":
		return Probe, "the model has thought before the text"
	case n.generate != nil && n.generate.Raw:
		return Raw, ""
	case n.generate != nil && f.Jinja:
		return Raw, "" // Ollama leaves thinking in the text
	case f.Thinks && n.thinks() && !n.chatLike():
		return Replay, "the model thinks, and this prompt is not made of messages"
	case f.Thinks && n.thinks():
		return Probe, "the model thinks"
	case f.Parser != "" && n.chatLike():
		return Probe, "the model's answers are taken apart"
	}
	return Raw, ""
}

// decideOther decides for the engines that have /v1 routes only.
func (r *request) decideOther(a Answer, f Facts) (Method, string) {
	llama := f.Kind == cluster.LlamaServer
	switch {
	case r.path == pathCompletions && !r.appendable:
		return Replay, "the prompt is not one text that can be lengthened"
	case r.path == pathCompletions:
		return Prefill, ""
	case a.Thinking != "":
		return Replay, "the model has thought before the text"
	case !llama && !f.Continues:
		return Replay, "the engine is not known to go on in a message"
	case !llama && r.path != pathChatCompletions:
		return Replay, "the engine is not known to go on in a message on this route"
	case !r.appendable:
		return Replay, "the last message is not a text that can be lengthened"
	}
	return Prefill, ""
}

// Count returns the tokens of the prompt and of the whole answer, given the pieces delivered before
// the last engine went on and the counts of its terminal record. The sum is exact where the text
// reads back as the tokens it was made of; the halves are as exact as the pieces. It holds for Raw,
// Probe and Prefill; a replay's own counts are right as they are.
func Count(pieces, promptEval, eval int) (prompt, output int) {
	return max(promptEval-pieces, 0), pieces + eval
}

// The routes that generate, as Ollama calls them.
const (
	pathChat            = "/api/chat"
	pathGenerate        = "/api/generate"
	pathChatCompletions = "/v1/chat/completions"
	pathCompletions     = "/v1/completions"
	pathMessages        = "/v1/messages"
	pathResponses       = "/v1/responses"
)

// canonical returns Ollama's name of a client's route: /api/v1/chat is our other name of /api/chat.
func canonical(path string) string {
	if rest, ok := strings.CutPrefix(path, "/api/v1/"); ok {
		return "/api/" + rest
	}
	return path
}
