package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDemoAnswersAndLeavesNothingBehind(t *testing.T) {
	dir := engineDir(t)
	if answers("http://127.0.0.1:11435/healthz") {
		t.Skip("a node of this machine has the demo's port 11435")
	}
	tmp := t.TempDir()
	p := start(t, []string{"TMPDIR=" + tmp}, binary, "demo", "--engine-command", filepath.Join(dir, "bin", "ollama"),
		"--model", filepath.Join(dir, "sentence.gguf"))
	eventually(t, 90*time.Second, "the demo invites", func() bool {
		select {
		case <-p.exited:
			t.Fatalf("the demo ended: %v\n%s", p.err, p.output)
		default:
		}
		return strings.Contains(p.output.String(), "Ctrl-C")
	})
	// What it tells the user to type works as it stands.
	line := regexp.MustCompile(`(?m)^  (curl .*)$`).FindStringSubmatch(p.output.String())
	if line == nil {
		t.Fatalf("no curl line in:\n%s", p.output)
	}
	text, err := exec.Command("sh", "-c", line[1]).Output()
	if err != nil || !bytes.Contains(text, []byte("A cluster is a small village")) {
		t.Errorf("%s: %v\n%s", line[1], err, text)
	}
	// It may lose a node, as it invites to, and answers all the same; the node's engine ends too.
	kill := regexp.MustCompile(`kill -9 (\d+) `).FindStringSubmatch(p.output.String())
	if kill == nil {
		t.Fatalf("no node to lose in:\n%s", p.output)
	}
	pid, err := strconv.Atoi(kill[1])
	if err != nil {
		t.Fatal(err)
	}
	data, err := filepath.Glob(filepath.Join(tmp, "*", "node-3", "data"))
	if err != nil || len(data) != 1 {
		t.Fatal(data, err)
	}
	engine := enginePID(t, data[0])
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("sh", "-c", line[1]).Output(); err != nil || !bytes.Contains(text, []byte("A cluster is a small village")) {
		t.Errorf("after the loss of a node: %s: %v\n%s", line[1], err, text)
	}
	if err := p.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if p.err != nil {
		t.Errorf("the demo ended with %v", p.err)
	}
	if members := group(t, engine); len(members) > 0 {
		t.Errorf("the lost node's engine lives on: %v", members)
	}
	if rest, err := os.ReadDir(tmp); err != nil || len(rest) > 0 {
		t.Errorf("the demo left %v behind: %v", rest, err)
	}
	if answers("http://127.0.0.1:11435/healthz") {
		t.Error("a node is still there")
	}
}
