package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// maxProbeBody bounds what a probe reads: a list of some ten thousand models.
const maxProbeBody = 16 << 20

// inventory is the last answers of the engine; while they stay the same, so does the Status.
type inventory struct {
	version, tags, ps []byte
	held              []held // instead of them, by an engine that is no Ollama; nil: not known
}

// probe asks the engine what it holds and has loaded. It returns the present Status itself when
// nothing has changed.
func (e *Engine) probe(ctx context.Context, full bool) (*Status, error) {
	switch {
	case e.cfg.Kind == cluster.Ollama:
		return e.probeOllama(ctx, full)
	case e.cfg.Kind == cluster.OpenAI && !full && e.last.held != nil:
		return e.Status(), nil // it may be anybody's server: not every second
	}
	return e.probeV1(ctx)
}

// probeOllama asks an Ollama for its version and for what it holds and has loaded.
func (e *Engine) probeOllama(ctx context.Context, full bool) (*Status, error) {
	var now inventory
	var err error
	if now.ps, err = e.get(ctx, "/api/ps"); err != nil {
		return nil, err
	}
	if !full && bytes.Equal(now.ps, e.last.ps) {
		return e.Status(), nil
	}
	if now.version, err = e.get(ctx, "/api/version"); err != nil {
		return nil, err
	}
	version := gjson.GetBytes(now.version, "version").String()
	if version == "" {
		return nil, fmt.Errorf("read engine version: no Ollama at %s", e.Where())
	}
	if now.tags, err = e.get(ctx, "/api/tags"); err != nil {
		return nil, err
	}
	if bytes.Equal(now.version, e.last.version) && bytes.Equal(now.tags, e.last.tags) && bytes.Equal(now.ps, e.last.ps) {
		return e.Status(), nil
	}
	next := &Status{
		Engine: cluster.Engine{Kind: e.cfg.Kind, Version: version, Condition: cluster.EngineReady},
		Models: []cluster.Model{}, Loaded: []cluster.Loaded{}, // lists, also on the wire
	}
	v1 := map[string]json.RawMessage{}
	list, err := e.get(ctx, "/v1/models")
	if err != nil {
		return nil, err
	}
	for _, m := range gjson.GetBytes(list, "data").Array() {
		v1[m.Get("id").String()] = json.RawMessage(m.Raw)
	}
	for _, m := range gjson.GetBytes(now.tags, "models").Array() {
		if e.deps.Hidden(m.Get("name").String()) {
			continue
		}
		next.Models = append(next.Models, cluster.Model{
			Name: m.Get("name").String(), Thinks: has(m.Get("capabilities"), "thinking"), Digest: digest(m), Size: m.Get("size").Int(), ModifiedAt: moment(m, "modified_at"),
			Tags: json.RawMessage(m.Raw), V1: v1[m.Get("name").String()],
		})
	}
	for _, m := range gjson.GetBytes(now.ps, "models").Array() {
		if e.deps.Hidden(m.Get("name").String()) {
			continue
		}
		next.Loaded = append(next.Loaded, cluster.Loaded{
			Name: m.Get("name").String(), Digest: digest(m), ContextLength: int(m.Get("context_length").Int()),
			VRAM: m.Get("size_vram").Int(), ExpiresAt: moment(m, "expires_at"), PS: json.RawMessage(m.Raw),
		})
	}
	// /api/ps has no order of its own.
	slices.SortFunc(next.Loaded, func(a, b cluster.Loaded) int { return strings.Compare(a.Name, b.Name) })
	e.last = now
	return next, nil
}

// has tells whether a list of words has one.
func has(list gjson.Result, word string) bool {
	return slices.ContainsFunc(list.Array(), func(w gjson.Result) bool { return w.Str == word })
}

func digest(m gjson.Result) string { return strings.TrimPrefix(m.Get("digest").String(), "sha256:") }

// moment reads a time; the zero time when there is none.
func moment(m gjson.Result, field string) time.Time {
	at, err := time.Parse(time.RFC3339Nano, m.Get(field).String())
	if year := at.UTC().Year(); err != nil || year < 1 || year > 9999 { // what JSON cannot hold
		return time.Time{}
	}
	return at.UTC()
}

// get returns the body of a route that answers 200 with a JSON object.
func (e *Engine) get(ctx context.Context, path string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.send(r)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("ask engine for %s: no answer in %v", path, probeTimeout)
		}
		return nil, fmt.Errorf("ask engine for %s: %w", path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody))
	if err != nil {
		return nil, fmt.Errorf("read engine's %s: %w", path, err)
	}
	if resp.Header.Get("X-Ollamamax-Node") != "" {
		return nil, fmt.Errorf("ask engine for %s: %s is an OllamaMax node, not an engine: set --engine-url to the engine itself", path, e.Where())
	}
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		return nil, fmt.Errorf("ask engine for %s: status %d: give engine.api_key the key that %s asks for", path, resp.StatusCode, e.Where())
	}
	if resp.StatusCode != http.StatusOK || !json.Valid(body) {
		return nil, fmt.Errorf("ask engine for %s: status %d, no %s at %s", path, resp.StatusCode, e.what(), e.Where())
	}
	return body, nil
}

// what names the kind of server for a person.
func (e *Engine) what() string {
	switch e.cfg.Kind {
	case cluster.Ollama:
		return "Ollama"
	case cluster.OpenAI:
		return "OpenAI-compatible server"
	}
	return string(e.cfg.Kind)
}
