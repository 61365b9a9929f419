package enginetest

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// discard is a ResponseWriter that costs nothing, so that the benchmarks show the server's share.
type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
func (d discard) Flush()                      {}

func BenchmarkAnswers(b *testing.B) {
	s := New(Config{Slots: 8, Models: []Model{{Name: "llama"}}})
	for _, row := range []struct{ name, path, body string }{
		{"unary", "/api/generate", `{"model":"llama","prompt":"Why is the sky blue?","stream":false,"options":{"num_predict":16}}`},
		{"unary with a long prompt", "/api/generate", `{"model":"llama","prompt":"` + strings.Repeat("Why is the sky blue? ", 200) + `","stream":false,"options":{"num_predict":16}}`},
		{"stream of 64", "/api/chat", `{"model":"llama","messages":[{"role":"user","content":"Hi"}]}`},
	} {
		b.Run(row.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequest(http.MethodPost, row.path, strings.NewReader(row.body))
				s.ServeHTTP(discard{http.Header{}}, r)
			}
		})
	}
}
