package engine

import (
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

func TestTheFakeLlamaServerIsTakenForOne(t *testing.T) {
	for _, tc := range []struct {
		model  enginetest.Model
		routes []string
	}{
		{enginetest.Model{Name: "noise", Size: 7, ContextLength: 2048}, []string{"/v1/chat/completions", "/v1/completions"}},
		{enginetest.Model{Name: "vec", Size: 7, ContextLength: 2048, Embedding: true}, []string{"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}},
	} {
		fake := httptest.NewServer(enginetest.New(enginetest.Config{Kind: enginetest.KindLlamaServer, Models: []enginetest.Model{tc.model}, Slots: 3}))
		e := newEngine(t, Config{Kind: cluster.LlamaServer, URL: fake.URL})
		e.Refresh(t.Context())
		fake.Close()
		got := e.Status()
		if got.Engine.Condition != cluster.EngineReady || got.Engine.Version != "b11669-fake" || got.Slots != 3 {
			t.Errorf("%s: %+v", tc.model.Name, got)
		}
		if len(got.Models) != 1 || got.Models[0].Name != tc.model.Name || got.Models[0].Size != 7 || len(got.Loaded) != 1 || got.Loaded[0].ContextLength != 2048 {
			t.Errorf("models %+v, loaded %+v", got.Models, got.Loaded)
		}
		if diff := cmp.Diff(tc.routes, got.Engine.Routes); diff != "" {
			t.Errorf("%s: %s", tc.model.Name, diff)
		}
	}
}
