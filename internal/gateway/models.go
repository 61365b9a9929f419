package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Models has models where they are wanted. Its methods return cluster.ErrNotMember on a node that belongs to no
// cluster, whose engine is then asked as if it were alone.
type Models interface {
	// Valid tells whether a name is one that a model can be pulled by.
	Valid(name string) bool
	// Pull brings a model into the cluster, and passes on records of progress of the form that Ollama's have.
	Pull(ctx context.Context, name string, insecure bool, progress func(record []byte) error) error
	// Made says that a model was made or copied on a node, and is to be everywhere what it is there.
	Made(ctx context.Context, on cluster.NodeID, name, digest string, size int64) error
	// Delete has a model deleted wherever it is, also where it cannot be deleted now. cluster.ErrUnknownModel: nobody has it.
	Delete(ctx context.Context, name string) error
}

// pull serves /api/pull: the cluster gets the model once.
func (g *Gateway) pull(x *exchange) {
	req := g.read(x)
	if req == nil {
		return
	}
	var wants struct {
		Model, Name string
		Insecure    bool
		Stream      *bool
	}
	if g.deps.Models == nil || cluster.CloudModel(req.Model) || json.Unmarshal(req.text, &wants) != nil { // the engine says what is wrong with it
		g.own(x, req)
		return
	}
	if !g.deps.Models.Valid(req.Model) {
		g.fail(x, badRequest("invalid model name"))
		return
	}
	to := client{x: x, control: http.NewResponseController(x.w), timeout: g.cfg.Timeouts.Write}
	write := func(record []byte) error {
		if x.status == 0 {
			x.w.Header().Set("Content-Type", "application/x-ndjson")
			x.start(http.StatusOK)
		}
		return to.write(append(record, '\n'), true)
	}
	said := write
	if !req.stream {
		said = func([]byte) error { return nil }
	}
	err := g.deps.Models.Pull(x.ctx, req.Model, wants.Insecure, said)
	if err != nil && x.ctx.Err() != nil { // its deadline has passed, or an operator has cancelled it
		if err = context.Cause(x.ctx); x.status != 0 && errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("the request's deadline passed before the model was here")
		}
	}
	switch {
	case errors.Is(err, cluster.ErrNotMember) && x.status == 0:
		g.own(x, req)
	case x.r.Context().Err() != nil:
		return // the client is gone
	case err != nil && x.status != 0:
		data, _ := json.Marshal(map[string]string{"error": err.Error()}) // a string always has a form
		_ = write(data)                                                  // a client that is gone has no use for it
	case x.ctx.Err() != nil && err != nil:
		g.fail(x, err)
	case err != nil:
		g.fail(x, &refusal{status: http.StatusInternalServerError, message: err.Error()})
	case !req.stream:
		x.answer(http.StatusOK, jsonType, []byte(`{"status":"success"}`))
	}
}

// own has the asked node's engine serve a request whose model is no reason to ask another.
func (g *Gateway) own(x *exchange, req *request) {
	req.Model, req.Canonical = "", ""
	g.attempts(x, req)
}

// makes is the name of the model that a request makes, "" if it makes none.
func (req *request) makes() string {
	switch req.route.path {
	case "/api/create":
		return req.made
	case "/api/copy":
		return gjson.GetBytes(req.text, "destination").String()
	}
	return ""
}

// made has the others get what a request has made on a node, of which the caller has the picture of before.
func (g *Gateway) made(ctx context.Context, req *request, before *cluster.Node) {
	name := req.makes()
	if name == "" || g.deps.Models == nil || req.local || cluster.CloudModel(name) {
		return
	}
	key := cluster.CanonicalModel(name)
	now := g.deps.View().Node(before.ID)
	if now == nil {
		return
	}
	was, _ := before.Model(key)
	is, ok := now.Model(key)
	if !ok || is.Digest == was.Digest || is.Digest == "" {
		return
	}
	err := g.deps.Models.Made(ctx, before.ID, name, is.Digest, is.Size)
	if err != nil && !errors.Is(err, cluster.ErrNotMember) {
		// It is made, as the client asked; the cluster leaves it where it is.
		g.deps.Log.Warn("a model that was made is not spread", "model", name, "node", before.Name, "err", err)
	}
}

// create serves /api/create: on the asked node, which has the blobs that were sent for it; or, if it is made from a model that
// only others hold, on one of those.
func (g *Gateway) create(x *exchange) {
	req := g.read(x)
	if req == nil {
		return
	}
	req.made = req.Model
	from := gjson.GetBytes(req.text, "from").String()
	held := g.deps.View().Replicas(from)
	own := func(r cluster.Replica) bool { return r.Node.ID == g.deps.View().Self }
	if len(held) == 0 || gjson.GetBytes(req.text, "files").Exists() || gjson.GetBytes(req.text, "adapters").Exists() || slices.ContainsFunc(held, own) {
		g.own(x, req)
		return
	}
	req.Model, req.Canonical = from, cluster.CanonicalModel(from)
	g.attempts(x, req)
}

// delete serves /api/delete: on every node that holds the model, and remembered for those that cannot be asked now.
func (g *Gateway) delete(x *exchange) {
	req := g.read(x)
	if req == nil {
		return
	}
	err := error(cluster.ErrNotMember)
	if g.deps.Models != nil && !req.notObject {
		err = g.deps.Models.Delete(x.ctx, req.Model)
	}
	switch {
	case err == nil:
		x.answer(http.StatusOK, "", nil)
	case errors.Is(err, cluster.ErrNotMember), errors.Is(err, cluster.ErrUnknownModel): // the engines say what there is to say
		canonical := req.Key()
		g.everywhere(x, req, func(n *cluster.Node) bool { _, holds := n.Model(canonical); return holds && n.Engine.Has(req.Path) })
	case errors.Is(err, cluster.ErrNoQuorum):
		g.fail(x, &refusal{status: http.StatusServiceUnavailable, message: err.Error()})
	default:
		g.fail(x, err)
	}
}
