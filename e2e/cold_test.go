package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestShortPromptsGoWhereTheModelIsLoaded(t *testing.T) {
	t.Parallel()
	load := []string{"-model", "m", "-slots", "4", "-load-time", "1s"}
	a, b := tuned(t, "a", "", load...), tuned(t, "b", "", load...)
	c := form(t, a, b)
	c.warm(t, "m", b)
	for i := range 30 {
		m := c[i%2]
		if code, node, text := generate(t, m, "m", fmt.Sprint(i)); code != 200 || node != "b" {
			t.Fatalf("%s: %d from %s: %s", m.name, code, node, text)
		}
	}
	if loads := counts(t, a).Loads; loads != 0 {
		t.Errorf("the other node has loaded it %d times", loads)
	}

	e := explained(t, a, `{"model":"m","prompt":"x","options":{"num_predict":8}}`)
	cold, warm := candidateOn(t, e, "a"), candidateOn(t, e, "b")
	if e.Model != "m" || e.Policy != "ttft" || e.Chosen != "b" || len(e.Candidates) != 2 || e.Waiting != 0 {
		t.Errorf("explained as %+v", e)
	}
	if !warm.Loaded || cold.Loaded || warm.Load != "0s" || duration(t, cold.Load) <= 0 || duration(t, cold.Score) <= duration(t, warm.Score) {
		t.Errorf("cold %+v, warm %+v", cold, warm)
	}
	sum := duration(t, warm.Wait) + duration(t, warm.Load) + duration(t, warm.Prefill) + duration(t, warm.Link)
	if warm.Risk != 0 || sum != duration(t, warm.Score) {
		t.Errorf("the terms make %v: %+v", sum, warm)
	}
	if warm.PromptTokens < 1 || warm.Learned.Output == 0 || warm.Slots < 1 || !warm.Fits || warm.Why != "" {
		t.Errorf("warm %+v", warm)
	}

	// Another context than the loaded one means loading it anew, there as elsewhere.
	before := counts(t, a).Loads + counts(t, b).Loads
	other := candidateOn(t, explained(t, a, `{"model":"m","prompt":"x","options":{"num_ctx":8192}}`), "b")
	if duration(t, other.Load) <= 0 {
		t.Errorf("another num_ctx counts as no load: %+v", other)
	}
	if same := candidateOn(t, explained(t, a, `{"model":"m","prompt":"x","options":{"num_ctx":4096}}`), "b"); same.Load != "0s" {
		t.Errorf("the num_ctx that is loaded counts as a load: %+v", same)
	}
	if code, text := ask(t, "POST", a.url+"/api/generate", `{"model":"m","prompt":"x","stream":false,"options":{"num_ctx":8192,"num_predict":2}}`); code != 200 {
		t.Errorf("another num_ctx: %d %s", code, text)
	}
	if after := counts(t, a).Loads + counts(t, b).Loads; after != before+1 {
		t.Errorf("another num_ctx made %d loads", after-before)
	}
	if code, text := ask(t, "POST", a.url+"/api/v1/schedule/explain?path=/api/tags", `{"model":"m"}`); code != 400 || !strings.Contains(text, "takes a prompt") {
		t.Errorf("explain a route without a prompt: %d %s", code, text)
	}
}

func TestAModelThatIsBeingLoadedKeepsItsWaiters(t *testing.T) {
	t.Parallel()
	load := []string{"-model", "m", "-slots", "4", "-load-time", "3s", "-token-gap", "5ms"}
	c := form(t, tuned(t, "a", "", load...), tuned(t, "b", "", load...), tuned(t, "c", "", load...))
	began := time.Now()
	var all []*patient
	for i := range 20 {
		all = append(all, asking(t, c[i%2], fmt.Sprint("cold-", i), 8))
	}
	nodes := map[string]int{}
	var slowest time.Duration
	for _, p := range all {
		if p.wait(t); p.code != 200 || p.err != nil {
			t.Errorf("%s: %d %v %s", p.id, p.code, p.err, p.text)
			continue
		}
		nodes[p.head.Get("X-Ollamamax-Node")]++
		slowest = max(slowest, p.took)
	}
	var loads []int64
	for _, m := range c {
		loads = append(loads, counts(t, m).Loads)
	}
	t.Logf("20 requests for a model that takes 3 s to load: all after %v, served by %v, loaded %v times", time.Since(began).Round(time.Millisecond), nodes, loads)
	if slices.Max(loads) > 1 || slices.Max(loads) == 0 {
		t.Errorf("loaded %v times on the three nodes", loads)
	}
	if limit := 25 * time.Second; slowest > limit {
		t.Errorf("the slowest took %v", slowest)
	}
}
