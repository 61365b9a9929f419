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
}

// Control serves operators.
type Control struct{ deps Deps }

// New returns the operators' API.
func New(deps Deps) *Control { return &Control{deps} }

// Register adds the operators' routes to a mux.
func (c *Control) Register(mux *http.ServeMux) {
	metrics := promhttp.HandlerFor(c.deps.Gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /api/v1/metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", c.ready)
	mux.HandleFunc("GET /api/v1/health", c.health)
	mux.HandleFunc("GET /api/v1/cluster/status", c.status)
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, api.Nodes{Nodes: c.deps.View().Nodes})
	})
	mux.HandleFunc("GET /api/v1/nodes/{node}", c.node)
	mux.HandleFunc("GET /api/v1/models", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, api.Models{Models: models(c.deps.View())})
	})
	mux.HandleFunc("GET /api/v1/models/{model}", c.model)
	c.registerMembers(mux)
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

func (c *Control) model(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("model")
	for _, m := range models(c.deps.View()) {
		if m.Name == cluster.CanonicalModel(name) {
			reply(w, http.StatusOK, m)
			return
		}
	}
	c.fail(w, http.StatusNotFound, &api.Error{Code: api.CodeNotFound, Message: "no node holds model " + name, Hint: "`ollamamax models` lists what there is"})
}

// fail answers with an error that names this node as its origin.
func (c *Control) fail(w http.ResponseWriter, status int, e *api.Error) {
	if self := c.deps.View().SelfNode(); self != nil && e.Origin == "" {
		e.Origin = self.Name
	}
	reply(w, status, api.ErrorBody{Error: e})
}

func reply(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types always marshal
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone has no use for it
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(s)) // a client that is gone has no use for it
}
