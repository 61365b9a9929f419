package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// unread is a client that takes nothing, as far as can be told without one: it knows its deadline.
type unread struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (u *unread) SetWriteDeadline(at time.Time) error { u.deadline = at; return nil }

func TestAClientHasNoMoreThanItsTimeForABodyOfOurOwn(t *testing.T) {
	for _, tc := range []struct{ name, method, path, body string }{
		{"a list", "GET", "/api/tags", ""},
		{"a refusal", "POST", "/api/chat", "{"},
		{"one answer for all", "POST", "/api/copy", `{"source":"m","destination":"n"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := testGateway(t, func(string, *http.Request) (*http.Response, error) { return respond(200, "{}"), nil })
				w := &unread{ResponseRecorder: httptest.NewRecorder()}
				h.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, strings.NewReader(tc.body)))
				if left := time.Until(w.deadline); left != Default().Timeouts.Write || w.Body.Len() == 0 {
					t.Errorf("it has %v for %d bytes", left, w.Body.Len())
				}
			})
		})
	}
}
