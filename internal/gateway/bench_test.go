package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/schedule"
)

// sink is a client that takes everything.
type sink struct {
	header http.Header
	status int
	bytes  int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(b []byte) (int, error) { s.bytes += len(b); return len(b), nil }
func (s *sink) FlushError() error           { return nil }
func (s *sink) SetWriteDeadline(time.Time) error {
	return nil
}
func (s *sink) SetReadDeadline(time.Time) error { return nil }

// benchGateway is a gateway with the real scheduler and one node, whose engine answers at once.
func benchGateway(b *testing.B, answer string, contentType string) http.Handler {
	b.Helper()
	node := &cluster.Node{ID: "a", Name: "a", Condition: cluster.Alive, State: cluster.Active, Slots: cluster.Slots{Total: 1 << 20},
		Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady, Version: "0.33.0"},
		Models: []cluster.Model{{Name: "m", Digest: "1"}}, Loaded: []cluster.Loaded{{Name: "m", ContextLength: 4096}}}
	v := cluster.NewView("a", time.Time{}, []*cluster.Node{node})
	view := func() *cluster.View { return v }
	s, err := schedule.New(schedule.Default(), schedule.DefaultQueue(), schedule.DefaultStall(), schedule.Deps{View: view})
	if err != nil {
		b.Fatal(err)
	}
	engine := transport(func(r *http.Request) (*http.Response, error) {
		_, _ = io.Copy(io.Discard, r.Body)
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {contentType}}, ContentLength: -1, Body: io.NopCloser(strings.NewReader(answer))}, nil
	})
	g, err := New(Default(), Deps{
		Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), View: view, Scheduler: s, Waiting: s.Waiting,
		Engine: engine, Peers: engine, Refresh: func(context.Context, *cluster.Node) {}, Stopping: func() bool { return false },
	})
	if err != nil {
		b.Fatal(err)
	}
	mux := http.NewServeMux()
	g.Register(mux)
	return mux
}

// prompt of about a kilobyte.
var benchPrompt = strings.Repeat("why is the sky blue? ", 50)

func benchmark(b *testing.B, path, body, answer, contentType string) {
	h := benchGateway(b, answer, contentType)
	b.ReportAllocs()
	b.SetBytes(int64(len(answer)))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r, err := http.NewRequestWithContext(b.Context(), "POST", path, strings.NewReader(body))
			if err != nil {
				b.Fatal(err)
			}
			r.Header["Content-Type"] = []string{"application/json"}
			r.RemoteAddr = "127.0.0.1:1234"
			w := sink{header: http.Header{}}
			h.ServeHTTP(&w, r)
			if w.status != 200 || w.bytes == 0 {
				b.Fatalf("%d", w.status)
			}
		}
	})
}

const (
	benchLast = `{"model":"m","created_at":"2026-11-24T14:28:44.517415243Z","response":"","done":true,"done_reason":"stop","total_duration":127899,"load_duration":2113,"prompt_eval_count":300,"prompt_eval_duration":160,"eval_count":64,"eval_duration":125456}`
	benchWord = `{"model":"m","created_at":"2026-11-24T14:28:44.517415243Z","response":" word","done":false}` + "\n"
)

func BenchmarkUnary(b *testing.B) {
	answer := strings.Replace(benchLast, `"response":""`, `"response":"`+strings.Repeat("word ", 16)+`"`, 1)
	benchmark(b, "/api/generate", fmt.Sprintf(`{"model":"m","prompt":%q,"stream":false,"options":{"num_predict":16}}`, benchPrompt), answer, "application/json; charset=utf-8")
}

func BenchmarkUnaryFolded(b *testing.B) {
	benchmark(b, "/api/generate", fmt.Sprintf(`{"model":"m","prompt":%q,"stream":false}`, benchPrompt), strings.Repeat(benchWord, 64)+benchLast+"\n", "application/x-ndjson")
}

func BenchmarkStreamOf64(b *testing.B) {
	benchmark(b, "/api/generate", fmt.Sprintf(`{"model":"m","prompt":%q}`, benchPrompt), strings.Repeat(benchWord, 64)+benchLast+"\n", "application/x-ndjson")
}
