package gateway

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestTheOnlyNodeIsAskedOnceMoreAfterABreak(t *testing.T) {
	reset := func(*http.Request) (*http.Response, error) { return nil, errors.New("connection reset") }
	refused := func(*http.Request) (*http.Response, error) {
		return respond(503, "", refusedHeader, "draining"), nil
	}
	for _, tc := range []struct {
		name, path string
		nodes      []cluster.NodeID
		budget     float64
		fails      int
		how        func(*http.Request) (*http.Response, error)
		asked      int
		status     int
	}{
		{"a reset", "/api/chat", []cluster.NodeID{"b"}, 0.2, 1, reset, 2, 200},
		{"an engine that restarts", "/api/pull", []cluster.NodeID{"b"}, 0.2, 1, refusedDial, 2, 200},
		{"twice", "/api/chat", []cluster.NodeID{"b"}, 0.2, 9, reset, 2, 502},
		{"a refusal", "/api/chat", []cluster.NodeID{"b"}, 0.2, 1, refused, 1, 502},
		{"what may have begun", "/api/pull", []cluster.NodeID{"b"}, 0.2, 1, reset, 1, 502},
		{"beyond the budget", "/api/chat", []cluster.NodeID{"b"}, 0, 1, reset, 1, 502},
		{"several nodes", "/api/chat", []cluster.NodeID{"b", "c"}, 0.2, 9, reset, 2, 502},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				nodes := testNodes(tc.nodes...)
				g := newGateway(t, inOrder(nodes), nodes, func(_ string, r *http.Request) (*http.Response, error) {
					if asked++; asked <= tc.fails {
						return tc.how(r)
					}
					return respond(200, "{}"), nil
				})
				g.budget = newBudget(Retry{Budget: tc.budget})
				mux := http.NewServeMux()
				g.Register(mux)
				if w := do(mux, "POST", tc.path, `{"model":"m","messages":[{}]}`); asked != tc.asked || w.Code != tc.status {
					t.Errorf("asked %d times, %d %s", asked, w.Code, w.Body)
				}
			})
		})
	}
}

func TestADeadlineEndsThePauseBeforeANodeIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		nodes := testNodes("b")
		h := gatewayOf(t, inOrder(nodes), nodes, func(string, *http.Request) (*http.Response, error) {
			asked++
			return nil, errors.New("connection reset")
		})
		w := do(h, "POST", "/api/chat", `{"model":"m","messages":[{}]}`, "X-Deadline", "1ms")
		if asked != 1 || w.Code != http.StatusGatewayTimeout {
			t.Errorf("asked %d times, %d %s", asked, w.Code, w.Body)
		}
	})
}
