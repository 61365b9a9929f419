package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
)

func TestAnAliasFallsBackToTheNextModel(t *testing.T) {
	t.Parallel()
	config := "schedule: {aliases: {gpt-4o: [huge, big, m]}}\n"
	a, b := tuned(t, "a", config, "-model", "m"), tuned(t, "b", config, "-model", "big")
	c := form(t, a, b)
	bodies := map[string]string{
		"/api/chat":            `{"model":"gpt-4o","messages":[{"role":"user","content":"x"}],"stream":false,"options":{"num_predict":3}}`,
		"/api/generate":        `{"model":"gpt-4o:latest","prompt":"x","options":{"num_predict":3}}`,
		"/v1/chat/completions": `{"model":"gpt-4o","messages":[{"role":"user","content":"x"}],"max_tokens":3}`,
		"/v1/messages":         `{"model":"gpt-4o","messages":[{"role":"user","content":"x"}],"max_tokens":3}`,
		"/api/show":            `{"model":"gpt-4o"}`,
	}
	served := func(m *member, want string) {
		t.Helper()
		for path, body := range bodies {
			code, header, text := askHeader(t, "POST", m.url+path, body)
			if node := header.Get("X-Ollamamax-Node"); code != 200 || node != want {
				t.Errorf("%s: %s: %d from %q, want %s: %s", m.name, path, code, node, want, text)
			}
		}
	}
	for _, m := range c { // nobody has huge
		served(m, "b")
	}
	// An engine that fails passes its model over to the next one too, with what it said if that fails.
	fault(t, b, `{"kind":"refuse"}`)
	served(a, "a")
	b.kill()
	_ = b.fake.Process.Kill()
	served(a, "a") // at once, and when it is known to be dead
	eventually(t, 20*time.Second, "b is dead", func() bool { return condition(t, a, "b") == "dead" })
	served(a, "a")
	if code, text := ask(t, "POST", a.url+"/api/chat", `{"model":"gpt-4","messages":[{"role":"user","content":"x"}]}`); code != 404 {
		t.Errorf("a name that is no alias: %d %s", code, text)
	}
}

func TestOnlyNodesWithTheRequiredLabelAnswer(t *testing.T) {
	t.Parallel()
	flags := []string{"-model", "m", "-slots", "8"}
	c := form(t, tuned(t, "a", "node: {labels: {zone: attic}}\n", flags...), tuned(t, "b", "node: {labels: {zone: cellar, gpu: \"yes\"}}\n", flags...))
	c.warm(t, "m", c...)
	body := `{"model":"m","prompt":"x","stream":false,"options":{"num_predict":2}}`
	for _, m := range c {
		for _, want := range []string{"zone=cellar", "zone=cellar, gpu=yes"} {
			for range 5 {
				code, header, text := askHeader(t, "POST", m.url+"/api/generate", body, "X-Require-Label", want)
				if node := header.Get("X-Ollamamax-Node"); code != 200 || node != "b" {
					t.Errorf("%s asked for %s: %d from %q: %s", m.name, want, code, node, text)
				}
			}
		}
	}
	for path, begins := range dialects {
		code, text := ask(t, "POST", c[0].url+path, `{"model":"m","prompt":"x","input":"x","max_tokens":3,"messages":[{"role":"user","content":"x"}]}`, "X-Require-Label", "zone=moon")
		if code != 503 || !strings.HasPrefix(text, begins) {
			t.Errorf("%s, a label that nobody has: %d %s", path, code, text)
		}
	}
	if code, text := ask(t, "POST", c[0].url+"/api/generate", body, "X-Require-Label", "cellar"); code != 400 || !strings.Contains(text, "key=value") {
		t.Errorf("no label: %d %s", code, text)
	}
}

// unavailable is why a node is out, as another sees it.
func unavailable(t *testing.T, m *member, node string) string {
	t.Helper()
	_, text := ask(t, "GET", m.url+"/api/v1/nodes", "")
	var list api.Nodes
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	for _, n := range list.Nodes {
		if n.Name == node {
			return n.Unavailable
		}
	}
	t.Fatalf("no node %s: %s", node, text)
	return ""
}

func TestTheOwnersHoursAndGamesKeepANodeOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nvidia-smi"), []byte("#!/bin/sh\necho 3\necho 90\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	hours := fmt.Sprintf("%s-%s", now.Add(-2*time.Hour).Format("15:04"), now.Add(2*time.Hour).Format("15:04"))
	others := fmt.Sprintf("%s-%s", now.Add(2*time.Hour).Format("15:04"), now.Add(4*time.Hour).Format("15:04"))
	flags := []string{"-model", "m", "-slots", "8"}
	a := tuned(t, "a", "schedule: {availability: {not_during: [\""+others+"\"]}}\n", flags...)
	b := tuned(t, "b", "schedule: {availability: {not_during: [\""+hours+"\"]}}\n", flags...)
	g := tuned(t, "g", "schedule: {availability: {not_above_gpu_percent: 50}}\n", flags...)
	g.env = []string{"PATH=" + dir + string(os.PathListSeparator) + os.Getenv("PATH")}
	c := form(t, a, b, g)
	c.warm(t, "m", c...)
	eventually(t, 20*time.Second, "both are out in every view, and say why", func() bool {
		return !slices.ContainsFunc(c, func(m *member) bool {
			return !strings.Contains(unavailable(t, m, "b"), hours) || !strings.Contains(unavailable(t, m, "g"), "GPU")
		})
	})
	if why := unavailable(t, b, "a"); why != "" {
		t.Errorf("a is out although its hours are others: %s", why)
	}
	for i := range 30 {
		if code, node, text := generate(t, c[i%3], "m", fmt.Sprint(i)); code != 200 || node != "a" {
			t.Errorf("%s: %d from %q: %s", c[i%3].name, code, node, text)
		}
	}
	if text, code := run(t, "nodes", "--api", a.url); code != 0 || !strings.Contains(text, "not during "+hours) {
		t.Errorf("nodes: %d\n%s", code, text)
	}
	if e := explained(t, a, `{"model":"m","prompt":"x"}`); !strings.Contains(candidateOn(t, e, "b").Why, "not during") {
		t.Errorf("explain says of a node that is out: %q", candidateOn(t, e, "b").Why)
	}
}
