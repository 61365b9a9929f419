package gateway

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestAFrozenEngineHoldsUpNoRequest(t *testing.T) {
	const blob = "/api/blobs/sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595843f55d36f5b275a52087dd2"
	for _, tc := range []struct {
		name, method, path, body string
		asked                    string
		status                   int
	}{
		{"what another knows too", "POST", "/api/show", `{"model":"m"}`, "ab", 200},
		{"what the path names", "GET", "/v1/models/m", "", "ab", 200},
		{"what concerns all", "DELETE", "/api/delete", `{"model":"m"}`, "ab", 502},
		{"an unload", "POST", "/api/generate", `{"model":"m","keep_alive":0}`, "ab", 502},
		{"the own account", "POST", "/api/me", "", "a", 502},
		{"a blob that may be there", "HEAD", blob, "", "ab", 200},
		{"a blob", "POST", blob, "x", "a", 502},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				asked := make(chan string, 10)
				nodes := testNodes("a", "b")
				h := gatewayOf(t, inOrder(nodes), nodes, func(node string, r *http.Request) (*http.Response, error) {
					asked <- node
					if node == "a" {
						<-r.Context().Done()
						return nil, r.Context().Err()
					}
					return respond(200, "{}"), nil
				})
				w := do(h, tc.method, tc.path, tc.body)
				close(asked)
				seen := map[string]bool{}
				for node := range asked {
					seen[node] = true
				}
				if len(seen) != len(tc.asked) || w.Code != tc.status || time.Since(began) > 2*quickWithin {
					t.Errorf("asked %v, %d %s after %v", seen, w.Code, w.Body, time.Since(began))
				}
			})
		})
	}
}

func TestWhatTakesLongByNatureHasItsTime(t *testing.T) {
	for _, path := range []string{"/api/pull", "/api/push", "/api/create"} {
		synctest.Test(t, func(t *testing.T) {
			h := testGateway(t, func(_ string, r *http.Request) (*http.Response, error) {
				select {
				case <-time.After(time.Hour):
				case <-r.Context().Done():
					return nil, context.Cause(r.Context())
				}
				return respond(200, "{}"), nil
			})
			if w := do(h, "POST", path, `{"model":"m"}`); w.Code != 200 {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		})
	}
}
