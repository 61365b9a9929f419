package gateway

import (
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// toldOutcomes is one node, whose attempts' results it keeps.
type toldOutcomes struct {
	inOrder
	told *[]cluster.Result
}

func (s toldOutcomes) Acquire(_ context.Context, _ *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	if len(tried) > 0 {
		return nil, cluster.ErrNobody
	}
	return &cluster.Lease{Node: s.inOrder[0], Done: func(o cluster.Outcome) { *s.told = append(*s.told, o.Result) },
		Stall: cluster.Stall{First: 20 * time.Millisecond, Whole: 20 * time.Millisecond, Floor: time.Second, Ceiling: time.Second}}, nil
}

func (s toldOutcomes) Try(*cluster.Request, []cluster.NodeID) *cluster.Lease { return nil }

func TestTooMuchWorkIsToldFromABrokenEngine(t *testing.T) {
	node := &cluster.Node{ID: "a", Name: "a", Condition: cluster.Alive, State: cluster.Active, Models: []cluster.Model{{Name: "m"}},
		Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady}}
	v := cluster.NewView("a", time.Time{}, []*cluster.Node{node})
	for name, tc := range map[string]struct {
		serve transport
		want  cluster.Result
	}{
		"503":    {func(*http.Request) (*http.Response, error) { return respond(503, "busy"), nil }, cluster.Overloaded},
		"504":    {func(*http.Request) (*http.Response, error) { return respond(504, "late"), nil }, cluster.Overloaded},
		"500":    {func(*http.Request) (*http.Response, error) { return respond(500, "broken"), nil }, cluster.Failed},
		"reset":  {refusedDial, cluster.Failed},
		"silent": {func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() }, cluster.Silent},
		"200":    {func(*http.Request) (*http.Response, error) { return respond(200, `{"done":true}`), nil }, cluster.Answered},
	} {
		t.Run(name, func(t *testing.T) {
			var told []cluster.Result
			config := Default()
			config.Retry.Budget, config.Retry.Floor = 0, 0
			g, err := New(config, Deps{
				Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), View: func() *cluster.View { return v },
				Scheduler: toldOutcomes{inOrder{node}, &told}, Waiting: func() map[string]int { return nil },
				Engine: tc.serve, Peers: tc.serve, Refresh: func(context.Context, *cluster.Node) {}, Stopping: func() bool { return false },
			})
			if err != nil {
				t.Fatal(err)
			}
			mux := http.NewServeMux()
			g.Register(mux)
			do(mux, "POST", "/api/generate", `{"model":"m","prompt":"x","stream":false}`)
			if len(told) != 1 || told[0] != tc.want {
				t.Errorf("told %v, want %v", told, tc.want)
			}
		})
	}
}
