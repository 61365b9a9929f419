package e2e

import (
	"bufio"
	"context"
	"net"
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

	"github.com/shirou/gopsutil/v4/process"

	"github.com/ollamamax/ollamamax/internal/mesh"
)

func TestABodyOverTheLimitIsRefusedClearly(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "small.yaml")
	if err := os.WriteFile(file, []byte("p2p: {mdns: false}\ngateway: {max_body_bytes: 2048}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, node := startReadyNode(t, "--engine-url", startFake(t), "--config", file)
	big := `{"model":"m","prompt":"` + strings.Repeat("x", 4000) + `"}`
	for path, want := range map[string]string{
		"/api/generate":        `{"error":"request body is larger than 2048 bytes`,
		"/v1/chat/completions": `{"error":{"message":"request body is larger`,
		"/v1/messages":         `{"type":"error","error":{"type":"invalid_request_error","message":"request body is larger`,
	} {
		if code, text := ask(t, "POST", node+path, big); code != 413 || !strings.HasPrefix(text, want) {
			t.Errorf("%s: %d %s", path, code, text)
		}
		// Also when the client does not say how long it is.
		r, err := http.NewRequestWithContext(t.Context(), "POST", node+path, bufio.NewReader(strings.NewReader(big)))
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = -1
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 413 {
			t.Errorf("%s without a length: %d", path, resp.StatusCode)
		}
	}
}

func TestAClientThatLiesOrLeavesHurtsNobody(t *testing.T) {
	t.Parallel()
	engine := startFake(t, "-token-gap", "20ms", "-slots", "1")
	_, node := startReadyNode(t, "--engine-url", engine)
	addr := strings.TrimPrefix(node, "http://")
	for _, text := range []string{
		"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{\"model\":\"m\"}", // says more than it sends
		"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
		"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
		"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET /api/tags HTTP/1.1\r\n",
		"\x16\x03\x01\x02\x00\x01\x00",
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	// A client that leaves frees the only slot at once.
	for range 3 {
		ctx, leave := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "POST", node+"/api/generate", strings.NewReader(`{"model":"m","prompt":"x","options":{"num_predict":100000}}`))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := resp.Body.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		leave()
		resp.Body.Close()
	}
	began := time.Now()
	if code, text := ask(t, "POST", node+"/api/generate", `{"model":"m","prompt":"x","stream":false,"options":{"num_predict":2}}`); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the abandoned generations held the slot for %v", took)
	}
}

func TestAnImpatientClientDoesNotBlameTheEngine(t *testing.T) {
	_, node := startReadyNode(t, "--engine-url", startFake(t))
	for range 100 {
		r, err := http.NewRequestWithContext(t.Context(), "DELETE", node+"/api/delete", strings.NewReader(`{"model":"nope"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Deadline", "2ms")
		if resp, err := client.Do(r); err == nil {
			resp.Body.Close()
		}
		if code, text := ask(t, "GET", node+"/readyz", ""); code != 200 {
			t.Fatalf("the engine was called down because a client was in a hurry: %d %s", code, text)
		}
	}
	if code, text := ask(t, "POST", node+"/api/generate", `{"model":"m"}`, "X-Deadline", "soon"); code != 400 || !strings.Contains(text, "such as 30s") {
		t.Errorf("%d %s", code, text)
	}
	if code, text := ask(t, "POST", node+"/api/generate", `{"model":"m","prompt":"x","stream":false}`, "X-Deadline", "1ns"); code != 504 {
		t.Errorf("%d %s", code, text)
	}
}

func TestAnEngineThatIsAwayForAMomentLosesNoModel(t *testing.T) {
	t.Parallel()
	m := fakeMember(t, "a", "m")
	form(t, m)
	fault(t, m, `{"kind":"refuse"}`)
	eventually(t, 20*time.Second, "the engine is down", func() bool { code, _ := ask(t, "GET", m.url+"/readyz", ""); return code == 503 })
	if code, _, text := generate(t, m, "m", "x"); code != 503 {
		t.Errorf("a prompt for a model whose engine is away: %d %s", code, text)
	}
	if _, text := ask(t, "GET", m.url+"/api/tags", ""); !strings.Contains(text, "m:latest") {
		t.Errorf("tags: %s", text)
	}
	fault(t, m, `{"kind":"none"}`)
	eventually(t, 20*time.Second, "it is back", func() bool { code, _, _ := generate(t, m, "m", "x"); return code == 200 })
}

func TestInternalHeadersOfAClientAreDropped(t *testing.T) {
	t.Parallel()
	target, err := url.Parse(startFake(t))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen http.Header
	engine := httputil.NewSingleHostReverseProxy(target)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			mu.Lock()
			seen = r.Header.Clone()
			mu.Unlock()
		}
		engine.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	_, node := startReadyNode(t, "--engine-url", proxy.URL)
	code, header, _ := askHeader(t, "POST", node+"/api/generate", `{"model":"m","prompt":"x","stream":false}`,
		"X-Ollamamax-Refused", "yes", "X-Ollamamax-Node", "evil", "X-Ollamamax-Anything", "1")
	if code != 200 || header.Get("X-Ollamamax-Node") != "node" || header.Get("X-Ollamamax-Anything") != "" {
		t.Errorf("%d %v", code, header)
	}
	mu.Lock()
	defer mu.Unlock()
	if seen == nil {
		t.Fatal("the engine was not asked")
	}
	for key := range seen {
		if strings.HasPrefix(key, "X-Ollamamax-") {
			t.Errorf("the engine received %s", key)
		}
	}
}

func TestAStrangerGetsNowhere(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"))
	s, _ := status(t, c[0])
	key, err := mesh.LoadIdentity(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := mesh.Open(mesh.Config{Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Limits: mesh.DefaultConfig().Limits}, key, nil, mesh.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	for _, n := range s.Nodes {
		stranger.AddAddrs(n.ID, n.P2PAddrs)
		for _, protocol := range []string{"raft/1", "http/1", "heartbeat/1", "nonsense/9"} {
			conn, err := stranger.Dial(t.Context(), n.ID, protocol)
			if err != nil {
				t.Fatalf("dial %s: %v", protocol, err)
			}
			_, _ = conn.Write([]byte("POST /api/generate HTTP/1.1\r\nHost: x\r\n\r\n"))
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := conn.Read(make([]byte, 100)); err == nil || !strings.Contains(err.Error(), "not_member") {
				t.Errorf("%s to a stranger: %v", protocol, err)
			}
			conn.Close()
		}
		// The one protocol that is open takes no nonsense and no flood.
		for i := range 40 {
			conn, err := stranger.Dial(t.Context(), n.ID, "join/1")
			if err != nil {
				continue // refused: the rate is limited
			}
			text := []string{"{", "[1,2", `{"token_id":"x","secret":"AAAA","name":"../../etc"}` + "\n", strings.Repeat("x", 70_000), "\x00\xff"}[i%5]
			_, _ = conn.Write([]byte(text))
			if i%2 == 0 {
				conn.Close()
			} else {
				defer conn.Close()
			}
		}
	}
	testCluster(c).settled(t)
	if code, _, text := generate(t, c[0], "m", "x"); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	for _, m := range c {
		if text := m.output.String(); strings.Contains(text, "panic") {
			t.Errorf("%s panicked", m.name)
		}
	}
}

func TestFiguresOfANodeAtRest(t *testing.T) {
	figures(t)
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m"))
	time.Sleep(3 * time.Second) // what starting costs is over
	cpu := func(m *member) float64 {
		p, err := process.NewProcess(int32(m.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		times, err := p.Times()
		if err != nil {
			t.Fatal(err)
		}
		return times.User + times.System
	}
	const minute = time.Minute
	before := map[string]float64{}
	began := time.Now()
	for _, m := range c {
		before[m.name] = cpu(m)
	}
	time.Sleep(minute)
	for _, m := range c {
		share := (cpu(m) - before[m.name]) / time.Since(began).Seconds() * 100
		p, err := process.NewProcess(int32(m.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		memory, err := p.MemoryInfo()
		if err != nil {
			t.Fatal(err)
		}
		s, _ := status(t, m)
		t.Logf("%s at rest for a minute (leader: %s): %.2f %% of a core, %.1f MB resident", m.name, s.Leader, share, float64(memory.RSS)/1e6)
		// The gate is 2 %; on a machine that others use too, only what cannot be noise fails.
		if share > 6 || memory.RSS > 80e6 {
			t.Errorf("%s is far above 2 %% of a core, or above 80 MB", m.name)
		}
	}
}
