package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// streams are one streamed request per dialect, what marks each of its pieces, what ends an answer
// that is whole, and what Ollama sends in mid-stream when its runner dies.
var streams = []struct{ path, body, piece, terminal, died string }{
	{"/api/generate", `{"model":"llama","prompt":"Hi","options":{"num_predict":6}}`, `"response":" `, `"done":true`, `{"error":"model runner has`},
	{"/api/chat", `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"options":{"num_predict":6}}`, `"content":" `, `"done":true`, `{"error":"model runner has`},
	{"/v1/chat/completions", `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"max_tokens":6,"stream":true}`, `"content":" `, "[DONE]", `"model":"","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}`},
	{"/v1/completions", `{"model":"llama","prompt":"Hi","max_tokens":6,"stream":true}`, `"text":" `, "[DONE]", `"model":"","system_fingerprint"`},
	{"/v1/messages", `{"model":"llama","messages":[{"role":"user","content":"Hi"}],"max_tokens":6,"stream":true}`, `"text":" `, "message_stop", ""},
	{"/v1/responses", `{"model":"llama","input":"Hi","max_output_tokens":6,"stream":true}`, `"delta":" `, "response.completed", ""},
	// The same while thinking.
	{"/api/generate", `{"model":"qwen","prompt":"Hi","options":{"num_predict":6}}`, `"thinking":" `, `"done":true`, `{"error":"model runner has`},
	{"/api/chat", `{"model":"qwen","messages":[{"role":"user","content":"Hi"}],"options":{"num_predict":6}}`, `"thinking":" `, `"done":true`, `{"error":"model runner has`},
	{"/v1/chat/completions", `{"model":"qwen","messages":[{"role":"user","content":"Hi"}],"max_tokens":6,"stream":true}`, `"reasoning":" `, "[DONE]", `"model":"","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}`},
	{"/v1/messages", `{"model":"qwen","messages":[{"role":"user","content":"Hi"}],"max_tokens":6,"stream":true}`, `"thinking":" `, "message_stop", ""},
	{"/v1/responses", `{"model":"qwen","input":"Hi","max_output_tokens":6,"stream":true}`, `"delta":" `, "response.completed", ""},
}

// read sends one request and returns what came, with the error that ended it.
func (r *rig) read(ctx context.Context, path, body string) (status int, got string, err error) {
	resp, err := r.send(ctx, "POST", path, body)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestFaultsInMidStreamBreakEveryDialectAfterTheWholePiecesBefore(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	for _, st := range streams {
		if sound := r.post(st.path, st.body); strings.Count(sound, st.piece) != 6 {
			t.Fatalf("a sound stream: %q", sound)
		}
		for _, row := range []struct {
			fault  Fault
			err    bool   // the transport fails
			status int    // 0 for none
			holds  string // in the body
			pieces int
		}{
			{Fault{Kind: FaultReset}, true, 0, "", 0},
			{Fault{Kind: FaultReset, After: 3}, true, 200, "", 3},
			{Fault{Kind: FaultTruncate}, false, 200, "", 0},
			{Fault{Kind: FaultTruncate, After: 3}, false, 200, "", 3},
			{Fault{Kind: FaultTruncate, After: 6}, false, 200, "", 6},
			{Fault{Kind: FaultGarbage, After: 3}, false, 200, "\x00\xff", 3},
			{Fault{Kind: FaultGarbage}, false, 200, "\x00\xff", 0},
			{Fault{Kind: FaultError500, After: 3}, false, 200, st.died, 3},
			{Fault{Kind: FaultRefuse}, true, 0, "", 0},
		} {
			t.Run(fmt.Sprintf("%s/%s after %d", st.path, row.fault.Kind, row.fault.After), func(t *testing.T) {
				r.SetFault(row.fault)
				status, got, err := r.read(t.Context(), st.path, st.body)
				if (err != nil) != row.err || status != row.status || !strings.Contains(got, row.holds) {
					t.Errorf("status %d, error %v, %q", status, err, got)
				}
				if n := strings.Count(got, st.piece); n != row.pieces || strings.Contains(got, st.terminal) {
					t.Errorf("%d pieces, want %d without an end: %q", n, row.pieces, got)
				}
				r.SetFault(Fault{})
				if again := r.post(st.path, st.body); !strings.Contains(again, st.terminal) {
					t.Errorf("after the fault %q", again)
				}
			})
		}
		r.SetFault(Fault{Kind: FaultError500})
		if status, b := r.do("POST", st.path, st.body); status != 500 || !strings.Contains(b, `"error":`) {
			t.Errorf("%s: %d %s", st.path, status, b)
		}
		if status, _ := r.do("GET", "/api/tags", ""); status != 200 {
			t.Errorf("a fault without a path reached /api/tags: %d", status)
		}
		r.SetFault(Fault{})
	}
	if st := r.Stats(); st.InFlight != 0 || st.Faulted != int64(9*len(streams)) {
		t.Errorf("stats %+v", st)
	}
}

func TestWholeAnswersBreakInTheirMiddle(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	const body = `{"model":"llama","prompt":"Hi","stream":false}`
	sound := r.post("/api/generate", body)
	for _, row := range []struct {
		kind FaultKind
		err  bool
	}{{FaultReset, true}, {FaultTruncate, false}, {FaultGarbage, false}, {FaultError500, false}} {
		r.SetFault(Fault{Kind: row.kind, After: 1})
		status, got, err := r.read(t.Context(), "/api/generate", body)
		if status != 200 || (err != nil) != row.err || !strings.HasPrefix(got, sound[:20]) || strings.HasSuffix(got, "}") {
			t.Errorf("%s: %d, %v, %q", row.kind, status, err, got)
		}
	}
}

func TestAFrozenStreamHoldsItsSlotUntilTheFaultIsClearedOrTheClientLeaves(t *testing.T) {
	for _, after := range []int{0, 2} {
		t.Run(fmt.Sprint("after ", after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, stop := start(t, Config{TokenGap: time.Millisecond})
				defer stop()
				r.SetFault(Fault{Kind: FaultFreeze, After: after})

				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				_, got, err := r.read(ctx, streams[0].path, streams[0].body)
				if !errors.Is(err, context.DeadlineExceeded) || strings.Count(got, "\n") != after {
					t.Errorf("%d records, %v", strings.Count(got, "\n"), err)
				}
				synctest.Wait()
				if st := r.Stats(); st.InFlight != 0 || st.Cancelled != 1 {
					t.Errorf("the client left: %+v", st)
				}
				done := make(chan string)
				go func() { done <- r.post(streams[0].path, streams[0].body) }()
				time.Sleep(time.Hour)
				if st := r.Stats(); st.InFlight != 1 {
					t.Errorf("frozen: %+v", st)
				}
				if status, _ := r.do("GET", "/api/version", ""); status != 200 {
					t.Errorf("/api/version: %d", status)
				}
				r.SetFault(Fault{})
				if got := <-done; strings.Count(got, "\n") != 7 {
					t.Errorf("thawed: %q", got)
				}
			})
		})
	}
}

func TestAFaultCanBeCountedAndKeptToAPath(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	if b := r.post("/_fault", `{"kind":"error500","count":2,"path":"/api/generate"}`); !strings.Contains(b, `"kind":"error500"`) {
		t.Errorf("/_fault: %s", b)
	}
	var got []int
	for _, st := range []int{1, 0, 0, 0} {
		status, _ := r.do("POST", streams[st].path, streams[st].body)
		got = append(got, status)
	}
	if fmt.Sprint(got) != "[200 500 500 200]" {
		t.Errorf("statuses %v", got)
	}
	r.post("/_fault", `{"kind":"error500","path":"/api/tags"}`)
	if status, _ := r.do("GET", "/api/tags", ""); status != 500 {
		t.Errorf("/api/tags: %d", status)
	}
	for _, bad := range []string{`{"kind":"flood"}`, `{"kinds":"slow"}`, `{"kind":"slow","delay":"soon"}`} {
		if status, _ := r.do("POST", "/_fault", bad); status != 400 {
			t.Errorf("%s: %d", bad, status)
		}
	}
	r.post("/_fault", `{"kind":"slow","delay":"50ms","factor":2}`)
	if f := r.Fault(); f.Delay != 50*time.Millisecond || f.Factor != 2 {
		t.Errorf("fault %+v", f)
	}
	if _, b := r.do("DELETE", "/_fault", ""); b != `{"kind":"none"}` {
		t.Errorf("cleared: %s", b)
	}
	if st := parse[Stats](t, r.post("/_stats", "")); !reflect.DeepEqual(st, r.Stats()) || st.Faulted != 3 {
		t.Errorf("/_stats %+v, Stats %+v", st, r.Stats())
	}
}

func TestAFaultSwitchedOnReachesTheStreamsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := start(t, Config{TokenGap: time.Second})
		defer stop()
		done := make(chan string)
		go func() {
			_, got, _ := r.read(t.Context(), "/api/generate", `{"model":"llama","prompt":"Hi"}`)
			done <- got
		}()
		time.Sleep(4500 * time.Millisecond)
		r.SetFault(Fault{Kind: FaultTruncate})
		if got := <-done; strings.Count(got, "\n") != 5 {
			t.Errorf("%q", got)
		}
	})
}

func TestResetAndRefuseAreResetsOnTCP(t *testing.T) {
	s := New(Config{Models: []Model{{Name: "llama"}}})
	srv := httptest.NewUnstartedServer(s)
	srv.Listener = s.Listener(srv.Listener)
	srv.Start()
	defer srv.Close()
	for _, f := range []Fault{{Kind: FaultReset}, {Kind: FaultReset, After: 2}, {Kind: FaultRefuse}} {
		s.SetFault(f)
		tr := &http.Transport{DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: tr}).Post(srv.URL+"/api/generate", "application/json", strings.NewReader(streams[0].body))
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%s after %d: %v", f.Kind, f.After, err)
		}
	}
}

func TestAnEndlessLineStopsWithItsClientOrAt64MiB(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	r.SetFault(Fault{Kind: FaultEndless, After: 2})
	for _, st := range streams {
		ctx, cancel := context.WithCancel(t.Context())
		resp, err := r.send(ctx, "POST", st.path, st.body)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1<<20)
		if _, err := io.ReadFull(resp.Body, b); err != nil {
			t.Fatal(err)
		}
		if head, line := string(b[:8<<10]), string(b[8<<10:]); strings.Count(head, st.piece) != 2 || strings.Trim(line, "x") != "" {
			t.Errorf("%s: %q …", st.path, head)
		}
		cancel()
		resp.Body.Close()
	}
	status, got, err := r.read(t.Context(), streams[0].path, streams[0].body)
	if status != 200 || err != nil || strings.Count(got, "x") < 64<<20 || len(got) > 64<<20+4096 {
		t.Errorf("%d, %d bytes, %v", status, len(got), err)
	}
	for r.Stats().InFlight != 0 { // the server notices soon that its clients have left
		runtime.Gosched()
	}
}

func TestATerminalRecordSentTwiceIsFollowedByAPiece(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	for _, st := range streams {
		sound := r.post(st.path, st.body)
		r.SetFault(Fault{Kind: FaultTwice, Count: 1})
		status, got, err := r.read(t.Context(), st.path, st.body)
		if status != 200 || err != nil || strings.Count(got, st.terminal) != 2*strings.Count(sound, st.terminal) {
			t.Errorf("%s: %d, %v, %q", st.path, status, err, got)
		}
		_, after, _ := cutLast(got, st.terminal)
		if !strings.Contains(after, pieces[0].json) {
			t.Errorf("%s: nothing follows the second end: %q", st.path, after)
		}
		if again := r.post(st.path, st.body); strings.Count(again, st.terminal) != strings.Count(sound, st.terminal) {
			t.Errorf("%s: a second request: %q", st.path, again)
		}
	}
	const body = `{"model":"llama","prompt":"Hi","stream":false}`
	r.SetFault(Fault{Kind: FaultTwice})
	if got := r.post("/api/generate", body); strings.Count(got, `"done":true`) != 2 {
		t.Errorf("whole %q", got)
	}
}

func TestABusyEngineSaysWhenToComeBack(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	r.post("/_fault", `{"kind":"busy","delay":"7s"}`)
	for _, st := range streams {
		resp, err := r.send(t.Context(), "POST", st.path, st.body)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "7" || err != nil || !strings.Contains(string(b), `server busy, please try again.`) ||
			strings.Contains(string(b), `overloaded_error`) != (st.path == "/v1/messages") {
			t.Errorf("%s: %d, Retry-After %q, %s", st.path, resp.StatusCode, resp.Header.Get("Retry-After"), b)
		}
	}
	if status, _ := r.do("GET", "/api/tags", ""); status != 200 {
		t.Errorf("/api/tags: %d", status)
	}
	r.SetFault(Fault{Kind: FaultBusy, Count: 1, Path: "/api/tags"})
	for _, want := range []int{503, 200} {
		if status, _ := r.do("GET", "/api/tags", ""); status != want {
			t.Errorf("/api/tags: %d, want %d", status, want)
		}
	}
	if st := r.Stats(); st.GeneratedTokens != 0 || st.Faulted != int64(len(streams)+1) {
		t.Errorf("%+v", st)
	}
}

func TestFaultsBreakAnAnswerBeforeAndAfterItsToolCall(t *testing.T) {
	r, stop := start(t, Config{Models: []Model{{Name: "llama", Tools: true}}})
	defer stop()
	for _, st := range []struct{ path, body, call, terminal string }{
		{"/api/chat", askCall + `,` + openaiTools, `"tool_calls":[`, `"done":true`},
		{"/v1/chat/completions", askCall + `,` + openaiTools, `"tool_calls":[`, "[DONE]"},
		{"/v1/messages", askCall + `,"max_tokens":50,` + claudeTools, "input_json_delta", "message_stop"},
		{"/v1/responses", `"input":"Please CALL it",` + flatTools, "function_call_arguments.done", "response.completed"},
	} {
		for _, f := range []Fault{
			{Kind: FaultReset}, {Kind: FaultTruncate}, {Kind: FaultGarbage}, {Kind: FaultError500},
		} {
			for f.After = callAfter; f.After <= callAfter+1; f.After++ {
				r.SetFault(f)
				_, got, _ := r.read(t.Context(), st.path, `{"model":"llama","stream":true,`+st.body+`}`)
				if strings.Contains(got, st.call) != (f.After > callAfter) || strings.Contains(got, st.terminal) {
					t.Errorf("%s, %s after %d: %.2000q", st.path, f.Kind, f.After, got)
				}
			}
		}
	}
}
