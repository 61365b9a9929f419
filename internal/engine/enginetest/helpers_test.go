package enginetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// rig is a server and a client joined by pipes, so that both can live in a synctest bubble.
type rig struct {
	*Server
	t      *testing.T
	client *http.Client
}

type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { close(p.done); return nil }

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// start serves cfg until the returned function is called; call it inside the bubble.
func start(t *testing.T, cfg Config) (*rig, func()) {
	t.Helper()
	if cfg.Models == nil {
		cfg.Models = []Model{{Name: "llama"}, {Name: "vectors", Embedding: true}, {Name: "qwen", Thinking: true, Tools: true}}
	}
	p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	s := New(cfg)
	srv := &http.Server{Handler: s}
	go func() { _ = srv.Serve(p) }() // http.ErrServerClosed
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		near, far := net.Pipe()
		select {
		case p.conns <- far:
			return near, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	return &rig{s, t, &http.Client{Transport: tr}}, func() {
		tr.CloseIdleConnections()
		_ = srv.Close()
	}
}

func (r *rig) send(ctx context.Context, method, path, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		r.t.Error(err)
		return nil, err
	}
	return r.client.Do(req)
}

// do sends one request and returns status and body.
func (r *rig) do(method, path, body string) (int, string) {
	r.t.Helper()
	resp, err := r.send(context.Background(), method, path, body)
	if err != nil {
		r.t.Errorf("%s %s: %v", method, path, err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Errorf("%s %s: %v after %q", method, path, err, b)
	}
	return resp.StatusCode, string(b)
}

// post expects 200.
func (r *rig) post(path, body string) string {
	r.t.Helper()
	status, b := r.do(http.MethodPost, path, body)
	if status != http.StatusOK {
		r.t.Errorf("POST %s %s: status %d: %s", path, body, status, b)
	}
	return b
}

// record is what the dialects' records have in common with our questions.
type record struct {
	Response   string  `json:"response"`
	Thinking   string  `json:"thinking"`
	Message    message `json:"message"`
	Done       bool    `json:"done"`
	DoneReason string  `json:"done_reason"`
	Prompt     int     `json:"prompt_eval_count"`
	Eval       int     `json:"eval_count"`
	Error      string  `json:"error"`
	Debug      struct {
		Rendered string `json:"rendered_template"`
		Images   int    `json:"image_count"`
	} `json:"_debug_info"`
	Status string `json:"status"`
}

// lines parses NDJSON.
func lines(t *testing.T, body string) []record {
	t.Helper()
	var out []record
	sc := bufio.NewScanner(strings.NewReader(body))
	for sc.Scan() {
		out = append(out, parse[record](t, sc.Text()))
	}
	return out
}

func parse[T any](t *testing.T, s string) T {
	t.Helper()
	var v T
	if err := json.NewDecoder(bytes.NewBufferString(s)).Decode(&v); err != nil {
		t.Fatalf("%v in %q", err, s)
	}
	return v
}

// pieceList returns the texts of a stream's records but the last.
func pieceList(t *testing.T, body string) (out []string, last record) {
	t.Helper()
	rs := lines(t, body)
	for _, r := range rs {
		if r.Done {
			return out, r
		}
		out = append(out, r.Response+r.Message.Content)
	}
	t.Fatalf("no terminal record in %q", body)
	return nil, record{}
}

// event is one server-sent event.
type event struct{ name, data string }

func events(body string) []event {
	var out []event
	for block := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		var e event
		for line := range strings.SplitSeq(block, "\n") {
			if v, ok := strings.CutPrefix(line, "event: "); ok {
				e.name = v
			}
			if v, ok := strings.CutPrefix(line, "data: "); ok {
				e.data = v
			}
		}
		out = append(out, e)
	}
	return out
}

func quoteJSON(s string) string { return `"` + quoted(s) + `"` }

// took runs f and returns how long it took on the bubble's clock.
func took(f func()) time.Duration {
	begin := time.Now()
	f()
	return time.Since(begin)
}
