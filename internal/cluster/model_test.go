package cluster

import (
	"testing"
	"time"
)

func TestAllSpellingsOfAModelAreOneName(t *testing.T) {
	for _, name := range []string{"m", "M", "m:latest", "library/m", "registry.ollama.ai/library/m", "https://registry.ollama.ai/library/m:latest", " m "} {
		if got := CanonicalModel(name); got != "m:latest" {
			t.Errorf("CanonicalModel(%q) = %q", name, got)
		}
	}
	for name, want := range map[string]string{
		"": "", "m:1b": "m:1b", "user/m": "user/m:latest", "host:5000/user/m": "host:5000/user/m:latest",
		"host:5000/user/m:q4": "host:5000/user/m:q4", "hf.co/A/B:Q4_K_M": "hf.co/a/b:q4_k_m",
	} {
		if got := CanonicalModel(name); got != want {
			t.Errorf("CanonicalModel(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestCloudModelsAreKnownByTheirTag(t *testing.T) {
	for name, want := range map[string]bool{"m:cloud": true, "m:120b-cloud": true, "m": false, "cloud": false, "cloud:latest": false} {
		if got := CloudModel(name); got != want {
			t.Errorf("CloudModel(%q) = %v", name, got)
		}
	}
}

func TestViewFindsHoldersInWhateverSpelling(t *testing.T) {
	v := NewView("b", time.Time{}, []*Node{
		{ID: "b", Name: "beta", Models: []Model{{Name: "M:latest"}, {Name: "m"}}},
		{ID: "a", Name: "alpha", Models: []Model{{Name: "m:latest"}, {Name: "other"}}},
	})
	replicas := v.Replicas("library/m")
	if len(replicas) != 2 || replicas[0].Node.Name != "alpha" || replicas[1].Node.Name != "beta" {
		t.Errorf("replicas %v", replicas)
	}
	if v.SelfNode().Name != "beta" || v.Find("alpha").ID != "a" || v.Find("a").Name != "alpha" || v.Find("x") != nil {
		t.Error("a node is not found by its name and id")
	}
}

func TestDamagedWeightsAreSparedWhereAWholeReplicaServesButNotTheOtherWayRound(t *testing.T) {
	node := func(id NodeID, m Model) *Node {
		m.Name = "m"
		return &Node{ID: id, Name: string(id), Condition: Alive, State: Active, Engine: &Engine{Condition: EngineReady}, Models: []Model{m}}
	}
	for _, tc := range []struct {
		name       string
		bad, other Model
		spared     bool
	}{
		{"damaged weights", Model{Weights: "1", Damaged: true}, Model{Digest: "1"}, true},
		{"damaged weights of another", Model{Weights: "2", Damaged: true}, Model{Digest: "1"}, false},
		{"damaged weights beside weights", Model{Weights: "1", Damaged: true}, Model{Weights: "1"}, true},
		{"a damaged whole", Model{Digest: "1", Damaged: true}, Model{Weights: "1"}, false},
	} {
		v := NewView("a", time.Time{}, []*Node{node("a", tc.bad), node("b", tc.other)})
		if got := v.Replicas("m")[0].Spared; got != tc.spared {
			t.Errorf("%s is spared: %v", tc.name, got)
		}
	}
}

func TestADamagedReplicaIsSparedWhereAGoodOneServes(t *testing.T) {
	good, other := "one", "two"
	node := func(id NodeID, digest string, damaged bool, change func(*Node)) *Node {
		n := &Node{ID: id, Name: string(id), Condition: Alive, State: Active, Engine: &Engine{Kind: Ollama, Condition: EngineReady},
			Models: []Model{{Name: "m", Digest: digest, Damaged: damaged}}}
		if change != nil {
			change(n)
		}
		return n
	}
	for _, tc := range []struct {
		name   string
		other  *Node
		spared bool
	}{
		{"a good one", node("b", good, false, nil), true},
		{"another damaged one", node("b", good, true, nil), false},
		{"another digest", node("b", other, false, nil), false},
		{"a dead node's", node("b", good, false, func(n *Node) { n.Condition = Dead }), false},
		{"one behind an engine that is down", node("b", good, false, func(n *Node) { n.Engine.Condition = EngineDown }), false},
	} {
		replicas := NewView("a", time.Time{}, []*Node{node("a", good, true, nil), tc.other}).Replicas("m")
		if replicas[0].Spared != tc.spared || replicas[1].Spared {
			t.Errorf("%s: %v %v", tc.name, replicas[0].Spared, replicas[1].Spared)
		}
	}
}
