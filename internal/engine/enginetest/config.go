package enginetest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"
)

// Kind says which API a server offers.
type Kind string

const (
	// KindOllama serves all routes of Ollama 0.33.
	KindOllama Kind = "ollama"
	// KindOpenAI serves only /v1/… and /health, as vLLM does. There /v1/completions
	// takes its prompt raw, and model names are matched exactly.
	KindOpenAI Kind = "openai"
	// KindLlamaServer serves what llama-server b11669 serves of /v1, without /v1/responses and
	// /v1/messages, and /health, /props and /apply-template. With one model any name means it. A
	// last message that is the assistant's is continued; a stream has only what is new, a whole
	// answer begins with that message.
	KindLlamaServer Kind = "llama-server"
)

// Config are the settings of a Server. The zero value is an Ollama without models, with one slot
// and no delays.
type Config struct {
	// Kind is the API offered; empty means KindOllama.
	Kind Kind
	// Version is what /api/version answers, and llama-server's build_info; empty means 0.33.0, and
	// b11669-fake.
	Version string
	// Models are those held at the start.
	Models []Model
	// Pullable are the models that /api/pull finds; nil lets every valid name be pulled.
	Pullable []Model
	// Folder is the absolute path of a folder in which models lie as in an Ollama's (KindOllama): those there are held
	// too, and pull, push, create, copy and delete do with its files and with registries what an Ollama does. WriteModel
	// writes one. A name that means Ollama's own registry is pulled only if it is Pullable, as without a folder. ""
	// means none: no byte of a model exists.
	Folder string
	// Transport carries the requests to registries; nil means http.DefaultTransport.
	Transport http.RoundTripper
	// PullTime is how long a pull takes, spread over its progress records.
	PullTime time.Duration

	// Slots is how many generations run at once, over all models; 0 means 1.
	Slots int
	// Queue is how many requests may wait for a slot before 503 is answered; 0 means 512 (as
	// OLLAMA_MAX_QUEUE), a negative value that none may wait.
	Queue int
	// Context is the context length, in tokens, of a request without num_ctx; 0 means 4096. A
	// longer prompt loses its oldest messages, then its beginning.
	Context int
	// Length is the number of pieces of an answer to which the request sets no limit; 0 means 64.
	Length int
	// ThinkLength is with how many pieces of thinking a model that thinks begins its answer, within
	// Length and the request's limit; 0 means 8.
	ThinkLength int
	// ClosesAssistant makes the template close every turn of the assistant with <|end|>, as most of
	// Ollama's do. Without it a last message that is the assistant's stays open, and its text is
	// continued.
	ClosesAssistant bool
	// KeepAlive is how long a model stays loaded after its last use when the request does not
	// say; 0 means 5 minutes.
	KeepAlive time.Duration

	// LoadTime is how long it takes to load a model; models are loaded one at a time.
	LoadTime time.Duration
	// Prefill is how many prompt tokens a slot evaluates a second; 0 means at once. Tokens that
	// the slot's prompt cache holds are free.
	Prefill float64
	// FirstToken is the time from the end of prefill to the first piece.
	FirstToken time.Duration
	// TokenGap is the time between two pieces.
	TokenGap time.Duration

	// Sampling makes a temperature above 0 count, as no other option does: the answer then depends on
	// the request's seed too, and without one it is another each time. The temperature of the /v1
	// routes that Ollama gives 1.0 if they say nothing is that here; on /api and /v1/messages, where
	// Ollama takes the model's, saying nothing is saying 0.
	Sampling bool

	// Unaware makes the server notice only when it writes that a client has left whose request has a
	// slot: until then it works for nobody.
	Unaware bool

	// CPUOnly makes /api/ps report sizes of 0, as Ollama does without a GPU.
	CPUOnly bool
	// Strict checks Host and Origin as Ollama does on loopback, and answers 403.
	Strict bool
	// Seed changes all answers. Servers that stand for the same build share it.
	Seed uint64
}

// Model is a model that a server holds.
type Model struct {
	// Name as clients write it; :latest is added where the tag is missing (KindOllama).
	Name string `json:"name"`
	// Digest is the manifest's SHA-256 in hex, without prefix; empty means one made from Name.
	// Answers depend on it.
	Digest string `json:"digest"`
	// Size in bytes; 0 means 1 GiB.
	Size int64 `json:"size"`
	// ContextLength is the largest context the model can have, in tokens; 0 means 131072.
	ContextLength int `json:"context_length"`
	// Embedding models embed and, but for llama-server's, refuse to generate; all others refuse to
	// embed.
	Embedding bool `json:"embedding"`
	// Thinking models think before they answer, unless they are told not to; all others refuse to.
	Thinking bool `json:"thinking"`
	// Tools models take tools; all others refuse to. They answer with some text and a call of the
	// first tool when the last message is the user's and has the word CALL.
	Tools bool `json:"tools"`
	// Vision models say that they take images; the others take them too.
	Vision bool `json:"vision"`
	// BOS makes the template begin every prompt with <|begin|>, which the tokenizer adds too. Ollama
	// sees to it that a rendered prompt has it once; a raw prompt gets one more.
	BOS bool `json:"bos"`

	lost bool // its weights are not in the folder: it is there, and can do nothing
}

func (c Config) withDefaults() Config {
	c.Kind = cmp.Or(c.Kind, KindOllama)
	if c.Kind == KindLlamaServer {
		c.Version = cmp.Or(c.Version, "b11669-fake")
	}
	c.Version = cmp.Or(c.Version, "0.33.0")
	c.Slots = cmp.Or(max(c.Slots, 0), 1)
	c.Queue = max(cmp.Or(c.Queue, 512), 0)
	c.Context = cmp.Or(c.Context, 4096)
	c.Length = cmp.Or(c.Length, 64)
	c.ThinkLength = cmp.Or(c.ThinkLength, 8)
	c.KeepAlive = cmp.Or(c.KeepAlive, 5*time.Minute)
	return c
}

func (m Model) withDefaults(k Kind) Model {
	if k == KindOllama {
		m.Name = parseName(m.Name).String()
	}
	m.Size = cmp.Or(m.Size, 1<<30)
	m.ContextLength = cmp.Or(m.ContextLength, 131072)
	if m.Digest == "" {
		m.Digest = hexDigest("model " + m.Name)
	}
	return m
}

func hexDigest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
