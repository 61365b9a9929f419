package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// tardy lends the slot of another node only after a time.
type tardy struct {
	inOrder
	after time.Duration
}

func (s tardy) Try(r *cluster.Request, tried []cluster.NodeID) *cluster.Lease {
	time.Sleep(s.after)
	return s.inOrder.Try(r, tried)
}

// paced is a stream whose records come one by one.
type paced struct {
	records []string
	gap     time.Duration
}

func (p *paced) Read(b []byte) (int, error) {
	if len(p.records) == 0 {
		return 0, io.EOF
	}
	time.Sleep(p.gap)
	n := copy(b, p.records[0])
	if p.records[0] = p.records[0][n:]; p.records[0] == "" {
		p.records = p.records[1:]
	}
	return n, nil
}

// TestANodeThatTakesOverTooLateSaysNothing: what it said had arrived just as the time for it was over.
func TestANodeThatTakesOverTooLateSaysNothing(t *testing.T) {
	var records []string
	want := ""
	for i := range 40 {
		want += fmt.Sprint("w", i, " ")
		records = append(records, fmt.Sprintf(`data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"w%d "},"finish_reason":null}]}`+"\n\n", i))
	}
	records = append(records, `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`+"\n\n", "data: [DONE]\n\n")
	otherwise := fmt.Sprintf(`data: {"id":"2","object":"chat.completion.chunk","created":2,"model":"m","choices":[{"index":0,"delta":{"content":%q},"finish_reason":null}]}`+"\n\n", want) +
		strings.Join(records[40:], "") // the same text, cut otherwise
	synctest.Test(t, func(t *testing.T) {
		nodes := testNodes("a", "b")
		for _, n := range nodes {
			n.Engine.Kind = cluster.LlamaServer
		}
		nodes[0].State = cluster.Draining
		config := Default()
		config.Resume.DrainGrace = 0
		asked := 0
		answer := func(body io.Reader) transport {
			return func(r *http.Request) (*http.Response, error) {
				asked++
				return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, ContentLength: -1, Body: io.NopCloser(body)}, nil
			}
		}
		v := cluster.NewView("a", time.Now(), nodes)
		g, err := New(config, Deps{
			Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), View: func() *cluster.View { return v },
			Scheduler: tardy{inOrder(nodes), config.Resume.Wait + time.Second}, Waiting: func() map[string]int { return nil },
			Engine: answer(&paced{records, 100 * time.Millisecond}), Peers: answer(strings.NewReader(otherwise)),
			Refresh: func(context.Context, *cluster.Node) {}, Stopping: func() bool { return false },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); g.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		mux := http.NewServeMux()
		g.Register(mux)
		w := do(mux, "POST", "/v1/chat/completions", bodyFor("/v1/chat/completions", "m", "tell me", `"stream":true,"response_format":{"type":"json_object"}`))
		if got := listen(t, "/v1/chat/completions", w.Body.String()); got.text != want || got.ends != 1 || got.failures != 0 {
			t.Errorf("%+v, want %q", got, want)
		}
		if asked != 2 {
			t.Errorf("%d requests: the test shows nothing", asked)
		}
	})
}
