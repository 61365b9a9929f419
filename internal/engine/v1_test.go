package engine

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

// llama answers what a llama-server of build 11669 does.
type llama struct {
	loading bool
	asked   int
	key     string
}

func (l *llama) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.asked++
	w.Header().Set("Access-Control-Allow-Origin", "")
	answer := func(status int, body string) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
	switch path := r.URL.Path; {
	case l.key != "" && r.Header.Get("Authorization") != "Bearer "+l.key:
		answer(401, `{"error":{"message":"Invalid API Key"}}`)
	case l.loading:
		answer(503, `{"error":{"message":"Loading model","type":"unavailable_error","code":503}}`)
	case path == "/health":
		answer(200, `{"status":"ok"}`)
	case path == "/props":
		answer(200, `{"default_generation_settings":{"n_ctx":1024},"total_slots":2,"build_info":"b11669-Debian"}`)
	case path == "/v1/models":
		answer(200, fmt.Sprintf(`{"object":"list","data":[{"id":"noise","created":%d,"meta":{"n_ctx":1024,"n_ctx_train":4096,"size":11021312}},{"id":"big","created":%[1]d,"status":{"value":"unloaded"}}]}`, l.asked))
	case path == "/v1/chat/completions", path == "/v1/messages":
		answer(400, `{"error":{"code":400,"message":"parse error"}}`)
	case path == "/v1/embeddings":
		answer(501, `{"error":{"code":501,"message":"This server does not support embeddings."}}`)
	default:
		answer(404, `{"error":{"message":"File Not Found","type":"not_found_error","code":404}}`)
	}
}

func newEngine(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler), DataDir: t.TempDir(), Changed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestALlamaServerIsKnownByWhatItAnswers(t *testing.T) {
	server := &llama{loading: true, key: "secret"}
	at := httptest.NewServer(server)
	defer at.Close()
	stranger := newEngine(t, Config{Kind: cluster.LlamaServer, URL: at.URL})
	stranger.Refresh(t.Context())
	if got := stranger.Status().Engine; got.Condition != cluster.EngineDown || !strings.Contains(got.Why, "401") {
		t.Errorf("without a key: %+v", got)
	}

	e := newEngine(t, Config{Kind: cluster.LlamaServer, URL: at.URL + "/v1/", APIKey: "secret"})
	e.Refresh(t.Context())
	if got := e.Status().Engine; got.Condition != cluster.EngineStarting || got.Why != "loading its model" {
		t.Errorf("while loading: %+v", got)
	}
	server.loading = false
	e.Refresh(t.Context())
	got := e.Status()
	want := &Status{
		Engine: cluster.Engine{Kind: cluster.LlamaServer, Version: "b11669-Debian", Condition: cluster.EngineReady,
			Routes: []string{"/v1/chat/completions", "/v1/messages"}},
		Models: []cluster.Model{{Name: "noise", Size: 11021312}, {Name: "big"}},
		Loaded: []cluster.Loaded{{Name: "noise", ContextLength: 1024}},
		Slots:  2,
	}
	if diff := cmp.Diff(want, got, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".V1" }, cmp.Ignore())); diff != "" {
		t.Error(diff)
	}
	if e.Slots() != 2 || !strings.HasPrefix(string(got.Models[0].V1), `{"id":"noise","created":`) {
		t.Errorf("%d slots, %s", e.Slots(), got.Models[0].V1)
	}
	asked := server.asked
	e.Refresh(t.Context())
	if e.Status() != got || server.asked != asked+2 {
		t.Errorf("%d questions for an engine that has not changed, and Status is new: %v", server.asked-asked, e.Status() != got)
	}

	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://engine/v1/models", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer of-the-client")
	resp, err := e.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, has := resp.Header["Access-Control-Allow-Origin"]; has || resp.StatusCode != 200 {
		t.Errorf("the engine's word on web pages goes to clients, or its key does not go to it: %d %v", resp.StatusCode, resp.Header)
	}
}

func TestAnOpenAIServerIsKnownByWhatItAnswers(t *testing.T) {
	fake := httptest.NewServer(enginetest.New(enginetest.Config{Kind: enginetest.KindOpenAI, Models: []enginetest.Model{{Name: "Org/Model-7B"}}}))
	defer fake.Close()
	e := newEngine(t, Config{Kind: cluster.OpenAI, URL: fake.URL})
	e.Refresh(t.Context())
	got := e.Status()
	if got.Engine.Condition != cluster.EngineReady || len(got.Models) != 1 || got.Models[0].Name != "Org/Model-7B" ||
		got.Models[0].Digest != "" || got.Models[0].Tags != nil || len(got.Loaded) != 1 {
		t.Errorf("%+v", got)
	}
	if diff := cmp.Diff([]string{"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"}, got.Engine.Routes); diff != "" {
		t.Error(diff)
	}
	fake.Close()
	e.Refresh(t.Context())
	if got := e.Status(); got.Engine.Condition != cluster.EngineDown {
		t.Errorf("gone: %+v", got)
	}
}

func TestAnEngineOfAnotherKindIsNamed(t *testing.T) {
	ollama := httptest.NewServer(enginetest.New(enginetest.Config{}))
	defer ollama.Close()
	e := newEngine(t, Config{Kind: cluster.LlamaServer, URL: ollama.URL})
	e.Refresh(t.Context())
	if why := e.Status().Engine.Why; !strings.Contains(why, "no llama-server at "+ollama.URL) {
		t.Error(why)
	}
}

func TestConfigIsRefusedWithAHint(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		want string // "" for none
	}{
		{"nothing", Config{}, ""},
		{"llama-server at its usual address", Config{Kind: cluster.LlamaServer}, ""},
		{"llama-server of its own", Config{Kind: cluster.LlamaServer, Command: "llama-server"}, ""},
		{"openai at an address", Config{Kind: cluster.OpenAI, URL: "http://127.0.0.1:8000/v1"}, ""},
		{"openai nowhere", Config{Kind: cluster.OpenAI}, "--engine-url"},
		{"openai of its own", Config{Kind: cluster.OpenAI, Command: "vllm"}, "run the server yourself"},
		{"another kind", Config{Kind: "abacus"}, "use ollama, llama-server or openai"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.cfg.Validate()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestALlamaServerIsToldItsModels(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files []string
		want  string // with DIR for the folder
	}{
		{"none", []string{"notes.txt"}, "no *.gguf in DIR: put a model there, or name its folder in engine.models_dir"},
		{"one", []string{"noise.gguf", "notes.txt"}, "--host 127.0.0.1 --port 1234 --model DIR/noise.gguf --alias noise"},
		{"several", []string{"noise.gguf", "sentence.gguf"}, "--host 127.0.0.1 --port 1234 --models-dir DIR"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			e := newEngine(t, Config{Kind: cluster.LlamaServer, Command: "llama-server", APIKey: "secret"})
			args, env, err := e.commandLine("127.0.0.1:1234", dir)
			got := strings.Join(args, " ")
			if err != nil {
				got = err.Error()
			} else if strings.Join(env, " ") != "LLAMA_API_KEY=secret" {
				t.Errorf("environment %q", env)
			}
			if got = filepath.ToSlash(strings.ReplaceAll(got, dir, "DIR")); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestAnAPIKeyIsNotShown(t *testing.T) {
	cfg := Config{APIKey: "secret"}
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{string(text), fmt.Sprintf("%v", cfg), fmt.Sprintf("%+v", cfg), fmt.Sprintf("%#v", cfg)} {
		if strings.Contains(shown, "secret") || !strings.Contains(shown, "****") {
			t.Error(shown)
		}
	}
	var read Config
	if err := yaml.Unmarshal([]byte("api_key: other"), &read); err != nil || read.APIKey != "other" {
		t.Errorf("read %q: %v", string(read.APIKey), err)
	}
}
