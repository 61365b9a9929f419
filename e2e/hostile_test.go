package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/process"
)

// configured is a configuration that keeps a test's nodes to themselves, with more lines.
func configured(t *testing.T, lines string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("p2p: {mdns: false}\n"+lines), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// dial opens a connection to a node and sends text as it is.
func dial(t *testing.T, node, text string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(node, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// post is a request of HTTP/1.1 that claims a length.
func post(path string, length int, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, length, body)
}

// answerOn reads the answer to what was sent on a connection.
func answerOn(conn net.Conn, limit time.Duration) (status int, text string, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// resident is how much memory a process has, in bytes.
func resident(t *testing.T, p *program) int64 {
	t.Helper()
	proc, err := process.NewProcess(int32(p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := proc.MemoryInfo()
	if err != nil {
		t.Fatal(err)
	}
	return int64(memory.RSS)
}

// goroutines is how many a node has.
func goroutines(t *testing.T, url string) float64 {
	t.Helper()
	return metric(t, &member{url: url}, "go_goroutines")
}

// engineStats is what a fake engine counts.
type engineStats struct {
	Requests  int `json:"requests"`
	InFlight  int `json:"in_flight"`
	Waiting   int `json:"waiting"`
	Cancelled int `json:"cancelled"`
}

func statsOf(t *testing.T, engine string) (s engineStats) {
	t.Helper()
	_, text := ask(t, "GET", engine+"/_stats", "")
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// dialects are the forms of an error's body, by a route that speaks each.
var dialects = map[string]string{
	"/api/generate":        `{"error":"`,
	"/api/chat":            `{"error":"`,
	"/v1/chat/completions": `{"error":{"message":"`,
	"/v1/completions":      `{"error":{"message":"`,
	"/v1/responses":        `{"error":{"message":"`,
	"/v1/messages":         `{"type":"error","error":{"type":"`,
}

func TestABodyThatLiesAboutItsLengthIsRefusedAndReachesNoEngine(t *testing.T) {
	t.Parallel()
	engine := startFake(t)
	_, node := startReadyNode(t, "--engine-url", engine, "--config", configured(t, "gateway: {timeouts: {read: 1s}}\n"))
	body := `{"model":"m","messages":[{"role":"user","content":"x"}],"input":"x","max_tokens":3,"prompt":"x","stream":false}`
	const blob = "/api/blobs/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // of "hello"
	before := goroutines(t, node)
	for _, tc := range []struct {
		name    string
		length  int
		hangsUp bool // after the body; else it waits for what the node does
	}{
		{"longer, and the client hangs up", len(body) + 1000, true},
		{"longer, and the client waits", len(body) + 1000, false},
		{"far longer", 100 << 20, false},
		{"shorter", len(body) - 20, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conns := map[string]*net.TCPConn{}
			for path := range dialects {
				conns[path] = dial(t, node, post(path, tc.length, body))
				if tc.hangsUp {
					if err := conns[path].CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
			}
			for path, form := range dialects {
				status, text, err := answerOn(conns[path], 10*time.Second)
				if err != nil || status != http.StatusBadRequest || !strings.HasPrefix(text, form) || !json.Valid([]byte(text)) {
					t.Errorf("%s: %d %s %v", path, status, text, err)
				}
			}
			// An upload streams on as it comes; what it lacks is noticed by the engine.
			if strings.HasPrefix(tc.name, "longer") {
				conn := dial(t, node, post(blob, 5+1000, "hello"))
				if tc.hangsUp {
					conn.Close()
				}
			}
		})
	}
	// Nor does one stay for ever where nobody wants a body.
	for path, want := range map[string]int{"/api/tags": http.StatusMethodNotAllowed, "/nowhere": http.StatusNotFound} {
		if status, _, err := answerOn(dial(t, node, post(path, 1000, "{")), 10*time.Second); err != nil || status != want {
			t.Errorf("%s with half a body: %d %v", path, status, err)
		}
	}
	// The same in full: the control.
	for path := range dialects {
		if code, text := ask(t, "POST", node+path, body); code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if s := statsOf(t, engine); s.Requests != len(dialects) {
		t.Errorf("the engine was asked %d times, want %d: the bodies that were whole", s.Requests, len(dialects))
	}
	eventually(t, 20*time.Second, "the node is done with them", func() bool {
		return metric(t, &member{url: node}, "ollamamax_requests_in_flight") == 0 && goroutines(t, node) < before+10
	})
	if code, _ := ask(t, "HEAD", node+blob, ""); code != http.StatusNotFound {
		t.Errorf("half a blob is held: %d", code)
	}
}

func TestClientsThatReadOneByteASecondHoldUpNobodyAndAreLetGo(t *testing.T) {
	t.Parallel()
	const slow, patience = 8, 3 * time.Second
	m := fakeMember(t, "a", "m")
	m.args = append(m.args, "--config", configured(t, fmt.Sprintf("gateway: {timeouts: {write: %v}}\n", patience)))
	form(t, m)
	ask(t, "POST", m.url+"/api/generate", `{"model":"m","prompt":"warm","stream":false}`)
	before, memory := goroutines(t, m.url), resident(t, m.program)

	body := `{"model":"m","prompt":"x","stream":true,"options":{"num_predict":100000000}}`
	stop := make(chan struct{})
	var reading sync.WaitGroup
	var read atomic.Int64
	for range slow {
		conn := dial(t, m.url, post("/api/generate", len(body), body))
		if err := conn.SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		reading.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
					n, _ := conn.Read(make([]byte, 1)) // the end is seen at the engine
					read.Add(int64(n))
				}
			}
		})
	}
	defer reading.Wait()
	defer close(stop)
	eventually(t, 20*time.Second, "all slow clients are served", func() bool { return statsOf(t, m.engine).InFlight == slow })

	began := time.Now()
	var highest int64
	var waited []time.Duration
	eventually(t, patience+30*time.Second, "the write time-out ends them", func() bool {
		asked := time.Now()
		if code, _, text := generate(t, m, "m", "quick"); code != http.StatusOK {
			t.Errorf("another client: %d %s", code, text)
		}
		waited = append(waited, time.Since(asked))
		highest = max(highest, resident(t, m.program)-memory)
		s := statsOf(t, m.engine)
		return s.InFlight == 0 && s.Cancelled == slow
	})
	t.Logf("%d slow clients were let go after %v, having read %d bytes; memory grew by %.1f MB; others waited %v in the middle, %v at most",
		slow, time.Since(began).Round(time.Millisecond), read.Load(), float64(highest)/1e6, quantile(waited, .5), quantile(waited, 1))
	if middle := quantile(waited, .5); middle > patience {
		t.Errorf("another client waited %v, until the slow ones were gone", middle)
	}
	if highest > 64e6 {
		t.Errorf("memory grew by %d bytes for %d clients", highest, slow)
	}
	eventually(t, 20*time.Second, "nothing is left of them", func() bool { return goroutines(t, m.url) < before+10 })
}

func TestTheEngineStopsForAClientThatVanishes(t *testing.T) {
	t.Parallel()
	// One engine takes its time for the first token, one between tokens.
	slowly := func(name string, args ...string) *member {
		m := &member{name: name, dataDir: filepath.Join(t.TempDir(), name), engine: startFake(t, append(args, "-slots", "64", "-model", "at-"+name)...)}
		m.args = []string{"--engine-url", m.engine}
		return m
	}
	before, mid := slowly("before", "-first-token", "5m"), slowly("mid", "-token-gap", "20ms")
	c := form(t, before, mid)
	for _, door := range c {
		for _, holder := range c {
			for path := range dialects {
				for _, stream := range []bool{true, false} {
					if holder == mid && !stream {
						continue // the same as before the first byte
					}
					body := fmt.Sprintf(`{"model":"at-%s","messages":[{"role":"user","content":"x"}],"input":"x","prompt":"x","stream":%v,`+
						`"max_tokens":100000,"max_output_tokens":100000,"options":{"num_predict":100000}}`, holder.name, stream)
					for how, linger := range map[string]int{"closes": -1, "resets": 0} {
						t.Run(fmt.Sprintf("at %s, served by %s, %s, stream %v, %s", door.name, holder.name, path, stream, how), func(t *testing.T) {
							already := statsOf(t, holder.engine)
							conn := dial(t, door.url, post(path, len(body), body))
							if holder == mid {
								_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
								if _, err := io.ReadFull(conn, make([]byte, 1000)); err != nil {
									t.Fatal(err)
								}
							}
							eventually(t, 20*time.Second, "the engine is at work", func() bool { return statsOf(t, holder.engine).InFlight == 1 })
							if err := conn.SetLinger(linger); err != nil {
								t.Fatal(err)
							}
							conn.Close()
							eventually(t, 5*time.Second, "the engine has stopped", func() bool {
								s := statsOf(t, holder.engine)
								return s.InFlight == 0 && s.Waiting == 0 && s.Cancelled == already.Cancelled+1
							})
						})
					}
				}
			}
		}
	}
	for _, m := range c {
		eventually(t, 10*time.Second, "nothing is in flight at "+m.name, func() bool {
			return metric(t, m, "ollamamax_requests_in_flight") == 0 && metric(t, m, "ollamamax_engine_busy") == 0
		})
	}
}
