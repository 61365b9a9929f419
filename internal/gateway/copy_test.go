package gateway

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// copied has a long answer copied to a client, and returns what was told of its node, and how it ended.
func copied(t *testing.T, body io.Reader, to http.ResponseWriter) (result cluster.Result, aborted any) {
	t.Helper()
	nodes := testNodes("a")
	k := keeping{inOrder(nodes), make(chan cluster.Outcome, 1)}
	h := gatewayOf(t, k, nodes, func(_ string, r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: connected{r.Context(), body}, ContentLength: 1 << 20}, nil
	})
	func() {
		defer func() { aborted = recover() }()
		h.ServeHTTP(to, httptest.NewRequest("POST", "/api/show", strings.NewReader(`{"model":"m"}`)))
	}()
	return (<-k.outcomes).Result, aborted
}

// connected is a body that ends with its request.
type connected struct {
	ctx context.Context
	io.Reader
}

func (c connected) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.Reader.Read(p)
}

func (connected) Close() error { return nil }

func TestAnEngineThatBreaksInTheMiddleOfABodyIsBlamed(t *testing.T) {
	body := io.MultiReader(strings.NewReader(strings.Repeat("x", 2*largeBuffer)), &broken{})
	if result, aborted := copied(t, body, httptest.NewRecorder()); result != cluster.Failed || aborted != http.ErrAbortHandler {
		t.Errorf("result %v, ended by %v", result, aborted)
	}
}

func TestASlowReaderOfALongBodyIsNoFrozenEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := slow{httptest.NewRecorder(), quickWithin / 4}
		result, aborted := copied(t, strings.NewReader(strings.Repeat("x", 10*largeBuffer)), to)
		if result != cluster.Answered || aborted != nil || to.Body.Len() != 10*largeBuffer {
			t.Errorf("result %v, ended by %v after %d bytes", result, aborted, to.Body.Len())
		}
	})
}
