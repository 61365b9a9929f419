package gateway

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestAnEngineIsAskedForAModelByItsOwnWord(t *testing.T) {
	const chat = "/v1/chat/completions"
	llama := &cluster.Engine{Kind: cluster.LlamaServer, Condition: cluster.EngineReady, Routes: []string{chat}}
	for _, tc := range []struct {
		name   string
		self   bool
		engine *cluster.Engine
		model  cluster.Model
		body   string
		want   string // "": as it came
	}{
		{"a file's name", true, llama, cluster.Model{Name: "Team/M:v1", Called: "team_m_v1"}, `{"max_tokens":1,"model":"team/M:v1","messages":[{"role":"user","content":"team/M:v1"}],"seed":1}`,
			`{"max_tokens":1,"model":"team_m_v1","messages":[{"role":"user","content":"team/M:v1"}],"seed":1}`},
		{"another spelling", true, llama, cluster.Model{Name: "Org/M-7B"}, `{"model":"org/m-7b:latest","max_tokens":1,"messages":[],"seed":1}`, `{"model":"Org/M-7B","max_tokens":1,"messages":[],"seed":1}`},
		{"its own spelling", true, llama, cluster.Model{Name: "m"}, `{"model" : "m","max_tokens":1,"messages":[],"seed":1}`, ""},
		{"an Ollama knows all spellings", true, &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady}, cluster.Model{Name: "m:latest"}, `{"model":"M","max_tokens":1,"messages":[],"seed":1}`, ""},
		{"another node's engine is asked by that node", false, llama, cluster.Model{Name: "m", Called: "m_latest"}, `{"model":"M","max_tokens":1,"messages":[],"seed":1}`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nodes := testNodes("a", "b")
			node := nodes[1]
			if tc.self {
				node = nodes[0]
			}
			node.Engine, node.Models = tc.engine, []cluster.Model{tc.model}
			var got string
			h := gatewayOf(t, inOrder{node}, nodes, func(_ string, r *http.Request) (*http.Response, error) {
				body, err := io.ReadAll(r.Body)
				got = string(body)
				if r.ContentLength != int64(len(body)) {
					t.Errorf("the length is said to be %d", r.ContentLength)
				}
				return &http.Response{StatusCode: 400, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), ContentLength: 2}, err
			})
			do(h, "POST", chat, tc.body)
			if want := tc.want; got != want && (want != "" || got != tc.body) {
				t.Errorf("the engine is sent %s", got)
			}
		})
	}
}
