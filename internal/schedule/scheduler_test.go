package schedule

import (
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func ready(id cluster.NodeID, models ...string) *cluster.Node {
	n := &cluster.Node{ID: id, Name: string(id), Condition: cluster.Alive, State: cluster.Active,
		Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady}}
	for _, m := range models {
		n.Models = append(n.Models, cluster.Model{Name: m})
	}
	return n
}

func loaded(n *cluster.Node, model string, context int) *cluster.Node {
	n.Loaded = append(n.Loaded, cluster.Loaded{Name: model, ContextLength: context})
	return n
}

// v1 makes a node's engine one that only has the chat route of OpenAI's.
func v1(n *cluster.Node) *cluster.Node {
	n.Engine.Kind, n.Engine.Routes = cluster.OpenAI, []string{"/v1/chat/completions"}
	return n
}

func digest(n *cluster.Node, d string) *cluster.Node { n.Models[0].Digest = d; return n }

func with(n *cluster.Node, change func(*cluster.Node)) *cluster.Node { change(n); return n }

func TestPickPrefers(t *testing.T) {
	big := cluster.Request{Model: "m", PromptBytes: 100_000}
	for _, tc := range []struct {
		name    string
		nodes   []*cluster.Node
		request cluster.Request
		tried   []cluster.NodeID
		want    cluster.NodeID // "" for none
	}{
		{"the holder to others", []*cluster.Node{ready("a"), ready("b", "m")}, cluster.Request{Model: "M"}, nil, "b"},
		{"loaded to stored", []*cluster.Node{ready("a", "m"), loaded(ready("b", "m"), "m:latest", 4096)}, cluster.Request{Model: "m"}, nil, "b"},
		{"stored to loaded with too small a context", []*cluster.Node{loaded(ready("a", "m"), "m", 4096), ready("b", "m")}, big, nil, "b"},
		{"the larger context", []*cluster.Node{loaded(ready("a", "m"), "m", 4096), loaded(ready("b", "m"), "m", 262144)}, big, nil, "b"},
		{"alive to suspect", []*cluster.Node{with(loaded(ready("a", "m"), "m", 0), func(n *cluster.Node) { n.Condition = cluster.Suspect }), ready("b", "m")}, cluster.Request{Model: "m"}, nil, "b"},
		{"suspect to none", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.Condition = cluster.Suspect })}, cluster.Request{Model: "m"}, nil, "a"},
		{"no dead node", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.Condition = cluster.Dead })}, cluster.Request{Model: "m"}, nil, ""},
		{"no draining node", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.State = cluster.Draining })}, cluster.Request{Model: "m"}, nil, ""},
		{"no node whose engine is down", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.Engine.Condition = cluster.EngineDown })}, cluster.Request{Model: "m"}, nil, ""},
		{"none tried before", []*cluster.Node{ready("a", "m"), ready("b", "m")}, cluster.Request{Model: "m"}, []cluster.NodeID{"a"}, "b"},
		{"its own engine for a model that nobody holds", []*cluster.Node{ready("a"), ready("self")}, cluster.Request{Model: "x"}, nil, "self"},
		{"its own engine for a cloud model", []*cluster.Node{ready("a", "m:cloud"), ready("self")}, cluster.Request{Model: "m:cloud"}, nil, "self"},
		{"no other engine while its own is starting, for what names no model", []*cluster.Node{ready("a"), with(ready("self"), func(n *cluster.Node) { n.Engine.Condition = cluster.EngineStarting })}, cluster.Request{}, nil, ""},
		{"another engine while its own is starting, for a model", []*cluster.Node{ready("a", "m"), with(ready("self", "m"), func(n *cluster.Node) { n.Engine.Condition = cluster.EngineStarting })}, cluster.Request{Model: "m"}, nil, "a"},
		{"only nodes with the digest of its own", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.Models[0].Digest = "1" }), with(ready("self", "m"), func(n *cluster.Node) { n.Models[0].Digest = "2" })}, cluster.Request{Model: "m"}, nil, "self"},
		{"for Ollama's routes only Ollamas", []*cluster.Node{v1(ready("self", "m")), digest(ready("b", "m"), "1")}, cluster.Request{Path: "/api/chat", Model: "m"}, nil, "b"},
		{"nobody for Ollama's routes, if only others hold the model", []*cluster.Node{ready("a"), v1(ready("b", "m"))}, cluster.Request{Path: "/api/chat", Model: "m"}, nil, ""},
		{"its own engine's model for OpenAI's routes", []*cluster.Node{v1(ready("self", "m")), digest(ready("b", "m"), "1")}, cluster.Request{Path: "/v1/chat/completions", Model: "m"}, nil, "self"},
		{"no model without a digest after one with", []*cluster.Node{v1(ready("a", "m")), digest(ready("self", "m"), "1")}, cluster.Request{Path: "/v1/chat/completions", Model: "m"}, []cluster.NodeID{"self"}, ""},
		{"an engine that has the route, for a model that nobody holds", []*cluster.Node{v1(ready("self")), ready("b")}, cluster.Request{Path: "/api/chat", Model: "x"}, nil, "b"},
		{"an Ollama for a cloud model", []*cluster.Node{v1(ready("self")), ready("b")}, cluster.Request{Path: "/v1/chat/completions", Model: "x:cloud"}, nil, "b"},
		{"another engine while its own is starting, for a route that it will not have", []*cluster.Node{ready("a"), v1(with(ready("self"), func(n *cluster.Node) { n.Engine.Condition = cluster.EngineStarting }))}, cluster.Request{Path: "/api/pull"}, nil, "a"},
		{"any engine, if it has none", []*cluster.Node{ready("a"), with(ready("self"), func(n *cluster.Node) { n.Engine = nil })}, cluster.Request{}, nil, "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := cluster.NewView("self", time.Time{}, tc.nodes)
			for range 20 { // the draw is random
				node, release := New().Pick(v, tc.request, tc.tried)
				var got cluster.NodeID
				if node != nil {
					got = node.ID
					release()
				}
				if got != tc.want {
					t.Fatalf("picked %q, want %q", got, tc.want)
				}
			}
		})
	}
}

func TestPickSpreadsOverEqualNodes(t *testing.T) {
	s := New()
	v := cluster.NewView("self", time.Time{}, []*cluster.Node{ready("a", "m"), ready("b", "m"), ready("c", "m")})
	count := map[cluster.NodeID]int{}
	for range 300 {
		node, _ := s.Pick(v, cluster.Request{Model: "m"}, nil) // none is given back
		count[node.ID]++
	}
	for id, n := range count {
		if n < 80 || n > 120 {
			t.Errorf("%s got %d of 300: %v", id, n, count)
		}
	}
}

func TestASlotIsGivenBackOnce(t *testing.T) {
	s := New()
	a := ready("a", "m")
	v := cluster.NewView("self", time.Time{}, []*cluster.Node{a})
	_, release := s.Pick(v, cluster.Request{Model: "m"}, nil)
	if s.underWay(a) != 1 {
		t.Fatal("the slot was not taken")
	}
	release()
	release()
	if n := s.underWay(a); n != 0 {
		t.Errorf("%d under way", n)
	}
}
