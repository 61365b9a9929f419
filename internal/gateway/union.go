package gateway

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"

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
		g.fail(x, noneLeft(nil, 0))
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
	for _, m := range replicas(g.deps.View()) {
		if m.Tags != nil {
			records = append(records, m.Tags)
		}
	}
	slices.SortStableFunc(records, func(a, b json.RawMessage) int { return modified(b).Compare(modified(a)) })
	x.answer(http.StatusOK, jsonType, list(`{"models":[`, records, `]}`))
}

// v1Models lists the cluster's models in OpenAI's form, those of every kind of engine.
func (g *Gateway) v1Models(x *exchange) {
	var records []json.RawMessage
	for _, m := range replicas(g.deps.View()) {
		if m.V1 != nil {
			records = append(records, m.V1)
		}
	}
	created := func(m json.RawMessage) int64 { return gjson.GetBytes(m, "created").Int() }
	slices.SortStableFunc(records, func(a, b json.RawMessage) int { return cmp.Compare(created(b), created(a)) })
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

// replicas returns one replica for each name: with the digest that the asked node holds, else the
// most frequent one, else the newest.
func replicas(v *cluster.View) []cluster.Model {
	type held struct {
		own   bool
		model cluster.Model
		count int
	}
	var names []string
	byName := map[string][]*held{}
	for _, n := range ownFirst(v) {
		for _, m := range n.Models {
			name := cluster.CanonicalModel(m.Name)
			same := slices.IndexFunc(byName[name], func(h *held) bool { return h.model.Digest == m.Digest })
			if same >= 0 {
				byName[name][same].count++
				continue
			}
			if byName[name] == nil {
				names = append(names, name)
			}
			byName[name] = append(byName[name], &held{own: n.ID == v.Self, model: m, count: 1})
		}
	}
	chosen := make([]cluster.Model, 0, len(names))
	for _, name := range names {
		best := slices.MaxFunc(byName[name], func(a, b *held) int {
			if a.own != b.own {
				if a.own {
					return 1
				}
				return -1
			}
			return cmp.Or(cmp.Compare(a.count, b.count), modified(a.model.Tags).Compare(modified(b.model.Tags)))
		})
		chosen = append(chosen, best.model)
	}
	return chosen
}

// ownFirst returns the nodes that are not dead, the asked one first.
func ownFirst(v *cluster.View) []*cluster.Node {
	nodes := make([]*cluster.Node, 0, len(v.Nodes))
	for _, n := range v.Nodes {
		if n.Condition != cluster.Dead {
			nodes = append(nodes, n)
		}
	}
	slices.SortStableFunc(nodes, func(a, b *cluster.Node) int {
		switch v.Self {
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return 0
	})
	return nodes
}

// modified is when a model of /api/tags was last changed; the zero time when it does not say.
func modified(record json.RawMessage) time.Time {
	at, err := time.Parse(time.RFC3339Nano, gjson.GetBytes(record, "modified_at").String())
	if err != nil {
		return time.Time{}
	}
	return at
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
