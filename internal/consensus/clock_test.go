package consensus

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPatienceGrowsAtOnceAndShrinksSlowly(t *testing.T) {
	const heartbeat = 300 * time.Millisecond
	for name, row := range map[string]struct {
		late time.Duration
		want int
	}{
		"in time":        {0, 1},
		"early":          {-40 * time.Millisecond, 1},
		"a little late":  {70 * time.Millisecond, 1},
		"a quarter late": {80 * time.Millisecond, 2},
		"half late":      {160 * time.Millisecond, 3},
		"very late":      {10 * time.Second, maxPatience},
	} {
		t.Run(name, func(t *testing.T) {
			var p patience
			if got := p.tick(row.late, heartbeat); got != row.want {
				t.Fatalf("got factor %d, want %d", got, row.want)
			}
			for range calmAfter - 1 {
				if got := p.tick(0, heartbeat); got != row.want {
					t.Fatalf("shrank to %d too soon", got)
				}
			}
			for range calmAfter * maxPatience {
				p.tick(0, heartbeat)
			}
			if got := p.tick(0, heartbeat); got != 1 {
				t.Errorf("still %d after a calm while", got)
			}
		})
	}
}

func TestClockInTimeLeavesRaftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		nodes := tc.grow("a", "b")
		time.Sleep(5 * time.Second) // the bubble's
		for _, n := range nodes {
			want := 300 * time.Millisecond
			if _, leads := n.leads(); leads {
				want *= leaderPatience
			}
			if got := n.raft.ReloadableConfig().HeartbeatTimeout; got != want {
				t.Errorf("%s waits %s, want %s", n.id, got, want)
			}
		}
	})
}
