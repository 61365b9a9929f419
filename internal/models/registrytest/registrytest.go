// Package registrytest is a registry of models for tests: it serves a folder of the form that Ollama keeps its
// models in, counts the bytes that it sends of each blob, and misbehaves as it is told.
//
// It is a http.Handler and starts no goroutine; all time comes from package time. With a Network it needs no
// sockets, so that it fits into a synctest bubble.
//
// Start reading at Registry.ServeHTTP.
package registrytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// Faults is how the registry misbehaves. The zero value is a good one.
type Faults struct {
	// Token is what a client must bring, from /token; "": none.
	Token string
	// Redirect sends who asks for a blob to another path.
	Redirect bool

	// Times is how many requests the faults below hit; 0: all.
	Times int
	// Status answers with an error; 0: none.
	Status int
	// Silent gives no answer at all.
	Silent bool
	// BreakAfter breaks a blob's answer off after so many bytes; StallAfter lets it be silent from there on. 0:
	// not.
	BreakAfter, StallAfter int64
	// Lie changes the bytes of blobs.
	Lie bool
	// Whole answers with whole blobs to who asks for a part; Elsewhere with another part.
	Whole, Elsewhere bool
	// BytesPerSecond slows blobs down; 0: not.
	BytesPerSecond int64
}

// Registry is one registry.
type Registry struct {
	dir string

	mu       sync.Mutex
	faults   Faults
	sent     map[string]int64 // of a digest
	requests int
}

// New returns a registry of the models in a folder.
func New(dir string) *Registry { return &Registry{dir: dir, sent: map[string]int64{}} }

// Set makes the registry misbehave from the next request on.
func (r *Registry) Set(faults Faults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = faults
}

// Sent is how many bytes of a blob went out, in all.
func (r *Registry) Sent(digest string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent[digest]
}

// Total is how many bytes of all blobs went out.
func (r *Registry) Total() (total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.sent {
		total += n
	}
	return total
}

// Requests is how many requests came.
func (r *Registry) Requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

// Add writes a model of the given blobs into the folder and returns its manifest's bytes. The last blob is
// the configuration.
func (r *Registry) Add(text string, blobs ...[]byte) ([]byte, error) {
	name, err := manifest.ParseName(text)
	if err != nil {
		return nil, err
	}
	type layer struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	var layers []layer
	for _, data := range blobs {
		digest := manifest.DigestOf(data)
		if err := write(r.blob(digest), data); err != nil {
			return nil, err
		}
		layers = append(layers, layer{"application/vnd.ollama.image.model", "sha256:" + digest, len(data)})
	}
	if len(layers) < 2 {
		return nil, errors.New("add model: it needs a layer and a configuration")
	}
	last := len(layers) - 1
	layers[last].MediaType = "application/vnd.docker.container.image.v1+json"
	data, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
		"config": layers[last], "layers": layers[:last],
	})
	if err != nil {
		return nil, err
	}
	return data, write(filepath.Join(r.dir, "manifests", name.Host, name.Namespace, name.Model, name.Tag), data)
}

func (r *Registry) blob(digest string) string {
	return filepath.Join(r.dir, "blobs", "sha256-"+digest)
}

func write(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// ServeHTTP serves /v2/, and /token for who needs one.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests++
	faults := r.faults
	r.mu.Unlock()
	if req.URL.Path == "/token" {
		fmt.Fprintf(w, `{"token":%q}`, faults.Token)
		return
	}
	path := req.URL.Path
	if faults.Token != "" && req.Header.Get("Authorization") != "Bearer "+faults.Token {
		w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="%s",scope="repository:%s:pull"`, req.Host, req.Host, strings.TrimPrefix(path, "/v2/")))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if faults.Redirect && strings.HasPrefix(path, "/v2/") && strings.Contains(path, "/blobs/") {
		http.Redirect(w, req, "/stored"+path, http.StatusTemporaryRedirect)
		return
	}
	faults = r.take()
	switch {
	case faults.Silent:
		<-req.Context().Done()
		return
	case faults.Status != 0:
		http.Error(w, "out of order", faults.Status)
		return
	}
	parts := strings.Split(strings.TrimPrefix(strings.TrimPrefix(path, "/stored"), "/v2/"), "/")
	if len(parts) != 4 || req.Method != http.MethodGet && req.Method != http.MethodHead {
		http.NotFound(w, req)
		return
	}
	switch parts[2] {
	case "manifests":
		r.serveManifest(w, req, parts[0], parts[1], parts[3])
	case "blobs":
		r.serveBlob(w, req, parts[3], faults)
	default:
		http.NotFound(w, req)
	}
}

// take returns the faults that hit this request.
func (r *Registry) take() Faults {
	r.mu.Lock()
	defer r.mu.Unlock()
	faults := r.faults
	if faults.Times > 0 {
		if r.faults.Times--; r.faults.Times == 0 {
			r.faults = Faults{Token: faults.Token, Redirect: faults.Redirect}
		}
	}
	return faults
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, namespace, model, tag string) {
	if _, err := manifest.ParseName(namespace + "/" + model + ":" + tag); err != nil {
		http.NotFound(w, req)
		return
	}
	files, err := filepath.Glob(filepath.Join(r.dir, "manifests", "*", namespace, model, tag))
	if err != nil || len(files) == 0 {
		http.NotFound(w, req)
		return
	}
	http.ServeFile(w, req, files[0])
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, text string, faults Faults) {
	digest, ok := manifest.CutDigest(text)
	data, err := os.ReadFile(r.blob(digest))
	if !ok || err != nil {
		http.NotFound(w, req)
		return
	}
	offset, end := int64(0), int64(len(data))
	status := http.StatusOK
	if text := req.Header.Get("Range"); text != "" && !faults.Whole {
		var last int64
		if _, err := fmt.Sscanf(text, "bytes=%d-%d", &offset, &last); err != nil || last < offset || last >= end {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		if faults.Elsewhere {
			offset, last = offset/2, offset/2+last-offset
		}
		end = last + 1
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, last, len(data)))
	}
	data = data[offset:end]
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	if req.Method == http.MethodHead {
		return
	}
	r.send(w, req, digest, data, faults)
}

func (r *Registry) count(digest string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent[digest] += n
}

// send writes a blob's bytes, with what is wrong with them.
func (r *Registry) send(w http.ResponseWriter, req *http.Request, digest string, data []byte, faults Faults) {
	out := http.NewResponseController(w)
	for at := int64(0); len(data) > 0; {
		n := min(int64(len(data)), 16<<10)
		for _, limit := range []int64{faults.BreakAfter, faults.StallAfter} {
			if limit > 0 {
				n = min(n, limit-at)
			}
		}
		if n == 0 {
			if faults.StallAfter > 0 {
				<-req.Context().Done()
			}
			panic(http.ErrAbortHandler)
		}
		piece := data[:n]
		if faults.Lie {
			piece = append([]byte{^piece[0]}, piece[1:]...)
		}
		r.count(digest, n) // before, so that who has read the bytes finds them counted
		if _, err := w.Write(piece); err != nil {
			r.count(digest, -n)
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
		data, at = data[n:], at+n
		if faults.BytesPerSecond > 0 {
			timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(faults.BytesPerSecond))
			select {
			case <-timer.C:
			case <-req.Context().Done():
				timer.Stop()
				return
			}
		}
	}
}
