package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"
)

// manageRequest is the body of pull, push, create and delete.
type manageRequest struct {
	Model  string `json:"model"`
	Name   string `json:"name"`
	Stream *bool  `json:"stream"`

	Insecure bool `json:"insecure"`

	From       string            `json:"from"`
	Files      map[string]string `json:"files"`
	System     string            `json:"system"`
	Template   string            `json:"template"`
	Parameters json.RawMessage   `json:"parameters"`
}

// progress is one record of pull, push and create.
type progress struct {
	Status    string `json:"status"`
	Digest    string `json:"digest,omitempty"`
	Total     int64  `json:"total,omitempty"`
	Completed int64  `json:"completed,omitempty"`
}

// refusal is an error that a job's stream tells; its status matters if nothing was sent before.
type refusal struct {
	status int
	text   string
}

func (e *refusal) Error() string { return e.text }

// errNothingToPull is Ollama's for a name that its registry does not know.
var errNothingToPull error = &refusal{http.StatusInternalServerError, "pull model manifest: file does not exist"}

// tell runs a job that reports progress, and passes it on: each record as it comes, or only the
// last if stream is false.
func (s *Server) tell(w http.ResponseWriter, r *http.Request, stream *bool, job func(a *answer, say func(progress) error) error) {
	a := s.newAnswer(w, r, ollamaErrors{})
	defer a.close()
	var last progress
	streams := stream == nil || *stream
	if streams {
		a.stream(typeNDJSON)
	}
	err := job(a, func(p progress) error {
		last = p
		if !streams {
			return a.ctx.Err()
		}
		b, err := json.Marshal(p)
		if err != nil {
			return err
		}
		return a.record(append(append((*a.buf)[:0], b...), '\n'))
	})
	var no *refusal
	switch {
	case errors.As(err, &no) && a.begun:
		// In mid-stream an error is one more record. The client may be gone: it ends here anyway.
		_ = a.record([]byte(`{"error":"` + quoted(no.text) + "\"}\n"))
	case errors.As(err, &no):
		ollamaErrors{}.fail(w, no.status, no.text)
	case err == nil && !streams:
		writeJSON(w, http.StatusOK, last)
	}
}

func (s *Server) pull(w http.ResponseWriter, r *http.Request) {
	var req manageRequest
	if !s.decode(w, r, &req, ollamaErrors{}) {
		return
	}
	wanted := modelName(req.Model, req.Name)
	if !parseName(wanted).valid() {
		ollamaErrors{}.fail(w, http.StatusBadRequest, errBadName.Error())
		return
	}
	s.tell(w, r, req.Stream, func(a *answer, say func(progress) error) error {
		if err := say(progress{Status: "pulling manifest"}); err != nil {
			return err
		}
		m, ok := s.catalog.pullable[s.catalog.key(wanted)]
		switch {
		case !ok && s.catalog.folder != nil:
			return s.pullFiled(a.ctx, wanted, req.Insecure, say)
		case !ok && s.catalog.pullable != nil:
			return errNothingToPull
		case !ok:
			m = Model{Name: wanted}
		}
		m = m.withDefaults(s.cfg.Kind)
		const parts = 8
		blob := hexDigest("weights " + m.Digest)
		for i := range int64(parts + 1) {
			if i > 0 {
				if err := a.sleep(s.cfg.PullTime/parts, false); err != nil {
					return err
				}
			}
			if err := say(progress{"pulling " + blob[:12], "sha256:" + blob, m.Size, m.Size * i / parts}); err != nil {
				return err
			}
		}
		for _, status := range []string{"verifying sha256 digest", "writing manifest"} {
			if err := say(progress{Status: status}); err != nil {
				return err
			}
		}
		s.catalog.put(m, time.Now())
		return say(progress{Status: "success"})
	})
}

func (s *Server) push(w http.ResponseWriter, r *http.Request) {
	var req manageRequest
	if !s.decode(w, r, &req, ollamaErrors{}) {
		return
	}
	wanted := modelName(req.Model, req.Name)
	if wanted == "" {
		ollamaErrors{}.fail(w, http.StatusBadRequest, errNoName.Error())
		return
	}
	s.tell(w, r, req.Stream, func(a *answer, say func(progress) error) error {
		if err := say(progress{Status: "retrieving manifest"}); err != nil {
			return err
		}
		if is, err := s.pushFiled(a.ctx, wanted, req.Insecure, say); is {
			return err
		}
		m, err := s.catalog.find(wanted)
		if err != nil {
			if err := say(progress{Status: "couldn't retrieve manifest"}); err != nil {
				return err
			}
			return &refusal{http.StatusInternalServerError, "file does not exist"}
		}
		blob := hexDigest("weights " + m.Digest)
		for _, p := range []progress{
			{"pushing " + blob[:12], "sha256:" + blob, m.Size, 0},
			{"pushing " + blob[:12], "sha256:" + blob, m.Size, m.Size},
			{Status: "pushing manifest"}, {Status: "success"},
		} {
			if err := say(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// create makes a model of another one or of uploaded blobs. Its digest depends on what it is made
// of and not on its name, so that two servers agree.
func (s *Server) create(w http.ResponseWriter, r *http.Request) {
	var req manageRequest
	if !s.decode(w, r, &req, ollamaErrors{}) {
		return
	}
	wanted := modelName(req.Model, req.Name)
	if !parseName(wanted).valid() {
		ollamaErrors{}.fail(w, http.StatusBadRequest, errBadName.Error())
		return
	}
	s.tell(w, r, req.Stream, func(a *answer, say func(progress) error) error {
		if is, err := s.createFiled(a.ctx, wanted, &req, say); is {
			return err
		}
		made, err := s.made(&req)
		if err != nil {
			return err
		}
		made.Name = wanted
		for _, status := range []string{"parsing GGUF", "using existing layer sha256:" + hexDigest("weights "+made.Digest), "writing manifest"} {
			if err := say(progress{Status: status}); err != nil {
				return err
			}
		}
		s.catalog.put(made, time.Now())
		return say(progress{Status: "success"})
	})
}

func (s *Server) made(req *manageRequest) (Model, error) {
	changes := req.System + "\x00" + req.Template + "\x00" + string(req.Parameters)
	if req.From != "" {
		m, err := s.catalog.find(req.From)
		if err != nil {
			return Model{}, errNothingToPull
		}
		if changes != "\x00\x00" {
			m.Digest = hexDigest(m.Digest + changes)
		}
		return m.Model, nil
	}
	if req.Files == nil {
		return Model{}, &refusal{http.StatusBadRequest, "neither 'from' or 'files' was specified"}
	}
	m := Model{}
	digests := make([]string, 0, len(req.Files))
	for _, d := range req.Files {
		size, ok := s.catalog.blob(d)
		if !ok {
			return m, &refusal{http.StatusInternalServerError, missingBlob(d)}
		}
		m.Size += size
		digests = append(digests, d)
	}
	slices.Sort(digests)
	m.Digest = hexDigest(strings.Join(digests, "\n") + changes)
	return m, nil
}

func (s *Server) copyModel(w http.ResponseWriter, r *http.Request) {
	errs := ollamaErrors{}
	var req struct{ Source, Destination string }
	if !s.decode(w, r, &req, errs) {
		return
	}
	for _, n := range [...]struct{ what, name string }{{"source", req.Source}, {"destination", req.Destination}} {
		if !parseName(n.name).valid() {
			errs.fail(w, http.StatusBadRequest, fmt.Sprintf("%s %q is invalid", n.what, n.name))
			return
		}
	}
	if f := s.catalog.folder; f != nil {
		err := f.copy(req.Source, req.Destination)
		if err == nil {
			s.catalog.forget(req.Destination)
			w.WriteHeader(http.StatusOK)
			return
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs.fail(w, http.StatusInternalServerError, err.Error())
			return
		}
	}
	m, err := s.catalog.find(req.Source)
	if err != nil {
		errs.fail(w, http.StatusNotFound, fmt.Sprintf("model %q not found", req.Source))
		return
	}
	m.Name = req.Destination
	s.catalog.put(m.Model, time.Now())
	w.WriteHeader(http.StatusOK)
}

func (s *Server) deleteModel(w http.ResponseWriter, r *http.Request) {
	errs := ollamaErrors{}
	var req manageRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	wanted := modelName(req.Model, req.Name)
	switch {
	case wanted == "":
		errs.fail(w, http.StatusBadRequest, errNoName.Error())
	case !parseName(wanted).valid():
		errs.fail(w, http.StatusBadRequest, fmt.Sprintf("name %q is invalid", wanted))
	default:
		held, err := s.catalog.remove(wanted)
		switch {
		case err != nil:
			errs.fail(w, http.StatusInternalServerError, err.Error())
		case !held:
			errs.fail(w, http.StatusNotFound, fmt.Sprintf("model '%s' not found", wanted))
		default:
			w.WriteHeader(http.StatusOK)
		}
	}
}
