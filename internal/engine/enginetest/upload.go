package enginetest

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
)

// push sends a model to the registry that its name says: what is missing there, then the manifest, written anew.
func (f *folder) push(ctx context.Context, m filedModel, insecure bool, say func(progress) error) error {
	to := f.remote(m.name, insecure)
	for _, l := range m.all() {
		switch _, err := to.head(ctx, l.Digest); {
		case err == nil:
			if err := say(progress{"pushing " + short(l.Digest), l.Digest, l.Size, l.Size}); err != nil {
				return err
			}
		case !errors.Is(err, fs.ErrNotExist):
			return err
		default:
			if err := to.upload(ctx, l, say); err != nil {
				return err
			}
		}
	}
	if err := say(progress{Status: "pushing manifest"}); err != nil {
		return err
	}
	data, err := json.Marshal(m.filed)
	if err != nil {
		return err
	}
	resp, err := f.ask(ctx, request{
		method: http.MethodPut, url: to.base.JoinPath("manifests", m.name.tag).String(), header: map[string]string{"Content-Type": mediaManifest},
		body: bytes.NewReader(data), length: int64(len(data)),
	})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// short is how progress calls a blob.
func short(digest string) string { return digest[len("sha256:"):][:12] }

// upload is a blob on its way to a registry.
type upload struct {
	to        *remote
	digest    string
	file      *os.File
	total     int64
	next      string // where the next bytes go
	completed atomic.Int64
}

func (r *remote) upload(ctx context.Context, l layer, say func(progress) error) error {
	path, err := r.folder.blobPath(l.Digest)
	if err != nil {
		return err
	}
	begin := r.base.JoinPath("blobs", "uploads/")
	if l.From != "" {
		from := parseName(l.From)
		begin.RawQuery = url.Values{"mount": {l.Digest}, "from": {from.namespace + "/" + from.model}}.Encode()
	}
	resp, err := r.folder.ask(ctx, request{method: http.MethodPost, url: begin.String()})
	if err != nil {
		return err
	}
	resp.Body.Close()
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	u := &upload{to: r, digest: l.Digest, file: file, total: info.Size(), next: location(resp)}
	if resp.StatusCode == http.StatusCreated { // the registry has it from another model
		u.completed.Store(u.total)
	} else if err := watch(ctx, u.run, func() error { return say(u.progress()) }); err != nil {
		return err
	}
	return say(u.progress())
}

// location is where the answer says that the next request is to go.
func location(resp *http.Response) string {
	if to := resp.Header.Get("Docker-Upload-Location"); to != "" {
		return to
	}
	return resp.Header.Get("Location")
}

func (u *upload) progress() progress {
	return progress{"pushing " + short(u.digest), u.digest, u.total, u.completed.Load()}
}

// run sends the parts one after the other, and ends the upload with a checksum of theirs.
func (u *upload) run(ctx context.Context) error {
	sums, parts := md5.New(), 0
	for offset, size := range u.to.folder.cut(u.total) {
		var sum hash.Hash
		err := persist(ctx, func() (err error) {
			sum, err = u.send(ctx, offset, size)
			return err
		})
		if err != nil {
			return err
		}
		sums.Write(sum.Sum(nil))
		parts++
	}
	end, err := url.Parse(u.next)
	if err != nil {
		return err
	}
	query := end.Query()
	query.Set("digest", u.digest)
	query.Set("etag", fmt.Sprintf("%x-%d", sums.Sum(nil), parts))
	end.RawQuery = query.Encode()
	return persist(ctx, func() error {
		resp, err := u.to.folder.ask(ctx, request{method: http.MethodPut, url: end.String(), header: map[string]string{"Content-Type": "application/octet-stream"}})
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

// send sends a part, and returns its checksum.
func (u *upload) send(ctx context.Context, offset, size int64) (hash.Hash, error) {
	sum, sent := md5.New(), int64(0)
	body := &outgoing{closed: make(chan struct{}), Reader: io.TeeReader(io.NewSectionReader(u.file, offset, size), writerFunc(func(b []byte) (int, error) {
		sent += int64(len(b))
		u.completed.Add(int64(len(b)))
		return sum.Write(b)
	}))}
	next, err := u.patch(ctx, body, offset, size)
	<-body.closed // an answer may come before the body is read
	if err != nil {
		u.completed.Add(-sent)
		return nil, err
	}
	u.next = next
	return sum, nil
}

// patch sends a part, and returns where the next one goes.
func (u *upload) patch(ctx context.Context, body io.Reader, offset, size int64) (string, error) {
	resp, err := u.to.folder.send(ctx, request{method: http.MethodPatch, url: u.next, body: body, length: size, header: map[string]string{
		"Content-Type": "application/octet-stream", "X-Redirect-Uploads": "1",
		"Content-Range": fmt.Sprintf("%d-%d", offset, offset+size-1),
	}})
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode < http.StatusBadRequest {
		return location(resp), nil
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	return "", fmt.Errorf("http status %s: %s", resp.Status, text)
}

// outgoing is the body of a request, and tells when it is not read any more.
type outgoing struct {
	io.Reader
	once   sync.Once
	closed chan struct{}
}

func (o *outgoing) Close() error {
	o.once.Do(func() { close(o.closed) })
	return nil
}
