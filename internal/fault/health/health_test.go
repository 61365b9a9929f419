package health

import (
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestJudge(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	const ms = time.Millisecond
	for _, tc := range []struct {
		name   string
		events func(*Detector)
		after  time.Duration
		want   cluster.Condition
	}{
		{"heard a moment ago", func(d *Detector) { d.Heard("a", false, t0) }, 1000 * ms, cluster.Alive},
		{"one heartbeat missed", func(d *Detector) { d.Heard("a", false, t0) }, 1500 * ms, cluster.Suspect},
		{"silent", func(d *Detector) { d.Heard("a", false, t0) }, 3000 * ms, cluster.Dead},
		{"broken a moment ago", func(d *Detector) { d.Heard("a", false, t0); d.Broke("a", false, "reset", at(100*ms)) }, 110 * ms, cluster.Suspect},
		{"broken and refused", func(d *Detector) {
			d.Heard("a", false, t0)
			d.Broke("a", false, "reset", at(100*ms))
			d.Broke("a", true, "refused", at(120*ms))
		}, 121 * ms, cluster.Dead},
		{"broken for long", func(d *Detector) { d.Heard("a", false, t0); d.Broke("a", false, "reset", at(100*ms)) }, 1600 * ms, cluster.Dead},
		{"broken, and we were paused", func(d *Detector) {
			d.Heard("a", false, t0)
			d.Broke("a", false, "reset", at(100*ms))
			d.Paused(1000 * ms)
		}, 1600 * ms, cluster.Suspect},
		{"broken and back", func(d *Detector) {
			d.Heard("a", false, t0)
			d.Broke("a", true, "refused", at(100*ms))
			d.Heard("a", false, at(200*ms))
		}, 300 * ms, cluster.Alive},
		{"said goodbye", func(d *Detector) { d.Heard("a", true, t0); d.Broke("a", false, "end", at(1*ms)) }, 2 * ms, cluster.Dead},
		{"about to go", func(d *Detector) { d.Heard("a", true, t0) }, 1000 * ms, cluster.Alive},
		{"expected, not heard", func(d *Detector) { d.Expect("a", t0) }, 1000 * ms, cluster.Suspect},
		{"expected, never heard", func(d *Detector) { d.Expect("a", t0) }, 3000 * ms, cluster.Dead},
		// One that has just joined does not listen yet when the first that hear of it dial it.
		{"expected, not heard, cannot be reached yet", func(d *Detector) { d.Expect("a", t0); d.Broke("a", false, "not admitted", at(10*ms)) }, 1500 * ms, cluster.Suspect},
		{"expected, never heard, cannot be reached", func(d *Detector) { d.Expect("a", t0); d.Broke("a", false, "not admitted", at(10*ms)) }, 3000 * ms, cluster.Dead},
		{"expected, not heard, refused", func(d *Detector) { d.Expect("a", t0); d.Broke("a", true, "refused", at(10*ms)) }, 20 * ms, cluster.Dead},
		{"forgotten", func(d *Detector) { d.Heard("a", false, t0); d.Forget("a") }, 0, cluster.Suspect},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := New()
			tc.events(d)
			if got, why, _ := d.Judge("a", at(tc.after)); got != tc.want || (why == "") != (got == cluster.Alive) {
				t.Errorf("%s: %q, want %s", got, why, tc.want)
			}
		})
	}
}
