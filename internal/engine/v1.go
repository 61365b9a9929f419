package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// errLoading is why a llama-server that has not yet read its model takes nothing.
var errLoading = errors.New("loading its model")

// held is what matters of one element of /v1/models: the rest may differ from answer to answer,
// such as "created" and vLLM's permission ids.
type held struct {
	id      string
	size    int64 // bytes; 0: unknown
	context int   // tokens a request may have; 0: unknown
	loaded  bool
}

// probeV1 asks a llama-server or another server of OpenAI's routes what it holds, and when that has
// changed, which routes it has.
func (e *Engine) probeV1(ctx context.Context) (*Status, error) {
	if e.cfg.Kind == cluster.LlamaServer {
		if err := e.loading(ctx); err != nil {
			return nil, err
		}
	}
	list, err := e.get(ctx, "/v1/models")
	if err != nil {
		return nil, err
	}
	if !gjson.GetBytes(list, "data").IsArray() {
		return nil, fmt.Errorf("read engine's /v1/models: no %s at %s", e.what(), e.Where())
	}
	entries := gjson.GetBytes(list, "data").Array()
	now := make([]held, 0, len(entries))
	for _, m := range entries {
		now = append(now, readHeld(m))
	}
	if e.last.held != nil && slices.Equal(now, e.last.held) {
		return e.Status(), nil
	}
	next := &Status{Engine: cluster.Engine{Kind: e.cfg.Kind, Condition: cluster.EngineReady, Folder: e.Folder() != ""}}
	if next.Engine.Routes, err = e.routes(ctx); err != nil {
		return nil, err
	}
	var props gjson.Result
	if e.cfg.Kind == cluster.LlamaServer {
		body, err := e.get(ctx, "/props")
		if err != nil {
			return nil, err
		}
		props = gjson.ParseBytes(body)
	}
	next.Engine.Version = props.Get("build_info").String()
	next.Slots = int(props.Get("total_slots").Int())
	for i, m := range now {
		next.Models = append(next.Models, cluster.Model{Name: m.id, Size: m.size, V1: json.RawMessage(entries[i].Raw)})
		if m.loaded {
			length := cmp.Or(m.context, int(props.Get("default_generation_settings.n_ctx").Int()))
			next.Loaded = append(next.Loaded, cluster.Loaded{Name: m.id, ContextLength: length})
		}
	}
	e.last = inventory{held: now}
	return next, nil
}

// readHeld reads an element of /v1/models. A server lists what it can answer at once, but for a
// llama-server with several models, which says of each whether it is in memory.
func readHeld(m gjson.Result) held {
	status := m.Get("status.value").String()
	return held{
		id: m.Get("id").String(), size: m.Get("meta.size").Int(), loaded: status == "" || status == "loaded",
		context: int(cmp.Or(m.Get("meta.n_ctx").Int(), m.Get("max_model_len").Int())), // llama-server's, vLLM's
	}
}

// loading returns errLoading while a llama-server answers that it is not ready.
func (e *Engine) loading(ctx context.Context) error {
	status, err := e.statusOf(ctx, http.MethodGet, "/health")
	switch {
	case err != nil:
		return err
	case status == http.StatusServiceUnavailable:
		return errLoading
	case status != http.StatusOK:
		return fmt.Errorf("ask engine for /health: status %d, no %s at %s", status, e.what(), e.Where())
	}
	return nil
}

// routes asks which of the /v1 routes that take a model the engine has, which depends on its
// version, its flags and its model. A body that is empty starts no work: who has the route calls it
// malformed.
func (e *Engine) routes(ctx context.Context) ([]string, error) {
	var have []string
	for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/audio/transcriptions"} {
		status, err := e.statusOf(ctx, http.MethodPost, path)
		if err != nil {
			return nil, err
		}
		if status != http.StatusNotFound && status != http.StatusMethodNotAllowed && status != http.StatusNotImplemented {
			have = append(have, path)
		}
	}
	return have, nil
}

// statusOf returns the status that the engine answers to a request without a body.
func (e *Engine) statusOf(ctx context.Context, method, path string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, nil)
	if err != nil {
		return 0, err
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := e.send(r)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return 0, fmt.Errorf("ask engine for %s: no answer in %v", path, probeTimeout)
		}
		return 0, fmt.Errorf("ask engine for %s: %w", path, err)
	}
	return resp.StatusCode, resp.Body.Close()
}
