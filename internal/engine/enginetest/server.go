// Package enginetest is a fast fake inference engine for tests and load: it speaks Ollama's API
// and the OpenAI dialects that Ollama 0.33 serves, without a model, a process or, unless Config.Folder is set, a disk.
//
// It is for everything that needs an engine but not its intelligence: gateways, schedulers,
// supervisors and load generators. It does not check options, follow a schema or
// decompress bodies, and its words mean nothing.
//
// Two words in a prompt make the models do what some do: CALL (see Model.Tools) calls a tool, and
// with REPEAT all pieces are the same, until Ollama's guard ends the answer without a terminal record.
//
// Invariants:
//
//   - An answer is a pure function of the whole prompt, the model's digest, Config.Seed and, if
//     Config.Sampling, the request's seed or what is drawn instead of it once a request: each
//     next piece is chosen by a hash of all text before it. So a raw prompt extended by the first
//     k pieces of its answer is continued with exactly the remaining ones, on any server with the
//     same model, and a prompt that differs in one byte is not.
//     This holds for thinking, tags included, and for calls of tools.
//   - One piece is one token: tokens(prompt + delivered) = tokens(prompt) + pieces delivered.
//   - A request renders to the same prompt in whatever dialect it comes.
//   - At most Config.Slots generations run at once; the others wait in order of arrival.
//   - Everything lives in its Server and all time comes from package time, so that any number of
//     servers fit into one process and into a synctest bubble. No goroutine is started, but for the blobs of a pull or a
//     push between a folder and a registry, and those end before their request.
//
// Start reading at Server.ServeHTTP, then Server.generate (one request for tokens, in whatever
// dialect), speech (the model), telling (its parser) and slots (queue and prompt cache); for models on a disk at folder, then
// folder.pull and folder.push. Package fakeengine beside it is the same as a command.
package enginetest

import (
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// Server is one fake engine. It is an http.Handler; use it with httptest, with an http.Server on
// any listener, or directly. All methods may be called at any time from any goroutine.
type Server struct {
	cfg     Config
	routes  map[string]methods
	paths   map[string]*atomic.Int64 // how many requests each of routes had
	slots   *slots
	catalog *catalog
	fault   atomic.Pointer[activeFault]
	count   counters
	seq     atomic.Uint64 // numbers answers, for their ids
	buffers sync.Pool     // of *[]byte
}

// route is what serves one method of one path.
type route struct {
	serve     http.HandlerFunc
	inference bool // takes a slot; what a fault without a path applies to
}

type methods map[string]route

// New returns a server with the given settings, zero values replaced as Config says.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	s := &Server{cfg: cfg, slots: newSlots(cfg.Slots, cfg.Queue), catalog: newCatalog(cfg)}
	switch cfg.Kind {
	case KindLlamaServer:
		s.routes = s.llamaRoutes()
	case KindOllama:
		s.routes = s.v1Routes()
		maps.Copy(s.routes, s.ollamaRoutes())
	default:
		s.routes = s.v1Routes()
		s.routes["/health"] = methods{"GET": {serve: s.health}}
	}
	s.paths = map[string]*atomic.Int64{}
	for path := range s.routes {
		s.paths[path] = new(atomic.Int64)
	}
	return s
}

// Config returns the settings with all defaults filled in.
func (s *Server) Config() Config { return s.cfg }

// ServeHTTP answers one request. /_fault and /_stats are served before any fault applies.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	switch path {
	case "/_fault":
		s.serveFault(w, r)
		return
	case "/_stats":
		writeJSON(w, http.StatusOK, s.Stats())
		return
	}
	if f := s.fault.Load(); f != nil && f.Kind == FaultRefuse && strings.HasPrefix(path, f.Path) && f.take() {
		abort(w)
		return
	}
	if s.cfg.Strict && !allowedCaller(r) {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	route := s.route(path)
	m, ok := s.routes[route]
	if s.cfg.Kind == KindLlamaServer {
		w.Header()["Server"] = []string{"llama.cpp"}
		w.Header()["Access-Control-Allow-Origin"] = []string{r.Header.Get("Origin")}
		if m[r.Method].serve == nil {
			notFound(w)
			return
		}
	}
	if !ok {
		plain(w, http.StatusNotFound, "404 page not found")
		return
	}
	rt, ok := m[r.Method]
	if !ok {
		allow := make([]string, 0, len(m))
		for method := range m {
			allow = append(allow, method)
		}
		w.Header().Set("Allow", strings.Join(allow, ", "))
		plain(w, http.StatusMethodNotAllowed, "405 method not allowed")
		return
	}
	s.paths[route].Add(1)
	if rt.inference {
		s.count.requests.Add(1)
	}
	if s.busy(w, r, rt.inference) {
		return
	}
	if rt.inference {
		rt.serve(w, r)
		return
	}
	if f := s.fault.Load(); f != nil && f.Path != "" {
		a := s.newAnswer(w, r, s.errorsFor(path))
		defer a.close()
		if a.gate() != nil {
			return
		}
	}
	rt.serve(w, r)
}

// route returns under which path of routes a path is stored: one with a parameter under its prefix,
// with the trailing slash.
func (s *Server) route(path string) string {
	if _, ok := s.routes[path]; ok {
		return path
	}
	for _, prefix := range [...]string{"/v1/models/", "/api/blobs/", "/api/user/keys/"} {
		if rest, ok := strings.CutPrefix(path, prefix); ok && rest != "" {
			return prefix
		}
	}
	return ""
}

func (s *Server) v1Routes() map[string]methods {
	return map[string]methods{
		"/v1/models":           {"GET": {serve: s.v1Models}},
		"/v1/models/":          {"GET": {serve: s.v1Model}},
		"/v1/chat/completions": {"POST": {s.v1Chat, true}},
		"/v1/completions":      {"POST": {s.v1Completions, true}},
		"/v1/embeddings":       {"POST": {s.v1Embeddings, true}},
		"/v1/responses":        {"POST": {s.v1Responses, true}},
		"/v1/messages":         {"POST": {s.v1Messages, true}},
	}
}

func (s *Server) ollamaRoutes() map[string]methods {
	both := func(h http.HandlerFunc) methods { return methods{"GET": {serve: h}, "HEAD": {serve: h}} }
	cloudOnly := methods{"POST": {serve: s.cloudDisabled}}
	return map[string]methods{
		"/":               both(s.root),
		"/api/version":    both(s.version),
		"/api/tags":       both(s.tags),
		"/api/ps":         {"GET": {serve: s.ps}},
		"/api/status":     {"GET": {serve: s.status}},
		"/api/show":       {"POST": {serve: s.show}},
		"/api/generate":   {"POST": {s.apiGenerate, true}},
		"/api/chat":       {"POST": {s.apiChat, true}},
		"/api/embed":      {"POST": {s.apiEmbed, true}},
		"/api/embeddings": {"POST": {s.apiEmbeddings, true}},
		"/api/pull":       {"POST": {serve: s.pull}},
		"/api/push":       {"POST": {serve: s.push}},
		"/api/create":     {"POST": {serve: s.create}},
		"/api/copy":       {"POST": {serve: s.copyModel}},
		"/api/delete":     {"DELETE": {serve: s.deleteModel}},
		"/api/blobs/":     {"POST": {serve: s.createBlob}, "HEAD": {serve: s.headBlob}},
		"/api/experimental/model-recommendations": {"GET": {serve: s.recommendations}},
		"/api/experimental/web_search":            cloudOnly,
		"/api/experimental/web_fetch":             cloudOnly,
		"/api/me":                                 {"POST": {serve: s.unauthorized}},
		"/api/signout":                            {"POST": {serve: s.unauthorized}},
		"/api/user/keys/":                         {"DELETE": {serve: s.unauthorized}},
		"/v1/audio/transcriptions":                {"POST": {s.v1Transcriptions, true}},
	}
}
