package gateway

import (
	"net/http"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// RegisterLocal adds the routes that other nodes' gateways ask for to the mux of the mesh's
// listener: they are served by the own engine or refused, never forwarded again.
func (g *Gateway) RegisterLocal(mux *http.ServeMux) {
	for _, rt := range routes() {
		if rt.as != "" {
			continue // the asking gateway has written the route's own name
		}
		mux.HandleFunc(rt.path, func(w http.ResponseWriter, r *http.Request) {
			x := &exchange{w: w, r: r, route: rt, id: requestID(r), began: time.Now()}
			g.local(x)
		})
	}
}

// local serves a peer's request. An error before anything was sent to the engine is told as a
// refusal, so that the peer may ask another; one after it breaks the connection, as the engine's
// own death would.
func (g *Gateway) local(x *exchange) {
	self := g.deps.View().SelfNode()
	switch {
	case g.deps.Stopping():
		refuse(x, "node is stopping")
		return
	case self == nil || !self.Serves() && !(x.route.holders && self.Engine != nil && self.Engine.Condition == cluster.EngineReady):
		refuse(x, "node takes no work: draining, or its engine is not running")
		return
	case !self.Engine.Has(x.r.URL.Path):
		refuse(x, "node's engine has no "+x.r.URL.Path)
		return
	}
	req := &request{route: x.route}
	switch {
	case x.r.Method == http.MethodGet || x.r.Method == http.MethodHead:
	case x.route.path == "/api/blobs/{digest}":
		req = g.streamed(x)
	default:
		if req = g.read(x); req == nil {
			return
		}
	}
	g.metrics.peers.Inc()
	a, err := g.attempt(x.r.Context(), x, req, self)
	if err != nil {
		if neverSent(err) {
			refuse(x, err.Error())
			return
		}
		panic(http.ErrAbortHandler)
	}
	g.deliver(x, req, a)
}

// refuse tells the asking gateway that nothing was done.
func refuse(x *exchange, why string) {
	x.w.Header().Set(refusedHeader, why)
	x.answer(http.StatusServiceUnavailable, textType, []byte(why+"\n"))
}
