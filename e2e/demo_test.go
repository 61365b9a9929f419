package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	if err := p.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if p.err != nil {
		t.Errorf("the demo ended with %v", p.err)
	}
	if rest, err := os.ReadDir(tmp); err != nil || len(rest) > 0 {
		t.Errorf("the demo left %v behind: %v", rest, err)
	}
	if answers("http://127.0.0.1:11435/healthz") {
		t.Error("a node is still there")
	}
}
