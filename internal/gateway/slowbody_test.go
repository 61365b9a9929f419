package gateway

import (
	"io"
	"net/http"
	"testing"
	"time"
)

func TestASlowBodyIsReadNoLongerThanItsRequestLasts(t *testing.T) {
	h := newHouse(t, 1, nil, nil)
	for _, path := range []string{"/api/generate", "/api/blobs/sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595843f55d36f5b275a52087dd2"} {
		for _, tc := range interruptions {
			for _, steady := range []bool{false, true} {
				name := path + " " + tc.name
				if steady {
					name += ", a byte from time to time"
				}
				t.Run(name, func(t *testing.T) {
					body, write := io.Pipe()
					defer write.Close()
					go func() {
						_, err := io.WriteString(write, `{"model":"m","prompt":"`)
						if !steady {
							return
						}
						ticker := time.NewTicker(20 * time.Millisecond)
						defer ticker.Stop()
						for err == nil {
							<-ticker.C
							_, err = io.WriteString(write, "x")
						}
					}()
					r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+path, body)
					if err != nil {
						t.Fatal(err)
					}
					defer tc.interrupt(h, r, 300*time.Millisecond, func() bool { return true })()
					began := time.Now()
					resp, err := http.DefaultClient.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != tc.status {
						t.Errorf("%d %s %v", resp.StatusCode, text, err)
					}
					if took := time.Since(began); took > 5*time.Second {
						t.Errorf("it took %v", took)
					}
				})
			}
		}
	}
}
