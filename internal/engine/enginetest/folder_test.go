package enginetest

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	modelfolder "github.com/ollamamax/ollamamax/internal/models/folder"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

func mustFind(t *testing.T, dir, name string) filedModel {
	t.Helper()
	m, err := (&folder{dir: dir}).find(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustWrite(t *testing.T, dir, name string, size int64, seed uint64) string {
	t.Helper()
	digest, err := WriteModel(dir, name, size, seed)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func TestModelsOfTheFolderAreHeldAsSoonAsTheyAreThere(t *testing.T) {
	dir := t.TempDir()
	first := mustWrite(t, dir, "m", 1000, 1)
	r, stop := startIn(t, dir, nil)
	defer stop()
	if got := r.tags(); len(got) != 1 || got[0].Name != "m:latest" || got[0].Digest != first || got[0].Size < 1000 {
		t.Errorf("at the start %+v", got)
	}
	one := r.says("m")
	second := mustWrite(t, dir, "M", 1000, 2)
	mustWrite(t, dir, "some/other:v1", 1000, 2)
	other := r.says("some/OTHER:v1")
	if one == other || first == second {
		t.Errorf("models that differ say the same, %q, or have the same digest, %s", one, first)
	}
	info, err := os.Stat(filepath.Join(dir, "manifests", "registry.ollama.ai", "library", "m", "latest"))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.tags(); len(got) != 2 || !got[1].Modified.Equal(info.ModTime()) || got[1].Digest != second {
		t.Errorf("in the end %+v, want one modified at %v", got, info.ModTime())
	}
	if status, body := r.do("POST", "/api/generate", `{"model":"nothing","prompt":"x"}`); status != 404 {
		t.Errorf("a model that is not there: %d %s", status, body)
	}
}

func TestWrittenModelIsTheSameEverywhereAndHasAGGUFsHead(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	if x, y := mustWrite(t, a, "m", 100_000, 7), mustWrite(t, b, "other", 100_000, 7); x != y {
		t.Errorf("digests %s and %s", x, y)
	}
	if diff := cmp.Diff(blobFiles(t, a), blobFiles(t, b)); diff != "" || len(blobFiles(t, a)) != 3 {
		t.Errorf("%d blobs; they differ:\n%s", len(blobFiles(t, a)), diff)
	}
	m := mustFind(t, a, "m")
	data, err := os.ReadFile(filepath.Join(a, "blobs", strings.Replace(m.Layers[0].Digest, ":", "-", 1)))
	if err != nil || len(data) != 100_000 || !strings.HasPrefix(string(data), "GGUF\x03\x00\x00\x00") {
		t.Errorf("weights of %d bytes, %v", len(data), err)
	}
	if mustWrite(t, b, "tiny", 1, 1) == "" {
		t.Error("a model of one byte has no digest")
	}
	if _, err := WriteModel(a, "a/b/c/d", 1, 1); !errors.Is(err, errBadName) {
		t.Errorf("a bad name: %v", err)
	}
}

func TestFolderIsFoundThroughShow(t *testing.T) {
	dir := t.TempDir()
	digest := mustWrite(t, dir, "m", 1000, 1)
	r, stop := startIn(t, dir, nil)
	defer stop()
	name, err := manifest.ParseName("m")
	if err != nil {
		t.Fatal(err)
	}
	found, err := modelfolder.Find(t.Context(), r, name)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := found.Manifest(name, digest); err != nil || found.Dir() != dir || manifest.DigestOf(data) != digest {
		t.Errorf("%s: %q %v", found.Dir(), data, err)
	}
}

// RoundTrip sends what has a path only.
func (r *rig) RoundTrip(req *http.Request) (*http.Response, error) {
	req.URL.Scheme, req.URL.Host = "http", "localhost"
	return r.client.Transport.RoundTrip(req)
}

func TestNamesShareBlobsUntilTheLastIsDeleted(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir, "m", 1000, 1)
	r, stop := startIn(t, dir, nil)
	defer stop()
	r.post("/api/copy", `{"source":"M","destination":"Some/Copy:V1"}`)
	got := r.tags()
	if len(got) != 2 || got[0].Name != "Some/Copy:V1" || got[0].Digest != got[1].Digest {
		t.Fatalf("after the copy %+v", got)
	}
	// Over another model: what that had stays until somebody sweeps.
	mustWrite(t, dir, "old", 500, 2)
	r.post("/api/copy", `{"source":"m","destination":"OLD"}`)
	if n := len(blobFiles(t, dir)); n != 4 || len(r.tags()) != 3 {
		t.Errorf("%d blobs, %v", n, r.tags())
	}
	for name, left := range map[string]int{"m": 4, "some/copy:v1": 4} {
		if status, body := r.do("DELETE", "/api/delete", fmt.Sprintf(`{"model":%q}`, name)); status != 200 || len(blobFiles(t, dir)) != left {
			t.Errorf("delete %s: %d %s, blobs %q", name, status, body, blobFiles(t, dir))
		}
	}
	if !r.RemoveModel("old") || r.RemoveModel("old") {
		t.Error("a removed model was not there, or twice")
	}
	if got := files(t, dir); len(got) != 1 || !strings.HasPrefix(got[0], "blobs/") {
		t.Errorf("left: %q", got)
	}
	if status, _ := r.do("DELETE", "/api/delete", `{"model":"m"}`); status != 404 {
		t.Errorf("delete again: %d", status)
	}
	if status, _ := r.do("POST", "/api/copy", `{"source":"m","destination":"n"}`); status != 404 {
		t.Errorf("copy of nothing: %d", status)
	}
	// What nobody has goes at a start, when it is an hour old.
	long := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, files(t, dir)[0]), long, long); err != nil {
		t.Fatal(err)
	}
	New(Config{Folder: dir})
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("after a start: %q", got)
	}
}

func TestCreatedModelLiesInTheFolderWithTheSameDigestEverywhere(t *testing.T) {
	var digests [2][]tag
	for i := range digests {
		dir := t.TempDir()
		r, stop := startIn(t, dir, nil)
		defer stop()
		blob := "sha256:" + hexDigest("weights")
		if status, body := r.do("POST", "/api/create", fmt.Sprintf(`{"model":"m","files":{"a.gguf":%q}}`, blob)); status != 500 || !strings.Contains(body, "no such file") {
			t.Errorf("without the blob: %d %s", status, body)
		}
		if status, _ := r.do("POST", "/api/blobs/"+blob, "weights"); status != 201 {
			t.Errorf("the blob: %d", status)
		}
		create := func(body string) {
			if rs := lines(t, r.post("/api/create", body)); rs[len(rs)-1].Status != "success" {
				t.Errorf("%s: %+v", body, rs)
			}
		}
		create(fmt.Sprintf(`{"model":"m","files":{"a.gguf":%q},"template":"t","parameters":{"num_ctx":1,"stop":["x"]}}`, blob))
		create(`{"model":"b","from":"m","system":"Be brief.","parameters":{"num_ctx":2}}`)
		m := mustFind(t, dir, "b")
		if len(m.Layers) != 4 || m.Layers[0].From != "m:latest" || m.data[len(m.data)-1] != '\n' {
			t.Errorf("manifest %s", m.data)
		}
		params, err := os.ReadFile(filepath.Join(dir, "blobs", strings.Replace(m.Layers[3].Digest, ":", "-", 1)))
		if err != nil || string(params) != `{"num_ctx":2,"stop":["x"]}`+"\n" {
			t.Errorf("parameters %q %v", params, err)
		}
		digests[i] = r.tags()
		for k := range digests[i] {
			digests[i][k].Modified = time.Time{}
		}
		// The same name anew: nothing of the old one is left.
		before := blobFiles(t, dir)
		create(`{"model":"b","from":"m","system":"Be long."}`)
		if after := blobFiles(t, dir); len(after) != len(before)-1 {
			t.Errorf("blobs %q, before %q", after, before)
		}
	}
	if diff := cmp.Diff(digests[0], digests[1]); diff != "" || len(digests[0]) != 2 {
		t.Errorf("%d models; the servers differ:\n%s", len(digests[0]), diff)
	}
}

func TestModelsInMemoryAndInTheFolderGiveWayToEachOther(t *testing.T) {
	dir := t.TempDir()
	filed := mustWrite(t, dir, "m", 1000, 1)
	r, stop := start(t, Config{Folder: dir, Models: []Model{{Name: "memory"}}})
	defer stop()
	r.post("/api/copy", `{"source":"m","destination":"memory"}`)
	if got := r.tags(); len(got) != 2 || got[0].Digest != filed || got[1].Digest != filed {
		t.Errorf("copied over one in memory: %+v", got)
	}
	r.AddModel(Model{Name: "m"})
	if got := r.tags(); len(got) != 2 || got[0].Digest == got[1].Digest {
		t.Errorf("added in place of one in the folder: %+v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "manifests", "registry.ollama.ai", "library", "m")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the manifest is still there: %v", err)
	}
	// Without its weights a model is listed and cannot be used.
	if err := os.Remove((&folder{dir: dir}).held(mustFind(t, dir, "memory")).file); err != nil {
		t.Fatal(err)
	}
	if status, body := r.do("POST", "/api/generate", `{"model":"memory","prompt":"x"}`); status != 400 || !strings.Contains(body, `does not support generate`) || len(r.tags()) != 2 {
		t.Errorf("without weights: %d %s, %+v", status, body, r.tags())
	}
}
