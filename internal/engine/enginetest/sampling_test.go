package enginetest

import (
	"slices"
	"strings"
	"testing"
)

func TestOnlyWhereSamplingIsOnDoTemperatureAndSeedChangeAnswers(t *testing.T) {
	plain, stop := start(t, Config{})
	defer stop()
	a, stop := start(t, Config{Sampling: true})
	defer stop()
	b, stop := start(t, Config{Sampling: true})
	defer stop()
	for _, row := range []struct{ path, body, zero, warm, seed string }{
		{"/api/generate", `{"model":"llama","stream":false,"prompt":"Hi"`, ``, `,"options":{"temperature":0.8}`, `,"options":{"temperature":0.8,"seed":7}`},
		{"/api/chat", `{"model":"llama","stream":false,"messages":[{"role":"user","content":"Hi"}]`, `,"options":{"temperature":0,"seed":3}`, `,"options":{"temperature":1,"seed":-1}`, `,"options":{"temperature":1,"seed":0}`},
		{"/v1/chat/completions", `{"model":"llama","messages":[{"role":"user","content":"Hi"}]`, `,"temperature":0`, ``, `,"seed":7`},
		{"/v1/completions", `{"model":"llama","prompt":"Hi"`, `,"temperature":0`, `,"temperature":0.1`, `,"seed":7`},
		{"/v1/messages", `{"model":"llama","max_tokens":64,"messages":[{"role":"user","content":"Hi"}]`, ``, `,"temperature":1`, ``},
		{"/v1/responses", `{"model":"llama","input":"Hi"`, `,"temperature":0`, ``, ``},
	} {
		text := func(r *rig, extra string) string {
			got := r.post(row.path, row.body+extra+`}`)
			for _, key := range []string{`"content":" `, `"response":" `, `"text":" `} {
				if _, rest, ok := strings.Cut(got, key); ok {
					return rest[:40]
				}
			}
			t.Fatalf("%s: no text in %s", row.path, got)
			return ""
		}
		want := text(plain, row.zero)
		for _, r := range []*rig{plain, a, b} {
			for range 2 {
				if got := text(r, row.zero); got != want {
					t.Errorf("%s at temperature 0: %q, want %q", row.path, got, want)
				}
			}
		}
		if got := text(plain, row.warm); got != want {
			t.Errorf("%s without sampling: %q, want %q", row.path, got, want)
		}
		drawn := []string{want, text(a, row.warm), text(a, row.warm), text(b, row.warm), text(b, row.warm)}
		slices.Sort(drawn)
		if len(slices.Compact(drawn)) != 5 {
			t.Errorf("%s without a seed: %q", row.path, drawn)
		}
		if row.seed == "" {
			continue
		}
		if x, y := text(a, row.seed), text(b, row.seed); x != y || x == want {
			t.Errorf("%s with a seed: %q and %q, at temperature 0 %q", row.path, x, y, want)
		}
	}
}
