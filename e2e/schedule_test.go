package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

// tuned is a node with more in its configuration file than others, and a fake Ollama with the flags
// given.
func tuned(t *testing.T, name, config string, flags ...string) *member {
	t.Helper()
	m := &member{name: name, dataDir: filepath.Join(t.TempDir(), name)}
	addr := freeAddr(t)
	m.fake, m.engine = start(t, nil, fakeBinary, append([]string{"-listen", addr}, flags...)...), "http://"+addr
	eventually(t, 20*time.Second, "the fake engine answers", func() bool { return answers(m.engine + "/api/version") })
	m.args = []string{"--engine-url", m.engine, "--config", configured(t, config)}
	return m
}

// counts is what a fake engine has counted.
func counts(t *testing.T, m *member) (s enginetest.Stats) {
	t.Helper()
	_, text := ask(t, "GET", m.engine+"/_stats", "")
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// warm has the members' engines load a model, and waits until all of the cluster know it.
func (c testCluster) warm(t *testing.T, model string, on ...*member) {
	t.Helper()
	for _, m := range on {
		if code, text := ask(t, "POST", m.engine+"/api/generate", fmt.Sprintf(`{"model":%q,"prompt":"load","stream":false,"options":{"num_predict":1}}`, model)); code != 200 {
			t.Fatalf("load %s on %s: %d %s", model, m.name, code, text)
		}
	}
	for _, m := range c {
		eventually(t, 30*time.Second, m.name+" knows where "+model+" is loaded", func() bool {
			loaded := 0
			for _, r := range replicas(t, m, model) {
				if r.Loaded {
					loaded++
				}
			}
			return loaded >= len(on)
		})
	}
}

// replicas is where a member believes that a model is.
func replicas(t *testing.T, m *member, model string) []api.Replica {
	t.Helper()
	_, text := ask(t, "GET", m.url+"/api/v1/models/"+model, "")
	var a api.Model
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		t.Fatal(err)
	}
	return a.Replicas
}

// explained asks a member of what the choice of a node for a request to generate would be made.
func explained(t *testing.T, m *member, body string) cluster.Explanation {
	t.Helper()
	return explainedOn(t, m, "/api/generate", body)
}

// explainedOn is explained for a request to another route.
func explainedOn(t *testing.T, m *member, path, body string) (e cluster.Explanation) {
	t.Helper()
	code, text := ask(t, "POST", m.url+"/api/v1/schedule/explain?path="+path, body)
	if code != 200 {
		t.Fatalf("explain: %d %s", code, text)
	}
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		t.Fatal(err)
	}
	return e
}

// candidateOn returns what an explanation says of a node.
func candidateOn(t *testing.T, e cluster.Explanation, node string) cluster.Candidate {
	t.Helper()
	for _, c := range e.Candidates {
		if c.Node == node {
			return c
		}
	}
	t.Fatalf("no candidate %s in %+v", node, e)
	return cluster.Candidate{}
}

// duration reads a duration that the API has written.
func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// serving lists what a member's gateway is serving.
func serving(t *testing.T, m *member) []api.Request {
	t.Helper()
	_, text := ask(t, "GET", m.url+"/api/v1/requests", "")
	var r api.Requests
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	return r.Requests
}
