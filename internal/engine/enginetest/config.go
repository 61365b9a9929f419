package enginetest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// Kind says which API a server offers.
type Kind string

const (
	// KindOllama serves all routes of Ollama 0.33.
	KindOllama Kind = "ollama"
	// KindOpenAI serves only /v1/… and /health, as llama-server and vLLM do. There /v1/completions
	// takes its prompt raw, and model names are matched exactly.
	KindOpenAI Kind = "openai"
)

// Config are the settings of a Server. The zero value is an Ollama without models, with one slot
// and no delays.
type Config struct {
	// Kind is the API offered; empty means KindOllama.
	Kind Kind
	// Version is what /api/version answers; empty means 0.33.0.
	Version string
	// Models are those held at the start.
	Models []Model
	// Pullable are the models that /api/pull finds; nil lets every valid name be pulled.
	Pullable []Model
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
	// Embedding models embed and refuse to generate; all others refuse to embed.
	Embedding bool `json:"embedding"`
}

func (c Config) withDefaults() Config {
	c.Kind = cmp.Or(c.Kind, KindOllama)
	c.Version = cmp.Or(c.Version, "0.33.0")
	c.Slots = cmp.Or(max(c.Slots, 0), 1)
	c.Queue = max(cmp.Or(c.Queue, 512), 0)
	c.Context = cmp.Or(c.Context, 4096)
	c.Length = cmp.Or(c.Length, 64)
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
