// Package control is the operators' front door: health, metrics and /api/v1.
//
// It reads the View and asks the node for changes through the functions in Deps; it decides
// nothing itself.
//
// Start reading at Register.
package control

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Deps is what the operators' API needs of its node.
type Deps struct {
	Log      *slog.Logger
	Gatherer prometheus.Gatherer
	View     func() *cluster.View
	// Stopping tells whether the node takes no more work because it is about to end.
	Stopping func() bool
	// Now tells the time.
	Now func() time.Time
	// State returns what is agreed.
	State func() *cluster.State
	// Apply has a command agreed, by whichever node leads.
	Apply func(context.Context, cluster.Command) error
	// Transfer hands the leadership to a voter.
	Transfer func(context.Context, cluster.NodeID) error
	// Join makes a node that is alone a member of the token's cluster; ErrNotAlone if it is not.
	Join func(ctx context.Context, token string) error
	// Leave ends this node's membership.
	Leave func(context.Context) error
	// Addrs are where a newcomer may find the cluster.
	Addrs func() []string
	// Strangers are the nodes seen on the local network that are no members.
	Strangers func() []api.Stranger
	// Requests are those that this node's gateway is serving; Cancel ends those with an id.
	Requests func() []api.Request
	Cancel   func(id string) bool

	// Pull has the cluster want a model, by its name as the operator wrote it, and fetch it. In the wish nodes are
	// ids. With progress it returns when the replicas are there, and gives it records (api.Progress as JSON, in any
	// number, one call at a time), of which the last says api.Success; an error of progress ends the watching, not the
	// wish. Without, it returns once the wish is agreed.
	Pull func(ctx context.Context, model string, wish api.Download, progress func(record []byte) error) error
	// Place changes what is wanted of a model. In the placement nodes are ids.
	Place func(ctx context.Context, model string, p api.Placement) error
	// Delete has a model deleted on every node; cluster.ErrUnknownModel if there is none.
	Delete func(ctx context.Context, model string) error
	// Transfers lists the whole cluster's, and the names of the nodes that did not answer. CancelTransfer ends one;
	// ErrUnknownTransfer if there is none.
	Transfers      func(ctx context.Context) (transfers []api.Transfer, missing []string)
	CancelTransfer func(ctx context.Context, id string) error
}

// Control serves operators.
type Control struct{ deps Deps }

// New returns the operators' API.
func New(deps Deps) *Control { return &Control{deps} }

// Register adds the operators' routes to a mux.
func (c *Control) Register(mux *http.ServeMux) {
	metrics := promhttp.HandlerFor(c.deps.Gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
	measured := func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience)) // a connection that cannot have one has none
		metrics.ServeHTTP(w, r)
	}
	mux.HandleFunc("GET /metrics", measured)
	mux.HandleFunc("GET /api/v1/metrics", measured)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", c.ready)
	mux.HandleFunc("GET /api/v1/health", c.health)
	mux.HandleFunc("GET /api/v1/cluster/status", c.status)
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, api.Nodes{Nodes: c.deps.View().Nodes})
	})
	mux.HandleFunc("GET /api/v1/nodes/{node}", c.node)
	mux.HandleFunc("GET /api/v1/requests", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, api.Requests{Requests: c.deps.Requests()})
	})
	mux.HandleFunc("DELETE /api/v1/requests/{id}", c.cancel)
	c.registerMembers(mux)
	c.registerModels(mux)
	c.registerTransfers(mux)
	mux.HandleFunc("/api/v1/", func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, http.StatusNotFound, &api.Error{Code: api.CodeNotFound, Message: "no route " + r.Method + " " + r.URL.Path})
	})
}

func (c *Control) status(w http.ResponseWriter, _ *http.Request) {
	v := c.deps.View()
	reply(w, http.StatusOK, api.Status{
		ClusterID: v.ClusterID, Leader: nameOf(v, v.Leader), Term: v.Term, Quorum: v.Quorum, Voters: v.Voters, Nodes: v.Nodes, Pending: c.deps.Strangers(),
	})
}

func (c *Control) node(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("node")
	n := c.deps.View().Find(name)
	if n == nil {
		c.fail(w, http.StatusNotFound, &api.Error{Code: api.CodeNotFound, Message: "no node " + name, Hint: "`ollamamax nodes` lists the names and ids"})
		return
	}
	reply(w, http.StatusOK, n)
}

// cancel ends a request that this node's gateway is serving.
func (c *Control) cancel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !c.deps.Cancel(id) {
		c.fail(w, http.StatusNotFound, &api.Error{Code: api.CodeNotFound, Message: "no request " + id,
			Hint: "ask the node that the client asked; `ollamamax requests` lists its requests"})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// fail answers with an error that names this node as its origin.
func (c *Control) fail(w http.ResponseWriter, status int, e *api.Error) {
	reply(w, status, c.body(e))
}

// body is the body of an error, which names this node as its origin unless another said it.
func (c *Control) body(e *api.Error) api.ErrorBody {
	if self := c.deps.View().SelfNode(); self != nil && e.Origin == "" {
		said := *e
		said.Origin = self.Name
		e = &said
	}
	return api.ErrorBody{Error: e}
}

func reply(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types always marshal
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	write(w, append(body, '\n'))
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	write(w, []byte(s))
}

// write sends a body, of which the client has its time to take each piece. One that is gone has no use for it.
func write(w http.ResponseWriter, body []byte) {
	control := http.NewResponseController(w)
	for piece := range slices.Chunk(body, 32<<10) {
		_ = control.SetWriteDeadline(time.Now().Add(patience)) // a connection that cannot have one has none
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}
