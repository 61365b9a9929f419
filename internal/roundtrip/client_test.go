package roundtrip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dialing is a Client that counts its connections.
func dialing(t *testing.T, cfg Config) (*Client, *atomic.Int64) {
	t.Helper()
	var dialed atomic.Int64
	cfg.Dial = func(ctx context.Context, host string) (net.Conn, error) {
		dialed.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, "tcp", host)
	}
	c := New(cfg)
	t.Cleanup(c.CloseIdleConnections)
	return c, &dialed
}

var kept = Config{MaxIdle: 64, IdleTimeout: time.Minute}

func post(t *testing.T, url, text string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestWhatIsSentAndAnsweredIsWhatNetHTTPSees(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", fmt.Sprint(r.Method, " ", r.URL, " ", r.Host, " ", r.Header["A"], " ", r.ContentLength, " ", len(text), " ", err, " ", r.UserAgent()))
		switch r.URL.Path {
		case "/length":
			w.Header().Set("Content-Length", "5")
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
			return
		case "/stream":
			for i := range 5 {
				fmt.Fprintln(w, i)
				_ = http.NewResponseController(w).Flush()
			}
		}
		_, _ = w.Write([]byte("hello"))
	}))
	defer server.Close()
	ours, dialed := dialing(t, kept)
	theirs := &http.Transport{DisableCompression: true}
	defer theirs.CloseIdleConnections()
	for i := range 3 {
		for _, path := range []string{"/", "/length", "/empty", "/stream", "/a%2fb?x=%20y&z"} {
			for _, method := range []string{"GET", "POST", "HEAD", "DELETE"} {
				for _, size := range []int{0, 10, 100_000} {
					for _, known := range []bool{true, false} {
						make := func() *http.Request {
							r := post(t, server.URL+path, strings.Repeat("x", size))
							r.Method = method
							r.Header["A"], r.Header["User-Agent"] = []string{"1", "2"}, []string{""}
							if !known && size > 0 {
								r.ContentLength = -1
							}
							if size == 0 {
								r.Body = nil
							}
							return r
						}
						read := func(rt http.RoundTripper) string {
							resp, err := rt.RoundTrip(make())
							if err != nil {
								t.Fatalf("%s %s: %v", method, path, err)
							}
							defer resp.Body.Close()
							text, err := io.ReadAll(resp.Body)
							return fmt.Sprint(resp.StatusCode, resp.ContentLength, resp.Header["X-Seen"], string(text), err)
						}
						if got, want := read(ours), read(theirs); got != want {
							t.Errorf("%d: %s %s with %d bytes:\n%s\nwant\n%s", i, method, path, size, got, want)
						}
					}
				}
			}
		}
	}
	if n := dialed.Load(); n != 1 {
		t.Errorf("%d connections for one request after the other", n)
	}
}

func TestManyAtOnceShareConnections(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer server.Close()
	c, dialed := dialing(t, Config{MaxIdle: 1024, IdleTimeout: time.Minute})
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			for j := range 100 {
				text := fmt.Sprint(i, " ", j)
				resp, err := c.RoundTrip(post(t, server.URL, text))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil || string(got) != text {
					t.Errorf("sent %q, got %q, %v", text, got, err)
				}
			}
		})
	}
	all.Wait()
	if n := dialed.Load(); n > 64 {
		t.Errorf("%d connections for 32 clients", n)
	}
}

// script is a server that speaks as it is told, connection by connection.
func script(t *testing.T, serve ...func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for _, f := range serve {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				f(conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return "http://" + l.Addr().String()
}

func answerOnce(conn net.Conn) {
	if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
		return
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}

func TestAConnectionThatWasGivenUpMeanwhileIsNotedAndReplaced(t *testing.T) {
	url := script(t, answerOnce, answerOnce, answerOnce)
	c, dialed := dialing(t, kept)
	for range 3 {
		resp, err := c.RoundTrip(post(t, url, "body"))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(resp.Body); string(text) != "ok" || err != nil {
			t.Fatalf("%q %v", text, err)
		}
	}
	if n := dialed.Load(); n != 3 {
		t.Errorf("%d connections", n)
	}
	// What must not be sent twice is not.
	url = script(t, answerOnce, answerOnce)
	resp, err := c.RoundTrip(post(t, url, "body"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(resp.Body)
	once := post(t, url, "body")
	once.GetBody = nil
	if resp, err := c.RoundTrip(once); err == nil {
		resp.Body.Close()
		t.Error("a body that cannot be read again was sent again")
	}
}

func TestAFreshConnectionThatBreaksIsAnError(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"at once":           func(net.Conn) {},
		"in the header":     func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConte") },
		"no HTTP":           func(c net.Conn) { _, _ = io.WriteString(c, "\x00\xff garbage\r\n\r\n") },
		"endless announces": func(c net.Conn) { _, _ = io.WriteString(c, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 50)) },
	} {
		c, _ := dialing(t, kept)
		read := func(conn net.Conn) { // else what it says is lost with a reset
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				serve(conn)
			}
		}
		if resp, err := c.RoundTrip(post(t, script(t, read), "x")); err == nil {
			resp.Body.Close()
			t.Errorf("%s: no error", name)
		}
	}
	c, _ := dialing(t, kept)
	resp, err := c.RoundTrip(post(t, script(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		}
	}), ""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a body: %v", err)
	}
}

func TestTheContextEndsAnExchangeAtAnyPoint(t *testing.T) {
	hang, came := make(chan struct{}), make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		came <- struct{}{}
		if r.URL.Path == "/body" {
			fmt.Fprintln(w, "begun")
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-hang:
		case <-r.Context().Done(): // the connection is closed: the work is stopped
		}
	}))
	defer server.Close()
	defer close(hang)
	c, _ := dialing(t, kept)
	why := errors.New("why")
	for _, path := range []string{"/header", "/body"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := post(t, server.URL+path, "x").WithContext(ctx)
		if path == "/header" {
			go func() { <-came; cancel(why) }()
			if _, err := c.RoundTrip(r); !errors.Is(err, why) {
				t.Errorf("%v", err)
			}
			continue
		}
		resp, err := c.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		cancel(why)
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("the body ended well")
		}
		resp.Body.Close()
	}
}

func TestABodyClosedEarlyBreaksItsConnection(t *testing.T) {
	stopped := make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := fmt.Fprintln(w, "more"); err != nil {
				break
			}
			_ = http.NewResponseController(w).Flush()
		}
		stopped <- struct{}{}
	}))
	defer server.Close()
	c, dialed := dialing(t, kept)
	for range 2 {
		resp, err := c.RoundTrip(post(t, server.URL, "x"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := resp.Body.Read(make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		<-stopped
	}
	if n := dialed.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestNothingIsKeptThatMustNotBe(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/close" {
			w.Header().Set("Connection", "close")
		}
		fmt.Fprint(w, r.Header["Connection"], r.Close)
	}))
	defer server.Close()
	for name, tc := range map[string]struct {
		cfg  Config
		path string
	}{"told by the other side": {kept, "/close"}, "configured": {Config{}, "/"}, "too old": {Config{MaxIdle: 8, IdleTimeout: -time.Second}, "/"}} {
		c, dialed := dialing(t, tc.cfg)
		for range 3 {
			resp, err := c.RoundTrip(post(t, server.URL+tc.path, "x"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if n := dialed.Load(); n != 3 {
			t.Errorf("%s: %d connections for three requests", name, n)
		}
	}
}

func TestAnEarlyAnswerCounts(t *testing.T) {
	url := script(t, func(c net.Conn) {
		_, _ = bufio.NewReader(c).ReadString('\n')
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c) // until the client has read the answer
	})
	c, _ := dialing(t, kept)
	resp, err := c.RoundTrip(post(t, url, strings.Repeat("x", 8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != 413 || string(text) != "no!" {
		t.Errorf("%d %q", resp.StatusCode, text)
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write([]byte("hello"))
	}))
	defer server.Close()
	ours := New(Config{MaxIdle: 64, IdleTimeout: time.Minute, Dial: func(ctx context.Context, host string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", host)
	}})
	defer ours.CloseIdleConnections()
	theirs := &http.Transport{}
	defer theirs.CloseIdleConnections()
	for name, rt := range map[string]http.RoundTripper{"ours": ours, "net-http": theirs} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, err := http.NewRequestWithContext(b.Context(), "POST", server.URL, strings.NewReader("body"))
				if err != nil {
					b.Fatal(err)
				}
				resp, err := rt.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}
