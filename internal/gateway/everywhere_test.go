package gateway

import (
	"net/http"
	"strings"
	"testing"
)

func TestALongAnswerOfOneOfSeveralNodesEndsNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		size, status int
	}{
		"longer than a first piece": {2 * largeBuffer, 200},
		"too long":                  {maxRecord + 1, 502},
	} {
		t.Run(name, func(t *testing.T) {
			h := testGateway(t, func(string, *http.Request) (*http.Response, error) {
				return respond(200, strings.Repeat("x", tc.size)), nil
			})
			w := do(h, "POST", "/api/copy", `{"source":"m","destination":"n"}`)
			if w.Code != tc.status || tc.status == 200 && w.Body.Len() != tc.size {
				t.Errorf("%d, %d bytes: %.200s", w.Code, w.Body.Len(), w.Body)
			}
		})
	}
}

func TestAnUnloadThatIsAnsweredAsAStreamIsDone(t *testing.T) {
	const said = "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"
	h := testGateway(t, func(string, *http.Request) (*http.Response, error) {
		return respond(200, said, "Content-Type", "text/event-stream"), nil
	})
	w := do(h, "POST", "/v1/completions", `{"model":"m","prompt":"","stream":true,"keep_alive":0}`)
	if w.Code != 200 || w.Body.String() != said {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
