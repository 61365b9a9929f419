package gateway

import (
	"net/http"
	"strings"
	"sync"
	"testing"
)

func TestRequestsAreListedWhileTheyCome(t *testing.T) {
	h := newHouse(t, 1, nil, nil)
	var coming sync.WaitGroup
	for i := range 4 {
		path := [...]string{"/api/generate", "/api/v1/schedule/explain"}[i%2]
		coming.Go(func() {
			for range 50 {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+path, strings.NewReader(`{"model":"m","prompt":"x","options":{"num_predict":2}}`))
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("X-Priority", "high")
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
			}
		})
	}
	all := make(chan struct{})
	go func() { coming.Wait(); close(all) }()
	for {
		for _, r := range h.gateway.Requests() {
			if r.Priority != "high" { // the race detector has its own opinion
				t.Fatalf("listed as %+v", r)
			}
		}
		select {
		case <-all:
			return
		default:
		}
	}
}
