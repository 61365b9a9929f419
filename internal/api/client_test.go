package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slow answers every request with a body that takes an hour.
type slow struct{ text string }

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Body: io.NopCloser(&slowBody{r.Context(), strings.NewReader(s.text)}), Request: r}, nil
}

type slowBody struct {
	ctx  context.Context
	text io.Reader
}

func (b *slowBody) Read(p []byte) (int, error) {
	hour := time.NewTimer(time.Hour)
	defer hour.Stop()
	select {
	case <-hour.C:
		return b.text.Read(p)
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
}

func TestStreamOutlivesTheTimeOfACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := NewClient("node:1", "", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		c.http.Transport = slow{"{\"status\":\"a\"}\n\n{\"status\":\"success\"}\n"}
		var got []string
		err = c.Stream(t.Context(), "POST", "/x", nil, func(record []byte) error {
			got = append(got, string(record))
			return nil
		})
		if err != nil || len(got) != 2 || got[1] != `{"status":"success"}` {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := c.Do(t.Context(), "GET", "/x", nil); err == nil {
			t.Error("a call waits for an hour")
		}
		stop := errors.New("enough")
		if err := c.Stream(t.Context(), "POST", "/x", nil, func([]byte) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("the stream goes on after its reader's error: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.Stream(ctx, "POST", "/x", nil, func([]byte) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the stream goes on without its caller: %v", err)
		}
	})
}

func TestErrorsAreReadInBothDialects(t *testing.T) {
	for body, want := range map[string]string{
		`{"error":{"code":"not_found","message":"no m","hint":"pull it"}}`: "no m: pull it",
		`{"error":"model 'm' not found"}`:                                  "model 'm' not found",
	} {
		if err := failure([]byte(body)); err == nil || err.Error() != want {
			t.Errorf("%s: %v", body, err)
		}
	}
	for _, body := range []string{`{"status":"success"}`, `{"error":null}`, `{"error":""}`, `[]`, `no JSON`, ``} {
		if err := failure([]byte(body)); err != nil {
			t.Errorf("%q: %v", body, err)
		}
	}
}
