package cluster

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// NodeID identifies a node for ever: the text form of its libp2p peer id, which is its public
// key. Raft's server address and the mesh's dial address are this id, so that a new IP
// address changes nothing.
type NodeID string

// Condition is what the others believe of a node's life.
type Condition string

// The conditions of a node.
const (
	Alive   Condition = "alive"
	Suspect Condition = "suspect" // missed a heartbeat or broke a connection; not yet given up
	Dead    Condition = "dead"
)

// ServiceState is what an operator wants of a node.
type ServiceState string

// The service states of a node.
const (
	Active   ServiceState = "active"
	Draining ServiceState = "draining" // takes no new work, finishes what it has
	Drained  ServiceState = "drained"  // draining, and nothing is left
	Removed  ServiceState = "removed"  // no member any more; serves from its own engine alone
)

// Role is a node's part in the agreement.
type Role string

// The roles of a node.
const (
	Voter    Role = "voter"
	Observer Role = "observer" // hears what is agreed, and has no vote
)

// EngineCondition tells whether the engine beside a node answers.
type EngineCondition string

// The conditions of an engine.
const (
	EngineReady    EngineCondition = "ready"
	EngineStarting EngineCondition = "starting" // supervised and not yet answering, or loading its model
	EngineDown     EngineCondition = "down"
)

// EngineKind names a kind of inference server.
type EngineKind string

// The kinds of engine. The others than Ollama serve the /v1 routes only.
const (
	Ollama      EngineKind = "ollama"
	LlamaServer EngineKind = "llama-server"
	OpenAI      EngineKind = "openai"
)

// Engine describes the inference server beside a node.
type Engine struct {
	Kind      EngineKind      `json:"kind"`
	Version   string          `json:"version"` // as the engine says; "" while it is unknown
	Condition EngineCondition `json:"condition"`
	Why       string          `json:"why,omitempty"` // why it is not ready, for a person
	// Routes are the /v1 routes that take a model and that an engine other than Ollama answers, as
	// it says itself.
	Routes []string `json:"routes,omitempty"`
	// Folder tells that the node can put models into the engine's folder: a llama-server of its own.
	Folder bool `json:"folder,omitempty"`
}

// Has tells whether the engine has a client's route: an Ollama has them all, the others those of
// their Routes and the lists of models. No engine has none.
func (e *Engine) Has(path string) bool {
	switch {
	case e == nil:
		return false
	case e.Kind == Ollama, path == "/v1/models", strings.HasPrefix(path, "/v1/models/"):
		return true
	}
	return slices.Contains(e.Routes, path)
}

// Model is a replica: one model held by one node.
type Model struct {
	Name string `json:"name"` // as the engine lists it
	// Digest is that of the manifest, without "sha256:". Engines other than Ollama have none: theirs
	// is "", which differs from every digest. Two "" say only that the names are equal.
	Digest string `json:"digest"`
	// Weights is the digest of the model whose weights these are, of a replica without a digest that the cluster made of
	// it: it answers by the template and the defaults of its engine, and not by the model's.
	Weights string `json:"weights,omitempty"`
	// Called is what the engine calls the model, where that is not Name.
	Called string `json:"called,omitempty"`
	Size   int64  `json:"size"`             // bytes; 0 when unknown
	Thinks bool   `json:"thinks,omitempty"` // says what it thinks before it answers, unless told not to
	// ModifiedAt is when the engine's model last changed; the zero time when it does not say.
	ModifiedAt time.Time `json:"modified_at"`
	// Footprint is what the model's own file says of the memory that it takes; nil when nobody has read it.
	Footprint *Footprint `json:"footprint,omitempty"`
	// Damaged: the bytes of one of its files are not what they were.
	Damaged bool `json:"damaged,omitempty"`
	// Tags and V1 are the engine's own descriptions, byte for byte, for the lists that clients
	// read: one element of /api/tags "models", which only an Ollama has, and of /v1/models "data".
	Tags json.RawMessage `json:"tags,omitempty"`
	V1   json.RawMessage `json:"v1,omitempty"`
}

// Of is the digest of the model that the replica is of, be it the whole of it or its weights; "" if it has none.
func (m Model) Of() string { return cmp.Or(m.Digest, m.Weights) }

// Kin is what two replicas have in common that go on with each other's answers: the digest, or being of one model's weights.
func (m Model) Kin() string {
	if m.Digest == "" && m.Weights != "" {
		return "weights of " + m.Weights
	}
	return m.Digest
}

// Footprint is the memory that a model takes when it is loaded. Zero means unknown.
type Footprint struct {
	Weights  int64 `json:"weights"`   // bytes
	PerToken int64 `json:"per_token"` // bytes of the cache for each token of context
	Context  int   `json:"context"`   // the most tokens that the model was made for
}

// Memory is the bytes for so many tokens of context; 0 when unknown.
func (f *Footprint) Memory(context int) int64 {
	if f == nil || f.Weights == 0 {
		return 0
	}
	if f.Context > 0 {
		context = min(context, f.Context)
	}
	return f.Weights + int64(context)*f.PerToken
}

// BlobState is how a node holds a blob.
type BlobState string

// The states of a blob on a node.
const (
	BlobWhole   BlobState = "whole"   // others may have it
	BlobPartial BlobState = "partial" // on its way; others may have the pieces that came
	BlobLocked  BlobState = "locked"  // in a folder that the node cannot read: the engine must be asked for it
	BlobDamaged BlobState = "damaged" // its bytes are not what they were
)

// Blob is one file of a model on a node.
type Blob struct {
	Digest string    `json:"digest"` // 64 hexadecimal digits
	Size   int64     `json:"size"`   // bytes
	State  BlobState `json:"state"`
	// Have is the bytes of a partial blob that are here.
	Have int64 `json:"have,omitempty"`
}

// Fetch is a model that is on its way into a node's engine.
type Fetch struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Size   int64  `json:"size,omitempty"` // bytes of the model; 0 until its manifest is there
	Left   *Left  `json:"left,omitempty"` // nil: not known
}

// Left is how many bytes of a Fetch are still to come.
type Left struct {
	Spool  int64 `json:"spool"`
	Engine int64 `json:"engine"` // from the spool into the engine's folder
}

// Demand is how much clients ask of a model at one gateway.
type Demand struct {
	Name string `json:"name"` // canonical
	// Busy is how many requests are served or wait at a time, the mean of about a minute, coarsely rounded.
	Busy float64 `json:"busy"`
}

// Loaded is a model in an engine's memory.
type Loaded struct {
	Name          string          `json:"name"`
	Digest        string          `json:"digest"`
	ContextLength int             `json:"context_length"` // tokens; 0 when unknown
	VRAM          int64           `json:"vram"`           // bytes; 0 when unknown (Ollama says 0 without a GPU)
	ExpiresAt     time.Time       `json:"expires_at"`
	PS            json.RawMessage `json:"ps,omitempty"` // the engine's own: one element of /api/ps "models"
}

// Slots counts the requests that a node's engine is serving.
type Slots struct {
	Busy  int `json:"busy"`
	Total int `json:"total"` // 0 when unknown
}

// Memory is a machine's main memory, in bytes.
type Memory struct {
	Total int64 `json:"total"`
	Free  int64 `json:"free"` // what programs can have without swapping
}

// Load is how much a machine has to do: the length of its run queue over one and five minutes.
type Load struct {
	One  float64 `json:"1m"`
	Five float64 `json:"5m"`
}

// Machine is what a node tells of its machine: rounded, and twice a minute, so that it is no news
// every second. Zero means unknown.
type Machine struct {
	Memory   Memory `json:"memory"`
	DiskFree int64  `json:"disk_free"` // bytes, where the node keeps its data
	// ModelsDiskFree is bytes where the engine keeps its models, if that is another disk; else 0.
	ModelsDiskFree int64 `json:"models_disk_free,omitempty"`
	Load           Load  `json:"load"`
}

// Node is a member of the cluster as one View shows it: what it tells of itself, and what the
// viewer knows of it. It is also the wire form of /api/v1.
type Node struct {
	ID       NodeID            `json:"id"`
	Name     string            `json:"name"`
	Version  string            `json:"version"`
	APIAddr  string            `json:"api_addr"`
	Labels   map[string]string `json:"labels"`
	P2PAddrs []string          `json:"p2p_addrs"` // multiaddrs with the node's id
	// PeerAddrs is where the node reaches others now, for those that have lost them: two nodes that
	// have both moved find each other through a third.
	PeerAddrs map[NodeID][]string `json:"peer_addrs,omitempty"`

	Role   Role `json:"role"`
	Leader bool `json:"leader"`

	Condition Condition    `json:"condition"`
	Why       string       `json:"why"` // the reason for a condition other than alive
	State     ServiceState `json:"state"`
	LastSeen  time.Time    `json:"last_seen"` // the zero time: never
	Boot      uint64       `json:"boot"`      // counts the node's starts, increasing

	Engine *Engine  `json:"engine"` // nil for a node that is only a gateway
	Models []Model  `json:"models"`
	Loaded []Loaded `json:"loaded"`
	Slots  Slots    `json:"slots"`
	Queue  int      `json:"queue"` // requests that wait at this node's gateway
	// Blobs are the files of models that the node can give to others, or is getting; Fetches the models that it
	// is getting.
	Blobs   []Blob  `json:"blobs,omitempty"`
	Fetches []Fetch `json:"fetches,omitempty"`
	// Demand is what clients ask of models at this node's gateway, whichever node serves them.
	Demand []Demand `json:"demand,omitempty"`
	// Preload are the models that the node's owner has it keep loaded when it holds them, by CanonicalModel.
	Preload []string `json:"preload,omitempty"`
	// Unavailable is why the owner does not let the cluster have the engine now; "" when it may.
	Unavailable string `json:"unavailable,omitempty"`
	Machine
}

// Serves tells whether new work may be sent to the node's engine. A suspect node is no candidate
// unless there is no other; that choice is the scheduler's. A removed node is in no View but its
// own, and serves itself.
func (n *Node) Serves() bool {
	return n.Condition != Dead && n.Unavailable == "" && (n.State == Active || n.State == Removed) && n.Engine != nil && n.Engine.Condition == EngineReady
}

// Model returns the node's replica of the model with that canonical name.
func (n *Node) Model(canonical string) (Model, bool) {
	for _, m := range n.Models {
		if CanonicalModel(m.Name) == canonical {
			return m, true
		}
	}
	return Model{}, false
}

// LoadedModel returns the loaded model with that canonical name.
func (n *Node) LoadedModel(canonical string) (Loaded, bool) {
	for _, m := range n.Loaded {
		if CanonicalModel(m.Name) == canonical {
			return m, true
		}
	}
	return Loaded{}, false
}
