package e2e

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// stateOf is what a member says of the state of a node.
func stateOf(t *testing.T, m *member, name string) cluster.ServiceState {
	t.Helper()
	s, _ := status(t, m)
	for _, n := range s.Nodes {
		if n.Name == name {
			return n.State
		}
	}
	return ""
}

// leavable is a node with a fake engine, to which nearly all goes if it is called b, and whose drains have a
// grace.
func leavable(t *testing.T, name, grace string) *member {
	t.Helper()
	config := fmt.Sprintf("schedule: {policy: weighted, weights: {a: 0.0001, c: 0.0001}}\ngateway: {resume: {drain_grace: %s}, stall: {floor: 20s}}\nengine: {slots: 128}\n", grace)
	return tuned(t, name, config, "-model", "m", "-slots", "128", "-first-token", firstToken.String(), "-token-gap", "15ms")
}

func TestStreamsOfADrainedNodeGoOnElsewhere(t *testing.T) {
	t.Parallel()
	c := form(t, leavable(t, "a", "2s"), leavable(t, "b", "2s"), leavable(t, "c", "2s"))
	c.warm(t, "m", c...)
	const each, limit = 12, 800
	prompts := mixed(each, "m", limit)
	for i := range prompts {
		prompts[i].id = "of-a-" + prompts[i].id
	}
	own := mixed(each, "m", limit) // asked at the node that is drained
	want := undisturbed(t, c[0].url, prompts)
	wait, waitOwn := askAll(t.Context(), c[0].url, prompts), askAll(t.Context(), c[1].url, own)
	began := slices.Concat(slices.Collect(maps.Values(begun(t, c[0], prompts, 20))), slices.Collect(maps.Values(begun(t, c[1], own, 20))))
	onB := 0
	for _, node := range began {
		if node == "b" {
			onB++
		}
	}
	if onB < each {
		t.Fatalf("of %d streams %d are on b", len(prompts)+len(own), onB)
	}
	if text, code := run(t, "drain", "b", "--api", c[2].url); code != 0 {
		t.Fatalf("drain: %d %s", code, text)
	}
	eventually(t, 10*time.Second, "b is drained while its streams go on", func() bool {
		return stateOf(t, c[0], "b") == cluster.Drained && stateOf(t, c[1], "b") == cluster.Drained && counts(t, c[1]).InFlight == 0
	})
	moved := 0
	for _, m := range c[:2] {
		for _, r := range underWay(t, m) {
			if r.Node == "b" || r.Resumes > 0 && r.Broke != "drained" {
				t.Errorf("listed at %s: %+v", m.name, r)
			}
			if r.Resumes > 0 {
				moved++
			}
		}
	}
	if moved == 0 {
		t.Error("no stream that goes on is listed")
	}
	for i, got := range slices.Concat(wait(), waitOwn()) {
		if why := got.incomplete() + got.differs(&want[i%len(want)]); why != "" {
			t.Errorf("answer %d: %s", i, why)
		}
	}
	counted := 0
	for _, m := range c[:2] {
		by, _ := resumes(t, m)
		for labels, n := range by {
			counted += n
			if labels != `broke="drained",method="raw"` {
				t.Errorf("%s counts %v", m.name, by)
			}
		}
	}
	if counted != onB {
		t.Errorf("%d streams were on b, %d have left", onB, counted)
	}
	t.Logf("%d streams left a drained node, all whole and the same", counted)
}

func TestADrainedNodeWithoutOthersLosesNothing(t *testing.T) {
	t.Parallel()
	m := leavable(t, "a", "0s")
	c := form(t, m)
	c.warm(t, "m", m)
	prompts := mixed(12, "m", 400)
	want := undisturbed(t, m.url, prompts)
	wait := askAll(t.Context(), m.url, prompts)
	begun(t, m, prompts, 20)
	if text, code := run(t, "drain", "a", "--api", m.url); code != 0 {
		t.Fatalf("drain: %d %s", code, text)
	}
	for i, got := range wait() {
		if why := got.incomplete() + got.differs(&want[i]); why != "" {
			t.Errorf("answer %d: %s", i, why)
		}
	}
	eventually(t, 10*time.Second, "it is drained", func() bool { return stateOf(t, m, "a") == cluster.Drained })
	if by, n := resumes(t, m); n != 0 {
		t.Errorf("resumes are counted: %v", by)
	}
}
