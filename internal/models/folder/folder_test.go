package folder_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/models/folder"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// shows is an engine that says one modelfile of all models.
func shows(modelfile string) tripper {
	return func(r *http.Request) (*http.Response, error) {
		data, err := json.Marshal(map[string]string{"modelfile": modelfile})
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(string(data))), Request: r}, err
	}
}

func fill(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFolderIsFoundAndReadWithoutTrustInItsNames(t *testing.T) {
	blob, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	text := `{"layers":[{"digest":"sha256:` + blob + `","size":3}]}` + "\n"
	dir := fill(t, map[string]string{
		"manifests/" + manifest.DefaultHost + "/Some/Model.x/1B": text,
		"manifests/example.com:5000/u/m/latest":                  "{}",
		"manifests/stray":                                        "",
		"blobs/sha256-" + blob:                                   "abc",
		"blobs/sha256-" + other + "-partial":                     "x",
		"blobs/sha256-" + other + "-partial-0":                   "{}",
		"blobs/sha256-1234":                                      "",
		"blobs/sha256-" + other + "/in":                          "a folder",
	})
	name, err := manifest.ParseName("some/model.X:1b")
	if err != nil {
		t.Fatal(err)
	}
	f, err := folder.Find(t.Context(), shows("# FROM elsewhere\n\nFROM "+filepath.Join(dir, "blobs", "sha256-"+blob)+"\nTEMPLATE x\n"), name)
	if err != nil {
		t.Fatal(err)
	}
	if f.Dir() != dir {
		t.Errorf("found %s", f.Dir())
	}
	for what, model := range map[string]string{"with the newline": manifest.DigestOf([]byte(text)), "without": manifest.DigestOf([]byte(strings.TrimSpace(text)))} {
		got, err := f.Manifest(name, model)
		if err != nil || manifest.DigestOf(got) != model {
			t.Errorf("%s: %q %v", what, got, err)
		}
	}
	if _, err := f.Manifest(name, other); err == nil {
		t.Error("another model's manifest passes")
	}
	if _, err := f.Manifest(manifest.Name{Host: "h", Namespace: "n", Model: "m", Tag: "t"}, other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no manifest: %v", err)
	}
	blobs, err := f.Blobs()
	if diff := cmp.Diff(map[string]int64{blob: 3}, blobs); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	file, err := f.OpenBlob(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if data, err := io.ReadAll(file); string(data) != "abc" || err != nil {
		t.Errorf("%q %v", data, err)
	}
	if _, err := f.OpenBlob("../../x"); err == nil {
		t.Error("a path was opened")
	}
}

func TestModelfilesThatTellNoFolderAreErrors(t *testing.T) {
	blob := strings.Repeat("a", 64)
	name, _ := manifest.ParseName("m")
	for what, modelfile := range map[string]string{
		"nothing":            "",
		"a name":             "FROM llama3",
		"not absolute":       "FROM blobs/sha256-" + blob,
		"not in blobs":       "FROM /x/sha256-" + blob,
		"not there":          "FROM /no/such/folder/blobs/sha256-" + blob,
		"no digest":          "FROM /etc/blobs/passwd",
		"with dots to climb": "FROM /x/blobs/../sha256-" + blob,
	} {
		if f, err := folder.Find(t.Context(), shows(modelfile), name); err == nil {
			t.Errorf("%s: %s", what, f.Dir())
		} else if (what == "not there") != errors.Is(err, folder.ErrUnreadable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	gone := func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 404, Status: "404 Not Found", Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
	}
	if _, err := folder.Find(t.Context(), tripper(gone), name); err == nil {
		t.Error("an engine without the model tells a folder")
	}
}

func FuzzFind(f *testing.F) {
	f.Add("FROM /x/blobs/sha256-" + strings.Repeat("a", 64))
	name, _ := manifest.ParseName("m")
	f.Fuzz(func(t *testing.T, modelfile string) {
		if dir, err := folder.Find(t.Context(), shows(modelfile), name); err == nil && !filepath.IsAbs(dir.Dir()) {
			t.Errorf("%q tells %q", modelfile, dir.Dir())
		}
	})
}
