package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	binary     string // the ollamamax under test
	fakeBinary string // the fake engine
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "ollamamax-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary, fakeBinary = filepath.Join(dir, "ollamamax"), filepath.Join(dir, "fakeengine")
		for out, pkg := range map[string]string{binary: "../cmd/ollamamax", fakeBinary: "../internal/engine/enginetest/fakeengine"} {
			build := exec.Command("go", append(append([]string{"build"}, raceFlag...), "-o", out, pkg)...)
			if text, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, text)
				return 1
			}
		}
		return m.Run()
	}())
}

// engineDir returns the folder that `make engine` fills, or skips the test.
func engineDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("OLLAMAMAX_ENGINE")
	if dir == "" && os.Getenv("CI") == "" {
		t.Skip("needs a real engine: run `make engine` and set OLLAMAMAX_ENGINE=.cache/engine, or run `make test`")
	}
	if _, err := os.Stat(filepath.Join(dir, "bin", "ollama")); err != nil {
		t.Fatalf("no engine in OLLAMAMAX_ENGINE=%q: run `make engine`: %v", dir, err)
	}
	return dir
}

// program is a process that the test started, with what it wrote.
type program struct {
	*exec.Cmd
	output *lockedBuffer
	exited chan struct{}
	err    error // valid once exited is closed
}

// start runs a program in a process group of its own and ends the group with the test.
func start(t *testing.T, env []string, name string, args ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.Command(name, args...), output: &lockedBuffer{}, exited: make(chan struct{})}
	p.Env = append(os.Environ(), env...)
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout, p.Stderr = writer, writer
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	go func() { _, _ = io.Copy(p.output, reader) }()
	go func() { p.err = p.Wait(); close(p.exited) }()
	t.Cleanup(func() {
		p.stop(t)
		_ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
		reader.Close()
		if t.Failed() {
			t.Logf("%s %s wrote:\n%s", filepath.Base(name), strings.Join(args, " "), p.output)
		}
	})
	return p
}

// stop asks the program to end and waits for it.
func (p *program) stop(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
		return
	default:
	}
	_ = p.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(45 * time.Second):
		t.Errorf("%s did not end 45 s after SIGTERM", p.Path)
		_ = p.Process.Kill()
		<-p.exited
	}
}

// kill ends the program as a crash would: at once, its children left behind.
func (p *program) kill() {
	_ = p.Process.Kill()
	<-p.exited
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// freePort is where the next search for a free port begins: below the ports that systems give to
// connections going out, of which the tests that run meanwhile have thousands.
var freePort atomic.Int64

func init() { freePort.Store(12_000 + int64(os.Getpid()%100)*150) }

// freeAddr returns a loopback address that was free a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 12_000+freePort.Add(1)%20_000)
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// eventually waits until ok says so, and fails the test after limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// client has no connections in common with other tests and no time-out but the test's.
var client = &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 256}}

// ask sends a request and returns the status and the body.
func ask(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	status, _, text := askHeader(t, method, url, body, header...)
	return status, text
}

func askHeader(t *testing.T, method, url, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

// answers tells whether a GET of the URL gives 200.
func answers(url string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(r)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// startOllama runs a real Ollama with a HOME of its own and the given models, and returns its URL.
func startOllama(t *testing.T, models ...string) string {
	t.Helper()
	return startOllamaWith(t, nil, models...)
}

// startOllamaWith is startOllama with settings in its environment.
func startOllamaWith(t *testing.T, env []string, models ...string) string {
	t.Helper()
	dir, home, addr := engineDir(t), t.TempDir(), freeAddr(t)
	start(t, append([]string{"HOME=" + home, "OLLAMA_MODELS=" + filepath.Join(home, "models"), "OLLAMA_HOST=" + addr, "OLLAMA_NO_CLOUD=1"}, env...),
		filepath.Join(dir, "bin", "ollama"), "serve")
	url := "http://" + addr
	eventually(t, 30*time.Second, "Ollama answers", func() bool { return answers(url + "/api/version") })
	for _, m := range models {
		create(t, url, m, filepath.Join(dir, m+".gguf"))
	}
	return url
}

// create makes a model of a GGUF file through Ollama's own routes.
func create(t *testing.T, url, model, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if status, text := ask(t, "POST", url+"/api/blobs/"+digest, string(data)); status != http.StatusCreated && status != http.StatusOK {
		t.Fatalf("send blob of %s: %d %s", model, status, text)
	}
	body, err := json.Marshal(map[string]any{"model": model, "files": map[string]string{"model.gguf": digest}, "stream": false})
	if err != nil {
		t.Fatal(err)
	}
	if status, text := ask(t, "POST", url+"/api/create", string(body)); status != http.StatusOK || !strings.Contains(text, "success") {
		t.Fatalf("create %s: %d %s", model, status, text)
	}
}

// startNode runs `ollamamax serve` and returns its process and URL once it answers.
func startNode(t *testing.T, args ...string) (*program, string) {
	t.Helper()
	addr := freeAddr(t)
	args = append([]string{"serve", "--config", quietConfig(t), "--listen", addr, "--p2p-listen", "/ip4/127.0.0.1/tcp/0",
		"--data-dir", filepath.Join(t.TempDir(), "data"), "--name", "node", "--log-level", "debug"}, args...)
	p := start(t, []string{"OLLAMA_NO_CLOUD=1", "HOME=" + t.TempDir()}, binary, args...)
	url := "http://" + addr
	eventually(t, 20*time.Second, "the node answers", func() bool {
		select {
		case <-p.exited:
			t.Fatalf("the node ended: %v\n%s", p.err, p.output)
		default:
		}
		return answers(url + "/healthz")
	})
	return p, url
}

// startReadyNode is startNode, and waits until prompts sent there can be answered.
func startReadyNode(t *testing.T, args ...string) (*program, string) {
	t.Helper()
	p, url := startNode(t, args...)
	eventually(t, 30*time.Second, "the node is ready", func() bool { return answers(url + "/readyz") })
	return p, url
}

// startFake runs a fake Ollama that holds the model m and returns its URL.
func startFake(t *testing.T, args ...string) string {
	t.Helper()
	addr := freeAddr(t)
	start(t, nil, fakeBinary, append([]string{"-listen", addr, "-model", "m"}, args...)...)
	url := "http://" + addr
	eventually(t, 20*time.Second, "the fake engine answers", func() bool { return answers(url + "/api/version") })
	return url
}

// quietModels is what the models of a test's nodes are configured with: they stay where they are made, and no registry is
// asked.
const quietModels = `replicas: 1, mirror: "http://127.0.0.1:9"`

// quietConfig is a configuration that keeps a test's nodes to themselves. Models are what is configured of them instead of quietModels.
func quietConfig(t *testing.T, models ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := "p2p: {mdns: false}\nmodels: {" + cmp.Or(strings.Join(models, ""), quietModels) + "}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
