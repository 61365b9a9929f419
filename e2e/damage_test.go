package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
)

// weights is the file of the largest blob in a member's own Ollama, and the digest that it is to have.
func (m *member) weights(t *testing.T) (file, digest string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(m.dataDir, "models", "blobs", "sha256-*"))
	if err != nil {
		t.Fatal(err)
	}
	var most int64
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.Size() > most {
			file, most = f, info.Size()
		}
	}
	return file, strings.TrimPrefix(filepath.Base(file), "sha256-")
}

// flip changes a byte in the middle of a file.
func flip(t *testing.T, file string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// sumOf is the SHA-256 of a file; "" when it is not there.
func sumOf(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// replicaOn is a model on one node, as a member tells it.
func replicaOn(t *testing.T, m *member, model, node string) (api.Replica, bool) {
	t.Helper()
	var wire api.Model
	_, text := ask(t, "GET", m.url+"/api/v1/models/"+model, "")
	if err := json.Unmarshal([]byte(text), &wire); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	i := slices.IndexFunc(wire.Replicas, func(r api.Replica) bool { return r.Node == node })
	if i < 0 {
		return api.Replica{}, false
	}
	return wire.Replicas[i], true
}

func TestADamagedBlobIsFoundAndReplaced(t *testing.T) {
	t.Parallel()
	a, b := realMember(t, "a"), realMember(t, "b")
	for _, m := range []*member{a, b} {
		m.models = `replicas: 1, mirror: "http://127.0.0.1:9", check_rate: 500000000, check_every: 2s`
	}
	form(t, a, b)
	create(t, a.url, "m", filepath.Join(engineDir(t), "noise.gguf"))
	if text, code := run(t, "pull", "m", "--replicas", "2", "--api", a.url); code != 0 {
		t.Fatalf("pull: %d %s", code, text)
	}
	if code, text := ask(t, "POST", b.url+"/api/copy", `{"source":"m","destination":"twin"}`); code != http.StatusOK {
		t.Fatalf("copy: %d %s", code, text)
	}
	if text, code := run(t, "pull", "twin", "--replicas", "2", "--api", a.url); code != 0 {
		t.Fatalf("pull: %d %s", code, text)
	}
	say := func(m *member) (node, said string) {
		t.Helper()
		code, header, text := askHeader(t, "POST", m.url+"/api/generate", `{"model":"m","prompt":"Hello","stream":false,"options":{"num_predict":16,"temperature":0}}`)
		var wire struct{ Response string }
		if err := json.Unmarshal([]byte(text), &wire); err != nil || code != http.StatusOK {
			t.Fatalf("%d %s", code, text)
		}
		return header.Get("X-Ollamamax-Node"), wire.Response
	}
	eventually(t, 30*time.Second, "both hold both names", func() bool {
		names, _ := b.folderOf(t)
		return len(names) == 2 && len(heldBy(t, a, "twin")) == 2
	})
	_, want := say(a)
	file, digest := b.weights(t)
	if got := sumOf(t, file); got != digest {
		t.Fatalf("%s has the digest %s to begin with", file, got)
	}
	if r, ok := replicaOn(t, a, "m", "b"); !ok || r.Damaged {
		t.Fatalf("b's replica is %+v to begin with", r)
	}
	flip(t, file)
	began := time.Now()
	eventually(t, 30*time.Second, "the damage is told", func() bool {
		r, ok := replicaOn(t, a, "m", "b")
		return ok && r.Damaged
	})
	t.Logf("found after %v", time.Since(began).Round(10*time.Millisecond))
	for range 4 {
		node, said := say(b)
		if r, ok := replicaOn(t, a, "m", "b"); said != want || node != "a" && ok && r.Damaged {
			t.Errorf("%s answers %q, not %q", node, said, want)
		}
	}
	eventually(t, 60*time.Second, "b holds both names, whole", func() bool {
		names, _ := b.folderOf(t)
		one, ok := replicaOn(t, a, "m", "b")
		two, also := replicaOn(t, a, "twin", "b")
		return ok && also && !one.Damaged && !two.Damaged && len(names) == 2 && sumOf(t, file) == digest
	})
	t.Logf("replaced after %v", time.Since(began).Round(10*time.Millisecond))
	// b itself answers what a answered, from the new file.
	engine := enginePID(t, a.dataDir)
	a.kill()
	t.Cleanup(func() { _ = syscall.Kill(-engine, syscall.SIGKILL) }) // nobody else ends it
	eventually(t, 30*time.Second, "b answers alone", func() bool {
		code, _ := ask(t, "POST", b.url+"/api/generate", `{"model":"m","prompt":"Hello","stream":false,"options":{"num_predict":1}}`)
		return code == http.StatusOK
	})
	if node, said := say(b); node != "b" || said != want {
		t.Errorf("%s answers %q, not %q", node, said, want)
	}
	if _, err := os.Stat(filepath.Join(b.dataDir, "spool", "away.json")); !os.IsNotExist(err) {
		t.Errorf("names are remembered as away: %v", err)
	}
}
