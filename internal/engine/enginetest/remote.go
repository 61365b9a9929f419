package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// errStalled ends a part that is silent.
var errStalled = errors.New("part stalled")

// How long and how often an Ollama tries.
const (
	tries         = 6 // of a part, or of the end of an upload
	placeTimeout  = 30 * time.Second
	stallTimeout  = 30 * time.Second
	longestPause  = 10 * time.Second
	progressEvery = 60 * time.Millisecond
)

// remote is a model's place in a registry.
type remote struct {
	folder *folder
	base   *url.URL // …/v2/NAMESPACE/MODEL
}

// remote is where the model of that name is: over https unless the client said insecure.
func (f *folder) remote(n name, insecure bool) *remote {
	base := &url.URL{Scheme: "https", Host: n.host}
	if insecure {
		base.Scheme = "http"
	}
	return &remote{folder: f, base: base.JoinPath("v2", n.namespace, n.model)}
}

// request is one that is made of a registry. Its redirections are followed as far as follow says; nil: ten.
type request struct {
	method, url string
	header      map[string]string
	body        io.Reader
	length      int64
	follow      func(*http.Request, []*http.Request) error
}

// send sends a request and returns whatever is answered.
func (f *folder) send(ctx context.Context, r request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, r.body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", f.agent)
	for key, value := range r.header {
		req.Header.Set(key, value)
	}
	if r.body != nil {
		req.ContentLength = r.length
	}
	return (&http.Client{Transport: f.transport, CheckRedirect: r.follow}).Do(req)
}

// ask sends a request whose answer is no error.
func (f *folder) ask(ctx context.Context, r request) (*http.Response, error) {
	resp, err := f.send(ctx, r)
	if err != nil || resp.StatusCode < http.StatusBadRequest {
		return resp, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, fs.ErrNotExist
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%d: %w", resp.StatusCode, err)
	}
	return nil, fmt.Errorf("%d: %s", resp.StatusCode, text)
}

// manifest returns a manifest's bytes as they are.
func (r *remote) manifest(ctx context.Context, tag string) ([]byte, error) {
	resp, err := r.folder.ask(ctx, request{method: http.MethodGet, url: r.base.JoinPath("manifests", tag).String(), header: map[string]string{"Accept": mediaManifest}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// head returns the length of a blob; fs.ErrNotExist if the registry has it not.
func (r *remote) head(ctx context.Context, digest string) (int64, error) {
	resp, err := r.folder.ask(ctx, request{method: http.MethodHead, url: r.base.JoinPath("blobs", digest).String()})
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return max(resp.ContentLength, 0), nil
}

// place is where the blob's bytes are to be had: the first redirection to another host name.
func (r *remote) place(ctx context.Context, digest string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, placeTimeout)
	defer cancel()
	ask := request{method: http.MethodGet, url: r.base.JoinPath("blobs", digest).String(), follow: func(req *http.Request, via []*http.Request) error {
		switch {
		case len(via) > 10:
			return errors.New("maximum redirects exceeded (10) for directURL")
		case req.URL.Hostname() == r.base.Hostname():
			return nil
		}
		return http.ErrUseLastResponse
	}}
	for n := time.Duration(1); ; n++ {
		resp, err := r.folder.ask(ctx, ask)
		if err != nil {
			if err := pause(ctx, min(n*n*10*time.Millisecond, longestPause)); err != nil {
				return "", err
			}
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusTemporaryRedirect && resp.StatusCode != http.StatusOK {
			return "", fmt.Errorf("unexpected status code %d", resp.StatusCode)
		}
		place, err := resp.Location()
		if err != nil {
			return "", err
		}
		return place.String(), nil
	}
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// persist tries a thing as often as an Ollama does, with its pauses, the last one too. What stalls is begun again at once, for ever.
func persist(ctx context.Context, try func() error) error {
	var err error
	for n := 0; n < tries; n++ {
		switch err = try(); {
		case err == nil:
			return nil
		case ctx.Err() != nil, errors.Is(err, syscall.ENOSPC):
			return err
		case errors.Is(err, errStalled):
			n--
			continue
		}
		if ended := pause(ctx, time.Second<<n); ended != nil {
			return ended
		}
	}
	return fmt.Errorf("max retries exceeded: %w", err)
}

// watch runs a job, and calls tick now and then until the job has ended. If tick fails the job is broken off.
func watch(ctx context.Context, job func(context.Context) error, tick func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- job(ctx) }()
	ticker := time.NewTicker(progressEvery)
	defer ticker.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-ticker.C:
			if err := tick(); err != nil {
				cancel()
				<-ended
				return err
			}
		}
	}
}
