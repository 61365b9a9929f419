package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	maxAnswer = 64 << 20 // what the client reads of an answer
	maxRecord = 1 << 20  // and of one record, or of an error
)

// Client calls the operators' API of one node.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// NewClient returns a client of the node at base, such as http://127.0.0.1:11435. The token may be
// empty. Each call but a Stream may take up to timeout.
func NewClient(base, token string, timeout time.Duration) (*Client, error) {
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("--api is %q: write it like http://127.0.0.1:11435", base)
	}
	return &Client{base: strings.TrimSuffix(u.String(), "/"), token: token, http: &http.Client{Timeout: timeout}}, nil
}

// Do sends one request and returns the body of its answer. An answer of 400 or more is an *Error.
func (c *Client) Do(ctx context.Context, method, path string, body any) ([]byte, error) {
	resp, err := c.send(ctx, c.http, method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read answer of %s: %w", c.base, err)
	}
	return answer, nil
}

// Stream sends one request and hands each record of its answer, a line, to f, which must not keep it. It
// takes as long as the answer does. A record that is an error ends it, as does an error of f's.
func (c *Client) Stream(ctx context.Context, method, path string, body any, f func(record []byte) error) error {
	resp, err := c.send(ctx, &http.Client{Transport: c.http.Transport}, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxRecord)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		if err := failure(lines.Bytes()); err != nil {
			return err
		}
		if err := f(lines.Bytes()); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read answer of %s: %w", c.base, err)
	}
	return nil
}

// send sends one request. An answer of 400 or more is read, and is an *Error.
func (c *Client) send(ctx context.Context, client *http.Client, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		reader = strings.NewReader(string(data))
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("reach node at %s: %w: is `ollamamax serve` running there? name another with --api", c.base, errors.Unwrap(err))
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxRecord))
	if err != nil {
		return nil, fmt.Errorf("read answer of %s: %w", c.base, err)
	}
	if err := failure(answer); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("ask %s for %s: status %d: %.200s", c.base, path, resp.StatusCode, answer)
}

// failure is the error that a body is, in this API's form or, on the clients' routes, in Ollama's; nil if
// it is none.
func failure(body []byte) error {
	var e ErrorBody
	if json.Unmarshal(body, &e) == nil {
		if e.Error != nil && e.Error.Message != "" {
			return e.Error
		}
		return nil
	}
	var ollamas struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &ollamas) == nil && ollamas.Error != "" {
		return &Error{Message: ollamas.Error}
	}
	return nil
}

// Get decodes the answer of a GET into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	answer, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return fmt.Errorf("read answer of %s: %w: is it an OllamaMax node?", c.base, err)
	}
	return nil
}
