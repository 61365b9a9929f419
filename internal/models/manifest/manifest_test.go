package manifest_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/types/model"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

var (
	d1 = strings.Repeat("1", 64)
	d2 = strings.Repeat("a", 64)
)

func TestManifestNamesItsBlobsOnceInTheirOrder(t *testing.T) {
	text := `{"schemaVersion":2,"config":{"mediaType":"c","digest":"sha256:` + d1 + `","size":5},"layers":[` +
		`{"mediaType":"m","digest":"sha256:` + d2 + `","size":7,"from":"x"},{"mediaType":"n","digest":"sha256:` + d2 + `","size":7}]}`
	got, err := manifest.Parse([]byte(text))
	want := manifest.Manifest{Model: manifest.DigestOf([]byte(text)), Blobs: []manifest.Blob{
		{MediaType: "m", Digest: d2, Size: 7}, {MediaType: "c", Digest: d1, Size: 5}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if got.Size() != 12 {
		t.Errorf("size %d", got.Size())
	}
	if blob, ok := got.Blob(d1); !ok || blob.Size != 5 {
		t.Errorf("blob %v %v", blob, ok)
	}
	if _, ok := got.Blob(strings.Repeat("9", 64)); ok {
		t.Error("it has a blob that it has not")
	}
}

func TestBadManifestsAreRefused(t *testing.T) {
	for what, text := range map[string]string{
		"no JSON":         `{`,
		"nothing":         ``,
		"no layers":       `{"config":{"digest":"sha256:` + d1 + `","size":5}}`,
		"no digest":       `{"layers":[{"digest":"","size":1}]}`,
		"a path":          `{"layers":[{"digest":"sha256:../../etc/passwd","size":1}]}`,
		"a negative size": `{"layers":[{"digest":"sha256:` + d1 + `","size":-1}]}`,
		"two sizes":       `{"layers":[{"digest":"sha256:` + d1 + `","size":1},{"digest":"sha256:` + d1 + `","size":2}]}`,
		"endless":         `{"layers":[{"digest":"sha256:` + d1 + `","size":9223372036854775807},{"digest":"sha256:` + d2 + `","size":2}]}`,
		"too large":       strings.Repeat(" ", manifest.MaxSize+1),
	} {
		if m, err := manifest.Parse([]byte(text)); err == nil {
			t.Errorf("%s: %v", what, m)
		}
	}
}

func TestFinalNewlineIsFoundByTheDigest(t *testing.T) {
	with, without := "{}\n", "{}"
	for _, model := range []string{with, without} {
		for _, data := range []string{with, without} {
			got, ok := manifest.Matching([]byte(data), manifest.DigestOf([]byte(model)))
			if !ok || string(got) != model {
				t.Errorf("%q for %q: %q %v", data, model, got, ok)
			}
		}
	}
	if got, ok := manifest.Matching([]byte("{} "), manifest.DigestOf([]byte(with))); ok {
		t.Errorf("%q passes", got)
	}
}

func TestNamesAreReadAsOllamaReadsThem(t *testing.T) {
	for _, text := range []string{"m", "M:Tag", "library/m", "user/m:1.5b-Q4_K_M", "example.com:5000/u/m", "http://127.0.0.1:80/u/m:x",
		"https://h/n/m", "localhost:1/n/m", "", ":", "/", "m:", "/m", "a/b/c/d", "n.s/m", "a:b/c", "../x", "-m", "h/n/-m", "m:a/b", "m@sha256:abc", "h:1/n/m:a:b",
		strings.Repeat("x", 81), "ü", "a b"} {
		want := model.ParseName(text)
		got, err := manifest.ParseName(text)
		if (err == nil) != want.IsValid() {
			t.Errorf("%q: %v, of Ollama's %v", text, err, want.IsValid())
		}
		if err == nil && (got.Host != want.Host || got.Namespace != want.Namespace || got.Model != want.Model || got.Tag != want.Tag || got.String() != want.DisplayShortest()) {
			t.Errorf("%q is %+v, of Ollama's %+v", text, got, want)
		}
	}
	if n, err := manifest.ParseName("http://h/n/m"); err != nil || !n.Plain {
		t.Errorf("%+v %v", n, err)
	}
	a, _ := manifest.ParseName("library/M")
	b, _ := manifest.ParseName("m:LATEST")
	if !a.Equal(b) {
		t.Error("names that differ in case are two")
	}
}

func TestOnlyOurOwnNamesArePassing(t *testing.T) {
	for name, want := range map[string]bool{
		manifest.Incoming("127.0.0.1:5", d1).String():   true,
		manifest.Outgoing("127.80.0.1", d1).String():    true,
		"127.0.0.1:9/OMX/" + d1 + ":latest":             true,
		"omx/" + d1 + ":omx":                            false, // somebody's at the public registry
		"example.com/omx/" + d1 + ":omx":                false,
		"127.0.0.1:5/omx/mine:omx":                      false,
		"127.0.0.1:5/library/" + d1 + ":omx":            false,
		"127.0.0.1:5/omx/" + strings.ToUpper(d2) + ":a": false,
	} {
		n, err := manifest.ParseName(name)
		if err != nil || n.IsPassing() != want {
			t.Errorf("%s: %v %v", name, n.IsPassing(), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"config":{"digest":"sha256:` + d1 + `","size":5},"layers":[{"digest":"sha256:` + d2 + `","size":7}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := manifest.Parse(data)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, b := range m.Blobs {
			if !manifest.IsDigest(b.Digest) || b.Size < 0 || seen[b.Digest] {
				t.Errorf("blob %+v", b)
			}
			seen[b.Digest] = true
		}
		if m.Size() < 0 || len(m.Blobs) == 0 {
			t.Errorf("%d bytes in %d blobs", m.Size(), len(m.Blobs))
		}
	})
}

func FuzzParseName(f *testing.F) {
	f.Add("http://h:1/n/m:t")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := manifest.ParseName(text)
		if err != nil {
			return
		}
		again, err := manifest.ParseName(n.String())
		if err != nil || !again.Equal(n) {
			t.Errorf("%q is %q, and that %+v %v", text, n, again, err)
		}
		for _, part := range []string{n.Host, n.Namespace, n.Model, n.Tag} {
			if part == "" || strings.ContainsAny(part, "/\\\x00") || strings.HasPrefix(part, ".") {
				t.Errorf("%q has the part %q", text, part)
			}
		}
	})
}
