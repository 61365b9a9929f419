package roundtrip

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestARequestThatBreaksItsServerIsSentOnceMoreAtMost(t *testing.T) {
	var sent atomic.Int64
	var gate sync.WaitGroup
	gate.Add(20)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		if string(text) == "poison" {
			sent.Add(1)
			panic(http.ErrAbortHandler) // as gateway.local does when its engine fails
		}
		gate.Done()
		gate.Wait()
	}))
	defer server.Close()
	c, _ := dialing(t, Config{MaxIdle: 4096, IdleTimeout: time.Minute})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			resp, err := c.RoundTrip(post(t, server.URL, "x"))
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.ReadAll(resp.Body)
		})
	}
	all.Wait()
	if _, err := c.RoundTrip(post(t, server.URL, "poison")); err == nil {
		t.Fatal("answered?")
	}
	if n := sent.Load(); n > 2 {
		t.Errorf("it was sent %d times", n)
	}
}

func TestAHeaderIsBounded(t *testing.T) {
	var wrote atomic.Int64
	url := script(t, func(conn net.Conn) {
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nX-A: "))
		line := []byte(strings.Repeat("a", 1<<20))
		for range 256 {
			n, err := conn.Write(line)
			wrote.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	c, _ := dialing(t, kept)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := c.RoundTrip(post(t, url, "x").WithContext(ctx))
	if wrote.Load() > 32<<20 {
		t.Errorf("%d MiB of header were taken: %.80v", wrote.Load()>>20, err)
	}
}
