package schedule

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestAnEngineThatDoesNotBeginGetsLessUntilItDoes(t *testing.T) {
	for _, tc := range []struct {
		name    string
		ceiling bool
		result  cluster.Result
		want    int // at once after the first round of 32
	}{
		{"silent", true, cluster.Silent, 16},
		{"silent, and the ceiling is turned off", false, cluster.Silent, 32},
		{"refused", true, cluster.Overloaded, 32},
		{"broken", true, cluster.Failed, 32},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := Default()
				cfg.Ceiling = tc.ceiling
				s := scheduler(t, cfg, slots(loaded(ready("a", "m"), "m", 0), 32))
				// round fills the node, and ends all that it took after a second. It returns how many those were.
				round := func(result cluster.Result) int {
					var leases []*cluster.Lease
					for {
						lease, _ := s.place(prompt(1), nil, 0)
						if lease == nil {
							break
						}
						leases = append(leases, lease)
					}
					time.Sleep(time.Second)
					for _, l := range leases {
						l.Done(cluster.Outcome{Result: result, First: time.Second})
					}
					return len(leases)
				}
				if n := round(tc.result); n != 32 {
					t.Fatalf("the first round is of %d", n)
				}
				if n := round(tc.result); n != tc.want {
					t.Fatalf("after a round of 32: %d, want %d", n, tc.want)
				}
				if tc.want == 32 {
					return
				}
				for range 3 {
					round(cluster.Silent)
				}
				if n := round(cluster.Silent); n > 2 {
					t.Errorf("after six rounds: %d", n)
				}
				var grown []int
				for range 8 {
					grown = append(grown, round(cluster.Answered))
				}
				if last := grown[7]; grown[0] != 1 || last < 5 || last > 16 {
					t.Errorf("it answers again, and gets %v", grown)
				}
				time.Sleep(forgotten)
				round(cluster.Answered)
				if n := round(cluster.Answered); n != 32 {
					t.Errorf("half a minute later: %d", n)
				}
			})
		})
	}
}

func TestOneRoundHalvesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c ceiling
		sent := time.Now()
		time.Sleep(time.Second)
		for n := 32; n > 0; n-- {
			c.tooMany(time.Now(), sent, n)
		}
		if n := c.of(32); n != 16 {
			t.Errorf("a round of 32 leaves %d", n)
		}
		var alone ceiling
		alone.tooMany(time.Now(), sent, 1)
		if n := alone.of(32); n != 32 {
			t.Errorf("one alone, that froze, leaves %d", n)
		}
	})
}
