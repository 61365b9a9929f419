package consensus

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestThreeNodesAgreeAndEachSeesItsOwnWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		for _, n := range tc.grow("a", "b", "c") {
			for _, on := range []bool{true, false} {
				if err := tc.drain(n, "b", on); err != nil {
					t.Fatal(err)
				}
				if got := n.State().Members["b"].Draining; got != on {
					t.Fatalf("%s wrote draining=%v and reads %v", n.id, on, got)
				}
			}
		}
	})
}

func TestRefusalsKeepTheirKindThroughTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c")
		for _, n := range nodes {
			if err := tc.drain(n, "nobody", true); !errors.Is(err, cluster.ErrUnknownNode) {
				t.Errorf("%s: %v, want ErrUnknownNode", n.id, err)
			}
		}
		if err := nodes[1].Found(t.Context(), cluster.Command{}); !errors.Is(err, cluster.ErrBadCommand) {
			t.Error(err)
		}
		cmd, _ := cluster.NewFound(time.Now(), "b", "b", nil)
		if err := nodes[1].Found(t.Context(), cmd); !errors.Is(err, cluster.ErrAlreadyFounded) {
			t.Errorf("founding again: %v", err)
		}
		if _, err := nodes[1].ApplyAsLeader(t.Context(), tc.joinCommand("d")); !errors.Is(err, cluster.ErrNotLeader) {
			t.Errorf("a follower must not propose: %v", err)
		}
	})
}

func TestDeathOfTheLeaderElectsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var worst, sum time.Duration
		const rounds = 20
		for range rounds {
			tc := newTestCluster(t, Config{})
			nodes := tc.grow("a", "b", "c")
			died := time.Now()
			tc.kill("a")
			tc.leader(nodes[1], nodes[2])
			took := time.Since(died)
			worst, sum = max(worst, took), sum+took
			if err := tc.drain(nodes[1], "b", true); err != nil {
				t.Fatal(err)
			}
			tc.kill("b")
			tc.kill("c")
		}
		t.Logf("re-election: %s on average, %s at worst of %d", sum/rounds, worst, rounds)
		if worst > 3*time.Second {
			t.Errorf("re-election took %s", worst)
		}
	})
}

func TestLostLeaderIsForgottenSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b")
		died := time.Now()
		tc.kill("a")
		tc.eventually("no leader", func() bool { return nodes[1].Status().Leader == "" })
		if took := time.Since(died); took > 2*tc.cfg.withDefaults().Heartbeat+50*time.Millisecond {
			t.Errorf("forgot the leader after %s", took)
		}
		if nodes[1].Status().Quorum {
			t.Error("a quorum without a leader")
		}
	})
}

func TestMinorityCannotWriteAndCatchesUpAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c")
		tc.net.cut("a")
		l := tc.leader(nodes[1], nodes[2])
		if err := tc.drain(l, "b", true); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := tc.drain(nodes[0], "c", true)
		if !errors.Is(err, cluster.ErrNoQuorum) {
			t.Fatalf("cut-off node: %v, want ErrNoQuorum", err)
		}
		t.Log(err)
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("said so after %s", took)
		}
		if !nodes[0].State().Founded() {
			t.Error("a cut-off node must still know its cluster")
		}
		before := l.Status().Term
		tc.net.heal()
		tc.eventually("the cut-off node catches up", func() bool { return nodes[0].State().Members["b"].Draining })
		tc.leader(nodes...)
		if after := l.Status().Term; after != before {
			t.Errorf("the returning node forced an election (term %d to %d) in spite of pre-vote", before, after)
		}
	})
}

func TestWriteSurvivesTheLossOfItsLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c")
		tc.net.cut("a") // b still believes in it
		if err := tc.drain(nodes[1], "c", true); err != nil {
			t.Fatal(err)
		}
		if !nodes[1].State().Members["c"].Draining {
			t.Error("the write does not show")
		}
	})
}

func TestWithoutQuorumApplyEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		n := tc.open("a") // belongs to nothing
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		began := time.Now()
		err := n.Apply(ctx, cluster.Command{At: time.Now(), Drain: &cluster.Drain{ID: "a"}})
		if !errors.Is(err, cluster.ErrNoQuorum) || time.Since(began) > time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

func TestRestartShowsTheStateBeforeAnyLeaderIsFound(t *testing.T) {
	for name, cfg := range map[string]Config{
		"from the log":    {},
		"from a snapshot": {SnapshotAfter: 4, SnapshotEvery: 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			dirs := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				tc := newTestCluster(t, cfg)
				tc.dirs = dirs
				nodes := tc.grow("a", "b", "c")
				for i := range 20 {
					if err := tc.drain(nodes[i%3], "b", i%2 == 0); err != nil {
						t.Fatal(err)
					}
				}
				if err := tc.drain(nodes[0], "c", true); err != nil {
					t.Fatal(err)
				}
				tc.eventually("all agree", func() bool {
					return nodes[1].State().Members["c"].Draining && nodes[2].State().Members["c"].Draining
				})
				want := nodes[2].State()
				time.Sleep(time.Second) // the bubble's: time for snapshots
				for _, n := range nodes {
					tc.kill(n.id)
				}
				c := tc.open("c") // alone: no leader
				if got := c.State(); got.Version != want.Version || !got.Members["c"].Draining {
					t.Fatalf("after the restart: version %d, want %d", got.Version, want.Version)
				}
				a, b := tc.open("a"), tc.open("b")
				tc.leader(a, b, c)
				if err := tc.drain(a, "c", false); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestWhileLeaderRunsOnExactlyTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b", "c")
		working := make(chan cluster.NodeID, 16)
		stopped := make(chan cluster.NodeID, 16)
		ctx, cancel := context.WithCancel(t.Context())
		for _, n := range nodes {
			go func() {
				_ = n.WhileLeader(ctx, func(ctx context.Context) error {
					working <- n.id
					<-ctx.Done()
					stopped <- n.id
					return ctx.Err()
				})
			}()
		}
		if got := <-working; got != "a" {
			t.Fatalf("%s works, a leads", got)
		}
		if err := nodes[0].Transfer(ctx, "c"); err != nil {
			t.Fatal(err)
		}
		if got := <-stopped; got != "a" {
			t.Fatalf("%s stopped", got)
		}
		if got := <-working; got != "c" {
			t.Fatalf("%s works, c leads", got)
		}
		cancel()
		synctest.Wait()
		if len(working) != 0 || len(stopped) != 1 {
			t.Errorf("%d more began, %d stopped", len(working), len(stopped))
		}
	})
}

func TestErrorOfTheWorkEndsWhileLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		n := tc.found("a")
		broken := errors.New("broken")
		if err := n.WhileLeader(t.Context(), func(context.Context) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	})
}
