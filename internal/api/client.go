package api

import (
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

// maxAnswer bounds what the client reads of an answer.
const maxAnswer = 64 << 20

// Client calls the operators' API of one node.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// NewClient returns a client of the node at base, such as http://127.0.0.1:11435. The token may be
// empty. Each call may take up to timeout.
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
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("reach node at %s: %w: is `ollamamax serve` running there? name another with --api", c.base, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read answer of %s: %w", c.base, err)
	}
	if resp.StatusCode >= 400 {
		var e ErrorBody
		if json.Unmarshal(answer, &e) == nil && e.Error != nil && e.Error.Message != "" {
			return nil, e.Error
		}
		return answer, fmt.Errorf("ask %s for %s: status %d: %.200s", c.base, path, resp.StatusCode, answer)
	}
	return answer, nil
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
