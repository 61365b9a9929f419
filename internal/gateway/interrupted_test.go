package gateway

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

// interruption is a way in which a request ends before it is answered.
type interruption struct {
	name   string
	cancel bool
	status int
}

var interruptions = []interruption{
	{"by its deadline", false, http.StatusGatewayTimeout},
	{"by an operator", true, http.StatusServiceUnavailable},
}

// interrupt has a request end so after a while, by an operator not before it has begun. What it returns is to
// be called at the end.
func (i interruption) interrupt(h *house, r *http.Request, after time.Duration, begun func() bool) (stop func()) {
	r.Header.Set("X-Request-Id", "one")
	if !i.cancel {
		r.Header.Set("X-Deadline", after.String())
		return func() {}
	}
	ended := make(chan struct{})
	go func() {
		ticker := time.NewTicker(after)
		defer ticker.Stop()
		for done := false; !done; done = begun() && h.gateway.Cancel("one") {
			select {
			case <-ended:
				return
			case <-ticker.C:
			}
		}
	}()
	return func() { close(ended) }
}

func TestAnAnswerThatIsWantedWholeAndInterruptedHasTheStatusOfOneThatHasNotBegun(t *testing.T) {
	h := newHouse(t, 1, nil, func(c *enginetest.Config) { c.TokenGap = 5 * time.Millisecond })
	for _, tc := range interruptions {
		t.Run(tc.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+"/api/generate",
				strings.NewReader(`{"model":"m","prompt":"x","stream":false,"options":{"num_predict":100000}}`))
			if err != nil {
				t.Fatal(err)
			}
			before := h.engines[0].Stats().PromptTokens
			after := 2 * time.Second // in which any machine has begun
			if tc.cancel {
				after = 100 * time.Millisecond
			}
			defer tc.interrupt(h, r, after, func() bool { return h.engines[0].Stats().PromptTokens > before })()
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if read := h.engines[0].Stats().PromptTokens - before; err != nil || resp.StatusCode != tc.status || read == 0 {
				t.Errorf("%d %s %v, %d tokens read", resp.StatusCode, text, err, read)
			}
		})
	}
}
