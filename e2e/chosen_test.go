package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// prompts sends so many long prompts that have nothing in common, one after the other, and returns who
// answered how often; 0 for statuses other than 200, by status.
func prompts(t *testing.T, m *member, n int) map[string]int {
	t.Helper()
	return promptsOf(t, m, n, 500)
}

// promptsOf sends prompts of so many words.
func promptsOf(t *testing.T, m *member, n, words int) map[string]int {
	t.Helper()
	served := map[string]int{}
	for range n {
		code, node, text := generate(t, m, "m", fmt.Sprint(time.Now().UnixNano(), strings.Repeat(" word", words)))
		if code != 200 {
			node = fmt.Sprint(code)
			if code != 500 {
				t.Logf("%d: %s", code, text)
			}
		}
		served[node]++
	}
	return served
}

func TestWhoIsChosen(t *testing.T) {
	t.Parallel()
	var members []*member
	for name, policy := range map[string]string{"a": "ttft", "b": "round-robin", "c": "weighted, weights: {a: 0, b: 3}"} { // each gateway goes by its own
		members = append(members, tuned(t, name, "schedule: {policy: "+policy+"}\n", "-model", "m", "-slots", "8", "-prefill", "20000", "-token-gap", "1ms"))
	}
	slices.SortFunc(members, func(a, b *member) int { return strings.Compare(a.name, b.name) })
	c := form(t, members...)
	c.warm(t, "m", c...)
	t.Run("in turn", func(t *testing.T) {
		chosenAs(t, c[1], "round-robin", map[string][2]int{"a": {29, 31}, "b": {29, 31}, "c": {29, 31}})
	})
	t.Run("by weight", func(t *testing.T) { // four deviations around 67.5
		chosenAs(t, c[2], "weighted", map[string][2]int{"a": {0, 0}, "b": {52, 83}, "c": {7, 38}})
	})
	t.Run("not who fails, until it comes back", func(t *testing.T) { leftOutAndBack(t, c[1], c[2]) })
	t.Run("not who asks to be left alone", func(t *testing.T) { leftAlone(t, c[1], c[2]) })
	t.Run("who fails, if it is the last", func(t *testing.T) { neverTheLast(t, c) })
}

func chosenAs(t *testing.T, m *member, policy string, of90 map[string][2]int) {
	var served map[string]int
	eventually(t, 2*time.Minute, "all nodes are alive all the while", func() (alive bool) {
		served, alive = map[string]int{}, true
		for range 90 {
			for node := range promptsOf(t, m, 1, 1) {
				served[node]++
			}
			s, ok := status(t, m)
			alive = alive && ok && !slices.ContainsFunc(s.Nodes, func(n *cluster.Node) bool { return n.Condition != cluster.Alive })
		}
		return alive
	})
	t.Logf("%v", served)
	for node, want := range of90 {
		if n := served[node]; n < want[0] || n > want[1] {
			t.Errorf("%s answered %d of 90, want %v", node, n, want)
		}
	}
	if e := explained(t, m, `{"model":"m","prompt":"x"}`); e.Policy != policy || len(e.Candidates) != 3 {
		t.Errorf("explained as %+v", e)
	}
}

// leftOutAndBack asks at a gateway that goes in turn, whatever a machine's moods have taught of speeds.
func leftOutAndBack(t *testing.T, door, victim *member) {
	if served := prompts(t, door, 30); served["c"] == 0 || served["a"]+served["b"]+served["c"] != 30 {
		t.Fatalf("before the fault: %v", served)
	}
	fault(t, victim, `{"kind":"error500"}`)
	began := time.Now()
	served := prompts(t, door, 40)
	asked, took := counts(t, victim).Faulted, time.Since(began)
	t.Logf("while c fails, %v: %v; c was asked %d times", took.Round(time.Millisecond), served, asked)
	if served["a"]+served["b"] != 40 {
		t.Errorf("clients were answered %v", served)
	}
	// Three open its breaker; after a second, two, four, and then five each, one looks.
	if asked < 3 || asked > 5+int64(took/(4*time.Second)) {
		t.Errorf("the engine that fails was asked %d times", asked)
	}
	fault(t, victim, `{"kind":"none"}`)
	ended := time.Now()
	eventually(t, 10*time.Second, "c is out no more", func() bool { return ejected(t, door, victim.name) == 0 }) // it is for 6.25 s at most
	looks := 1
	for ; looks <= 60 && prompts(t, door, 1)["c"] == 0; looks++ {
	}
	back := time.Since(ended)
	served = map[string]int{}
	eventually(t, 15*time.Second, "c serves its share again", func() bool {
		served = prompts(t, door, 20)
		return served["c"] >= 3
	})
	t.Logf("c was back %v after its fault had ended, with its share after %v: %v of 20", back.Round(time.Millisecond), time.Since(ended).Round(time.Millisecond), served)
	if looks > 60 {
		t.Errorf("c was out no more, and of %d prompts it served none", looks-1)
	}
}

// ejected is for how long a member leaves a node alone.
func ejected(t *testing.T, m *member, node string) time.Duration {
	t.Helper()
	return duration(t, candidateOn(t, explained(t, m, `{"model":"m","prompt":"x"}`), node).Ejected)
}

func neverTheLast(t *testing.T, c testCluster) {
	fault(t, c[1], `{"kind":"error500"}`)
	fault(t, c[2], `{"kind":"error500"}`)
	for _, words := range []int{1, 500} { // what a node looks like matters less for a short prompt
		b, other := counts(t, c[1]).Faulted, counts(t, c[2]).Faulted
		served := promptsOf(t, c[0], 60, words)
		t.Logf("two of three fail, prompts of %d words: %v, asked %d and %d times", words, served, counts(t, c[1]).Faulted-b, counts(t, c[2]).Faulted-other)
		if served["a"] < 54 { // a few are needed to find out, and one in two of those meets the other one too
			t.Errorf("two of three fail, one is well: clients were answered %v", served)
		}
	}
	fault(t, c[0], `{"kind":"error500"}`)
	if served := prompts(t, c[0], 20); served["500"] != 20 { // the engine's own word
		t.Errorf("all fail: %v", served)
	}
	fault(t, c[0], `{"kind":"none"}`)
	began := time.Now()
	eventually(t, 15*time.Second, "the one that is well again serves", func() bool { return prompts(t, c[0], 1)["a"] == 1 })
	t.Logf("the one that is well again serves after %v", time.Since(began).Round(time.Millisecond))
	if served := prompts(t, c[0], 20); served["a"] < 18 {
		t.Errorf("one is well again: %v", served)
	}
}

func leftAlone(t *testing.T, door, victim *member) {
	const rest = 3 * time.Second
	faulted := counts(t, victim).Faulted
	fault(t, victim, fmt.Sprintf(`{"kind":"busy","delay":%q}`, rest))
	var asked time.Time // before it did
	eventually(t, 20*time.Second, "c is asked", func() bool {
		asked = time.Now()
		prompts(t, door, 1)
		return counts(t, victim).Faulted > faulted
	})
	fault(t, victim, `{"kind":"none"}`)
	if left := ejected(t, door, victim.name); left < rest-time.Since(asked) {
		t.Errorf("it is left alone for %v, %v after it asked for %v", left, time.Since(asked), rest)
	}
	before := counts(t, victim).Requests
	for time.Since(asked) < rest*3/4 {
		served := prompts(t, door, 1)
		n := counts(t, victim).Requests - before
		if since := time.Since(asked); n > 0 && since < rest || served["503"] != 0 {
			t.Fatalf("%v after it asked for %v: asked %d times, clients were answered %v", since, rest, n, served)
		}
	}
	eventually(t, 40*time.Second, "c serves again", func() bool { return prompts(t, door, 1)["c"] == 1 })
	if back := time.Since(asked); back < rest {
		t.Errorf("it was asked again after %v", back)
	} else {
		t.Logf("asked for %v, and was asked again after %v", rest, back.Round(time.Millisecond))
	}
}
