package gateway

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// route is one path of the clients' API and how the cluster serves it.
type route struct {
	path    string   // a http.ServeMux pattern without its method
	methods []string // the first is the usual one
	serve   func(*Gateway, *exchange)

	streams   bool // answers piece by piece unless the body says "stream": false
	multipart bool // the body is a form, not JSON
	infers    bool // loads the model if it is not loaded
	bodyless  bool // may come without a body
	holders   bool // concerns every replica; a node that takes no prompts does it too
	changes   bool // changes what the engine holds: never sent twice, and the inventory is read anew
	as        string
	// missing says how Ollama refuses a body that names no model; nil: it is the engine's to judge.
	missing func(*request) error
}

var (
	get     = []string{http.MethodGet}
	getHead = []string{http.MethodGet, http.MethodHead}
	post    = []string{http.MethodPost}
)

// routes is every route of Ollama 0.33, and three under /api/v1 that are other names of them.
func routes() []*route {
	return []*route{
		{path: "/{$}", methods: getHead, serve: (*Gateway).root},
		{path: "/api/version", methods: getHead, serve: (*Gateway).version},
		{path: "/api/tags", methods: getHead, serve: (*Gateway).tags},
		{path: "/api/ps", methods: get, serve: (*Gateway).ps},
		{path: "/v1/models", methods: get, serve: (*Gateway).v1Models},

		{path: "/api/generate", methods: post, serve: (*Gateway).forward, infers: true, streams: true, missing: emptyModelNotFound},
		{path: "/api/chat", methods: post, serve: (*Gateway).forward, infers: true, streams: true, missing: modelRequired},
		{path: "/api/embed", methods: post, serve: (*Gateway).forward, infers: true, missing: emptyModelNotFound},
		{path: "/api/embeddings", methods: post, serve: (*Gateway).forward, infers: true, missing: modelRequired},
		{path: "/v1/chat/completions", methods: post, serve: (*Gateway).forward, infers: true, missing: missingInChat},
		{path: "/v1/completions", methods: post, serve: (*Gateway).forward, infers: true, missing: emptyModelNotFound},
		{path: "/v1/embeddings", methods: post, serve: (*Gateway).forward, infers: true, missing: missingInEmbeddings},
		{path: "/v1/responses", methods: post, serve: (*Gateway).forward, infers: true, missing: modelRequired},
		{path: "/v1/messages", methods: post, serve: (*Gateway).forward, infers: true, missing: missingInMessages},
		{path: "/v1/audio/transcriptions", methods: post, serve: (*Gateway).forward, infers: true, multipart: true, missing: missingInMessages},
		{path: "/api/v1/generate", methods: post, serve: (*Gateway).forward, infers: true, as: "/api/generate", streams: true, missing: emptyModelNotFound},
		{path: "/api/v1/chat", methods: post, serve: (*Gateway).forward, infers: true, as: "/api/chat", streams: true, missing: modelRequired},
		{path: "/api/v1/embeddings", methods: post, serve: (*Gateway).forward, infers: true, as: "/api/embed", missing: emptyModelNotFound},

		{path: "/api/v1/schedule/explain", methods: post, serve: (*Gateway).explain},

		{path: "/api/show", methods: post, serve: (*Gateway).forward, missing: modelRequired},
		{path: "/v1/models/{model}", methods: get, serve: (*Gateway).forwardModel},

		{path: "/api/pull", methods: post, serve: (*Gateway).pull, streams: true, changes: true, missing: invalidModelName},
		{path: "/api/create", methods: post, serve: (*Gateway).create, streams: true, changes: true},
		{path: "/api/blobs/{digest}", methods: []string{http.MethodPost, http.MethodHead}, serve: (*Gateway).blob},
		{path: "/api/push", methods: post, serve: (*Gateway).forward, streams: true, changes: true, missing: modelRequired},
		{path: "/api/copy", methods: post, serve: (*Gateway).forwardHolders, holders: true, changes: true, missing: emptySourceInvalid},
		{path: "/api/delete", methods: []string{http.MethodDelete}, serve: (*Gateway).delete, holders: true, changes: true, missing: modelRequired},

		// An account is one engine's.
		{path: "/api/status", methods: get, serve: (*Gateway).forwardOwn},
		{path: "/api/me", methods: post, serve: (*Gateway).forwardOwn, bodyless: true, changes: true},
		{path: "/api/signout", methods: post, serve: (*Gateway).changeAccount, bodyless: true, changes: true},
		{path: "/api/user/keys/{key}", methods: []string{http.MethodDelete}, serve: (*Gateway).changeAccount, bodyless: true, changes: true},
		{path: "/api/experimental/web_search", methods: post, serve: (*Gateway).forwardOwn},
		{path: "/api/experimental/web_fetch", methods: post, serve: (*Gateway).forwardOwn},
		{path: "/api/experimental/model-recommendations", methods: get, serve: (*Gateway).forwardOwn},
	}
}

// How Ollama refuses a body without a model differs from route to route.

func modelRequired(*request) error {
	return &refusal{status: http.StatusBadRequest, message: "model is required", inner: true}
}

func emptyModelNotFound(*request) error {
	return &refusal{status: http.StatusNotFound, message: "model '' not found", inner: true}
}

func invalidModelName(*request) error { return badRequest("invalid model name") }

func emptySourceInvalid(*request) error { return badRequest(`source "" is invalid`) }

func missingInChat(req *request) error {
	if !req.hasMessages {
		return badRequest("[] is too short - 'messages'")
	}
	return modelRequired(req)
}

func missingInEmbeddings(req *request) error {
	if !req.hasInput {
		return badRequest("invalid input")
	}
	return emptyModelNotFound(req)
}

func missingInMessages(*request) error { return badRequest("model is required") }

// forward serves a request whose body names a model: on a node that has it. A request to unload it
// goes to every node that has it loaded.
func (g *Gateway) forward(x *exchange) {
	req := g.read(x)
	if req == nil {
		return
	}
	if req.route.infers && req.unload && !req.prompt && !req.hasInput {
		canonical := req.Key()
		g.everywhere(x, req, func(n *cluster.Node) bool {
			_, loaded := n.LoadedModel(canonical)
			return loaded && n.Serves() && n.Engine.Has(req.Path)
		})
		return
	}
	g.attempts(x, req)
}

// forwardHolders serves a request that concerns every replica of a model.
func (g *Gateway) forwardHolders(x *exchange) {
	if req := g.read(x); req != nil {
		canonical := req.Key()
		g.everywhere(x, req, func(n *cluster.Node) bool { _, holds := n.Model(canonical); return holds && n.Engine.Has(req.Path) })
	}
}

// forwardOwn serves a request that is the affair of the asked node's engine: no other is asked instead,
// whether this one takes work or not. A node without such an engine hands it to the first that answers, as it
// does with models of Ollama's cloud, for which that engine's account is used.
func (g *Gateway) forwardOwn(x *exchange) {
	req := g.read(x)
	if req == nil {
		return
	}
	if self := g.deps.View().SelfNode(); self != nil && self.Engine.Has(req.Path) {
		req.only = self
	}
	g.own(x, req)
}

// changeAccount is forwardOwn for what ends an account's use: at a node without an engine whose account that
// is it would be somebody else's.
func (g *Gateway) changeAccount(x *exchange) {
	if self := g.deps.View().SelfNode(); self == nil || !self.Engine.Has(x.r.URL.Path) {
		g.fail(x, &refusal{status: http.StatusNotImplemented, message: "this node has no Ollama of its own, and an account is one Ollama's: ask the node whose account it is"})
		return
	}
	g.forwardOwn(x)
}

// forwardModel serves a request whose path names a model. What an engine other than Ollama says of
// its model is in its list, and many have no route for one alone.
func (g *Gateway) forwardModel(x *exchange) {
	if m, ok := g.deps.View().Chosen(x.r.PathValue("model"), x.r.URL.Path); ok && m.Tags == nil && m.V1 != nil {
		x.answer(http.StatusOK, "application/json", append(slices.Clip(m.V1), '\n'))
		return
	}
	g.attempts(x, &request{
		Request: cluster.Request{Path: x.r.URL.Path, Model: x.r.PathValue("model")},
		route:   x.route,
	})
}

// blob passes a blob to the engine as it comes: blobs have no size limit. One that the engine has
// is not sent again: an Ollama answers then without reading it, which breaks the connection under
// a proxy that is still sending.
func (g *Gateway) blob(x *exchange) {
	req := &request{Request: cluster.Request{Path: x.r.URL.Path}, route: x.route}
	if x.r.Method == http.MethodPost {
		switch there, err := g.hasBlob(x, req); {
		case err != nil:
			g.fail(x, err)
			return
		case there:
			x.answer(http.StatusOK, "", nil)
			return
		}
		req = g.streamed(x)
	}
	g.attempts(x, req)
}

// hasBlob asks the engine that a blob is for whether it has it. An error says that it does not answer: it
// would not take the blob either, for which it has all the time that it likes.
func (g *Gateway) hasBlob(x *exchange, req *request) (bool, error) {
	lease := g.deps.Try(&req.Request, nil)
	if lease == nil {
		return false, nil
	}
	defer lease.Done(cluster.Outcome{})
	ctx, cancel := context.WithTimeoutCause(x.ctx, quickWithin, &frozenError{quickWithin})
	defer cancel()
	head := g.outgoing(ctx, x, req)
	head.Method = http.MethodHead
	for _, key := range []string{"Content-Length", "Content-Type", "Expect"} {
		head.Header.Del(key)
	}
	resp, err := g.send(lease.Node, head)
	switch {
	case errors.Is(context.Cause(ctx), errFrozen):
		return false, noneLeft(context.Cause(ctx), lease.Node, 1)
	case err != nil:
		return false, nil // the attempt that follows will say why
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}
