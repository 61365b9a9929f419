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
	name, deadline string
	cancel         bool
	status         int
}

var interruptions = []interruption{
	{"by its deadline", "300ms", false, http.StatusGatewayTimeout},
	{"by an operator", "1m", true, http.StatusServiceUnavailable},
}

// interrupt has a request end so, an operator's after a while. What it returns is to be called at the end.
func (i interruption) interrupt(h *house, r *http.Request, after time.Duration) (stop func()) {
	r.Header.Set("X-Deadline", i.deadline)
	r.Header.Set("X-Request-Id", "one")
	if !i.cancel {
		return func() {}
	}
	looking := time.AfterFunc(after, func() { h.gateway.Cancel("one") })
	return func() { looking.Stop() }
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
			defer tc.interrupt(h, r, 100*time.Millisecond)()
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if read := h.engines[0].Stats().PromptTokens; err != nil || resp.StatusCode != tc.status || read == 0 {
				t.Errorf("%d %s %v, %d tokens read", resp.StatusCode, text, err, read)
			}
		})
	}
}
