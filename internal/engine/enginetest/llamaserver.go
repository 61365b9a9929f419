package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

//lint:ignore ST1005 llama-server's text
var errTwoAssistants = errors.New("Cannot have 2 or more assistant messages at the end of the list.")

// llamaErrors is how llama-server tells errors.
type llamaErrors struct{}

func (llamaErrors) fail(w http.ResponseWriter, status int, message string) {
	writeBytes(w, status, typeJSON, llamaErrors{}.body(nil, status, message))
}

func (llamaErrors) body(b []byte, status int, message string) []byte {
	kind := "server_error"
	switch status {
	case http.StatusBadRequest:
		kind = "invalid_request_error"
	case http.StatusNotFound:
		kind = "not_found_error"
	case http.StatusNotImplemented:
		kind = "not_supported_error"
	case http.StatusServiceUnavailable:
		kind = "unavailable_error"
	}
	return append(appendInt(b, `{"error":{"code":`, int64(status)), `,"message":"`+quoted(message)+`","type":"`+kind+`"}}`...)
}

// died is the event of an error in mid-stream.
func (llamaErrors) died(b []byte) []byte {
	b = llamaErrors{}.body(append(b, "data: "...), http.StatusInternalServerError, "Compute error.")
	return append(b, "\n\n"...)
}

// llamaMessage is a message as llama-server takes it.
type llamaMessage struct {
	Role      string     `json:"role"`
	Content   blocks     `json:"content"`
	Reasoning string     `json:"reasoning_content"`
	ToolCalls []toolCall `json:"tool_calls"`
}

type llamaRequest struct {
	openaiRequest
	Messages []llamaMessage `json:"messages"`
	Kwargs   struct {
		Thinking *bool `json:"enable_thinking"`
	} `json:"chat_template_kwargs"`
}

// messages joins the texts of a message with line ends.
func (r *llamaRequest) messages() []message {
	out := make([]message, 0, len(r.Messages))
	for _, m := range r.Messages {
		var text []string
		var images []string
		for _, part := range m.Content {
			switch part.Type {
			case "text":
				text = append(text, part.Text)
			case "image_url":
				if _, data, ok := strings.Cut(part.ImageURL.URL, ";base64,"); ok {
					images = append(images, data)
				}
			}
		}
		out = append(out, message{Role: m.Role, Content: strings.Join(text, "\n"), Thinking: m.Reasoning, Images: images, ToolCalls: m.ToolCalls})
	}
	return out
}

// prompt renders the messages, or says what is wrong with them.
func (s *Server) prompt(c *call, req *llamaRequest) (last message, err error) {
	if len(req.Messages) == 0 {
		return last, errors.New("'messages' is required")
	}
	msgs := req.messages()
	last = msgs[len(msgs)-1]
	if n := len(msgs); n > 1 && last.Role == "assistant" && msgs[n-2].Role == "assistant" {
		return last, errTwoAssistants
	}
	c.quiet = c.model.Thinking && (req.Effort == "none" || !orDefault(req.Kwargs.Thinking, true))
	c.text, c.images = s.template(c).render(msgs, parseTools(req.Tools))
	if last.Role != "assistant" || s.cfg.ClosesAssistant {
		last = message{}
	}
	return last, nil
}

// theModel returns the model of a request: a llama-server that has only one asks for no name.
func (s *Server) theModel(name string) (Model, bool) {
	if m, err := s.catalog.find(name); err == nil {
		return m.Model, true
	}
	if all := s.catalog.list(); len(all) == 1 {
		return all[0].Model, true
	}
	return Model{}, false
}

// llamaGenerates reads the request of a route that generates, or answers. With --embeddings a
// llama-server generates too.
func (s *Server) llamaGenerates(w http.ResponseWriter, r *http.Request) (*llamaRequest, *call, bool) {
	errs := llamaErrors{}
	var req llamaRequest
	if !s.decode(w, r, &req, errs) {
		return nil, nil, false
	}
	m, ok := s.theModel(req.Model)
	if !ok {
		errs.fail(w, http.StatusBadRequest, fmt.Sprintf("model '%s' not found", req.Model))
		return nil, nil, false
	}
	c := req.call(m)
	if c.limit == 0 {
		c.limit = 1 // it looks at the limit after a piece
	}
	return &req, c, c.constrain(w, errs, req.format())
}

// llamaGenerate answers c; a prompt longer than the context is refused.
func (s *Server) llamaGenerate(w http.ResponseWriter, r *http.Request, c *call, d *llamaDialect) {
	if n, limit := Tokens(c.text), s.contextLength(c); n > limit {
		text := fmt.Sprintf("request (%d tokens) exceeds the available context size (%d tokens), try increasing it", n, limit)
		writeBytes(w, http.StatusBadRequest, typeJSON, fmt.Appendf(nil,
			`{"error":{"code":400,"message":"%s","type":"exceed_context_size_error","n_prompt_tokens":%d,"n_ctx":%d}}`, text, n, limit))
		return
	}
	s.generate(w, r, c, d)
}

func (s *Server) llamaChat(w http.ResponseWriter, r *http.Request) {
	req, c, ok := s.llamaGenerates(w, r)
	if !ok {
		return
	}
	last, err := s.prompt(c, req)
	if err != nil {
		llamaErrors{}.fail(w, http.StatusBadRequest, err.Error())
		return
	}
	s.llamaGenerate(w, r, c, &llamaDialect{head: s.llamaHead(c), chat: true, usage: req.includeUsage(), prefill: last})
}

func (s *Server) llamaCompletions(w http.ResponseWriter, r *http.Request) {
	req, c, ok := s.llamaGenerates(w, r)
	if !ok {
		return
	}
	if req.Prompt == "" {
		llamaErrors{}.fail(w, http.StatusBadRequest, "[json.exception.out_of_range.403] key 'prompt' not found")
		return
	}
	c.text, c.raw = req.Prompt, true
	s.llamaGenerate(w, r, c, &llamaDialect{head: s.llamaHead(c)})
}

func (s *Server) llamaEmbeddings(w http.ResponseWriter, r *http.Request) {
	if m, ok := s.theModel(""); ok && !m.Embedding {
		llamaErrors{}.fail(w, http.StatusNotImplemented, errNoEmbeddings.Error())
		return
	}
	var req embedRequest
	if !s.decode(w, r, &req, llamaErrors{}) {
		return
	}
	in, ok := req.inputs()
	if !ok || len(in) == 0 {
		llamaErrors{}.fail(w, http.StatusBadRequest, `"input" or "content" must be provided`)
		return
	}
	m, ok := s.theModel(req.Model)
	if !ok {
		llamaErrors{}.fail(w, http.StatusBadRequest, fmt.Sprintf("model '%s' not found", req.Model))
		return
	}
	req.Model = m.Name
	s.embed(w, r, &req, in, llamaErrors{}, typeJSON, func(vectors [][]float32, res *result) any {
		type datum struct {
			Embedding any    `json:"embedding"`
			Index     int    `json:"index"`
			Object    string `json:"object"`
			Encoding  string `json:"encoding_format,omitempty"`
		}
		data := make([]datum, len(vectors))
		for i, v := range vectors {
			data[i] = datum{v, i, "embedding", ""}
			if req.EncodingFormat == "base64" {
				data[i].Embedding, data[i].Encoding = base64Floats(v), "base64"
			}
		}
		return map[string]any{
			"model": m.Name, "object": "list", "data": data,
			"usage": map[string]int{"prompt_tokens": res.promptTokens, "total_tokens": res.promptTokens},
		}
	})
}

func (s *Server) applyTemplate(w http.ResponseWriter, r *http.Request) {
	errs := llamaErrors{}
	var req llamaRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	m, _ := s.theModel(req.Model)
	c := &call{model: m}
	if _, err := s.prompt(c, &req); err != nil {
		errs.fail(w, http.StatusBadRequest, err.Error())
		return
	}
	s.count.renders.Add(1)
	writeJSON(w, http.StatusOK, map[string]string{"prompt": c.text})
}

// llamaModels lists the models twice, in Ollama's manner and in OpenAI's.
func (s *Server) llamaModels(w http.ResponseWriter, _ *http.Request) {
	models, data := []any{}, []any{}
	for _, m := range s.catalog.list() {
		models = append(models, map[string]any{
			"name": m.Name, "model": m.Name, "modified_at": "", "size": "", "digest": "", "type": "model",
			"description": "", "tags": []string{""}, "capabilities": []string{"completion"}, "parameters": "",
			"details": map[string]any{"parent_model": "", "format": "gguf", "family": "", "families": []string{""}, "parameter_size": "", "quantization_level": ""},
		})
		data = append(data, map[string]any{
			"id": m.Name, "aliases": []string{m.Name}, "tags": []string{}, "object": "model", "owned_by": "llamacpp", "created": m.modified.Unix(),
			"architecture": map[string]any{"input_modalities": []string{"text"}, "output_modalities": []string{"text"}},
			"meta": map[string]any{
				"vocab_type": 2, "n_vocab": len(pieces), "n_ctx": s.contextLength(&call{model: m.Model}), "n_ctx_train": m.ContextLength,
				"n_embd": EmbeddingLength, "n_params": 1_000_000_000, "size": m.Size, "ftype": "F16",
			},
		})
	}
	writeJSON(w, http.StatusOK, map[string]any{"models": models, "object": "list", "data": data})
}

func (s *Server) props(w http.ResponseWriter, _ *http.Request) {
	m, _ := s.theModel("")
	writeJSON(w, http.StatusOK, map[string]any{
		"default_generation_settings": map[string]any{
			"params": map[string]any{"seed": 4294967295, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "max_tokens": -1, "n_predict": -1},
			"n_ctx":  s.contextLength(&call{model: m}),
		},
		"total_slots": s.cfg.Slots, "model_alias": m.Name, "model_path": "/models/" + m.Name + ".gguf", "model_ftype": "F16",
		"modalities":    map[string]bool{"vision": m.Vision, "video": false, "audio": false},
		"chat_template": "{% for m in messages %}…{% endfor %}" + turnAssistant,
		"bos_token":     turnBegin, "eos_token": turnEnd, "build_info": s.cfg.Version, "is_sleeping": false,
	})
}

func (s *Server) llamaRoutes() map[string]methods {
	return map[string]methods{
		"/health":              {"GET": {serve: s.health}},
		"/props":               {"GET": {serve: s.props}},
		"/models":              {"GET": {serve: s.llamaModels}},
		"/v1/models":           {"GET": {serve: s.llamaModels}},
		"/v1/chat/completions": {"POST": {s.llamaChat, true}},
		"/v1/completions":      {"POST": {s.llamaCompletions, true}},
		"/v1/embeddings":       {"POST": {s.llamaEmbeddings, true}},
		"/apply-template":      {"POST": {serve: s.applyTemplate}},
	}
}

// notFound is what llama-server answers to a path or a method that it does not have.
func notFound(w http.ResponseWriter) {
	writeJSON(w, http.StatusNotFound, json.RawMessage(`{"error":{"message":"File Not Found","type":"not_found_error","code":404}}`))
}
