package enginetest

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnUnawareServerWorksOnForWhoHasLeft(t *testing.T) {
	for _, unaware := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r, stop := start(t, Config{Unaware: unaware, FirstToken: 10 * time.Second})
			defer stop()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://fake/api/generate", strings.NewReader(`{"model":"llama","prompt":"x"}`))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.client.Do(req); err == nil {
				t.Fatal("the client did not leave")
			}
			synctest.Wait()
			if busy := r.Stats().InFlight == 1; busy != unaware {
				t.Errorf("unaware %v: after the client has left it works for it: %v", unaware, busy)
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if st := r.Stats(); st.InFlight != 0 || st.Cancelled != 1 {
				t.Errorf("unaware %v: in the end %+v", unaware, st)
			}
		})
	}
}
