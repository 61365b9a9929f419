package gateway

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// streaming is a gateway of nodes, in the order of their engines, that answer with these streams.
func streaming(t *testing.T, path string, engines ...func() io.Reader) http.Handler {
	t.Helper()
	kind := "text/event-stream"
	if strings.HasPrefix(path, "/api/") {
		kind = "application/x-ndjson"
	}
	var ids []cluster.NodeID
	for i := range engines {
		ids = append(ids, cluster.NodeID(rune('a'+i)))
	}
	nodes := testNodes(ids...)
	for _, n := range nodes {
		if kind == "text/event-stream" {
			n.Engine.Kind = cluster.LlamaServer // which is asked to go on by the same route
		}
	}
	return gatewayOf(t, inOrder(nodes), nodes, func(node string, r *http.Request) (*http.Response, error) {
		if r.URL.Path != path {
			return respond(http.StatusNotFound, `{"error":"no such route"}`), nil
		}
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {kind}}, ContentLength: -1,
			Body: io.NopCloser(engines[node[0]-'a']())}, nil
	})
}

const wholeRequest = `{"model":"m","prompt":"p","messages":[{"role":"user","content":"p"}],"stream":false}`

func text(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }

func TestAWholeAnswerThatBreaksWhileItRepeatsItselfIsNotEmpty(t *testing.T) {
	const chunk = `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":"ha"},"finish_reason":null}]}` + "\n\n"
	const died = `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n"
	for _, tc := range []struct {
		name, path, stream string
		status             int
		want               string
	}{
		{"says why", "/api/generate", strings.Repeat(`{"model":"m","response":"ha","done":false}`+"\n", mostEqual) + `{"error":"out of memory"}` + "\n", http.StatusBadGateway, "out of memory"},
		{"does not say why", "/v1/chat/completions", strings.Repeat(chunk, mostEqual) + died, http.StatusOK, `"content":"` + strings.Repeat("ha", mostEqual) + `"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := do(streaming(t, tc.path, text(tc.stream)), "POST", tc.path, wholeRequest)
				if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.want) {
					t.Errorf("%d %q", w.Code, w.Body)
				}
			})
		})
	}
}

// endless is a stream that says one record again and again, and ends after more than anybody holds.
type endless struct {
	record string
	at     int
}

func (e *endless) Read(p []byte) (int, error) {
	if e.at > 2*maxFolded {
		return 0, io.EOF
	}
	n := copy(p, e.record[e.at%len(e.record):])
	e.at += n
	return n, nil
}

func TestAWholeAnswerIsBoundedWhicheverNodeSaysIt(t *testing.T) {
	chunk := func(text, more string) string {
		return `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"` + text + `"},"finish_reason":null` + more + `}]}` + "\n\n"
	}
	forever := func(record string) func() io.Reader { return func() io.Reader { return &endless{record: record} } }
	long := chunk(strings.Repeat("ha", 200_000), "")
	for _, tc := range []struct {
		name    string
		engines []func() io.Reader
	}{
		{"the first one", []func() io.Reader{forever(long)}},
		{"one that goes on with it", []func() io.Reader{text(chunk("so", "") + chunk("we", "")), forever(long)}},
		{"by its log probabilities", []func() io.Reader{forever(chunk("", `,"logprobs":{"content":[`+strings.Repeat(`{"token":"ha","logprob":-1.5},`, 10_000)+`{}]}`))}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const path = "/v1/chat/completions"
				w := do(streaming(t, path, tc.engines...), "POST", path, wholeRequest)
				if w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), "sends an answer of more than") {
					t.Errorf("%d %.300q", w.Code, w.Body)
				}
			})
		})
	}
}
