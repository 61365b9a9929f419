package api

import (
	"cmp"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Replica is a model on one node.
type Replica struct {
	Node      string            `json:"node"`      // its name
	Condition cluster.Condition `json:"condition"` // the node's: a dead one's replica is of no use now
	Digest    string            `json:"digest"`
	// Weights is the digest of the model whose weights a llama-server was given, and nothing else of it: the replica has no
	// digest of its own then.
	Weights string `json:"weights,omitempty"`
	Size    int64  `json:"size"` // bytes
	Loaded  bool   `json:"loaded"`
	Damaged bool   `json:"damaged"` // the bytes of one of its files are not what they were
}

// Of is the digest of the model that the replica is of.
func (r Replica) Of() string { return cmp.Or(r.Digest, r.Weights) }

// Wanted is what the cluster agreed to want of a model.
type Wanted struct {
	Digest   string            `json:"digest"` // that every replica is to have
	Replicas cluster.Replicas  `json:"replicas"`
	Nodes    []string          `json:"nodes"`   // names of the only ones that may hold it; empty: all may
	Labels   map[string]string `json:"labels"`  // of a node that holds it
	Pin      bool              `json:"pin"`     // replicas that are there are not given up
	Preload  bool              `json:"preload"` // kept loaded wherever it is held
	Version  uint64            `json:"version"` // for a Placement that must not overwrite somebody else's
}

// Model is a model of the cluster, in GET /api/v1/models.
type Model struct {
	Name     string    `json:"name"`     // canonical: with its tag
	Conflict bool      `json:"conflict"` // replicas differ in digest
	Wanted   *Wanted   `json:"wanted"`   // null when nobody placed it
	Replicas []Replica `json:"replicas"` // none: it is wanted, and nobody holds it yet
}

// Models is the answer of GET /api/v1/models.
type Models struct {
	Models []Model `json:"models"`
}

// Download is the body of POST /api/v1/models/{model}/download. What it does not say is as it was placed, or
// as configured.
type Download struct {
	Replicas *cluster.Replicas `json:"replicas,omitempty"`
	Nodes    []string          `json:"nodes,omitempty"` // names or ids of the only ones that may hold it
	Labels   map[string]string `json:"labels,omitempty"`
	// Stream: the answer tells the progress, a record a line, and ends when the replicas are there. Without,
	// it comes as soon as the wish is agreed.
	Stream bool `json:"stream,omitempty"`
	// Insecure: the registry may be one without TLS.
	Insecure bool `json:"insecure,omitempty"`
}

// Placement is the body of PUT /api/v1/models/{model}/placement. What is null stays as it is.
type Placement struct {
	Replicas *cluster.Replicas  `json:"replicas,omitempty"`
	Nodes    *[]string          `json:"nodes,omitempty"`  // names or ids of the only ones that may hold it; empty: all may
	Labels   *map[string]string `json:"labels,omitempty"` // replace those that there are
	Pin      *bool              `json:"pin,omitempty"`
	Preload  *bool              `json:"preload,omitempty"`
	// Seen is the Version of the Wanted that this was decided upon; 0: whatever it is now.
	Seen uint64 `json:"version,omitempty"`
}

// Progress is one record of a Download that streams, in Ollama's form. The last one of a download that
// ended well has the Status Success.
type Progress struct {
	Status    string `json:"status"`
	Digest    string `json:"digest,omitempty"`    // of the blob that this is about
	Total     int64  `json:"total,omitempty"`     // its bytes
	Completed int64  `json:"completed,omitempty"` // those that are there
}

// Success is the Status of the last record.
const Success = "success"

// The states of a transfer.
const (
	TransferWaiting = "waiting"
	TransferRunning = "running"
)

// Transfer is a model on its way to a node.
type Transfer struct {
	ID       string           `json:"id"`
	Node     string           `json:"node"` // the name of the one that gets it
	Model    string           `json:"model"`
	Digest   string           `json:"digest"`
	State    string           `json:"state"` // TransferWaiting or TransferRunning
	Size     int64            `json:"size"`  // bytes
	Have     int64            `json:"have"`  // bytes that are there and verified
	Rate     int64            `json:"rate"`  // bytes a second
	ETA      string           `json:"eta"`   // a duration; "" when unknown
	Sources  []TransferSource `json:"sources"`
	Upstream bool             `json:"upstream"` // some of it comes from the registry
	Since    time.Time        `json:"since"`
}

// TransferSource is a node that a transfer's bytes come from.
type TransferSource struct {
	Node      string `json:"node"`  // its name
	Bytes     int64  `json:"bytes"` // that came from it
	Rate      int64  `json:"rate"`  // bytes a second
	Connected bool   `json:"connected"`
	Failure   string `json:"failure,omitempty"` // the last one
	Banned    bool   `json:"banned"`            // it sent wrong bytes
}

// Transfers is the answer of GET /api/v1/transfers.
type Transfers struct {
	Transfers []Transfer `json:"transfers"`
	Missing   []string   `json:"missing"` // names of the nodes that did not answer: theirs are not listed
}
