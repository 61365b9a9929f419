package control

import (
	"net/http"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

// ready answers 200 when a client may be sent here: the node is not stopping or draining, and an
// engine can be reached from it, its own or a peer's.
func (c *Control) ready(w http.ResponseWriter, _ *http.Request) {
	v := c.deps.View()
	self := v.SelfNode()
	switch {
	case c.deps.Stopping():
		text(w, http.StatusServiceUnavailable, "stopping\n")
	case self == nil:
		text(w, http.StatusServiceUnavailable, "starting\n")
	case self.State != cluster.Active:
		text(w, http.StatusServiceUnavailable, string(self.State)+"\n")
	case engines(v) == 0:
		text(w, http.StatusServiceUnavailable, "no engine is running here or on a peer\n")
	default:
		text(w, http.StatusOK, "ready\n")
	}
}

// health tells how each service of this node is, and answers 503 only when the node is of no use.
func (c *Control) health(w http.ResponseWriter, _ *http.Request) {
	v := c.deps.View()
	h := api.Health{Status: api.Healthy, NodeID: v.Self, Timestamp: c.deps.Now().UTC(), Services: map[string]string{
		"gateway": api.OK, "engine": api.OK, "scheduler": api.OK, "consensus": api.OK, "p2p": api.OK,
	}}
	if !v.Quorum {
		h.Services["consensus"] = api.Down
		h.Status = api.Degraded
	}
	others, reached := 0, 0
	for _, n := range v.Nodes {
		if n.ID != v.Self {
			others++
			if n.Condition == cluster.Alive {
				reached++
			}
		}
	}
	if reached < others {
		h.Services["p2p"] = api.Degraded
		if reached == 0 {
			h.Services["p2p"] = api.Down
		}
		h.Status = api.Degraded
	}
	if self := v.SelfNode(); self == nil || self.Engine == nil || self.Engine.Condition != cluster.EngineReady {
		h.Services["engine"] = api.Down
		h.Status = api.Degraded
	}
	if c.deps.Stopping() {
		h.Services["gateway"] = api.Down
		h.Status = api.Unhealthy
	}
	if engines(v) == 0 {
		h.Services["scheduler"] = api.Down
		h.Status = api.Unhealthy
	}
	status := http.StatusOK
	if h.Status == api.Unhealthy {
		status = http.StatusServiceUnavailable
	}
	reply(w, status, h)
}

// engines counts the engines that can be sent work.
func engines(v *cluster.View) (n int) {
	for _, node := range v.Nodes {
		if node.Serves() {
			n++
		}
	}
	return n
}
