package gateway

import (
	"encoding/json"
	"net/http"

	"github.com/ollamamax/ollamamax/internal/api"
)

// explain tells what the choice of a node for a request is made of now. Its body is the client's
// request; ?path= says for which route, /api/chat or /api/generate if it does not.
func (g *Gateway) explain(x *exchange) {
	path := x.r.URL.Query().Get("path")
	if path == "" {
		path = "/api/chat"
	}
	for _, rt := range routes() {
		if rt.path != path || !rt.infers || rt.multipart {
			continue
		}
		x.r.URL.Path = path
		// As if it had been asked for; x is listed, and stays what it is.
		asked := &exchange{w: x.w, r: x.r, ctx: x.ctx, cancel: x.cancel, route: rt, id: x.id, began: x.began, priority: x.priority, patience: x.patience}
		defer g.bodies.letGo(asked)
		req := g.read(asked)
		if req == nil {
			x.status, x.first, x.bytes = asked.status, asked.first, asked.bytes
			return
		}
		x.called(req.Model)
		if chain := g.deps.Resolve(req.Model); chain != nil {
			req = req.named(chain[0])
		}
		body, err := json.Marshal(g.deps.Explain(&req.Request))
		if err != nil {
			g.fail(x, err)
			return
		}
		x.answer(http.StatusOK, jsonType, append(body, '\n'))
		return
	}
	body, err := json.Marshal(api.ErrorBody{Error: &api.Error{Code: api.CodeBadRequest, Message: "no route " + path + " takes a prompt",
		Hint: "give ?path=/api/chat, /api/generate, or another route that does", Origin: g.selfName(g.deps.View())}})
	if err != nil {
		g.fail(x, err)
		return
	}
	x.answer(http.StatusBadRequest, jsonType, append(body, '\n'))
}
