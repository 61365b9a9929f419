package cluster

import (
	"testing"
	"time"
)

func TestAnEngineHasItsRoutes(t *testing.T) {
	vllm := &Engine{Kind: OpenAI, Routes: []string{"/v1/chat/completions", "/v1/responses"}}
	for _, tc := range []struct {
		name   string
		engine *Engine
		path   string
		want   bool
	}{
		{"an Ollama has Ollama's", &Engine{Kind: Ollama}, "/api/chat", true},
		{"an Ollama has OpenAI's", &Engine{Kind: Ollama}, "/v1/embeddings", true},
		{"an OpenAI server has what it says", vllm, "/v1/responses", true},
		{"an OpenAI server lacks what it does not say", vllm, "/v1/embeddings", false},
		{"an OpenAI server has no route of Ollama's", vllm, "/api/chat", false},
		{"an OpenAI server lists its models", vllm, "/v1/models", true},
		{"an OpenAI server tells of one model", vllm, "/v1/models/m", true},
		{"no engine has none", nil, "/v1/models", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.engine.Has(tc.path); got != tc.want {
				t.Errorf("Has(%s) = %v, want %v", tc.path, got, tc.want)
			}
		})
	}
}

func TestOneReplicaStandsForANameOnARoute(t *testing.T) {
	chat := []string{"/v1/chat/completions"}
	node := func(id NodeID, kind EngineKind, routes []string, model, digest string) *Node {
		return &Node{ID: id, Name: string(id), Condition: Alive, State: Active,
			Engine: &Engine{Kind: kind, Condition: EngineReady, Routes: routes}, Models: []Model{{Name: model, Digest: digest}}}
	}
	nodes := func() []*Node {
		return []*Node{
			node("a", OpenAI, chat, "m", ""), node("b", Ollama, nil, "m:latest", "1"), node("c", Ollama, nil, "M", "1"),
			node("d", OpenAI, chat, "only", ""),
		}
	}
	for _, tc := range []struct {
		name        string
		self        NodeID
		model, path string
		digest      string
		ok          bool
	}{
		{"the viewer's own", "a", "m", "/v1/chat/completions", "", true},
		{"the viewer's own, where it has the route", "a", "m", "/api/chat", "1", true},
		{"the viewer's own, where it has this /v1 route", "a", "m", "/v1/embeddings", "1", true},
		{"the most frequent", "d", "m", "/v1/chat/completions", "1", true},
		{"none for a route that no holder has", "b", "only", "/api/chat", "", false},
		{"none for a name that nobody holds", "b", "x", "/api/chat", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, ok := NewView(tc.self, time.Time{}, nodes()).Chosen(tc.model, tc.path)
			if m.Digest != tc.digest || ok != tc.ok {
				t.Errorf("digest %q, %v; want %q, %v", m.Digest, ok, tc.digest, tc.ok)
			}
		})
	}
	v := NewView("b", time.Time{}, nodes())
	if tags, all := len(v.Models("/api/tags")), len(v.Models("/v1/models")); tags != 1 || all != 2 {
		t.Errorf("%d models for Ollama's list, want 1; %d for OpenAI's, want 2", tags, all)
	}
}

func TestWhatWasMadeOfAModelsWeightsIsOneOfItsReplicas(t *testing.T) {
	path := "/v1/chat/completions"
	nodes := func(ollama Condition) []*Node {
		llama := &Engine{Kind: LlamaServer, Condition: EngineReady, Routes: []string{path}, Folder: true}
		return []*Node{
			{ID: "a", Name: "a", Condition: ollama, Engine: &Engine{Kind: Ollama, Condition: EngineReady}, Models: []Model{{Name: "m:latest", Digest: "1"}}},
			{ID: "b", Name: "b", Condition: Alive, Engine: llama, Models: []Model{{Name: "m:latest", Weights: "1", Called: "m_latest"}}},
			{ID: "c", Name: "c", Condition: Alive, Engine: llama, Models: []Model{{Name: "m:latest", Weights: "2", Called: "m_latest"}}},
			{ID: "d", Name: "d", Condition: Alive, Engine: llama, Models: []Model{{Name: "m"}}},
		}
	}
	v := NewView("a", time.Time{}, nodes(Alive))
	v.Wanted = map[string]string{"m:latest": "1"}
	if m, ok := v.Chosen("m", path); !ok || m.Digest != "1" || v.ChosenDigest("m", path) != "1" {
		t.Errorf("%+v stands for the name, of the digest %q", m, v.ChosenDigest("m", path))
	}
	v = NewView("d", time.Time{}, nodes(Dead)) // whose own it is not what the cluster wants
	v.Wanted = map[string]string{"m:latest": "2"}
	if m, _ := v.Chosen("m", path); m.Weights != "2" || v.ChosenDigest("m", path) != "2" {
		t.Errorf("%+v stands for the name, of the digest %q", m, v.ChosenDigest("m", path))
	}
	kin := map[string]string{}
	for _, n := range v.Nodes {
		if other, is := kin[n.Models[0].Kin()]; is {
			t.Errorf("%s and %s go on with each other's answers", n.ID, other)
		}
		kin[n.Models[0].Kin()] = n.Name
	}
}
