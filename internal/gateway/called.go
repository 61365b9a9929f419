package gateway

import (
	"cmp"
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// asCalled returns the request as it goes to a node. Another node gets the client's words. The own engine, if it is no Ollama,
// knows a model by one spelling only, or by its file.
func (g *Gateway) asCalled(n *cluster.Node, req *request) *request {
	if n.ID != g.deps.View().Self || n.Engine == nil || n.Engine.Kind == cluster.Ollama || req.modelLen == 0 {
		return req
	}
	m, held := n.Model(req.Key())
	name := cmp.Or(m.Called, m.Name)
	if !held || name == req.Model {
		return req
	}
	text := req.body
	if !req.derived {
		text = req.text // which is not compressed
	}
	at, end := 0, 0
	gjson.ParseBytes(text).ForEach(func(key, value gjson.Result) bool {
		if strings.ToLower(key.Str) == "model" {
			at, end = value.Index, value.Index+len(value.Raw)
		}
		return true
	})
	if end == 0 {
		return req
	}
	other := *req
	other.body, other.plain = slices.Concat(text[:at], quote(name), text[end:]), true
	return &other
}
