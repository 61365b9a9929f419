package e2e

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/models/folder"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

// large writes a model of about 210 MB.
func large(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "large.gguf")
	cmd := exec.Command("go", "run", "-C", "../tools", "./testmodels", "-model", "noise", "-layers", "5", "-width", "1024", "-o", file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("write the large model: %v\n%s", err, out)
	}
	return file
}

// folderOf is what the model folder of a member's own Ollama has: names, and blobs with their sizes.
func (m *member) folderOf(t *testing.T) (names, blobs []string) {
	t.Helper()
	return (&beside{models: filepath.Join(m.dataDir, "models")}).files(t)
}

// heldBy are the living nodes that hold a model, as one of them says, with the digests.
func heldBy(t *testing.T, m *member, model string) map[string]string {
	t.Helper()
	var wire struct {
		Replicas []struct{ Node, Digest, Condition string }
	}
	_, text := ask(t, "GET", m.url+"/api/v1/models/"+model, "")
	if err := json.Unmarshal([]byte(text), &wire); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	held := map[string]string{}
	for _, r := range wire.Replicas {
		if r.Condition != "dead" {
			held[r.Node] = r.Digest
		}
	}
	return held
}

func TestAModelOfOneNodeReachesThreeRealOllamas(t *testing.T) {
	t.Parallel()
	c := form(t, realMember(t, "a"), realMember(t, "b"), realMember(t, "c"))
	file := large(t)
	create(t, c[0].url, "Team/Big.Model:v1", file)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	text, code := run(t, "pull", "team/big.model:V1", "--replicas", "3", "--api", c[1].url)
	if code != 0 || !strings.Contains(text, "pulled") {
		t.Fatalf("pull: %d %s", code, text)
	}
	t.Logf("two more Ollamas have 210 MB after %v", time.Since(began).Round(10*time.Millisecond))
	held := heldBy(t, c[1], "team%2Fbig.model:v1")
	if len(held) != 3 || held["a"] != held["b"] || held["b"] != held["c"] {
		t.Errorf("%v", held)
	}
	wantNames, wantBlobs := c[1].folderOf(t)
	if _, all := c[0].folderOf(t); len(wantBlobs) < 2 || slices.ContainsFunc(wantBlobs, func(blob string) bool { return !slices.Contains(all, blob) }) {
		t.Errorf("b has the blobs %v, a %v", wantBlobs, all) // a has one more: that of the unnamed model that create made
	}
	var want string
	for _, m := range c {
		names, blobs := m.folderOf(t)
		if diff := cmp.Diff(wantBlobs, blobs); diff != "" && m != c[0] {
			t.Errorf("%s has other blobs than b:\n%s", m.name, diff)
		}
		if len(names) != len(wantNames) {
			t.Errorf("%s has the names %v", m.name, names)
		}
		// Each answers itself.
		code, header, text := askHeader(t, "POST", m.url+"/api/generate", `{"model":"team/big.model:v1","prompt":"Hello","stream":false,"options":{"num_predict":8,"temperature":0}}`)
		var said struct{ Response string }
		if err := json.Unmarshal([]byte(text), &said); err != nil || code != 200 {
			t.Fatalf("%d %s", code, text)
		}
		if want == "" {
			want = said.Response
		}
		if said.Response != want || said.Response == "" {
			t.Errorf("%s answers %q through %s, not %q", m.name, said.Response, header.Get("X-Ollamamax-Node"), want)
		}
	}

}

// upstreamOf is a registry that has a model of the name, made of a file.
func upstreamOf(t *testing.T, name, file string) (*registrytest.Registry, string, manifest.Manifest) {
	t.Helper()
	home := t.TempDir()
	b := &beside{addr: freeAddr(t), models: filepath.Join(home, "models")}
	b.url = "http://" + b.addr
	b.env = []string{"HOME=" + home, "OLLAMA_MODELS=" + b.models, "OLLAMA_HOST=" + b.addr, "OLLAMA_NO_CLOUD=1"}
	b.run(t)
	b.createOf(t, name, file, "You came from far away.")
	b.process.stop(t)
	dir, err := folder.Open(b.models)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(b.models, "manifests/*/*/*/*"))
	if err != nil || len(files) != 1 {
		t.Fatal(err, files)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	registry := registrytest.New(dir.Dir())
	server := httptest.NewServer(registry)
	t.Cleanup(server.Close)
	return registry, server.URL, m
}

// runOllama runs the real command against a node, whatever becomes of it.
func runOllama(t *testing.T, m *member, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(filepath.Join(engineDir(t), "bin", "ollama"), args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "OLLAMA_HOST="+m.api, "OLLAMA_NO_CLOUD=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestTheRegistryIsAskedForAModelOnce(t *testing.T) {
	t.Parallel()
	registry, mirror, model := upstreamOf(t, "far:v1", "noise.gguf")
	members := []*member{realMember(t, "a"), realMember(t, "b"), realMember(t, "c")}
	for _, m := range members {
		m.models = "replicas: all, mirror: " + strconv.Quote(mirror)
	}
	c := form(t, members...)
	var pulling sync.WaitGroup
	for i := range 20 { // callers share one transfer
		pulling.Go(func() {
			if out, err := runOllama(t, c[i%3], "pull", "far:v1"); err != nil || !strings.Contains(out, "success") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	pulling.Wait()
	for _, b := range model.Blobs {
		if sent := registry.Sent(b.Digest); sent != b.Size {
			t.Errorf("the registry sent %d bytes of blob %s, which has %d", sent, b.Digest, b.Size)
		}
	}
	eventually(t, 10*time.Second, "all see all replicas", func() bool { return len(heldBy(t, c[2], "far:v1")) == 3 })
	if held := heldBy(t, c[2], "far:v1"); len(held) != 3 || held["a"] != model.Model || held["b"] != model.Model || held["c"] != model.Model {
		t.Errorf("%v, not %s", held, model.Model)
	}
	_, wantBlobs := c[0].folderOf(t)
	for _, m := range c {
		if names, blobs := m.folderOf(t); len(names) != 1 || len(blobs) != len(model.Blobs) || cmp.Diff(wantBlobs, blobs) != "" {
			t.Errorf("%s has %v %v", m.name, names, blobs)
		}
	}
	if out, err := runOllama(t, c[1], "pull", "nowhere:v1"); err == nil || !strings.Contains(out, "file does not exist") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := runOllama(t, c[1], "rm", "far:v1"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	for _, m := range c {
		if names, _ := m.folderOf(t); len(names) != 0 {
			t.Errorf("%s has %v", m.name, names)
		}
	}
}

func TestTheWantedNumberIsRestoredAndASurplusTrimmed(t *testing.T) {
	t.Parallel()
	c := form(t, realMember(t, "a"), realMember(t, "b"), realMember(t, "c"))
	create(t, c[0].url, "m", filepath.Join(engineDir(t), "noise.gguf"))
	if text, code := run(t, "pull", "m", "--replicas", "2", "--nodes", "a,b", "--api", c[0].url); code != 0 {
		t.Fatalf("pull: %d %s", code, text)
	}
	if text, code := run(t, "place", "m", "--nodes", "", "--api", c[0].url); code != 0 {
		t.Fatalf("place: %d %s", code, text)
	}
	holders := func(m *member) (names []string) {
		for name := range heldBy(t, m, "m") {
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}
	if got := holders(c[0]); !slices.Equal(got, []string{"a", "b"}) { // who asked sees what was done
		t.Fatalf("held by %v", got)
	}
	c[1].kill()
	began := time.Now()
	eventually(t, 30*time.Second, "c holds the model instead of b", func() bool { return slices.Contains(holders(c[0]), "c") })
	t.Logf("restored %v after the kill", time.Since(began).Round(10*time.Millisecond))
	c[1].start(t)
	least := 3
	eventually(t, 60*time.Second, "one of three replicas is given up", func() bool {
		onDisk := 0
		for _, m := range c {
			names, _ := m.folderOf(t)
			onDisk += len(names)
		}
		least = min(least, onDisk)
		return onDisk == 2 && len(holders(c[0])) == 2
	})
	if least < 2 {
		t.Errorf("there were only %d for a moment", least)
	}
	// It stays like this, and what is gone is really gone.
	for _, m := range c {
		m.up(t)
		if slices.Contains(holders(c[0]), m.name) || m == c[0] {
			continue
		}
		eventually(t, 20*time.Second, m.name+" has neither name nor blob", func() bool {
			names, blobs := m.folderOf(t)
			return len(names) == 0 && len(blobs) == 0
		})
	}
}

// manifestOnly puts a model into a registry's folder whose blobs are not there.
func manifestOnly(t *testing.T, dir, name string, size int64) {
	t.Helper()
	file := filepath.Join(dir, "manifests", manifest.DefaultHost, "library", name, "latest")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	layer := func(kind, of string, size int64) string {
		return fmt.Sprintf(`{"mediaType":"application/vnd.%s","digest":"sha256:%s","size":%d}`, kind, manifest.DigestOf([]byte(name+of)), size)
	}
	text := fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s]}`, layer("docker.container.image.v1+json", "config", 300), layer("ollama.image.model", "weights", size))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestWhatCannotBeDoneIsOneClearErrorAndNothingIsLost(t *testing.T) {
	t.Parallel()
	far := t.TempDir()
	manifestOnly(t, far, "huge", 7e12)
	manifestOnly(t, far, "hollow", 1e6)
	mirror := httptest.NewServer(registrytest.New(far))
	t.Cleanup(mirror.Close)
	members := []*member{realMember(t, "a"), realMember(t, "b"), realMember(t, "c")}
	for _, m := range members {
		m.models = "replicas: 1, mirror: " + strconv.Quote(mirror.URL)
	}
	c := form(t, members...)
	create(t, c[0].url, "m", filepath.Join(engineDir(t), "noise.gguf"))
	if text, code := run(t, "pull", "m", "--replicas", "all", "--api", c[1].url); code != 0 {
		t.Fatalf("pull: %d %s", code, text)
	}
	for what, tc := range map[string]struct {
		args []string
		says []string
	}{
		"too large for every node":         {[]string{"pull", "huge"}, []string{"a: ", "b: ", "c: ", "GB"}},
		"a blob that nobody has":           {[]string{"pull", "hollow"}, []string{"no member has blob", "404"}},
		"more replicas than nodes":         {[]string{"pull", "m", "--replicas", "4"}, []string{"replicas wanted: 4", "nodes that can hold one: 3"}},
		"more replicas than named nodes":   {[]string{"place", "m", "--replicas", "2", "--nodes", "a"}, []string{"only 1 nodes may hold it"}},
		"a node that is none":              {[]string{"place", "m", "--nodes", "z"}, []string{"z", "ollamamax nodes"}},
		"a name that is none":              {[]string{"pull", "a/b/c/d/e:f"}, []string{"is no model's name"}},
		"a name for models that pass":      {[]string{"pull", "127.0.0.1:1/omx/" + strings.Repeat("a", 64) + ":omx"}, []string{"is no model's name"}},
		"a model that nobody has":          {[]string{"pull", "nothing"}, []string{"file does not exist"}},
		"a model that nobody has, deleted": {[]string{"rm", "nothing"}, []string{"unknown model"}},
		"replicas that are no number":      {[]string{"pull", "m", "--replicas", "some"}, []string{"from 1"}},
	} {
		began := time.Now()
		text, code := run(t, append(tc.args, "--api", c[1].url)...)
		if code == 0 {
			t.Errorf("%s: was done: %s", what, text)
		}
		for _, says := range tc.says {
			if !strings.Contains(text, says) {
				t.Errorf("%s: %q does not say %q", what, text, says)
			}
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s: it took %v", what, took)
		}
	}
	eventually(t, 10*time.Second, "what cannot be had is wanted no more", func() bool {
		_, text := ask(t, "GET", c[0].url+"/api/v1/models", "")
		return !strings.Contains(text, "hollow") && !strings.Contains(text, "huge")
	})
	for _, m := range c {
		names, _ := m.folderOf(t)
		if code, _, text := generate(t, m, "m", "still here"); code != 200 || len(names) != 1 {
			t.Errorf("%s: %d %s, %v", m.name, code, text, names)
		}
	}

	// A deletion is remembered for a node that is away.
	c[2].kill()
	if text, code := run(t, "rm", "m", "--api", c[0].url); code != 0 {
		t.Errorf("rm: %d %s", code, text)
	}
	eventually(t, 20*time.Second, "b has neither name nor blob", func() bool {
		names, blobs := c[1].folderOf(t)
		return len(names) == 0 && len(blobs) == 0
	})
	c[2].start(t)
	eventually(t, 60*time.Second, "c has deleted it as well", func() bool { names, _ := c[2].folderOf(t); return len(names) == 0 })
	if code, text := ask(t, "GET", c[0].url+"/api/v1/models/m", ""); code != 404 {
		t.Errorf("%d %s", code, text)
	}
	// And made anew it stays.
	create(t, c[2].url, "m", filepath.Join(engineDir(t), "noise.gguf"))
	eventually(t, 30*time.Second, "the model that was made anew answers", func() bool {
		code, _, _ := generate(t, c[0], "m", "here again")
		return code == 200
	})
}
