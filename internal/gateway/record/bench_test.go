package record

import (
	"fmt"
	"strings"
	"testing"
)

// typical is one capture of Ollama's of each form.
func typical(t testing.TB) (all []capture) {
	seen := map[Form]bool{}
	for _, c := range captures(t) {
		if !seen[c.form] && strings.HasSuffix(c.name, "-noise") {
			seen[c.form] = true
			all = append(all, c)
		}
	}
	return all
}

func TestFollowingDoesNotAllocate(t *testing.T) {
	for _, c := range captures(t) {
		tr := NewTracker(c.form, c.usage)
		for i, rec := range split(t, c.form, c.stream) {
			ev := tr.Follow(rec)
			if i == 0 || len(ev.Text)+len(ev.Thinking) == 0 {
				continue
			}
			if n := testing.AllocsPerRun(10, func() { tr.Follow(rec) }); n > 0 {
				t.Errorf("%s: %v times for %s", c.name, n, rec)
			}
			if n := testing.AllocsPerRun(10, func() { c.form.Split(rec) }); n > 0 {
				t.Errorf("%s: splitting allocates", c.name)
			}
		}
	}
}

func BenchmarkFollow(b *testing.B) {
	for _, c := range typical(b) {
		recs := split(b, c.form, c.stream)
		tr := NewTracker(c.form, c.usage)
		var rec []byte
		for _, r := range recs {
			if ev := tr.Follow(r); len(ev.Text) > 0 {
				rec = r
				break
			}
		}
		b.Run(fmt.Sprintf("%s/%dB", c.name, len(rec)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if n := c.form.Split(rec); n > 0 {
					tr.Follow(rec[:n])
				}
			}
		})
	}
}

func BenchmarkFold(b *testing.B) {
	for _, c := range typical(b) {
		recs := split(b, c.form, c.stream)
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var body []byte
			for b.Loop() {
				tr, fold := NewTracker(c.form, false), NewFold(c.form)
				for _, rec := range recs {
					fold.Add(rec, tr.Follow(rec))
				}
				body = fold.AppendBody(body[:0])
			}
		})
	}
}

func BenchmarkWhole(b *testing.B) {
	body := []byte(`{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","system_fingerprint":"fp_ollama","choices":[{"index":0,"message":{"role":"assistant","content":"Hello there, how may I help you today?"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":6,"total_tokens":11}}`)
	b.ReportAllocs()
	for b.Loop() {
		ChatCompletions.Whole(body)
	}
}
