package gateway

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

const (
	jsonType = "application/json; charset=utf-8"
	textType = "text/plain; charset=utf-8"
)

// root answers as an Ollama does, whatever its engine does: clients ask it whether we live.
func (g *Gateway) root(x *exchange) {
	x.answer(http.StatusOK, textType, []byte("Ollama is running"))
}

// version answers with the own engine's version, else with the lowest in the cluster, so that a
// client that adapts to it asks for nothing that some node lacks.
func (g *Gateway) version(x *exchange) {
	v := g.deps.View()
	version := ""
	for _, n := range v.Nodes {
		if n.Condition == cluster.Dead || n.Engine == nil || n.Engine.Kind != cluster.Ollama || n.Engine.Version == "" {
			continue
		}
		if n.ID == v.Self {
			version = n.Engine.Version
			break
		}
		if version == "" || compareVersions(n.Engine.Version, version) < 0 {
			version = n.Engine.Version
		}
	}
	if version == "" {
		g.fail(x, noEngine)
		return
	}
	body, err := json.Marshal(map[string]string{"version": version})
	if err != nil {
		g.fail(x, err)
		return
	}
	x.w.Header().Set("X-Ollamamax-Node", g.selfName(v)) // tells a node that was given us as its engine
	x.answer(http.StatusOK, jsonType, body)
}

func (g *Gateway) selfName(v *cluster.View) string {
	if self := v.SelfNode(); self != nil {
		return self.Name
	}
	return string(v.Self)
}

// compareVersions orders dotted numbers; what is no number counts as 0.
func compareVersions(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		var x, y int
		if i < len(as) {
			x, _ = strconv.Atoi(as[i])
		}
		if i < len(bs) {
			y, _ = strconv.Atoi(bs[i])
		}
		if x != y {
			return cmp.Compare(x, y)
		}
	}
	return 0
}

// tags lists the cluster's models as an Ollama lists its own: newest first, each name once.
func (g *Gateway) tags(x *exchange) {
	var records []json.RawMessage
	for _, m := range g.deps.View().Models("/api/tags") {
		if m.Tags != nil {
			records = append(records, m.Tags)
		}
	}
	x.answer(http.StatusOK, jsonType, list(`{"models":[`, records, `]}`))
}

// v1Models lists the cluster's models in OpenAI's form, those of every kind of engine.
func (g *Gateway) v1Models(x *exchange) {
	var records []json.RawMessage
	v := g.deps.View()
	for _, m := range v.Models("/v1/models") {
		if m.V1 != nil {
			records = append(records, m.V1)
		}
	}
	x.w.Header().Set("X-Ollamamax-Node", g.selfName(v)) // tells a node that was given us as its engine
	x.answer(http.StatusOK, "application/json", list(`{"object":"list","data":[`, records, "]}\n"))
}

// ps lists what is loaded anywhere in the cluster, each model once.
func (g *Gateway) ps(x *exchange) {
	v := g.deps.View()
	var records []json.RawMessage
	seen := map[string]bool{}
	for _, n := range ownFirst(v) {
		for _, l := range n.Loaded {
			if key := cluster.CanonicalModel(l.Name) + "@" + l.Digest; !seen[key] && l.PS != nil {
				seen[key] = true
				records = append(records, l.PS)
			}
		}
	}
	x.answer(http.StatusOK, jsonType, list(`{"models":[`, records, `]}`))
}

// ownFirst returns the nodes that are not dead, the asked one first.
func ownFirst(v *cluster.View) []*cluster.Node {
	nodes := make([]*cluster.Node, 0, len(v.Nodes))
	for _, n := range v.Nodes {
		if n.Condition != cluster.Dead {
			nodes = append(nodes, n)
		}
	}
	slices.SortStableFunc(nodes, func(a, b *cluster.Node) int { return ownRank(v, a) - ownRank(v, b) })
	return nodes
}

func list(head string, records []json.RawMessage, tail string) []byte {
	var b bytes.Buffer
	b.WriteString(head)
	for i, r := range records {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(r)
	}
	b.WriteString(tail)
	return b.Bytes()
}
