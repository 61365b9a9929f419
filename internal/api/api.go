// Package api is the wire form of the operators' API, /api/v1, and the Go client that the command
// line uses. A Node on the wire is cluster.Node.
package api

import (
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Error is what every route of /api/v1 answers when it cannot do what was asked.
type Error struct {
	Code    string `json:"code"`    // for programs; one of the Code constants
	Message string `json:"message"` // what is wrong
	Hint    string `json:"hint"`    // what to do
	Origin  string `json:"origin"`  // the node that says so
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ": " + e.Hint
}

// The codes of errors.
const (
	CodeNotFound   = "not_found"
	CodeBadRequest = "bad_request"
	CodeInternal   = "internal"
	CodeConflict   = "conflict"
)

// ErrorBody is the body around an Error.
type ErrorBody struct {
	Error *Error `json:"error"`
}

// Status is the answer of GET /api/v1/cluster/status.
type Status struct {
	ClusterID string          `json:"cluster_id"`
	Leader    string          `json:"leader"` // a name, "" when there is none
	Term      uint64          `json:"term"`
	Quorum    bool            `json:"quorum"`
	Voters    int             `json:"voters"`
	Nodes     []*cluster.Node `json:"nodes"`
	// Pending are nodes that were seen on the local network and are no members; a token admits them.
	Pending []Stranger `json:"pending"`
}

// Stranger is what somebody on the local network claims to be.
type Stranger struct {
	ID       cluster.NodeID `json:"id"`
	Addrs    []string       `json:"addrs"`
	LastSeen time.Time      `json:"last_seen"`
}

// Nodes is the answer of GET /api/v1/nodes.
type Nodes struct {
	Nodes []*cluster.Node `json:"nodes"`
}

// NodeName is the body of requests that name a node, by name or id.
type NodeName struct {
	Node string `json:"node"`
}

// Leader is the answer of GET /api/v1/cluster/leader.
type Leader struct {
	Leader string         `json:"leader"` // a name, "" when there is none
	ID     cluster.NodeID `json:"id"`
	Term   uint64         `json:"term"`
}

// TokenRequest is the body of POST /api/v1/tokens.
type TokenRequest struct {
	TTL string `json:"ttl"` // as Go writes durations; "" for an hour
}

// JoinRequest is the body of POST /api/v1/cluster/join.
type JoinRequest struct {
	Token string `json:"token"`
}

// Token is a join token. Its text is told once, to who made it.
type Token struct {
	ID        string    `json:"id"`
	Token     string    `json:"token,omitempty"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Tokens is the answer of GET /api/v1/tokens.
type Tokens struct {
	Tokens []Token `json:"tokens"`
}

// Request is a client's request that the asked node's gateway is serving.
type Request struct {
	ID       string     `json:"id"`
	Path     string     `json:"path"`
	Model    string     `json:"model"`
	State    string     `json:"state"`           // waiting or running
	Place    int        `json:"place,omitempty"` // in the queue; 1: the next
	Node     string     `json:"node"`            // that serves it now; "" while it waits
	Priority string     `json:"priority"`        // high, normal or low
	Since    time.Time  `json:"since"`
	Deadline *time.Time `json:"deadline,omitempty"`
	Pieces   int64      `json:"pieces"`          // of a stream, delivered so far
	Resumes  int        `json:"resumes"`         // how often another node went on with it
	Broke    string     `json:"broke,omitempty"` // why the last time: reset, error, truncated, frozen, garbage or drained
}

// Requests is the answer of GET /api/v1/requests.
type Requests struct {
	Requests []Request `json:"requests"`
}

// The words for a service's condition and for the health of the whole.
const (
	OK       = "ok"
	Degraded = "degraded"
	Down     = "down"

	Healthy   = "healthy"
	Unhealthy = "unhealthy"
)

// Health is the answer of GET /api/v1/health.
type Health struct {
	Status    string            `json:"status"` // healthy, degraded or unhealthy
	NodeID    cluster.NodeID    `json:"node_id"`
	Services  map[string]string `json:"services"` // ok, degraded or down, for each
	Timestamp time.Time         `json:"timestamp"`
}
