//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

// asCommand makes the test's own binary behave as fakeengine.
const asCommand = "FAKEENGINE_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// launch starts the command in a process group of its own.
func launch(t *testing.T, env []string, args ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), asCommand+"=1"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it has usually ended
		_ = cmd.Wait()
	})
	return cmd, bufio.NewReader(out)
}

// word returns the last word of the next line, which must begin with prefix.
func word(t *testing.T, out *bufio.Reader, prefix string) string {
	t.Helper()
	line, err := out.ReadString('\n')
	rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), prefix)
	if err != nil || !ok {
		t.Fatalf("line %q, error %v; want %q…", line, err, prefix)
	}
	return rest
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// freeAddress returns an address on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestServeStandsInForOllamaAndEndsItsChild(t *testing.T) {
	addr := freeAddress(t)
	env := []string{"OLLAMA_HOST=" + addr, "FAKEENGINE_MODELS=llama,size=7 vec,embedding", "FAKEENGINE_ARGS=-version-string 0.31.0", "FAKEENGINE_CHILD=1"}
	cmd, out := launch(t, env, "serve")
	if got := word(t, out, "listening on "); got != addr {
		t.Errorf("listens on %s, want %s", got, addr)
	}
	var child int
	if _, err := fmt.Sscan(word(t, out, "runner "), &child); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(child, 0); err != nil {
		t.Errorf("the child does not live: %v", err)
	}
	if group, err := syscall.Getpgid(child); err != nil || group != cmd.Process.Pid {
		t.Errorf("the child's group is %d (%v), want %d", group, err, cmd.Process.Pid)
	}
	if got := get(t, "http://"+addr+"/api/tags"); !strings.Contains(got, `"vec:latest"`) {
		t.Errorf("tags %s", got)
	}

	var version bytes.Buffer
	getenv := func(k string) string { return map[string]string{"OLLAMA_HOST": addr}[k] }
	if err := run(t.Context(), []string{"--version"}, getenv, &version); err != nil || version.String() != "ollama version is 0.31.0\nWarning: client version is 0.33.0\n" {
		t.Errorf("--version: %q, %v", version.String(), err)
	}

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if err := syscall.Kill(child, 0); err != syscall.ESRCH {
		t.Errorf("the child outlived an orderly end: %v", err)
	}
}

func TestAKilledEngineLeavesItsChildAndTheGroupEndsBoth(t *testing.T) {
	cmd, out := launch(t, []string{"FAKEENGINE_CHILD=1"}, "-listen", "127.0.0.1:0", "-ignore-term")
	word(t, out, "listening on ")
	var child int
	if _, err := fmt.Sscan(word(t, out, "runner "), &child); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says "killed"
	if err := syscall.Kill(child, 0); err != nil {
		t.Errorf("the child ended with its parent: %v", err)
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Errorf("the group is gone: %v", err)
	}
}

func TestRefusedConnectionsComeBackThroughTheControlListener(t *testing.T) {
	control := freeAddress(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-control", control, "-kind", "openai", "-model", "m"}, func(string) string { return "" }, pw)
	}()
	main := "http://" + word(t, bufio.NewReader(pr), "listening on ")
	fault := func(body string) {
		resp, err := http.Post("http://"+control+"/_fault", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	fault(`{"kind":"refuse"}`)
	tr := &http.Transport{DisableKeepAlives: true}
	if resp, err := (&http.Client{Transport: tr}).Get(main + "/health"); err == nil {
		resp.Body.Close()
		t.Error("the connection was not refused")
	}
	fault(`{"kind":"none"}`)
	if got := get(t, main+"/health"); got != `{"status":"ok"}` {
		t.Errorf("health %s", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestModelsOfAFolderAreServed(t *testing.T) {
	dir := t.TempDir()
	digest, err := enginetest.WriteModel(dir, "filed", 1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	_, out := launch(t, nil, "-listen", "127.0.0.1:0", "-folder", ".")
	if got := get(t, "http://"+word(t, out, "listening on ")+"/api/tags"); !strings.Contains(got, `"filed:latest"`) || !strings.Contains(got, digest) {
		t.Errorf("tags %s, want the digest %s", got, digest)
	}
}

func TestOllamaHostIsReadAsOllamaReadsIt(t *testing.T) {
	for in, want := range map[string]string{
		"": "127.0.0.1:11434", "0.0.0.0": "0.0.0.0:11434", ":5000": ":5000", "localhost:1": "localhost:1",
		"http://box": "box:80", "https://box/path": "box:443", "http://box:7/p": "box:7", "[::1]": "[::1]:11434",
	} {
		if got := ollamaHost(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestAWrongCommandLineIsAUsageError(t *testing.T) {
	for _, args := range [][]string{{"-kind", "x"}, {"-model", "a,b=c"}, {"stray"}, {"-slots", "many"}} {
		if _, err := parse(args, func(string) string { return "" }); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}

func TestTheCommandLineSaysWhatModelsCanDo(t *testing.T) {
	opts, err := parse([]string{
		"-kind", "llama-server", "-sampling", "-closes-assistant", "-think-length", "3",
		"-model", "qwen,thinking,tools,vision,bos,size=7", "-model", "llama",
	}, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	c := opts.config
	if c.Kind != enginetest.KindLlamaServer || !c.Sampling || !c.ClosesAssistant || c.ThinkLength != 3 {
		t.Errorf("%+v", c)
	}
	if want := (enginetest.Model{Name: "qwen", Size: 7, Thinking: true, Tools: true, Vision: true, BOS: true}); c.Models[0] != want {
		t.Errorf("%+v, want %+v", c.Models[0], want)
	}
	if want := (enginetest.Model{Name: "llama"}); c.Models[1] != want {
		t.Errorf("%+v, want %+v", c.Models[1], want)
	}
}
