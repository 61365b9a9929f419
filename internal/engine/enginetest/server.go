// Package enginetest is a fast fake inference engine for tests and load: it speaks Ollama's API
// and the OpenAI dialects that Ollama 0.33 serves, without a model, a disk or a process.
//
// It is for everything that needs an engine but not its intelligence: gateways, schedulers,
// supervisors and load generators. It does not check sampling options, call tools, think, follow
// a grammar or decompress bodies, and its words mean nothing.
//
// Invariants:
//
//   - An answer is a pure function of the whole prompt, the model's digest and Config.Seed: each
//     next piece is chosen by a hash of all text before it. So a raw prompt extended by the first
//     k pieces of its answer is continued with exactly the remaining ones, on any server with the
//     same model, and a prompt that differs in one byte is not.
//   - One piece is one token: tokens(prompt + delivered) = tokens(prompt) + pieces delivered.
//   - At most Config.Slots generations run at once; the others wait in order of arrival.
//   - Everything lives in its Server and all time comes from package time, so that any number of
//     servers fit into one process and into a synctest bubble. No goroutine is started.
//
// Start reading at Server.ServeHTTP, then Server.generate (one request for tokens, in whatever
// dialect), textHash (the model) and slots (queue and prompt cache). Package fakeengine beside it
// is the same as a command.
package enginetest

import (
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
	s.routes = s.v1Routes()
	if cfg.Kind == KindOllama {
		for path, m := range s.ollamaRoutes() {
			s.routes[path] = m
		}
	} else {
		s.routes["/health"] = methods{"GET": {serve: s.health}}
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
	m, ok := s.find(r)
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
	if rt.inference {
		s.count.requests.Add(1)
	} else if f := s.fault.Load(); f != nil && f.Path != "" {
		a := s.newAnswer(w, r, ollamaErrors{})
		defer a.close()
		if a.gate() != nil {
			return
		}
	}
	rt.serve(w, r)
}

// find returns the methods of the request's path; a path with a parameter is stored under its
// prefix, with the trailing slash.
func (s *Server) find(r *http.Request) (methods, bool) {
	if m, ok := s.routes[r.URL.Path]; ok {
		return m, true
	}
	for _, prefix := range [...]string{"/v1/models/", "/api/blobs/", "/api/user/keys/"} {
		if rest, ok := strings.CutPrefix(r.URL.Path, prefix); ok && rest != "" {
			m, ok := s.routes[prefix]
			return m, ok
		}
	}
	return nil, false
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
