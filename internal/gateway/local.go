package gateway

import (
	"net/http"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// RegisterLocal adds the routes that other nodes' gateways ask for to the mux of the mesh's
// listener: they are served by the own engine or refused, never forwarded again.
func (g *Gateway) RegisterLocal(mux *http.ServeMux) {
	for _, rt := range routes() {
		if strings.HasPrefix(rt.path, "/api/v1/") {
			continue // ours, or another name: the asking gateway has written the route's own
		}
		mux.HandleFunc(rt.path, func(w http.ResponseWriter, r *http.Request) {
			x := &exchange{w: w, r: r, route: rt, id: requestID(r), began: time.Now(), ctx: r.Context(), local: true, patience: g.cfg.Timeouts.Write}
			defer g.bodies.letGo(x)
			g.local(x)
		})
	}
}

// local serves a peer's request. An error before anything was sent to the engine is told as a
// refusal, so that the peer may ask another; one before an answer began, as a break; one after that
// breaks the connection, as the engine's own death would.
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
	req := &request{route: x.route, local: true}
	switch {
	case x.r.Method == http.MethodGet || x.r.Method == http.MethodHead:
	case x.route.path == "/api/blobs/{digest}":
		req = g.streamed(x)
	default:
		if req = g.read(x); req == nil {
			return
		}
	}
	req.local = true
	g.metrics.peers.Inc()
	a, err := g.attempt(x.ctx, x, req, &cluster.Lease{Node: self, Done: func(cluster.Outcome) {}})
	if err != nil {
		if neverSent(err) {
			refuse(x, err.Error())
			return
		}
		x.w.Header().Set(brokeHeader, strings.Map(printable, err.Error()))
		x.answer(http.StatusBadGateway, textType, []byte(err.Error()+"\n"))
		return
	}
	g.deliver(x, req, a)
}

// printable leaves out what a header cannot hold.
func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return '?'
	}
	return r
}

// refuse tells the asking gateway that nothing was done.
func refuse(x *exchange, why string) {
	x.w.Header().Set(refusedHeader, why)
	x.answer(http.StatusServiceUnavailable, textType, []byte(why+"\n"))
}
