package node

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestOurFilesAreToldByTheirModelsNames(t *testing.T) {
	self := &cluster.Node{
		Models: []cluster.Model{{Name: "own", V1: json.RawMessage(`{"id":"own"}`)}, {Name: "m_latest", V1: json.RawMessage(`{"object":"model","id":"m_latest","n":1}`)}, {Name: "going_latest"}},
		Loaded: []cluster.Loaded{{Name: "m_latest", ContextLength: 7}, {Name: "going_latest"}},
	}
	nameFiles(self, map[string]cluster.Model{"m_latest": {Name: "M:latest", Weights: "1", Size: 7}, "going_latest": {}, "not_listed": {Name: "x"}})
	want := &cluster.Node{
		Models: []cluster.Model{{Name: "own", V1: json.RawMessage(`{"id":"own"}`)}, {Name: "M:latest", Weights: "1", Size: 7, Called: "m_latest", V1: json.RawMessage(`{"object":"model","id":"M:latest","n":1}`)}},
		Loaded: []cluster.Loaded{{Name: "M:latest", ContextLength: 7}},
	}
	if diff := cmp.Diff(want, self); diff != "" {
		t.Error(diff)
	}
}
