package gateway

import (
	"net/http"
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestAnAccountIsThatOfTheAskedNodesEngine(t *testing.T) {
	const signOut, me, key, search = "POST /api/signout", "POST /api/me", "DELETE /api/user/keys/k", "POST /api/experimental/web_search"
	for _, tc := range []struct {
		name, route string
		self        func(*cluster.Node)
		serve       func(*http.Request) (*http.Response, error) // of the own engine
		asked       string
		status      int
	}{
		{name: "well", route: signOut, asked: "a", status: 200},
		{name: "draining", route: signOut, self: func(n *cluster.Node) { n.State = cluster.Draining }, asked: "a", status: 200},
		{name: "kept by its owner", route: me, self: func(n *cluster.Node) { n.Unavailable = "on battery" }, asked: "a", status: 200},
		{name: "down", route: key, self: func(n *cluster.Node) { n.Engine.Condition = cluster.EngineDown }, serve: refusedDial, asked: "a", status: 502},
		{name: "overloaded", route: search, serve: func(*http.Request) (*http.Response, error) { return respond(503, "{}"), nil }, asked: "a", status: 503},
		{name: "none, to sign out", route: signOut, self: func(n *cluster.Node) { n.Engine = nil }, status: 501},
		{name: "none, to delete a key", route: key, self: func(n *cluster.Node) { n.Engine = nil }, status: 501},
		{name: "none, to ask", route: me, self: func(n *cluster.Node) { n.Engine = nil }, asked: "b", status: 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nodes := testNodes("a", "b", "c")
			able := nodes
			if tc.self != nil {
				tc.self(nodes[0])
				able = nodes[1:]
			}
			asked := ""
			h := gatewayOf(t, inOrder(able), nodes, func(node string, r *http.Request) (*http.Response, error) {
				asked += node
				if node == "a" && tc.serve != nil {
					return tc.serve(r)
				}
				return respond(200, `{}`), nil
			})
			method, path := "POST", tc.route[5:]
			if tc.route == key {
				method, path = "DELETE", tc.route[7:]
			}
			if w := do(h, method, path, "{}"); asked != tc.asked || w.Code != tc.status {
				t.Errorf("asked %q, %d %s", asked, w.Code, w.Body)
			}
		})
	}
}
