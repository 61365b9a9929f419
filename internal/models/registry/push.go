package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// ErrReceiving is returned by Receive for a model that is being received already.
var ErrReceiving = errors.New("model is being received already")

// Receipt is one push of a model that the registry takes: its manifest, and the blobs that are wanted.
type Receipt struct {
	registry   *Registry
	repository string
	model      string

	// Guarded by the registry's lock.
	uploads  map[string]*upload // of a digest
	asked    string             // the wanted blob that the engine asked for last
	manifest []byte
	err      error
}

// upload is a wanted blob on its way. What an engine sends twice, after a connection broke, is written once.
type upload struct {
	manifest.Wanted
	writing chan struct{} // a lock that a context can give up on; guards what follows
	have    int64
	sum     hash.Hash
	whole   bool
}

// Receive takes the push of a model under the name that manifest.Outgoing gives it, until the Receipt is
// closed. Nothing of a model that is not wanted crosses but the manifest.
func (r *Registry) Receive(model string, wanted ...manifest.Wanted) (*Receipt, error) {
	p := &Receipt{registry: r, repository: manifest.Outgoing("", model).Model, model: model, uploads: map[string]*upload{}}
	for _, w := range wanted {
		p.uploads[w.Digest] = &upload{Wanted: w, writing: make(chan struct{}, 1), sum: sha256.New()}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.receipts[p.repository] != nil {
		return nil, fmt.Errorf("receive model %s: %w", model, ErrReceiving)
	}
	r.receipts[p.repository] = p
	return p, nil
}

// Repository is what Follow takes, to hear why a push cannot be taken.
func (p *Receipt) Repository() string { return p.repository }

// Manifest returns the manifest's bytes once the push has ended well: every wanted blob was written whole, and has
// the digest that it should.
func (p *Receipt) Manifest() ([]byte, error) {
	p.registry.mu.Lock()
	defer p.registry.mu.Unlock()
	if p.err == nil && p.manifest == nil {
		return nil, fmt.Errorf("receive model %s: the push has not ended", p.model)
	}
	return p.manifest, p.err
}

// Close ends the Receipt: no more is taken. Writes that are under way end with their requests.
func (p *Receipt) Close() {
	p.registry.mu.Lock()
	defer p.registry.mu.Unlock()
	if p.registry.receipts[p.repository] == p {
		delete(p.registry.receipts, p.repository)
	}
}

// receipt is the one that a request belongs to.
func (r *Registry) receipt(w http.ResponseWriter, req *http.Request) *Receipt {
	repo, _ := repository(req)
	r.mu.Lock()
	p := r.receipts[repo]
	r.mu.Unlock()
	if p == nil {
		refuse(w, req, http.StatusNotFound, "NAME_UNKNOWN", "nobody waits for this model")
	}
	return p
}

// askedFor answers whether a push need not send a blob: 200 for one that nobody wants or that is there.
func (r *Registry) askedFor(w http.ResponseWriter, req *http.Request, repo, blob string) {
	r.mu.Lock()
	p := r.receipts[repo]
	var u *upload
	if p != nil {
		if u = p.uploads[blob]; u != nil {
			p.asked = blob
		}
	}
	r.mu.Unlock()
	switch {
	case p == nil:
		refuse(w, req, http.StatusNotFound, "NAME_UNKNOWN", "nobody waits for this model")
	case u != nil:
		refuse(w, req, http.StatusNotFound, "BLOB_UNKNOWN", "send it")
	default:
		w.Header().Set("Docker-Content-Digest", "sha256:"+blob)
	}
}

// beginUpload says where a blob's bytes are to go. Which blob that is Ollama says only for some: else it is the
// one that it has just asked for, since it sends one after the other.
func (r *Registry) beginUpload(w http.ResponseWriter, req *http.Request) {
	p := r.receipt(w, req)
	if p == nil {
		return
	}
	query := req.URL.Query()
	blob, ok := manifest.CutDigest(query.Get("digest"))
	if !ok {
		blob, ok = manifest.CutDigest(query.Get("mount"))
	}
	r.mu.Lock()
	if !ok {
		blob = p.asked
	}
	u := p.uploads[blob]
	r.mu.Unlock()
	if u == nil {
		refuse(w, req, http.StatusNotFound, "BLOB_UNKNOWN", "nobody wants this blob")
		return
	}
	u.accept(w, req, p.repository)
}

// accept answers where the next bytes are to go.
func (u *upload) accept(w http.ResponseWriter, req *http.Request, repo string) {
	w.Header().Set("Location", "http://"+req.Host+"/v2/"+manifest.PassingNamespace+"/"+repo+"/blobs/uploads/sha256:"+u.Digest)
	w.WriteHeader(http.StatusAccepted)
}

// lock takes the upload for one request; false: the request ended before.
func (u *upload) lock(ctx context.Context) bool {
	select {
	case u.writing <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (u *upload) unlock() { <-u.writing }

// takeBytes writes a part of a blob to who wants it.
func (r *Registry) takeBytes(w http.ResponseWriter, req *http.Request) {
	p, u := r.uploadOf(w, req)
	if u == nil || !u.lock(req.Context()) {
		return
	}
	defer u.unlock()
	offset, length, ok := parseContentRange(req.Header.Get("Content-Range"))
	if !ok || offset > u.have || length > u.Size-offset {
		refuse(w, req, http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID", "these are not the bytes that are missing")
		return
	}
	control := http.NewResponseController(w)
	body := &patientReader{from: io.LimitReader(req.Body, length), before: func() {
		_ = control.SetReadDeadline(time.Now().Add(r.cfg.IdleTimeout))
	}}
	if _, err := io.CopyN(io.Discard, body, min(u.have-offset, length)); err != nil {
		refuse(w, req, http.StatusBadRequest, "SIZE_INVALID", "the part ended early")
		return
	}
	n, err := io.Copy(u, body)
	switch {
	case u.failed(err):
		r.failReceipt(p, fmt.Errorf("write blob %s: %w", u.Digest, err))
		refuse(w, req, http.StatusInsufficientStorage, "BLOB_UPLOAD_INVALID", err.Error())
	case err != nil, offset+length > u.have:
		refuse(w, req, http.StatusBadRequest, "SIZE_INVALID", fmt.Sprintf("the part ended after %d bytes", n))
	default:
		u.accept(w, req, p.repository)
	}
}

// writeError is an error of who wants the bytes, not of who sends them.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

func (*upload) failed(err error) bool {
	var own writeError
	return errors.As(err, &own)
}

// Write passes bytes on and counts and hashes them.
func (u *upload) Write(data []byte) (int, error) {
	n, err := u.To.Write(data)
	u.sum.Write(data[:n])
	u.have += int64(n)
	if err == nil && n < len(data) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return n, writeError{err}
	}
	return n, nil
}

// patientReader calls before each read.
type patientReader struct {
	from   io.Reader
	before func()
}

func (p *patientReader) Read(data []byte) (int, error) {
	p.before()
	return p.from.Read(data)
}

// endUpload checks a blob that was sent.
func (r *Registry) endUpload(w http.ResponseWriter, req *http.Request) {
	p, u := r.uploadOf(w, req)
	if u == nil || !u.lock(req.Context()) {
		return
	}
	defer u.unlock()
	if blob, ok := manifest.CutDigest(req.URL.Query().Get("digest")); !ok || blob != u.Digest {
		// It sent a blob that it had not asked for last: what was written is another's.
		r.failReceipt(p, fmt.Errorf("receive blob %s: the engine sent %s", u.Digest, req.URL.Query().Get("digest")))
		refuse(w, req, http.StatusBadRequest, "DIGEST_INVALID", "another blob was asked for")
		return
	}
	if u.have < u.Size {
		refuse(w, req, http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID", fmt.Sprintf("%d of %d bytes are there", u.have, u.Size))
		return
	}
	if sum := hex.EncodeToString(u.sum.Sum(nil)); sum != u.Digest {
		r.failReceipt(p, fmt.Errorf("receive blob %s: its bytes have the digest %s", u.Digest, sum))
		refuse(w, req, http.StatusBadRequest, "DIGEST_INVALID", "the bytes have another digest")
		return
	}
	u.whole = true
	w.Header().Set("Docker-Content-Digest", "sha256:"+u.Digest)
	w.WriteHeader(http.StatusCreated)
}

// uploadOf is the upload that a request belongs to, and its Receipt.
func (r *Registry) uploadOf(w http.ResponseWriter, req *http.Request) (*Receipt, *upload) {
	p := r.receipt(w, req)
	if p == nil {
		return nil, nil
	}
	blob, _ := manifest.CutDigest(req.PathValue("digest"))
	u := p.uploads[blob]
	if u == nil {
		refuse(w, req, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload")
	}
	return p, u
}

// takeManifest ends a push.
func (r *Registry) takeManifest(w http.ResponseWriter, req *http.Request) {
	p := r.receipt(w, req)
	if p == nil {
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(r.cfg.IdleTimeout))
	data, err := io.ReadAll(http.MaxBytesReader(w, req.Body, manifest.MaxSize))
	if err != nil {
		refuse(w, req, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
		return
	}
	if err := p.end(req.Context(), data); err != nil {
		r.failReceipt(p, err)
		refuse(w, req, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
		return
	}
	w.Header().Set("Docker-Content-Digest", "sha256:"+p.model)
	w.WriteHeader(http.StatusCreated)
}

// end checks that all came.
func (p *Receipt) end(ctx context.Context, data []byte) error {
	data, ok := manifest.Matching(data, p.model)
	if !ok {
		return fmt.Errorf("receive model %s: the engine writes its manifest with other bytes", p.model)
	}
	for digest, u := range p.uploads {
		if !u.lock(ctx) {
			return context.Cause(ctx)
		}
		whole := u.whole
		u.unlock()
		if !whole {
			// The engine may be sending the same blob to somebody else, and counts it as sent.
			return fmt.Errorf("receive model %s: the engine did not send blob %s", p.model, digest)
		}
	}
	p.registry.mu.Lock()
	defer p.registry.mu.Unlock()
	p.manifest = data
	return nil
}

// failReceipt keeps why a push cannot be taken and tells who follows it.
func (r *Registry) failReceipt(p *Receipt, err error) {
	r.mu.Lock()
	if p.err == nil {
		p.err = err
	}
	r.mu.Unlock()
	r.fail(p.repository, err)
}
