package gateway

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAllBodiesTogetherAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := testNodes("a")
		answers := make(chan struct{})
		g := newGateway(t, inOrder(nodes), nodes, func(string, *http.Request) (*http.Response, error) {
			<-answers
			return respond(200, "{}"), nil
		})
		g.bodies.max = 1 << 20
		mux := http.NewServeMux()
		g.Register(mux)
		ask := func(size int) *httptest.ResponseRecorder {
			return do(mux, "POST", "/api/embed", `{"model":"m","input":"`+strings.Repeat("x", size)+`"}`)
		}
		var first sync.WaitGroup
		first.Go(func() {
			if w := ask(800 << 10); w.Code != 200 {
				t.Errorf("the first: %d %s", w.Code, w.Body)
			}
		})
		synctest.Wait()
		if w := ask(800 << 10); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("one too many: %d %s", w.Code, w.Body)
		}
		close(answers)
		if w := ask(1 << 10); w.Code != 200 {
			t.Errorf("a small one: %d %s", w.Code, w.Body)
		}
		first.Wait()
		if w := ask(800 << 10); w.Code != 200 {
			t.Errorf("after the first: %d %s", w.Code, w.Body)
		}
		if held := g.bodies.held.Load(); held != 0 {
			t.Errorf("%d bytes are still counted", held)
		}
	})
}

// trickle is a client that sends a byte from time to time, and the connection that it sends it on.
type trickle struct {
	http.ResponseWriter
	every    time.Duration
	deadline time.Time
}

func (c *trickle) SetReadDeadline(at time.Time) error { c.deadline = at; return nil }

func (c *trickle) Read(p []byte) (int, error) {
	next := time.Now().Add(c.every)
	if !c.deadline.IsZero() && next.After(c.deadline) {
		time.Sleep(time.Until(c.deadline))
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(time.Until(next))
	p[0] = 'x'
	return 1, nil
}

func TestABodyThatTricklesIsGivenUp(t *testing.T) {
	for _, every := range []time.Duration{time.Second, 9 * time.Second, 59 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c := &trickle{ResponseWriter: httptest.NewRecorder(), every: every, deadline: time.Now().Add(time.Minute)}
			r := httptest.NewRequest("POST", "/api/chat", c)
			began := time.Now()
			_, err := io.Copy(io.Discard, newImpatientReader(&exchange{w: c, r: r, ctx: t.Context()}, time.Minute))
			if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took > 2*time.Minute {
				t.Errorf("a byte every %v: %v after %v", every, err, took)
			}
		})
	}
}

func TestTheTimeThatAnEngineTakesForABlobIsNotTheClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &trickle{ResponseWriter: httptest.NewRecorder(), every: time.Second}
		reader := newImpatientReader(&exchange{w: c, r: httptest.NewRequest("POST", "/api/blobs/x", c), ctx: t.Context()}, time.Minute)
		for range 20 {
			if _, err := reader.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Second)
		}
	})
}
