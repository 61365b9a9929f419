package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// badEngine stands before a fake engine and spoils what it answers to prompts.
type badEngine struct {
	*httptest.Server
	fake string

	mu    sync.Mutex
	spoil func(w http.ResponseWriter, r *http.Request, header http.Header, records [][]byte)
	clean string // what the last answer would have been
	ended bool   // the last answer has come to its end, or was told to stop
}

func newBadEngine(t *testing.T) *badEngine {
	t.Helper()
	e := &badEngine{fake: startFake(t)}
	target, err := url.Parse(e.fake)
	if err != nil {
		t.Fatal(err)
	}
	good := httputil.NewSingleHostReverseProxy(target)
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := dialects[r.URL.Path]; !ok {
			good.ServeHTTP(w, r)
			return
		}
		recorded := httptest.NewRecorder()
		good.ServeHTTP(recorded, r)
		text := recorded.Body.Bytes()
		e.mu.Lock()
		spoil := e.spoil
		e.clean, e.ended = string(text), false
		e.mu.Unlock()
		defer func() {
			e.mu.Lock()
			e.ended = true
			e.mu.Unlock()
		}()
		spoil(w, r, recorded.Header(), split(text))
	}))
	t.Cleanup(e.Close)
	return e
}

// split cuts a streamed answer after each record: a line, or an event with its empty line.
func split(text []byte) (records [][]byte) {
	end := []byte("\n")
	if bytes.Contains(text, []byte("\n\n")) {
		end = []byte("\n\n")
	}
	records = bytes.SplitAfter(text, end)
	return records[:len(records)-1] // nothing follows the last end
}

func (e *badEngine) spoilWith(spoil func(w http.ResponseWriter, r *http.Request, header http.Header, records [][]byte)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spoil = spoil
}

func (e *badEngine) last() (clean string, ended bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.clean, e.ended
}

// begin sends the header of a good answer and some of its records.
func begin(w http.ResponseWriter, header http.Header, records ...[]byte) {
	w.Header().Set("Content-Type", header.Get("Content-Type"))
	w.WriteHeader(http.StatusOK)
	for _, record := range records {
		_, _ = w.Write(record) // whoever asked may have left
		_ = http.NewResponseController(w).Flush()
	}
}

// endlessly writes one line until it is told to stop, or for far too long.
func endlessly(w http.ResponseWriter, r *http.Request, start string) {
	piece := bytes.Repeat([]byte("x"), 64<<10)
	_, _ = io.WriteString(w, start)
	for sent := 0; sent < 512<<20 && r.Context().Err() == nil; sent += len(piece) {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

// terminals are what ends a whole stream, by route.
var terminals = map[string]string{
	"/api/generate":        `"done":true`,
	"/api/chat":            `"done":true`,
	"/v1/chat/completions": "data: [DONE]",
	"/v1/completions":      "data: [DONE]",
	"/v1/responses":        "event: response.completed",
	"/v1/messages":         "event: message_stop",
}

// badCluster is a node with a bad engine, named culprit, and one with none; either is a door to it.
func badCluster(t *testing.T, settings ...string) (e *badEngine, doors testCluster) {
	t.Helper()
	e = newBadEngine(t)
	file := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(file, []byte(strings.Join(append(settings, "p2p: {mdns: false}\n"), "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	culprit := &member{name: "culprit", dataDir: filepath.Join(t.TempDir(), "culprit"), args: []string{"--engine-url", e.URL, "--config", file}}
	door := &member{name: "door", dataDir: filepath.Join(t.TempDir(), "door"), args: []string{"--engine-url", "http://" + freeAddr(t), "--config", file}}
	form(t, culprit)
	door.start(t, "--join", newToken(t, culprit))
	door.up(t)
	return e, testCluster{culprit, door}
}

// most is more than any answer of these tests may have.
const most = 16 << 20

// askBad sends a prompt and reads what comes, but not without end. The error is that of reading.
func askBad(t *testing.T, door *member, path string, stream bool) (status int, text string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"x"}],"input":"x","max_tokens":9,"prompt":"x","stream":%v}`, stream)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, door.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s asked for %s: not even a status: %v", door.name, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if len(data) == most || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s asked for %s: no end after %d bytes", door.name, path, len(data))
	}
	return resp.StatusCode, string(data), err
}

// eachDoor runs a test for each route through each door, and sees that nothing is left of it.
func eachDoor(t *testing.T, e *badEngine, doors testCluster, test func(t *testing.T, door *member, path string)) {
	t.Helper()
	var before, memory []float64
	for _, m := range doors {
		before, memory = append(before, goroutines(t, m.url)), append(memory, float64(resident(t, m.program)))
	}
	for _, door := range doors {
		for path := range dialects {
			t.Run(door.name+path, func(t *testing.T) {
				test(t, door, path)
				eventually(t, 10*time.Second, "the engine was told to stop", func() bool { _, ended := e.last(); return ended })
			})
		}
	}
	for i, m := range doors {
		if grown := float64(resident(t, m.program)) - memory[i]; grown > 150e6 {
			t.Errorf("memory of %s grew by %.0f MB", m.name, grown/1e6)
		}
		eventually(t, 20*time.Second, "nothing is left at "+m.name, func() bool {
			return metric(t, m, "ollamamax_requests_in_flight") == 0 && goroutines(t, m.url) < before[i]+20
		})
	}
}

// refusedClearly checks an answer for an engine that failed before its first record.
func refusedClearly(t *testing.T, path string, status int, text string, err error) {
	t.Helper()
	if err != nil || status != http.StatusBadGateway || !strings.HasPrefix(text, dialects[path]) || !json.Valid([]byte(text)) {
		t.Errorf("%d %.300q %v: want 502 in the client's dialect", status, text, err)
	}
	if !strings.Contains(text, "culprit") {
		t.Errorf("%.300q does not name the node whose engine it was", text)
	}
}

// brokenClearly checks a stream whose engine failed after its first records: they arrive, then an
// error or a broken connection, never an end as if all were well; and what the door has logged since
// says whose it was.
func brokenClearly(t *testing.T, door *member, logged int, path string, records [][]byte, status int, text string, err error) {
	t.Helper()
	good := string(bytes.Join(records, nil))
	if status != http.StatusOK || !strings.HasPrefix(text, good) {
		t.Fatalf("%d %.300q: want the good records first", status, text)
	}
	rest := text[len(good):]
	if strings.Contains(rest, terminals[path]) {
		t.Fatalf("%.300q: the stream ends as if it were whole", rest)
	}
	if strings.Contains(rest, "xxx") || strings.Contains(rest, "<html>") {
		t.Fatalf("%.100q: the garbage was passed on", rest)
	}
	if err == nil && !strings.Contains(rest, `"error"`) {
		t.Fatalf("after %d good records the client got %.300q and a clean end: want an error", len(records), rest)
	}
	eventually(t, 5*time.Second, door.name+" logs whose engine it was", func() bool {
		for line := range strings.Lines(door.output.String()[logged:]) {
			if strings.Contains(line, "level=WARN") && strings.Contains(line, "node=culprit") && strings.Contains(line, path) {
				return true
			}
		}
		return false
	})
}

const garbage = "\x00\xff\xfe}{]<html>\x7f\nNaN;;\n\n\x00"

func TestGarbageBeforeTheFirstRecordIsABadGateway(t *testing.T) {
	t.Parallel()
	e, doors := badCluster(t)
	for _, tc := range []struct {
		name   string
		stream bool
		spoil  func(w http.ResponseWriter, r *http.Request, header http.Header, records [][]byte)
	}{
		{"in a stream", true, func(w http.ResponseWriter, _ *http.Request, header http.Header, _ [][]byte) {
			begin(w, header, []byte(garbage))
		}},
		{"in one piece", false, func(w http.ResponseWriter, _ *http.Request, header http.Header, _ [][]byte) {
			begin(w, header, []byte(garbage))
		}},
		{"an endless line", true, func(w http.ResponseWriter, r *http.Request, header http.Header, _ [][]byte) {
			begin(w, header)
			endlessly(w, r, "")
		}},
		{"an endless line that begins well", true, func(w http.ResponseWriter, r *http.Request, header http.Header, records [][]byte) {
			begin(w, header)
			endlessly(w, r, strings.TrimRight(string(records[0]), "}\n"))
		}},
		{"nothing", true, func(w http.ResponseWriter, _ *http.Request, header http.Header, _ [][]byte) { begin(w, header) }},
		{"not even HTTP", true, func(w http.ResponseWriter, _ *http.Request, _ http.Header, _ [][]byte) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err) // net/http's own connections can be hijacked
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, garbage)
		}},
		{"less than it says", false, func(w http.ResponseWriter, _ *http.Request, header http.Header, records [][]byte) {
			w.Header().Set("Content-Length", "1000000")
			begin(w, header, []byte("{"))
			panic(http.ErrAbortHandler)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e.spoilWith(tc.spoil)
			eachDoor(t, e, doors, func(t *testing.T, door *member, path string) {
				status, text, err := askBad(t, door, path, tc.stream)
				refusedClearly(t, path, status, text, err)
			})
		})
	}
}

func TestGarbageInMidStreamBreaksTheAnswerClearly(t *testing.T) {
	t.Parallel()
	e, doors := badCluster(t, "gateway: {resume: {attempts: 0}}") // else the same engine would be asked to go on, and do it again
	for name, spoil := range map[string]func(w http.ResponseWriter, r *http.Request){
		"garbage":         func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, garbage) },
		"an endless line": func(w http.ResponseWriter, r *http.Request) { endlessly(w, r, "") },
		"no terminal":     func(http.ResponseWriter, *http.Request) {},
	} {
		t.Run(name, func(t *testing.T) {
			var good [][]byte
			e.spoilWith(func(w http.ResponseWriter, r *http.Request, header http.Header, records [][]byte) {
				good = records[:3] // read after the answer has ended
				begin(w, header, good...)
				spoil(w, r)
			})
			eachDoor(t, e, doors, func(t *testing.T, door *member, path string) {
				logged := len(door.output.String())
				status, text, err := askBad(t, door, path, true)
				eventually(t, 10*time.Second, "the engine was told to stop", func() bool { _, ended := e.last(); return ended })
				brokenClearly(t, door, logged, path, good, status, text, err)
			})
		})
	}
}

func TestExactlyOneTerminalRecordReachesTheClient(t *testing.T) {
	t.Parallel()
	e, doors := badCluster(t)
	for name, after := range map[string]func(records [][]byte) [][]byte{
		"the control":            func([][]byte) [][]byte { return nil },
		"a second terminal":      func(records [][]byte) [][]byte { return records[len(records)-1:] },
		"records after it":       func(records [][]byte) [][]byte { return records[:3] },
		"all of it once more":    func(records [][]byte) [][]byte { return records },
		"garbage after the last": func([][]byte) [][]byte { return [][]byte{[]byte(garbage)} },
	} {
		t.Run(name, func(t *testing.T) {
			e.spoilWith(func(w http.ResponseWriter, _ *http.Request, header http.Header, records [][]byte) {
				begin(w, header, append(records[:len(records):len(records)], after(records)...)...)
			})
			eachDoor(t, e, doors, func(t *testing.T, door *member, path string) {
				status, text, err := askBad(t, door, path, true)
				if n := strings.Count(text, terminals[path]); status != http.StatusOK || err != nil || n != 1 {
					t.Errorf("%d %v: %d terminal records in %.300q", status, err, n, text)
				}
				if clean, _ := e.last(); text != clean {
					t.Errorf("got %.300q, want what the engine sent up to its terminal record, %.300q", text, clean)
				}
			})
		})
	}
}
