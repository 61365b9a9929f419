package schedule

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestNobodyWaitsForAnEngineThatCannotBeAskedOnceItServes(t *testing.T) {
	starting := func(n *cluster.Node) *cluster.Node {
		n.Engine.Condition = cluster.EngineStarting
		return n
	}
	for name, tc := range map[string]struct {
		node  *cluster.Node
		r     cluster.Request
		tried []cluster.NodeID
		waits bool
	}{
		"any":            {node: starting(ready("a", "m")), waits: true},
		"tried already":  {node: starting(ready("a", "m")), tried: []cluster.NodeID{"a"}},
		"another label":  {node: starting(ready("a", "m")), r: cluster.Request{Labels: map[string]string{"zone": "cellar"}}},
		"another digest": {node: starting(ready("a", "m")), r: cluster.Request{Pinned: true, Digest: "2"}},
		"no such route":  {node: v1(starting(ready("a", "m"))), r: cluster.Request{Path: "/api/chat"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := scheduler(t, Default(), tc.node)
				tc.r.Model, tc.r.Infers = "m", true
				began := time.Now()
				_, err := s.Acquire(t.Context(), &tc.r, tc.tried)
				if waited := time.Since(began) > 0; waited != tc.waits || !waited && !errors.Is(err, cluster.ErrNobody) {
					t.Errorf("waited %v: %v", time.Since(began), err)
				}
			})
		})
	}
}
