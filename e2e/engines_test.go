package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// v1Member is a node with a fake engine that has OpenAI's routes only.
func v1Member(t *testing.T, name string, models ...string) *member {
	t.Helper()
	m, addr := &member{name: name, dataDir: filepath.Join(t.TempDir(), name)}, freeAddr(t)
	args := []string{"-kind", "openai", "-listen", addr, "-slots", "64"}
	for _, model := range models {
		args = append(args, "-model", model)
	}
	m.fake, m.engine = start(t, nil, fakeBinary, args...), "http://"+addr
	m.args = []string{"--engine", "openai", "--engine-url", m.engine}
	return m
}

// llamaServer is the real llama-server that `make engine` brings.
func llamaServer(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(engineDir(t), "lib", "ollama", "llama-server"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// engineOf is what a member believes of a node's engine.
func engineOf(t *testing.T, m *member, node string) cluster.Engine {
	t.Helper()
	s, _ := status(t, m)
	for _, n := range s.Nodes {
		if n.Name == node && n.Engine != nil {
			return *n.Engine
		}
	}
	return cluster.Engine{}
}

const chat = `{"model":%q,"messages":[{"role":"user","content":"Hello"}],"max_tokens":8,"temperature":0,"seed":1%s}`

func TestAnOpenAIEngineServesV1RoutesInACluster(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "ollama", "both", "at-ollama"), v1Member(t, "vllm", "both", "Org/Model-7B"), fakeMember(t, "third"))
	for _, m := range c {
		t.Run("asked at "+m.name, func(t *testing.T) {
			for _, tc := range []struct {
				name, method, path, body string
				status                   int
				node                     string // "" for none
				want                     string
			}{
				{"chat", "POST", "/v1/chat/completions", fmt.Sprintf(chat, "Org/Model-7B", ""), 200, "vllm", `"object":"chat.completion"`},
				{"streamed chat", "POST", "/v1/chat/completions", fmt.Sprintf(chat, "Org/Model-7B", `,"stream":true`), 200, "vllm", "data: [DONE]"},
				{"completion", "POST", "/v1/completions", `{"model":"Org/Model-7B","prompt":"x","max_tokens":2}`, 200, "vllm", `"object":"text_completion"`},
				{"Ollama's chat", "POST", "/api/chat", fmt.Sprintf(chat, "Org/Model-7B", ""), 501, "",
					`{"error":"model 'Org/Model-7B' is held only by engines that have no /api/chat (openai on node vllm): use /v1/chat/completions"}`},
				{"Ollama's generate", "POST", "/api/generate", `{"model":"Org/Model-7B","prompt":"x"}`, 501, "", `use /v1/completions"}`},
				{"its other name", "POST", "/api/v1/generate", `{"model":"Org/Model-7B","prompt":"x"}`, 501, "", `use /v1/completions"}`},
				{"to unload", "POST", "/api/generate", `{"model":"Org/Model-7B","keep_alive":0}`, 501, "", `{"error":`},
				{"Ollama's embed", "POST", "/api/embed", `{"model":"Org/Model-7B","input":"x"}`, 501, "", `use /v1/embeddings"}`},
				{"show", "POST", "/api/show", `{"model":"Org/Model-7B"}`, 501, "", `use /v1/models"}`},
				{"delete", "DELETE", "/api/delete", `{"model":"Org/Model-7B"}`, 501, "", `: they have /v1/chat/completions, /v1/completions, `},
				{"audio", "POST", "/v1/audio/transcriptions", "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nOrg/Model-7B\r\n--b--\r\n", 501, "", `{"error":{"message":"model 'Org/Model-7B' is held only`},
				{"one model", "GET", "/v1/models/Org%2FModel-7B", "", 200, "", `{"id":"Org/Model-7B","object":"model"`},
				{"one model of Ollama's", "GET", "/v1/models/at-ollama", "", 200, "ollama", `"id":"at-ollama"`},
				{"a name that both hold, by Ollama's route", "POST", "/api/chat", fmt.Sprintf(chat, "both", `,"stream":false`), 200, "ollama", `"done":true`},
				{"a model of Ollama's by OpenAI's route", "POST", "/v1/chat/completions", fmt.Sprintf(chat, "at-ollama", ""), 200, "ollama", `"chat.completion"`},
				{"a model that nobody holds", "POST", "/api/chat", fmt.Sprintf(chat, "nowhere", ""), 404, "?", `{"error":"model 'nowhere' not found"}`},
				{"a model that nobody holds, by OpenAI's route", "POST", "/v1/chat/completions", fmt.Sprintf(chat, "nowhere", ""), 404, "?", `not found`},
			} {
				t.Run(tc.name, func(t *testing.T) {
					contentType := "application/json"
					if strings.HasPrefix(tc.body, "--b") {
						contentType = "multipart/form-data; boundary=b"
					}
					status, header, text := askHeader(t, tc.method, m.url+tc.path, tc.body, "Content-Type", contentType)
					if node := header.Get("X-Ollamamax-Node"); status != tc.status || tc.node != "?" && node != tc.node || !strings.Contains(text, tc.want) {
						t.Errorf("%d from %q, want %d from %q with %s:\n%s", status, node, tc.status, tc.node, tc.want, text)
					}
				})
			}
			for path, want := range map[string]map[string]int{
				"/api/tags":  {"both": 1, "at-ollama": 1, "Org/Model-7B": 0},
				"/v1/models": {"both": 1, "at-ollama": 1, "Org/Model-7B": 1},
			} {
				_, text := ask(t, "GET", m.url+path, "")
				for model, times := range want {
					if n := strings.Count(text, `"name":"`+model) + strings.Count(text, `"id":"`+model); n != times {
						t.Errorf("%s lists %s %d times, want %d: %s", path, model, n, times, text)
					}
				}
			}
			if _, text := ask(t, "GET", m.url+"/api/version", ""); text != `{"version":"0.33.0"}` {
				t.Errorf("version: %s", text)
			}
		})
	}
	// The own engine's model stands for a name that both hold.
	for node, want := range map[*member]string{c[0]: "ollama", c[1]: "vllm"} {
		if _, header, _ := askHeader(t, "POST", node.url+"/v1/chat/completions", fmt.Sprintf(chat, "both", "")); header.Get("X-Ollamamax-Node") != want {
			t.Errorf("%s answered %s's client", header.Get("X-Ollamamax-Node"), want)
		}
	}
	if text, code := run(t, "models", "--api", c[2].url); code != 0 || !strings.Contains(text, "conflict") {
		t.Errorf("two models of one name are not shown: %d\n%s", code, text)
	}
	// Copy and delete concern Ollama's replica only; without it the name is the other's.
	if status, text := ask(t, "DELETE", c[1].url+"/api/delete", `{"model":"both"}`); status != 200 {
		t.Fatalf("delete: %d %s", status, text)
	}
	if status, text := ask(t, "POST", c[1].url+"/api/chat", fmt.Sprintf(chat, "both", "")); status != http.StatusNotImplemented {
		t.Errorf("Ollama's route after its replica was deleted: %d %s", status, text)
	}
	eventually(t, 30*time.Second, "the third node hears whose the name is now", func() bool {
		status, _ := ask(t, "POST", c[2].url+"/v1/chat/completions", fmt.Sprintf(chat, "both", ""))
		return status == 200
	})
}

// sameBytes asks a node for an answer that another node's llama-server gives, and compares it with
// what that engine sent.
func sameBytes(t *testing.T, node *member, rec *recorder, from string) {
	t.Helper()
	for _, tc := range []struct{ name, path, body string }{
		{"chat", "/v1/chat/completions", fmt.Sprintf(chat, "noise", "")},
		{"chat-stream", "/v1/chat/completions", fmt.Sprintf(chat, "noise", `,"stream":true`)},
		{"completion", "/v1/completions", `{"model":"noise","prompt":"The sea","max_tokens":8}`},
		{"messages", "/v1/messages", fmt.Sprintf(chat, "noise", "")},
		{"responses-stream", "/v1/responses", `{"model":"noise","input":"Hello","max_output_tokens":8,"stream":true}`},
	} {
		status, header, got := askHeader(t, "POST", node.url+tc.path, tc.body, "X-Request-Id", node.name+tc.name, "Content-Type", "application/json", "Origin", "http://localhost:3000")
		if status != 200 || header.Get("X-Ollamamax-Node") != from {
			t.Errorf("%s: %d from %q: %s", tc.name, status, header.Get("X-Ollamamax-Node"), got)
		}
		if origin := header.Get("Access-Control-Allow-Origin"); origin != "http://localhost:3000" {
			t.Errorf("%s: a page that was let in may not read the answer: allowed is %q", tc.name, origin)
		}
		if strings.HasSuffix(tc.name, "-stream") != strings.HasPrefix(header.Get("Content-Type"), "text/event-stream") {
			t.Errorf("%s: %s", tc.name, header.Get("Content-Type"))
		}
		if rec != nil {
			if sent := rec.answer(node.name + tc.name); got != sent || sent == "" {
				t.Errorf("%s: the client received other bytes than the engine sent:\n%s", tc.name, cmp.Diff(sent, got))
			}
		}
	}
}

func TestARealLlamaServerAnswersThroughAnotherNode(t *testing.T) {
	addr := freeAddr(t)
	host, port, _ := strings.Cut(addr, ":")
	engine := start(t, nil, llamaServer(t), "--host", host, "--port", port, "--model", filepath.Join(engineDir(t), "noise.gguf"), "--alias", "noise",
		"--ctx-size", "1024", "--parallel", "2", "--api-key", "sesame")
	rec := newRecorder(t, "http://"+addr)
	file := filepath.Join(t.TempDir(), "llama.yaml")
	text := fmt.Sprintf("p2p: {mdns: false}\nengine: {kind: llama-server, url: %q, api_key: \"${LLAMA_KEY}\"}\n", rec.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LLAMA_KEY", "sesame")
	if text, code := run(t, "config", "show", "--config", file); code != 0 || strings.Contains(text, "sesame") || !strings.Contains(text, "api_key: '********'") && !strings.Contains(text, `api_key: "********"`) {
		t.Errorf("config show: %d\n%s", code, text)
	}
	llama := &member{name: "llama", dataDir: filepath.Join(t.TempDir(), "llama"), args: []string{"--config", file}}
	c := form(t, fakeMember(t, "ollama", "m"), llama)
	sameBytes(t, c[0], rec, "llama")
	sameBytes(t, c[1], rec, "llama")
	told := engineOf(t, c[0], "llama")
	if told.Kind != cluster.LlamaServer || !strings.HasPrefix(told.Version, "b") || slices.Contains(told.Routes, "/v1/embeddings") {
		t.Errorf("the others are told %+v", told)
	}
	s, _ := status(t, c[0])
	for _, n := range s.Nodes {
		if n.Name == "llama" && (n.Slots.Total != 2 || len(n.Loaded) != 1 || n.Loaded[0].Name != "noise" || n.Loaded[0].ContextLength == 0 || n.Loaded[0].ContextLength > 1024) {
			t.Errorf("slots %+v, loaded %+v", n.Slots, n.Loaded)
		}
	}
	if status, text := ask(t, "POST", c[0].url+"/v1/embeddings", `{"model":"noise","input":"x"}`); status != http.StatusNotImplemented || !strings.Contains(text, "they have /v1/chat/completions, ") {
		t.Errorf("a route that this llama-server was not started with: %d %s", status, text)
	}
	if status, text := ask(t, "GET", c[0].url+"/v1/models/noise", ""); status != 200 || !strings.HasPrefix(text, `{"id":"noise"`) {
		t.Errorf("one model: %d %s", status, text)
	}
	engine.stop(t)
	eventually(t, 20*time.Second, "the others hear that it is gone", func() bool { return engineOf(t, c[0], "llama").Condition == cluster.EngineDown })
}

func TestANodeRunsARealLlamaServer(t *testing.T) {
	t.Parallel()
	command, model := llamaServer(t), filepath.Join(engineDir(t), "noise.gguf")
	llama := &member{name: "llama", dataDir: filepath.Join(t.TempDir(), "llama"), args: []string{"--engine", "llama-server", "--engine-command", command}}
	c := form(t, fakeMember(t, "ollama", "m"))
	llama.start(t, "--join", newToken(t, c[0]))
	models := filepath.Join(llama.dataDir, "models")
	eventually(t, 20*time.Second, "it says that it has no model", func() bool {
		return strings.Contains(engineOf(t, c[0], "llama").Why, "no *.gguf in "+models)
	})
	data, err := os.ReadFile(model)
	if err != nil {
		t.Fatal(err)
	}
	partly := filepath.Join(models, "noise.part")
	if err := os.WriteFile(partly, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(partly, filepath.Join(models, "noise.gguf")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the engine is ready", func() bool { return engineOf(t, c[0], "llama").Condition == cluster.EngineReady })
	pid := enginePID(t, llama.dataDir)
	t.Cleanup(func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	sameBytes(t, c[0], nil, "llama")
	// A llama-server promises to keep a connection and closes it after each stream: the next request
	// must not be lost on it.
	for i := range 40 {
		stream := []string{"", `,"stream":true`}[i%2]
		if status, text := ask(t, "POST", llama.url+"/v1/chat/completions", fmt.Sprintf(chat, "noise", stream)); status != 200 {
			t.Fatalf("request %d: %d %s", i, status, text)
		}
	}

	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "another engine answers", func() bool {
		status, _ := ask(t, "POST", c[0].url+"/v1/chat/completions", fmt.Sprintf(chat, "noise", ""))
		return status == 200 && enginePID(t, llama.dataDir) != pid
	})
	pid = enginePID(t, llama.dataDir)
	t.Cleanup(func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	llama.stop(t)
	if left := group(t, pid); len(left) != 0 {
		t.Errorf("the engine's processes live on: %v", left)
	}
}
