package access

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

func TestDoor(t *testing.T) {
	for _, tc := range []struct {
		name     string
		origins  []string
		loopback bool
		method   string
		host     string
		origin   string
		status   int
		allow    string
	}{
		{"no page", nil, true, "GET", "127.0.0.1:11435", "", 200, ""},
		{"a local page", nil, true, "GET", "localhost:11435", "http://localhost:3000", 200, "http://localhost:3000"},
		{"a local page, securely", nil, true, "GET", "localhost", "https://127.0.0.1:1", 200, "https://127.0.0.1:1"},
		{"a desktop program", nil, true, "GET", "localhost", "app://obsidian.md", 200, "app://obsidian.md"},
		{"a foreign page", nil, true, "GET", "localhost", "https://evil.example", 403, ""},
		{"a page whose name begins as ours", nil, true, "GET", "localhost", "http://localhost.evil.example", 403, ""},
		{"a page that has no origin to show", nil, true, "POST", "localhost", "null", 403, ""},
		{"an allowed page", []string{"https://chat.example"}, true, "GET", "localhost", "https://chat.example", 200, "https://chat.example"},
		{"an allowed family of pages", []string{"https://*.example"}, true, "GET", "localhost", "https://a.b.example", 200, "https://a.b.example"},
		{"any page", []string{"*"}, true, "GET", "localhost", "https://evil.example", 200, "*"},
		{"its own page", nil, false, "GET", "box:11435", "http://box:11435", 200, ""},
		{"a rebound name", nil, true, "GET", "evil.example", "", 403, ""},
		{"a rebound name that is its own origin", nil, true, "GET", "evil.example", "http://evil.example", 403, ""},
		{"a foreign name on an open listener", nil, false, "GET", "box.example", "", 200, ""},
		{"a private address", nil, true, "GET", "192.168.1.2:11435", "", 200, ""},
		{"a public address", nil, true, "GET", "8.8.8.8", "", 403, ""},
		{"IPv6 loopback", nil, true, "GET", "[::1]:11435", "", 200, ""},
		{"a local domain", nil, true, "GET", "box.local", "", 200, ""},
		{"a preflight", nil, true, "OPTIONS", "localhost", "http://localhost:3000", 204, "http://localhost:3000"},
		{"a foreign preflight", nil, true, "OPTIONS", "localhost", "https://evil.example", 403, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(tc.method, "/api/tags", nil)
			r.Host = tc.host
			r.Header.Set("X-Ollamamax-Refused", "evil")
			if tc.origin != "" {
				r.Header.Set("Origin", tc.origin)
			}
			reached := false
			w := httptest.NewRecorder()
			Door(Config{AllowedOrigins: tc.origins}, tc.loopback, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				reached = true
				if r.Header.Get("X-Ollamamax-Refused") != "" {
					t.Error("an internal header passed")
				}
			})).ServeHTTP(w, r)
			if w.Code != tc.status || w.Header().Get("Access-Control-Allow-Origin") != tc.allow || reached != (tc.status == 200) {
				t.Errorf("%d %q, reached %v", w.Code, w.Header().Get("Access-Control-Allow-Origin"), reached)
			}
		})
	}
}

func TestAPageMaySendWhatTheAPIUnderstands(t *testing.T) {
	r := httptest.NewRequest("OPTIONS", "/v1/messages", nil)
	r.Host = "localhost"
	r.Header.Set("Origin", "http://localhost:3000")
	w := httptest.NewRecorder()
	Door(Config{}, true, http.NotFoundHandler()).ServeHTTP(w, r)
	allowed := strings.Split(w.Header().Get("Access-Control-Allow-Headers"), ",")
	for _, header := range []string{"Authorization", "X-Api-Key", "X-Request-Id", "X-Priority", "X-Deadline", "X-Require-Label",
		"Anthropic-Version", "Anthropic-Beta", "Anthropic-Dangerous-Direct-Browser-Access"} { // the last is said by Anthropic's client in every page
		if !slices.Contains(allowed, header) {
			t.Errorf("%s is not allowed", header)
		}
	}
}
