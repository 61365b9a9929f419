package enginetest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// blob returns the size of an uploaded blob.
func (c *catalog) blob(digest string) (size int64, ok bool) {
	if c.folder != nil {
		return c.folder.blob(digest)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	size, ok = c.blobs[digest]
	return size, ok
}

// blobDigest takes the digest from the path, or answers.
func blobDigest(w http.ResponseWriter, r *http.Request) (string, bool) {
	digest, ok := readDigest(strings.TrimPrefix(r.URL.Path, "/api/blobs/"))
	if !ok {
		ollamaErrors{}.fail(w, http.StatusBadRequest, errBadDigest.Error())
	}
	return digest, ok
}

var errBadDigest = errors.New("invalid digest format")

// readDigest reads sha256:… or sha256-….
func readDigest(text string) (string, bool) {
	sum, ok := strings.CutPrefix(strings.Replace(text, "-", ":", 1), "sha256:")
	raw, err := hex.DecodeString(sum)
	return "sha256:" + strings.ToLower(sum), ok && err == nil && len(raw) == sha256.Size
}

// missingBlob is what an Ollama says that was told of a blob that it has not.
func missingBlob(digest string) string {
	return fmt.Sprintf("open blobs/%s: no such file or directory", strings.Replace(digest, ":", "-", 1))
}

func (s *Server) headBlob(w http.ResponseWriter, r *http.Request) {
	digest, ok := blobDigest(w, r)
	if !ok {
		return
	}
	if _, ok := s.catalog.blob(digest); !ok {
		ollamaErrors{}.fail(w, http.StatusNotFound, fmt.Sprintf("blob %q not found", digest))
		return
	}
	w.WriteHeader(http.StatusOK)
}

// createBlob verifies a blob and counts its bytes; it keeps them if there is a folder.
func (s *Server) createBlob(w http.ResponseWriter, r *http.Request) {
	errs := ollamaErrors{}
	digest, ok := blobDigest(w, r)
	if !ok {
		return
	}
	if _, ok := s.catalog.blob(digest); ok {
		w.WriteHeader(http.StatusOK)
		return
	}
	l, err := s.catalog.takeBlob(digest, r.Body)
	switch {
	case err != nil:
		errs.fail(w, http.StatusInternalServerError, err.Error())
	case l.Digest != digest:
		errs.fail(w, http.StatusBadRequest, fmt.Sprintf("digest mismatch, expected %q, got %q", digest, l.Digest))
	default:
		w.WriteHeader(http.StatusCreated)
	}
}

// takeBlob takes a blob, under the digest that it has.
func (c *catalog) takeBlob(digest string, from io.Reader) (layer, error) {
	if c.folder != nil {
		return c.folder.add("", from)
	}
	h := sha256.New()
	n, err := io.Copy(h, from)
	l := layer{Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Size: n}
	if err == nil && l.Digest == digest {
		c.mu.Lock()
		c.blobs[digest] = n
		c.mu.Unlock()
	}
	return l, err
}
