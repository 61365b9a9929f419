package e2e

import (
	"bufio"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/process"
)

// run runs ollamamax to its end and returns what it printed and its exit status.
func run(t *testing.T, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	text, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// enginePID is the process that a node says it supervises.
func enginePID(t *testing.T, dataDir string) int {
	t.Helper()
	var record struct{ PID int }
	eventually(t, 20*time.Second, "the engine's process is recorded", func() bool {
		data, err := os.ReadFile(filepath.Join(dataDir, "engine.json"))
		return err == nil && json.Unmarshal(data, &record) == nil && record.PID > 0
	})
	return record.PID
}

// group returns the processes of a process group.
func group(t *testing.T, id int) (members []int) {
	t.Helper()
	pids, err := process.Pids()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if g, err := syscall.Getpgid(int(pid)); err == nil && g == id {
			if p, err := process.NewProcess(pid); err == nil {
				if status, err := p.Status(); err == nil && len(status) > 0 && status[0] != process.Zombie {
					members = append(members, int(pid))
				}
			}
		}
	}
	return members
}

// supervised is a node whose engine is a fake with a runner, as Ollama has one.
func supervised(t *testing.T, dataDir string, extra ...string) (*servedNode, int) {
	t.Helper()
	addr := freeAddr(t)
	args := append([]string{"serve", "--config", quietConfig(t), "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--name", "node", "--data-dir", dataDir, "--listen", addr, "--engine-command", fakeBinary, "--log-level", "debug"}, extra...)
	p := start(t, []string{"HOME=" + t.TempDir(), "FAKEENGINE_CHILD=1", "FAKEENGINE_MODELS=m", "FAKEENGINE_ARGS=-token-gap 50ms -length 60"}, binary, args...)
	url := "http://" + addr
	eventually(t, 30*time.Second, "the node is ready", func() bool { return answers(url + "/readyz") })
	pid := enginePID(t, dataDir)
	t.Cleanup(func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	return &servedNode{p, url}, pid
}

type servedNode struct {
	*program
	url string
}

func TestAnEngineThatDiesIsStartedAgain(t *testing.T) {
	t.Parallel()
	dataDir := filepath.Join(t.TempDir(), "data")
	node, pid := supervised(t, dataDir)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the dead engine's runner has ended too", func() bool { return len(group(t, pid)) == 0 })
	eventually(t, 30*time.Second, "another engine answers", func() bool {
		status, _ := ask(t, "POST", node.url+"/api/generate", `{"model":"m","prompt":"x","stream":false,"options":{"num_predict":1}}`)
		return status == http.StatusOK && enginePID(t, dataDir) != pid
	})
}

func TestANodeThatWasKilledEndsTheEngineItLeftBehind(t *testing.T) {
	t.Parallel()
	dataDir := filepath.Join(t.TempDir(), "data")
	node, pid := supervised(t, dataDir)
	node.kill()
	if len(group(t, pid)) < 2 {
		t.Fatal("the control failed: a killed node's engine and its runner should still be there")
	}
	_, next := supervised(t, dataDir)
	if next == pid || len(group(t, pid)) != 0 {
		t.Errorf("the predecessor's engine %d still has the processes %v", pid, group(t, pid))
	}
}

func TestANodeThatWasKilledEndsTheRunnerOfADeadEngine(t *testing.T) {
	t.Parallel()
	dataDir := filepath.Join(t.TempDir(), "data")
	node, pid := supervised(t, dataDir)
	node.kill()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil { // only the engine: its runner lives on
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the runner is alone", func() bool { return len(group(t, pid)) == 1 })
	supervised(t, dataDir)
	if members := group(t, pid); len(members) != 0 {
		t.Errorf("the runner lives on: %v", members)
	}
}

func TestAStrangerWithTheSameProcessNumberIsSpared(t *testing.T) {
	t.Parallel()
	dataDir := filepath.Join(t.TempDir(), "data")
	stranger := start(t, nil, "sleep", "60")
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	record := `{"pid":` + strconv.Itoa(stranger.Process.Pid) + `,"started_ms":1}`
	if err := os.WriteFile(filepath.Join(dataDir, "engine.json"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	supervised(t, dataDir)
	select {
	case <-stranger.exited:
		t.Error("a process that only has the recorded number was ended")
	default:
	}
}

func TestStoppingANodeLetsStreamsEndAndLeavesNoProcess(t *testing.T) {
	t.Parallel()
	dataDir := filepath.Join(t.TempDir(), "data")
	node, pid := supervised(t, dataDir)
	resp, err := client.Post(node.url+"/api/generate", "application/json", strings.NewReader(`{"model":"m","prompt":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() {
		t.Fatal("no first record")
	}
	if err := node.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "readiness falls", func() bool { return !answers(node.url + "/readyz") })
	last := ""
	n := 1
	for lines.Scan() {
		last = lines.Text()
		n++
	}
	if !strings.Contains(last, `"done":true`) {
		t.Errorf("the stream ended after %d records with %q", n, last)
	}
	<-node.exited
	if node.err != nil {
		t.Errorf("the node ended with %v", node.err)
	}
	if members := group(t, pid); len(members) != 0 {
		t.Errorf("the engine's processes live on: %v", members)
	}
}

func TestAStreamThatOutlivesTheGraceIsCut(t *testing.T) {
	t.Parallel()
	dataDir := filepath.Join(t.TempDir(), "data")
	node, _ := supervised(t, dataDir)
	resp, err := client.Post(node.url+"/api/generate", "application/json", strings.NewReader(`{"model":"m","prompt":"x","options":{"num_predict":100000}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() {
		t.Fatal("no first record")
	}
	began := time.Now()
	if err := node.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	<-node.exited
	if took := time.Since(began); took < 29*time.Second || took > 50*time.Second {
		t.Errorf("the stream was cut after %v, not after 30 s", took)
	}
	if lines.Err() == nil {
		t.Error("a stream that was cut looks whole")
	}
}

func TestTheEnginesLinesArePassedOn(t *testing.T) {
	t.Parallel()
	node, _ := supervised(t, filepath.Join(t.TempDir(), "data"))
	if !strings.Contains(node.output.String(), `msg="engine says"`) || !strings.Contains(node.output.String(), "listening on 127.0.0.1:") {
		t.Errorf("%s", node.output)
	}
}

func TestANodeWithoutAnEngineSaysSoAndStillServes(t *testing.T) {
	t.Parallel()
	_, node := startNode(t, "--engine-url", "http://"+freeAddr(t))
	eventually(t, 20*time.Second, "health names the engine", func() bool {
		status, text := ask(t, "GET", node+"/api/v1/health", "")
		return status == http.StatusServiceUnavailable && strings.Contains(text, `"engine":"down"`)
	})
	for path, want := range map[string]string{
		"/api/chat":            `{"error":"no node can serve this: no engine that could is running`,
		"/v1/chat/completions": `{"error":{"message":"no node can serve this`,
		"/v1/messages":         `{"type":"error","error":{"type":"overloaded_error","message":"no node can serve this`,
	} {
		status, header, text := askHeader(t, "POST", node+path, `{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":1}`)
		if status != http.StatusServiceUnavailable || !strings.HasPrefix(text, want) || header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	if status, text := ask(t, "GET", node+"/api/tags", ""); status != http.StatusOK || text != `{"models":[]}` {
		t.Errorf("tags: %d %s", status, text)
	}
	if text, status := run(t, "status", "--api", node); status != 0 || !strings.Contains(text, "connection refused") {
		t.Errorf("status: %d %s", status, text)
	}
}

func TestAnOperatorsMistakeIsOneLineThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	badYAML := filepath.Join(dir, "bad.yaml")
	unset := filepath.Join(dir, "unset.yaml")
	for name, text := range map[string]string{file: "", badYAML: "api:\n  lissten: 127.0.0.1:1\n", unset: "node:\n  name: ${OLLAMAMAX_NO_SUCH}\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	free := freeAddr(t)
	tcp := "/ip4/127.0.0.1/tcp/0"
	_, takenPort, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		want   string
	}{
		{"port in use", []string{"serve", "--p2p-listen", tcp, "--listen", taken.Addr().String(), "--data-dir", dir}, 1, "the port is in use"},
		{"peers' port in use", []string{"serve", "--listen", free, "--p2p-listen", "/ip4/127.0.0.1/tcp/" + takenPort, "--data-dir", dir}, 1, "in use"},
		{"half a token", []string{"serve", "--listen", free, "--p2p-listen", tcp, "--data-dir", dir, "--join", "omx1-abc"}, 1, "join token"},
		{"name with a space", []string{"serve", "--name", "my box", "--data-dir", dir}, 1, "such as my-box"},
		{"data directory is a file", []string{"serve", "--p2p-listen", tcp, "--listen", free, "--data-dir", file}, 1, "name another with --data-dir"},
		{"data directory in a folder that cannot be", []string{"serve", "--p2p-listen", tcp, "--listen", free, "--data-dir", "/proc/no/such"}, 1, "name another with --data-dir"},
		{"open to the network", []string{"serve", "--listen", "0.0.0.0:11499", "--data-dir", dir}, 1, "access: {mode: open}"},
		{"itself as its engine", []string{"serve", "--p2p-listen", tcp, "--listen", free, "--engine-url", "http://" + free, "--data-dir", dir}, 1, "which is this node itself"},
		{"engine twice", []string{"serve", "--engine-url", "http://127.0.0.1:1", "--engine-command", "x"}, 2, "engine-command"},
		{"unknown engine", []string{"serve", "--engine", "abacus", "--data-dir", dir}, 1, "use ollama"},
		{"engine URL without a host", []string{"serve", "--engine-url", "localhost", "--data-dir", dir}, 1, "write it like"},
		{"unknown flag", []string{"serve", "--colour"}, 2, "serve --help"},
		{"unknown command", []string{"dance"}, 2, "ollamamax --help"},
		{"unknown key", []string{"config", "check", badYAML}, 1, `[2:3] unknown field "lissten"`},
		{"variable not set", []string{"config", "check", unset}, 1, "OLLAMAMAX_NO_SUCH is not set"},
		{"no file", []string{"config", "check", filepath.Join(dir, "none.yaml")}, 1, "no such file"},
		{"nobody there", []string{"status", "--api", "http://" + free}, 1, "is `ollamamax serve` running there?"},
		{"bad level", []string{"serve", "--log-level", "loud", "--data-dir", dir}, 1, "use debug, info, warn or error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text, status := run(t, tc.args...)
			if status != tc.status || !strings.Contains(text, tc.want) || !strings.HasPrefix(text, "ollamamax: ") {
				t.Errorf("status %d, want %d with %q:\n%s", status, tc.status, tc.want, text)
			}
		})
	}
}

func TestForeignPagesAndHostsAreRefused(t *testing.T) {
	t.Parallel()
	_, node := startNode(t, "--engine-url", "http://"+freeAddr(t))
	for _, tc := range []struct {
		name, path string
		header     []string
		want       int
	}{
		{"foreign origin", "/api/tags", []string{"Origin", "https://evil.example"}, 403},
		{"foreign origin, operators' API", "/api/v1/nodes", []string{"Origin", "https://evil.example"}, 403},
		{"null origin", "/api/tags", []string{"Origin", "null"}, 403},
		{"foreign host", "/api/tags", []string{"Host", "evil.example"}, 403},
		{"foreign host, operators' API", "/api/v1/nodes", []string{"Host", "evil.example:11435"}, 403},
		{"local origin", "/api/tags", []string{"Origin", "http://localhost:3000"}, 200},
		{"desktop program", "/api/tags", []string{"Origin", "app://obsidian.md"}, 200},
		{"local name", "/api/tags", []string{"Host", "box.local"}, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if status, text := ask(t, "GET", node+tc.path, "", tc.header...); status != tc.want {
				t.Errorf("%d %s, want %d", status, text, tc.want)
			}
		})
	}
	status, header, _ := askHeader(t, "OPTIONS", node+"/api/chat", "", "Origin", "http://localhost:3000",
		"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type")
	if status != 204 || header.Get("Access-Control-Allow-Origin") != "http://localhost:3000" {
		t.Errorf("preflight: %d %v", status, header)
	}
}

func TestTheNodeTellsOfItself(t *testing.T) {
	t.Parallel()
	_, node := startReadyNode(t, "--engine-url", startFake(t))
	if text, status := run(t, "status", "--api", node, "--json"); status != 0 || !strings.HasPrefix(text, `{"cluster_id"`) || !strings.HasSuffix(text, "}\n") {
		t.Errorf("status --json: %d %s", status, text)
	}
	if text, status := run(t, "models", "--api", node); status != 0 || !strings.Contains(text, "m:latest") {
		t.Errorf("models: %d %s", status, text)
	}
	if text, status := run(t, "version"); status != 0 || !strings.HasPrefix(text, "ollamamax ") {
		t.Errorf("version: %d %s", status, text)
	}
	ask(t, "POST", node+"/api/generate", `{"model":"m","prompt":"x","stream":false}`)
	if _, text := ask(t, "GET", node+"/metrics", ""); !strings.Contains(text, `ollamamax_requests_total{code="200",route="/api/generate"} 1`) {
		t.Errorf("metrics:\n%s", text)
	}
}
