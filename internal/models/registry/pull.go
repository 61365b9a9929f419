package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// firstPause and longestPause are how long a source that failed is let alone: each time twice as long.
const (
	firstPause   = 250 * time.Millisecond
	longestPause = 8 * time.Second
)

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request) {
	model, ok := repository(req)
	if !ok || !manifest.IsDigest(model) {
		refuse(w, req, http.StatusNotFound, "NAME_UNKNOWN", "no such model")
		return
	}
	data, err := again(req.Context(), r.cfg.Patience, func(ctx context.Context) ([]byte, error) {
		return r.deps.Source.Manifest(ctx, model)
	})
	if err == nil && manifest.DigestOf(data) != model {
		err = errors.New("its bytes are those of another")
	}
	if err != nil {
		r.refuse(w, req, model, fmt.Errorf("read manifest %s: %w", model, err))
		return
	}
	w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
	w.Header().Set("Docker-Content-Digest", "sha256:"+model)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	_, _ = w.Write(data)
}

// refuse answers a request of a pull that cannot be served, and tells who follows the repository.
func (r *Registry) refuse(w http.ResponseWriter, req *http.Request, repository string, err error) {
	if req.Context().Err() != nil {
		return // nobody reads it
	}
	r.fail(repository, err)
	status, code := http.StatusBadGateway, "UNKNOWN"
	if errors.Is(err, ErrNotHeld) {
		status, code = http.StatusNotFound, "BLOB_UNKNOWN"
	}
	refuse(w, req, status, code, err.Error())
}

// again calls get until it succeeds or what it returns is final, at most for as long as patience.
func again[T any](ctx context.Context, patience time.Duration, get func(context.Context) (T, error)) (T, error) {
	for failing, pause := time.Now(), firstPause; ; pause = min(2*pause, longestPause) {
		got, err := get(ctx)
		if err == nil || errors.Is(err, ErrNotHeld) || time.Since(failing) >= patience {
			return got, err
		}
		if !wait(ctx, pause) {
			return got, context.Cause(ctx)
		}
	}
}

// wait waits for a pause; false: ctx ended before.
func wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serveBlob answers what Ollama asks of a blob. HEAD: its length, or that it is here when it is one of a push that
// nobody wants. GET with a range: these bytes. GET without: to ask for the bytes elsewhere, at another name
// of this address; whoever asks there gets the blob whole. (Ollama looks for the place to take bytes from with a
// GET whose body it does not use, takes an answer from the same host for another redirection, and, for
// models of many small blobs, then asks there without a range.)
func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request) {
	repo, ok := repository(req)
	blob, isDigest := manifest.CutDigest(req.PathValue("digest"))
	if !ok || !isDigest {
		refuse(w, req, http.StatusNotFound, "BLOB_UNKNOWN", "no such blob")
		return
	}
	if !manifest.IsDigest(repo) {
		r.askedFor(w, req, repo, blob)
		return
	}
	size, err := again(req.Context(), r.cfg.Patience, func(ctx context.Context) (int64, error) {
		return r.deps.Source.Size(ctx, repo, blob)
	})
	if err != nil {
		r.refuse(w, req, repo, fmt.Errorf("find blob %s: %w", blob, err))
		return
	}
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", "sha256:"+blob)
	status, offset, length := http.StatusOK, int64(0), size
	if text := req.Header.Get("Range"); text != "" && req.Method != http.MethodHead {
		if offset, length, ok = parseRange(text, size); !ok {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
			refuse(w, req, http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID", "no such range")
			return
		}
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, offset+length-1, size))
	} else if place, is := elsewhere(req); is && req.Method != http.MethodHead {
		w.Header().Set("Location", place)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	if req.Method == http.MethodHead {
		return
	}
	r.send(w, req, status, span{repo, blob, offset, length})
}

// elsewhere is the request's URL at another name of the address that it came to: 127.0.0.1 written as an
// address of IPv6. False for a request that was sent to that name, or to an address without such a name.
func elsewhere(req *http.Request) (string, bool) {
	at, is := req.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !is || at.IP.To4() == nil {
		return "", false
	}
	addr, _ := netip.AddrFromSlice(at.IP.To4())
	host := "[::ffff:" + addr.String() + "]:" + strconv.Itoa(at.Port)
	if name, _, err := net.SplitHostPort(req.Host); err == nil {
		if to, err := netip.ParseAddr(name); err == nil && to.Is4In6() {
			return "", false
		}
	}
	return "http://" + host + req.URL.EscapedPath(), true
}

// quote is a text as JSON.
func quote(text string) string {
	data, _ := json.Marshal(text) // a string always has a form
	return string(data)
}
