package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// get sends a request with the token that the registry gave, and asks for one when it wants one.
func (r *Remote) get(ctx context.Context, at *url.URL, header http.Header) (*answer, error) {
	r.mu.Lock()
	token := r.token
	r.mu.Unlock()
	for first := true; ; first = false {
		if token != "" {
			header.Set("Authorization", "Bearer "+token)
		}
		a, err := r.request(ctx, at, header)
		if err != nil || a.resp.StatusCode != http.StatusUnauthorized || !first {
			return a, err
		}
		wants, is := parseChallenge(a.resp.Header.Get("Www-Authenticate"))
		if !is {
			return a, nil // a password, or nothing that anybody could give
		}
		a.Close()
		if token, err = r.askToken(ctx, wants); err != nil {
			return nil, fmt.Errorf("ask for a token: %w", err)
		}
		r.mu.Lock()
		r.token = token
		r.mu.Unlock()
	}
}

// challenge is what a registry wants of who comes without a token.
type challenge struct{ realm, service, scope string }

// parseChallenge reads a WWW-Authenticate header, if it is one of the kind Bearer.
func parseChallenge(text string) (challenge, bool) {
	kind, rest, _ := strings.Cut(text, " ")
	var c challenge
	if !strings.EqualFold(kind, "Bearer") {
		return c, false
	}
	for rest != "" {
		key, after, ok := strings.Cut(strings.TrimLeft(rest, " \t,"), "=")
		if !ok {
			break
		}
		var value string
		if quoted, is := strings.CutPrefix(after, `"`); is {
			if value, rest, ok = strings.Cut(quoted, `"`); !ok {
				return c, false
			}
		} else {
			value, rest, _ = strings.Cut(after, ",")
		}
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "realm":
			c.realm = value
		case "service":
			c.service = value
		case "scope":
			c.scope = value
		}
	}
	return c, c.realm != ""
}

// askToken asks for a token as nobody in particular.
func (r *Remote) askToken(ctx context.Context, c challenge) (string, error) {
	at, err := url.Parse(c.realm)
	if err != nil || at.Host == "" || at.User != nil || (at.Scheme != "https" && at.Scheme != r.base.Scheme) {
		return "", finalError{fmt.Errorf("registry sends to %q for it", printable(c.realm))}
	}
	query := at.Query()
	if c.service != "" {
		query.Set("service", c.service)
	}
	for _, scope := range strings.Fields(c.scope) {
		query.Add("scope", scope)
	}
	at.RawQuery = query.Encode()
	a, err := r.request(ctx, at, nil)
	if err != nil {
		return "", err
	}
	defer a.Close()
	if a.resp.StatusCode != http.StatusOK {
		return "", statusError(a)
	}
	data, err := io.ReadAll(io.LimitReader(a, 64<<10))
	if err != nil {
		return "", err
	}
	var wire struct {
		Token  string `json:"token"`
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(data, &wire); err != nil {
		return "", finalError{fmt.Errorf("read token: %w", err)}
	}
	token := wire.Token
	if token == "" {
		token = wire.Access
	}
	if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return "", finalError{errors.New("registry gives none")}
	}
	return token, nil
}
