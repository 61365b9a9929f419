package gateway

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestABadAnswerOfOneOfTwoAttemptsIsNotTheAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		first, second int
		want          int
	}{
		"the second cannot now": {200, 503, 200},
		"the first cannot now":  {503, 200, 200},
		"neither can":           {503, 503, 503},
		"one says why":          {0, 400, 400},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes := testNodes("a", "b")
				g := newGateway(t, inOrder(nodes), nodes, func(node string, r *http.Request) (*http.Response, error) {
					status, after := tc.first, 3*time.Second
					if node == "b" {
						status, after = tc.second, time.Second
					}
					if tc.first == 503 {
						after = 4*time.Second - after
					}
					select {
					case <-time.After(after):
					case <-r.Context().Done():
						return nil, r.Context().Err()
					}
					if status == 0 {
						return refusedDial(r)
					}
					return respond(status, `{"done":true}`), nil
				})
				g.cfg.Retry.Hedge = 100 * time.Millisecond
				mux := http.NewServeMux()
				g.Register(mux)
				if w := do(mux, "POST", "/api/generate", `{"model":"m","prompt":"x","stream":false,"options":{"num_predict":1}}`); w.Code != tc.want {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			})
		})
	}
}
