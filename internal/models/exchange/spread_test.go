package exchange

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// A quarter of 20 MB/s, of a piece that takes 13 ms then, and of the blob: the ratios are the same, and the
// bytes are hashed in a quarter of the time.
const (
	spreadRate  = 5e6 // bytes a second and node, each way
	spreadPiece = 64 << 10
	spreadSize  = 200*spreadPiece + 1234
)

// TestEightNodesFromOneCopyTakeLessThanTwiceOnesTime measures how nodes that fetch together feed each other.
// Time is the bubble's: it stands still while any goroutine computes, so that the rates are the only
// bottleneck, however slow the machine and whatever else it does. The controls are one node
// from one, and eight that are told of the first copy only.
func TestEightNodesFromOneCopyTakeLessThanTwiceOnesTime(t *testing.T) {
	one := spread(t, 1, true)
	together := spread(t, 8, true)
	apart := spread(t, 8, false)
	ratio := together.took.Seconds() / one.took.Seconds()
	control := apart.took.Seconds() / one.took.Seconds()
	t.Logf("%d bytes at %.0f MB/s each way: 1 node %.2f s; 8 nodes together %.2f s, %.2f x; 8 from the first copy only %.2f s, %.2f x",
		spreadSize, spreadRate/1e6, one.took.Seconds(), together.took.Seconds(), ratio, apart.took.Seconds(), control)
	t.Logf("the first copy sent %.2f x the blob, all together received %.3f x 8", together.first/spreadSize, together.received/spreadSize/8)
	if ratio > 2 {
		t.Errorf("8 nodes took %.2f x the time of one", ratio)
	}
	if ideal := spreadSize / spreadRate; one.took.Seconds() < 0.98*ideal || control < 6 {
		t.Errorf("the controls are not what they should be: the rates do not bind")
	}
	if together.received > 1.02*8*spreadSize {
		t.Errorf("%.0f bytes crossed for %d", together.received, 8*spreadSize)
	}
}

type spreadResult struct {
	took            time.Duration
	first, received float64 // bytes
}

func spread(t *testing.T, fetchers int, together bool) (r spreadResult) {
	synctest.Test(t, func(t *testing.T) {
		w, th := newWorld(t), newThing(t, spreadSize, spreadPiece)
		c := Config{In: spreadRate, Out: spreadRate}
		w.node("first", c, "", w.holds(th), nil)
		ids := []cluster.NodeID{"first"}
		var nodes []*node
		for i := range fetchers {
			n := w.node(cluster.NodeID(fmt.Sprint("node", i)), c, "", nothing, nil)
			nodes = append(nodes, n)
			if together {
				ids = append(ids, n.id)
			}
		}
		begin := time.Now()
		var work sync.WaitGroup
		var mu sync.Mutex
		for _, n := range nodes {
			work.Go(func() {
				want := th.want()
				want.Sources = func() (others []cluster.NodeID) {
					for _, id := range ids {
						if id != n.id {
							others = append(others, id)
						}
					}
					return others
				}
				tr := n.x.Transfer(want, n.spool)
				if err := tr.Run(t.Context()); err != nil {
					t.Error(err)
				}
				p := tr.Progress()
				mu.Lock()
				defer mu.Unlock()
				r.received += float64(p.Received)
				for _, s := range p.Sources {
					if s.Node == "first" {
						r.first += float64(s.Bytes)
					}
				}
			})
		}
		work.Wait()
		r.took = time.Since(begin)
		for _, n := range nodes {
			if err := th.in(t.Context(), n.spool); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}
