package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// lockedOllama is an Ollama whose model folder this process cannot see, as where it runs as another user: it lies in a mount
// of its own. It returns false where a process cannot have one.
func lockedOllama(t *testing.T) (url, models string, ok bool) {
	t.Helper()
	if exec.Command("unshare", "-m", "true").Run() != nil {
		return "", "", false
	}
	home := t.TempDir()
	addr := freeAddr(t)
	models = filepath.Join(home, "models")
	start(t, []string{"HOME=" + home, "OLLAMA_MODELS=" + models, "OLLAMA_HOST=" + addr, "OLLAMA_NO_CLOUD=1"},
		"unshare", "-m", "sh", "-c", `mount -t tmpfs none "$HOME" && exec "$0" serve`, filepath.Join(engineDir(t), "bin", "ollama"))
	url = "http://" + addr
	eventually(t, 30*time.Second, "Ollama answers", func() bool { return answers(url + "/api/version") })
	return url, models, true
}

func TestAnOllamaWhoseFolderCannotBeReadIsASource(t *testing.T) {
	t.Parallel()
	engine, models, ok := lockedOllama(t)
	if !ok {
		t.Skip("this process may not have mounts of its own, which hide an Ollama's folder")
	}
	create(t, engine, "Hidden/M:v2", filepath.Join(engineDir(t), "noise.gguf"))
	a := &member{name: "a", dataDir: filepath.Join(t.TempDir(), "a"), args: []string{"--engine-url", engine}}
	c := form(t, a, realMember(t, "b"))
	if _, err := os.Stat(models); err == nil {
		t.Fatal("the folder can be read")
	}

	if text, code := run(t, "pull", "hidden/m:v2", "--replicas", "2", "--api", c[1].url); code != 0 {
		t.Fatalf("pull: %d %s", code, text)
	}
	held := heldBy(t, c[1], "hidden%2Fm:v2")
	if len(held) != 2 || held["a"] != held["b"] {
		t.Errorf("held by %v", held)
	}
	if names, blobs := c[1].folderOf(t); len(names) != 1 || len(blobs) < 2 {
		t.Errorf("b has %v %v", names, blobs)
	}
	_, text := ask(t, "GET", engine+"/api/tags", "")
	if strings.Contains(text, "omx") {
		t.Errorf("a name is left over: %s", text)
	}
	// And the other way: what it gets it gives on.
	create(t, c[1].url, "back", filepath.Join(engineDir(t), "embed.gguf"))
	if text, code := run(t, "pull", "back", "--replicas", "all", "--api", c[0].url); code != 0 {
		t.Fatalf("pull: %d %s", code, text)
	}
	_, text = ask(t, "GET", engine+"/api/tags", "")
	if !strings.Contains(text, `"back:latest"`) {
		t.Errorf("a lists %s", text)
	}
}
