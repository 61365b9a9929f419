package enginetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// ollamaErrors is how /api tells errors.
type ollamaErrors struct{}

func (ollamaErrors) fail(w http.ResponseWriter, status int, message string) {
	writeBytes(w, status, typeJSON, []byte(`{"error":"`+quoted(message)+`"}`))
}

func (ollamaErrors) died(b []byte) []byte {
	return append(append(append(b, `{"error":"`...), runnerDied...), "\"}\n"...)
}

// ollamaOptions are those of a request's options that matter here.
type ollamaOptions struct {
	NumPredict  *float64 `json:"num_predict"`
	NumCtx      float64  `json:"num_ctx"`
	Stop        texts    `json:"stop"`
	Temperature float64  `json:"temperature"`
	Seed        *int64   `json:"seed"`
}

func (o ollamaOptions) limit() int {
	if o.NumPredict == nil {
		return -1
	}
	return int(*o.NumPredict)
}

// ollamaRequest is the body of /api/generate and /api/chat.
type ollamaRequest struct {
	Model     string          `json:"model"`
	Stream    *bool           `json:"stream"`
	KeepAlive *keepAlive      `json:"keep_alive"`
	Options   ollamaOptions   `json:"options"`
	Truncate  *bool           `json:"truncate"`
	Think     think           `json:"think"`
	Debug     bool            `json:"_debug_render_only"`
	Tools     json.RawMessage `json:"tools"`
	Format    json.RawMessage `json:"format"`

	Messages []message `json:"messages"`

	Prompt   string   `json:"prompt"`
	Suffix   string   `json:"suffix"`
	System   string   `json:"system"`
	Template string   `json:"template"`
	Context  []int    `json:"context"`
	Raw      bool     `json:"raw"`
	Images   []string `json:"images"`
}

func (r *ollamaRequest) call(m Model) *call {
	return &call{
		model: m, asked: r.Model, raw: r.Raw, limit: r.Options.limit(), stop: r.Options.Stop.sequences(),
		stream: r.Stream == nil || *r.Stream, context: int(r.Options.NumCtx),
		temperature: r.Options.Temperature, seed: r.Options.Seed, keepAlive: r.KeepAlive.duration(), strictLen: r.Truncate != nil && !*r.Truncate,
	}
}

func (s *Server) apiGenerate(w http.ResponseWriter, r *http.Request) {
	errs := ollamaErrors{}
	var req ollamaRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	m, err := s.catalog.find(req.Model)
	switch {
	case errors.Is(err, errBadName):
		errs.fail(w, http.StatusBadRequest, err.Error())
		return
	case err != nil:
		errs.fail(w, http.StatusNotFound, fmt.Sprintf("model '%s' not found", req.Model))
		return
	}
	d := &ollamaDialect{model: quoted(req.Model)}
	if req.Prompt == "" && req.KeepAlive != nil && req.KeepAlive.Duration == 0 {
		s.catalog.unload(m.Name)
		writeBytes(w, http.StatusOK, typeJSON, d.bare("unload"))
		return
	}
	if req.Raw && (req.Template != "" || req.System != "" || len(req.Context) > 0) {
		errs.fail(w, http.StatusBadRequest, "raw mode does not support template, system, or context")
		return
	}
	c := req.call(m.Model)
	if !s.capable(w, errs, c, "generate", req.Think, nil) {
		return
	}
	if req.Prompt == "" {
		s.loadOnly(w, r, c, d)
		return
	}
	if !c.constrain(w, errs, req.Format) {
		return
	}
	c.unthought = c.object // only the chat handler lets the model think first
	c.images = req.Images
	if req.Raw {
		c.text = req.Prompt
		s.count.raw.Add(1)
	} else if err := s.renderPrompt(c, &req); err != nil {
		errs.fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	if req.Debug {
		s.count.renders.Add(1)
		writeBytes(w, http.StatusOK, typeJSON, d.debug(c))
		return
	}
	s.generate(w, r, c, d)
}

func (s *Server) apiChat(w http.ResponseWriter, r *http.Request) {
	errs := ollamaErrors{}
	var req ollamaRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	m, err := s.catalog.find(req.Model)
	if status, text := chatModelError(err, req.Model); status != 0 {
		errs.fail(w, status, text)
		return
	}
	d := &ollamaDialect{model: quoted(req.Model), chat: true}
	if len(req.Messages) == 0 && req.KeepAlive != nil && req.KeepAlive.Duration == 0 {
		s.catalog.unload(m.Name)
		writeBytes(w, http.StatusOK, typeJSON, d.bare("unload"))
		return
	}
	c := req.call(m.Model)
	if !s.capable(w, errs, c, "chat", req.Think, req.Tools) {
		return
	}
	if len(req.Messages) == 0 {
		s.loadOnly(w, r, c, d)
		return
	}
	if !c.constrain(w, errs, req.Format) {
		return
	}
	s.render(c, s.template(c), req.Messages, req.Tools)
	if req.Debug {
		s.count.renders.Add(1)
		writeBytes(w, http.StatusOK, typeJSON, d.debug(c))
		return
	}
	s.generate(w, r, c, d)
}

// loadOnly answers a request without a prompt: it loads the model.
func (s *Server) loadOnly(w http.ResponseWriter, r *http.Request, c *call, d *ollamaDialect) {
	a := s.newAnswer(w, r, d)
	defer a.close()
	l, err := s.load(a, c)
	if err == nil {
		s.catalog.release(l, s.keepAlive(c.keepAlive))
		err = a.body(typeJSON, d.bare("load"))
	}
	s.finish(a, err)
}

// ollamaDialect writes the records of /api/generate and /api/chat.
type ollamaDialect struct {
	ollamaErrors
	model string // quoted
	chat  bool
}

func (d *ollamaDialect) contentTypes() (stream, whole string) { return typeNDJSON, typeJSON }

func (d *ollamaDialect) piece(b []byte, _, json string) []byte {
	return append(d.open(b, json, "", nil), "false}\n"...)
}

func (d *ollamaDialect) thought(b []byte, _, json string) []byte {
	return append(d.open(b, "", json, nil), "false}\n"...)
}

func (d *ollamaDialect) called(b []byte, c *toolCall) []byte {
	return append(d.open(b, "", "", c), "false}\n"...)
}

// open writes a record as far as the value of done. Content and thinking are JSON.
func (d *ollamaDialect) open(b []byte, content, thinking string, c *toolCall) []byte {
	b = append(append(append(b, `{"model":"`...), d.model...), `","created_at":"`...)
	b = time.Now().UTC().AppendFormat(b, time.RFC3339Nano)
	if d.chat {
		b = append(b, `","message":{"role":"assistant","content":"`...)
	} else {
		b = append(b, `","response":"`...)
	}
	b = append(append(b, content...), '"')
	if thinking != "" {
		b = append(append(append(b, `,"thinking":"`...), thinking...), '"')
	}
	if c != nil {
		b = append(append(append(b, `,"tool_calls":[{"id":"`...), c.ID...), `","function":{"index":0,"name":"`...)
		b = append(append(append(b, quoted(c.Name)...), `","arguments":`...), c.Arguments...)
		b = append(b, "}}]"...)
	}
	if d.chat {
		b = append(b, '}')
	}
	return append(b, `,"done":`...)
}

func (d *ollamaDialect) end(b []byte, r *result) []byte {
	return append(d.close(d.open(b, "", "", nil), r), '\n')
}

func (d *ollamaDialect) whole(b []byte, s said, r *result) []byte {
	return d.close(d.open(b, quoted(s.content), quoted(s.thinking), s.call), r)
}

// close ends a record that is done; zero counts and durations are left out, as by Ollama.
func (d *ollamaDialect) close(b []byte, r *result) []byte {
	if r.reason == "" {
		return append(b, "false}"...)
	}
	b = append(append(append(b, `true,"done_reason":"`...), r.reason...), '"')
	for _, f := range [...]struct {
		key string
		n   int64
	}{
		{`,"total_duration":`, int64(r.total)},
		{`,"load_duration":`, int64(r.load)},
		{`,"prompt_eval_count":`, int64(r.promptTokens)},
		{`,"prompt_eval_duration":`, int64(r.prefill)},
		{`,"eval_count":`, int64(r.tokens)},
		{`,"eval_duration":`, int64(r.eval)},
	} {
		if f.n != 0 {
			b = appendInt(b, f.key, f.n)
		}
	}
	return append(b, '}')
}

// bare is the answer to a request that only loads or unloads.
func (d *ollamaDialect) bare(reason string) []byte {
	return append(d.open(nil, "", "", nil), `true,"done_reason":"`+reason+`"}`...)
}

// debug is the answer to _debug_render_only.
func (d *ollamaDialect) debug(c *call) []byte {
	head := bytes.Replace(d.open(nil, "", "", nil), []byte(`{"role":"assistant",`), []byte(`{"role":"",`), 1)
	b := append(head, `false,"_debug_info":{"rendered_template":"`+quoted(c.text)+`"`...)
	if len(c.images) > 0 {
		b = appendInt(b, `,"image_count":`, int64(len(c.images)))
	}
	return append(b, "}}"...)
}
