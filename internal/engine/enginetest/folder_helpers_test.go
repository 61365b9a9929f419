package enginetest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

// registryHost is where the registry of a bubble is.
const registryHost = "127.0.0.1:4711"

// upstream is a registry and what lies in its folder.
type upstream struct {
	*registrytest.Registry
	dir     string
	handler http.Handler
}

// ServeHTTP sends who asks for a whole blob elsewhere, as a registry that an Ollama can pull from must.
func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Range") == "" {
		w.Header().Set("Location", "http://localhost:4711"+r.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	u.handler.ServeHTTP(w, r)
}

// beside runs test in a bubble with a registry and a transport that leads to it.
func beside(t *testing.T, test func(t *testing.T, u *upstream, to http.RoundTripper)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		u := &upstream{Registry: registrytest.New(dir), dir: dir}
		u.handler = u.Registry
		network := registrytest.NewNetwork(4711)
		server := &http.Server{Handler: u}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = server.Serve(network) // http.ErrServerClosed
		}()
		transport := &http.Transport{DialContext: network.DialContext}
		test(t, u, transport)
		transport.CloseIdleConnections()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-served
		time.Sleep(time.Second) // net/http lingers on a connection whose request it did not read to the end
	})
}

// write puts a model into the registry, and returns its digest and that of its weights.
func (u *upstream) write(t *testing.T, size int64, seed uint64) (digest, blob string) {
	t.Helper()
	digest, err := WriteModel(u.dir, "some/m:v1", size, seed)
	if err != nil {
		t.Fatal(err)
	}
	m, err := (&folder{dir: u.dir}).find("some/m:v1")
	if err != nil {
		t.Fatal(err)
	}
	return digest, strings.TrimPrefix(m.Layers[0].Digest, "sha256:")
}

const pulled = registryHost + "/some/m:v1"

// pull pulls what write wrote, and returns its statuses, each once, and its error.
func (r *rig) pull() (statuses []string, failed string) {
	r.t.Helper()
	for _, rec := range lines(r.t, r.post("/api/pull", `{"model":"`+pulled+`","insecure":true}`)) {
		if rec.Error != "" {
			return statuses, rec.Error
		}
		if !slices.Contains(statuses, rec.Status) {
			statuses = append(statuses, rec.Status)
		}
	}
	return statuses, ""
}

type tag struct {
	Name, Digest string
	Size         int64
	Modified     time.Time `json:"modified_at"`
}

func (r *rig) tags() []tag {
	r.t.Helper()
	_, body := r.do("GET", "/api/tags", "")
	return parse[struct{ Models []tag }](r.t, body).Models
}

// says is what a model answers.
func (r *rig) says(model string) string {
	r.t.Helper()
	return parse[record](r.t, r.post("/api/generate", fmt.Sprintf(`{"model":%q,"prompt":"Why?","stream":false}`, model))).Response
}

// startIn serves a folder without any other models.
func startIn(t *testing.T, dir string, to http.RoundTripper) (*rig, func()) {
	t.Helper()
	return start(t, Config{Folder: dir, Transport: to, Models: []Model{}})
}

// files lists a folder's files.
func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// blobFiles are the names of the files of a folder's blobs.
func blobFiles(t *testing.T, dir string) (out []string) {
	t.Helper()
	for _, f := range files(t, dir) {
		if blob, ok := strings.CutPrefix(f, "blobs/"); ok {
			out = append(out, blob)
		}
	}
	return out
}

// leave sends a request and gives it up after a while.
func (r *rig) leave(path, body string, after time.Duration) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), after)
	defer cancel()
	resp, err := r.send(ctx, http.MethodPost, path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	<-ctx.Done()
	resp.Body.Close()
	synctest.Wait()
}
