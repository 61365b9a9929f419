package consensus

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestNumberOfVotersFollowsTheNumberOfMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a")
		for i, want := range []string{"a", "abc", "abc", "abcde", "abcde"} {
			id := cluster.NodeID(rune('b' + i))
			nodes = append(nodes, tc.join(id, nodes[i]))
			for _, n := range nodes {
				tc.eventually(fmt.Sprintf("%s: voters are %s after %s joined", n.id, want, id), func() bool {
					return voters(n) == want && len(n.Status().Observers) == i+2-len(want)
				})
			}
		}
	})
}

func TestDeadVoterIsReplacedAndReturnsAsObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c", "d")
		tc.net.cut("b")
		began := time.Now()
		tc.eventually("d votes instead of b", func() bool { return voters(nodes[0]) == "acd" })
		if took := time.Since(began); took < 5*time.Second || took > 7*time.Second {
			t.Errorf("replaced after %s", took)
		}
		if _, ok := nodes[0].State().Members["b"]; !ok {
			t.Error("a dead voter must stay a member")
		}
		tc.net.heal()
		tc.eventually("b knows", func() bool { return voters(nodes[1]) == "acd" })
		time.Sleep(10 * time.Second) // the bubble's
		if got := voters(nodes[0]); got != "acd" {
			t.Errorf("the votes moved again, to %s", got)
		}
	})
}

func TestShortAbsenceMovesNoVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c", "d")
		for range 5 {
			tc.net.cut("b")
			time.Sleep(3 * time.Second) // the bubble's
			tc.net.heal()
			time.Sleep(3 * time.Second)
		}
		if got := voters(nodes[0]); got != "abc" {
			t.Errorf("voters are %s", got)
		}
	})
}

func TestDeadVoterWithoutReplacementKeepsItsVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c")
		tc.kill("b")
		time.Sleep(20 * time.Second) // the bubble's
		if got := voters(nodes[0]); got != "abc" {
			t.Errorf("voters are %s", got)
		}
	})
}

func TestRemovedNodeLosesItsVote(t *testing.T) {
	for _, gone := range []cluster.NodeID{"a", "b", "c", "d"} { // a leads, d observes
		t.Run(string(gone), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc := newTestCluster(t, Config{})
				nodes := tc.grow("a", "b", "c", "d")
				left := []*testNode{}
				for _, n := range nodes {
					if n.id != gone {
						left = append(left, n)
					}
				}
				// A node leaves by asking for its own removal.
				me, _ := tc.node(gone)
				if err := me.Apply(t.Context(), cluster.Command{At: time.Now(), Remove: &cluster.Remove{ID: gone, Why: "left"}}); err != nil {
					t.Fatal(err)
				}
				if _, barred := me.State().Barred[gone]; !barred {
					t.Error("the leaver does not know that it left")
				}
				tc.eventually("three voters are left", func() bool {
					l := tc.leader(left...)
					st := l.Status()
					return len(st.Voters) == 3 && len(st.Observers) == 0 && !contains(st.Voters, gone)
				})
				if err := tc.drain(left[0], left[1].id, true); err != nil {
					t.Fatal(err)
				}
				if err := left[0].Apply(t.Context(), tc.joinCommand(gone)); !errors.Is(err, cluster.ErrBarred) {
					t.Errorf("joining again: %v, want ErrBarred", err)
				}
			})
		})
	}
}

func TestRemovalDownToOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c")
		remove := func(id cluster.NodeID) error {
			return nodes[2].Apply(t.Context(), cluster.Command{At: time.Now(), Remove: &cluster.Remove{ID: id}})
		}
		if err := remove("a"); err != nil { // the leader
			t.Fatal(err)
		}
		tc.eventually("one of two votes", func() bool { return len(voters(nodes[2])) == 1 && len(nodes[2].Status().Observers) == 1 })
		if err := remove("b"); err != nil {
			t.Fatal(err)
		}
		tc.eventually("c votes alone", func() bool { return voters(nodes[2]) == "c" && len(nodes[2].Status().Observers) == 0 })
		if err := remove("c"); !errors.Is(err, cluster.ErrLastMember) {
			t.Errorf("removing the last: %v", err)
		}
	})
}

func TestOfTwoNodesTheObserverMayBeClosedOrRemovedWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b")
		tc.kill("b")
		if err := tc.drain(nodes[0], "a", true); err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].Apply(t.Context(), cluster.Command{At: time.Now(), Remove: &cluster.Remove{ID: "b"}}); err != nil {
			t.Fatal(err)
		}
		tc.eventually("a is alone", func() bool { return voters(nodes[0]) == "a" && len(nodes[0].Status().Observers) == 0 })
	})
}

func TestOfTwoNodesTheVoterHandsOverBeforeItStops(t *testing.T) {
	dirs := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		tc.dirs = dirs
		nodes := tc.grow("a", "b")
		handOver(t, nodes[0])
		tc.kill("a")
		tc.leader(nodes[1])
		if got := voters(nodes[1]); got != "b" {
			t.Fatalf("voters are %s", got)
		}
		if err := tc.drain(nodes[1], "a", true); err != nil {
			t.Fatal(err)
		}
		a := tc.open("a")
		tc.eventually("a returns as an observer", func() bool { return a.State().Members["a"].Draining && voters(a) == "b" })
		handOver(t, nodes[1]) // and back
		tc.kill("b")
		if err := tc.drain(a, "a", false); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOfThreeNodesWithOneDeadTheLeaderHandsOverBeforeItStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c")
		tc.kill("c")
		time.Sleep(10 * time.Second) // the bubble's: c counts as lost
		handOver(t, nodes[0])
		tc.kill("a")
		tc.leader(nodes[1])
		if err := tc.drain(nodes[1], "b", true); err != nil {
			t.Fatal(err)
		}
	})
}

func TestHandOverIsQuickWhenNothingNeedsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c")
		handOver(t, nodes[1]) // a follower
		handOver(t, nodes[0])
		l := tc.leader(nodes...)
		if l.id == "a" || voters(l) != "abc" {
			t.Errorf("%s leads voters %s", l.id, voters(l))
		}
		alone := newTestCluster(t, Config{})
		handOver(t, alone.grow("x")[0])
		two := newTestCluster(t, Config{})
		y := two.grow("y", "z")[0]
		two.kill("z")
		handOver(t, y)
	})
}

func handOver(t *testing.T, n *testNode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	began := time.Now()
	if err := n.HandOver(ctx); err != nil {
		t.Fatalf("after %s: %v", time.Since(began), err)
	}
	t.Logf("%s handed over in %s", n.id, time.Since(began))
}

func TestTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c", "d")
		ctx := t.Context()
		if err := nodes[1].Transfer(ctx, "c"); !errors.Is(err, cluster.ErrNotLeader) {
			t.Errorf("on a follower: %v", err)
		}
		if err := nodes[0].Transfer(ctx, "d"); !errors.Is(err, cluster.ErrObserver) {
			t.Errorf("to an observer: %v", err)
		}
		if err := nodes[0].Transfer(ctx, "nobody"); !errors.Is(err, cluster.ErrUnknownNode) {
			t.Errorf("to nobody: %v", err)
		}
		if err := nodes[0].Transfer(ctx, "a"); err != nil {
			t.Errorf("to itself: %v", err)
		}
		if err := nodes[0].Transfer(ctx, "b"); err != nil {
			t.Fatal(err)
		}
		if l := tc.leader(nodes...); l.id != "b" {
			t.Errorf("%s leads", l.id)
		}
		if err := nodes[1].Transfer(ctx, ""); err != nil {
			t.Fatal(err)
		}
		if l := tc.leader(nodes...); l.id == "b" || l.id == "d" {
			t.Errorf("%s leads", l.id)
		}
	})
}

func TestWritesGoOnDuringTransfers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c")
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 10 {
				if err := tc.leader(nodes...).Transfer(t.Context(), nodes[i%3].id); err != nil {
					t.Error(err)
				}
				time.Sleep(50 * time.Millisecond) // the bubble's
			}
		}()
		for i := range 60 {
			n := nodes[i%3]
			if err := tc.drain(n, "c", i%2 == 0); err != nil {
				t.Fatal(err)
			}
			if n.State().Members["c"].Draining != (i%2 == 0) {
				t.Fatal("a write does not show where it was made")
			}
			time.Sleep(10 * time.Millisecond)
		}
		<-done
	})
}

func contains(ids []cluster.NodeID, id cluster.NodeID) bool {
	for _, i := range ids {
		if i == id {
			return true
		}
	}
	return false
}
