package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ollama runs the real command against a node and returns what it printed.
func ollama(t *testing.T, node string, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(engineDir(t), "bin", "ollama"), args...)
	cmd.Env = append(os.Environ(), "OLLAMA_HOST="+node, "HOME="+t.TempDir(), "OLLAMA_NO_CLOUD=1")
	cmd.WaitDelay = time.Minute
	var problems strings.Builder
	cmd.Stderr = &problems // where it also draws its spinner
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("ollama %s: %v\n%s%s", strings.Join(args, " "), err, text, problems.String())
	}
	return string(text)
}

// exerciseCommand runs every subcommand that works on the server through a node.
func exerciseCommand(t *testing.T, node string) {
	t.Helper()
	dir := t.TempDir()
	gguf, err := filepath.Abs(filepath.Join(engineDir(t), "sentence.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	modelfile := filepath.Join(dir, "Modelfile")
	if err := os.WriteFile(modelfile, []byte("FROM "+gguf+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ollama(t, node, "create", "mine", "-f", modelfile)
	if list := ollama(t, node, "list"); !strings.Contains(list, "mine:latest") {
		t.Errorf("list after create:\n%s", list)
	}
	if show := ollama(t, node, "show", "mine"); !strings.Contains(show, "architecture") {
		t.Errorf("show:\n%s", show)
	}
	if said := ollama(t, node, "run", "mine", "Hello"); !strings.Contains(said, "A cluster is a small village of machines") {
		t.Errorf("run:\n%s", said)
	}
	if ps := ollama(t, node, "ps"); !strings.Contains(ps, "mine:latest") {
		t.Errorf("ps after run:\n%s", ps)
	}
	ollama(t, node, "stop", "mine")
	eventually(t, 20*time.Second, "ps is empty after stop", func() bool { return !strings.Contains(ollama(t, node, "ps"), "mine") })
	ollama(t, node, "cp", "mine", "yours")
	if list := ollama(t, node, "list"); !strings.Contains(list, "yours:latest") {
		t.Errorf("list after cp:\n%s", list)
	}
	ollama(t, node, "rm", "mine", "yours")
	if list := ollama(t, node, "list"); strings.Contains(list, "mine") || strings.Contains(list, "yours") {
		t.Errorf("list after rm:\n%s", list)
	}
}

func TestTheOllamaCommandWorksThroughANode(t *testing.T) {
	t.Parallel()
	_, node := startReadyNode(t, "--engine-url", startOllama(t))
	exerciseCommand(t, node)
}

func TestTheOllamaCommandWorksWithASupervisedEngine(t *testing.T) {
	t.Parallel()
	_, node := startReadyNode(t, "--engine-command", filepath.Join(engineDir(t), "bin", "ollama"))
	exerciseCommand(t, node)
}
