package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// clientsDir returns the folder that `make clients` fills, or skips the test.
func clientsDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("OLLAMAMAX_CLIENTS")
	if dir == "" && os.Getenv("CI") == "" {
		t.Skip("needs npm's clients: run `make clients` and set OLLAMAMAX_CLIENTS to .cache/clients in full, or run `make test`")
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "openai")); err != nil {
		t.Fatalf("no clients in OLLAMAMAX_CLIENTS=%q: run `make clients`: %v", dir, err)
	}
	return dir
}

// npmClients are the scripts of e2e/clients, in a folder where Node finds what they import.
type npmClients struct {
	dir string
	env map[string]string
}

func newNPMClients(t *testing.T) *npmClients {
	t.Helper()
	dir := t.TempDir()
	scripts, err := filepath.Glob("clients/*.mjs")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, script := range scripts {
		data, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(script)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(clientsDir(t), "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	// Nothing of the user's own settings, such as a key or a proxy.
	return &npmClients{dir, map[string]string{"PATH": os.Getenv("PATH"), "HOME": dir}}
}

var passedFailed = regexp.MustCompile(`(?s)\S pass (\d+)\n.*\S fail (\d+)\n`)

// run runs one script and returns how many of its checks passed and failed, and what it wrote.
func (c *npmClients) run(t *testing.T, script string, env map[string]string) (passed, failed int, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", script)
	cmd.Dir = c.dir
	for _, vars := range []map[string]string{c.env, env} {
		for _, name := range slices.Sorted(maps.Keys(vars)) {
			cmd.Env = append(cmd.Env, name+"="+vars[name])
		}
	}
	cmd.WaitDelay = 10 * time.Second
	output, err := cmd.CombinedOutput()
	counts := passedFailed.FindSubmatch(output)
	if counts == nil {
		t.Fatalf("node %s: %v\n%s", script, err, output)
	}
	passed, _ = strconv.Atoi(string(counts[1])) // digits, as the pattern says
	failed, _ = strconv.Atoi(string(counts[2]))
	if (err == nil) != (failed == 0) {
		t.Errorf("node %s: %v, although %d checks failed", script, err, failed)
	}
	return passed, failed, string(output)
}

func TestUnmodifiedClientsWorkThroughTheCluster(t *testing.T) {
	t.Parallel()
	npm := newNPMClients(t)
	c := form(t, realMember(t, "a"), realMember(t, "b"), realMember(t, "c"))
	asked, holder, embedder := c[0], c[1], c[2]
	create(t, holder.url, "noise", filepath.Join(engineDir(t), "noise.gguf"))
	create(t, embedder.url, "embed", filepath.Join(engineDir(t), "embed.gguf"))
	eventually(t, 30*time.Second, "the asked node knows both models", func() bool {
		_, text := ask(t, "GET", asked.url+"/api/tags", "")
		return strings.Contains(text, "noise") && strings.Contains(text, "embed")
	})

	// What to expect comes from the nodes that have the models.
	var chat struct{ Message struct{ Content string } }
	askJSON(t, holder.url+"/api/chat", `{"model":"noise","messages":[{"role":"user","content":"Hello"}],"stream":false,"options":{"temperature":0,"num_predict":24}}`, &chat)
	var prompt struct{ Response string }
	askJSON(t, holder.url+"/api/generate", `{"model":"noise","prompt":"Hello","stream":false,"options":{"temperature":0,"num_predict":24}}`, &prompt)
	var embed struct{ Embeddings json.RawMessage }
	askJSON(t, embedder.url+"/api/embed", `{"model":"embed","input":["one","two"]}`, &embed)
	expected := map[string]string{
		"NODE_URL": asked.url, "HOLDER_URL": holder.url, "HOLDER_PID": strconv.Itoa(holder.Process.Pid), "PATIENCE_MS": "20000",
		"CHAT_TEXT": chat.Message.Content, "PROMPT_TEXT": prompt.Response, "EMBEDDINGS": string(embed.Embeddings),
	}
	// The control: the same checks, all of which must fail, at a node that is not a good one.
	wrong := maps.Clone(expected)
	maps.Copy(wrong, map[string]string{
		"NODE_URL": newBadDoor(t, asked.url), "PATIENCE_MS": "500",
		"CHAT_TEXT": chat.Message.Content + "!", "PROMPT_TEXT": prompt.Response + "!", "EMBEDDINGS": "[[1],[1]]",
	})
	scripts := []string{"ollama.mjs", "openai.mjs", "anthropic.mjs"}
	for _, script := range scripts {
		t.Run(script, func(t *testing.T) {
			before := metric(t, holder, "ollamamax_peer_requests_total")
			passed, failed, text := npm.run(t, script, expected)
			if checks := countChecks(t, script); passed != checks || failed != 0 {
				t.Errorf("%d of %d checks passed, %d failed:\n%s", passed, checks, failed, text)
			}
			if metric(t, holder, "ollamamax_peer_requests_total") == before || metric(t, asked, "ollamamax_peer_requests_total") != 0 {
				t.Error("the answers did not come from the other node")
			}
		})
	}
	for _, script := range scripts { // last, since it leaves a mess
		t.Run(script+" at a bad node", func(t *testing.T) {
			passed, failed, text := npm.run(t, script, wrong)
			if checks := countChecks(t, script); passed != 0 || failed != checks {
				t.Errorf("%d of %d checks passed at a bad node, %d failed:\n%s", passed, checks, failed, text)
			}
		})
	}
}

// countChecks counts the checks that a script makes when it runs to its end.
func countChecks(t *testing.T, script string) int {
	t.Helper()
	source, err := os.ReadFile(filepath.Join("clients", script))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(source, []byte("\ncheck("))
}

// askJSON sends a request and decodes its answer, which must be good.
func askJSON(t *testing.T, url, body string, into any) {
	t.Helper()
	code, text := ask(t, "POST", url, body)
	if code != http.StatusOK {
		t.Fatalf("%s: %d %s", url, code, text)
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%s: %v: %s", url, err, text)
	}
}

// metric returns the value of a metric without labels at a member's /metrics.
func metric(t *testing.T, m *member, name string) float64 {
	t.Helper()
	_, text := ask(t, "GET", m.url+"/metrics", "")
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("%s has no metric %s:\n%s", m.name, name, text)
	return 0
}

// badDoor stands before a node and does what a gateway must not: it gives another status for an error,
// other names and another format in an answer, and the engine goes on after its client has left,
// until the next request.
type badDoor struct {
	node string
	ctx  context.Context
	mu   sync.Mutex
	last context.CancelFunc
}

func newBadDoor(t *testing.T, node string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	door := &badDoor{node: node, ctx: ctx, last: func() {}}
	server := httptest.NewServer(door)
	t.Cleanup(func() {
		cancel()
		server.Close()
	})
	return server.URL
}

func (d *badDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	d.mu.Lock()
	d.last()
	d.last = cancel
	d.mu.Unlock()
	out, err := http.NewRequestWithContext(ctx, r.Method, d.node+r.URL.Path, r.Body)
	if err != nil {
		panic(fmt.Sprintf("make request: %v", err)) // a request that came in is one that can go out
	}
	out.Header = r.Header
	resp, err := client.Do(out)
	if err != nil {
		w.WriteHeader(http.StatusPaymentRequired)
		return
	}
	defer resp.Body.Close()
	status := resp.StatusCode
	if status >= 400 {
		status = http.StatusPaymentRequired // which no client tries again
	}
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(status)
	if resp.ContentLength >= 0 {
		body, _ := io.ReadAll(resp.Body) // an answer cut short is as bad as any
		body = bytes.ReplaceAll(body, []byte(`"noise`), []byte(`"voice`))
		body = bytes.ReplaceAll(body, []byte(`"other`), []byte(`"outer`))
		body = bytes.ReplaceAll(body, []byte(`"content":"{`), []byte(`"content":"[`))
		_, _ = w.Write(body)
		return
	}
	piece := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(piece)
		_, _ = w.Write(piece[:n]) // the client may have left
		_ = http.NewResponseController(w).Flush()
		if err != nil {
			return
		}
	}
}
