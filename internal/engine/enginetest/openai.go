package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// openaiErrors is how /v1 tells errors, but for /v1/messages.
type openaiErrors struct{}

func (openaiErrors) fail(w http.ResponseWriter, status int, message string) {
	kind := "api_error"
	switch status {
	case http.StatusBadRequest:
		kind = "invalid_request_error"
	case http.StatusNotFound:
		kind = "not_found_error"
	}
	writeBytes(w, status, typeBareJSON, []byte(`{"error":{"message":"`+quoted(message)+`","type":"`+kind+`","param":null,"code":null}}`+"\n"))
}

func (openaiErrors) died(b []byte) []byte { return b }

// openaiRequest is the body of /v1/chat/completions and /v1/completions.
type openaiRequest struct {
	Model         string          `json:"model"`
	Messages      []openaiMessage `json:"messages"`
	Prompt        string          `json:"prompt"`
	Suffix        string          `json:"suffix"`
	Stream        bool            `json:"stream"`
	StreamOptions *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	MaxTokens   *int            `json:"max_tokens"`
	Temperature *float64        `json:"temperature"`
	Seed        *int64          `json:"seed"`
	Stop        texts           `json:"stop"`
	Tools       json.RawMessage `json:"tools"`
	Reasoning   *struct {
		Effort string `json:"effort"`
	} `json:"reasoning"`
	Effort string `json:"reasoning_effort"`
	Format struct {
		Type   string `json:"type"`
		Schema struct {
			Schema json.RawMessage `json:"schema"`
		} `json:"json_schema"`
	} `json:"response_format"`
	Debug    bool `json:"_debug_render_only"`
	Continue bool `json:"continue_final_message"` // vLLM; KindOpenAI only
}

type openaiMessage struct {
	Role      string     `json:"role"`
	Content   any        `json:"content"`
	Reasoning string     `json:"reasoning"`
	ToolCalls []toolCall `json:"tool_calls"`
}

func (r *openaiRequest) call(m Model) *call {
	c := &call{
		model: m, asked: r.Model, limit: -1, stop: r.Stop.sequences(), stream: r.Stream,
		temperature: orDefault(r.Temperature, 1), seed: r.Seed,
	}
	if r.MaxTokens != nil {
		c.limit = *r.MaxTokens
	}
	return c
}

// format returns what Ollama makes of response_format.
func (r *openaiRequest) format() json.RawMessage {
	switch strings.ToLower(strings.TrimSpace(r.Format.Type)) {
	case "json_object":
		return json.RawMessage(`"json"`)
	case "json_schema":
		return r.Format.Schema.Schema
	}
	return nil
}

func (r *openaiRequest) includeUsage() bool {
	return r.StreamOptions != nil && r.StreamOptions.IncludeUsage
}

// messages turns OpenAI's messages into Ollama's: each part of a content is one of its own.
func (r *openaiRequest) messages() ([]message, error) {
	invalid := errors.New("invalid message format")
	var out []message
	for _, m := range r.Messages {
		switch content := m.Content.(type) {
		case string:
			out = append(out, message{Role: m.Role, Content: content, Thinking: m.Reasoning, ToolCalls: m.ToolCalls})
		case []any:
			for _, p := range content {
				part, ok := p.(map[string]any)
				if !ok {
					return nil, invalid
				}
				switch part["type"] {
				case "text":
					text, ok := part["text"].(string)
					if !ok {
						return nil, invalid
					}
					out = append(out, message{Role: m.Role, Content: text})
				case "image_url":
					u, _ := part["image_url"].(string)
					if o, ok := part["image_url"].(map[string]any); ok {
						u, _ = o["url"].(string)
					}
					_, data, ok := strings.Cut(u, ";base64,")
					if !ok {
						return nil, errors.New("invalid image input")
					}
					out = append(out, message{Role: m.Role, Images: []string{data}})
				default:
					return nil, invalid
				}
			}
			if len(out) > 0 && len(m.ToolCalls) > 0 {
				last := &out[len(out)-1]
				last.ToolCalls, last.Thinking = m.ToolCalls, m.Reasoning
			}
		default:
			if m.ToolCalls == nil {
				return nil, fmt.Errorf("invalid message content type: %T", content)
			}
			out = append(out, message{Role: m.Role, Thinking: m.Reasoning, ToolCalls: m.ToolCalls})
		}
	}
	return out, nil
}

func (s *Server) v1Chat(w http.ResponseWriter, r *http.Request) {
	errs := openaiErrors{}
	var req openaiRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	if len(req.Messages) == 0 {
		errs.fail(w, http.StatusBadRequest, "[] is too short - 'messages'")
		return
	}
	msgs, err := req.messages()
	if err != nil {
		errs.fail(w, http.StatusBadRequest, err.Error())
		return
	}
	level := req.Effort
	if req.Reasoning != nil {
		level = req.Reasoning.Effort
	}
	t, err := effort(level)
	if err != nil {
		errs.fail(w, http.StatusBadRequest, err.Error())
		return
	}
	m, ok := s.chatModel(w, errs, req.Model)
	if !ok {
		return
	}
	c := req.call(m.Model)
	if !s.capable(w, errs, c, "chat", t, req.Tools) {
		return
	}
	if !c.constrain(w, errs, req.format()) {
		return
	}
	tmpl := s.template(c)
	tmpl.prefill = tmpl.prefill || req.Continue && s.cfg.Kind == KindOpenAI
	s.render(c, tmpl, msgs, req.Tools)
	d := s.openaiDialect("chatcmpl-", &req)
	d.chat = true
	if req.Debug && s.cfg.Kind == KindOllama {
		s.count.renders.Add(1)
		d.debug(w, c)
		return
	}
	s.generate(w, r, c, d)
}

func (s *Server) v1Completions(w http.ResponseWriter, r *http.Request) {
	errs := openaiErrors{}
	var req openaiRequest
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
	c := req.call(m.Model)
	if !s.capable(w, errs, c, "generate", think{}, nil) {
		return
	}
	switch {
	case s.cfg.Kind == KindOpenAI:
		c.text, c.raw = req.Prompt, true
	case req.Suffix != "":
		c.text = "<|prefix|>" + req.Prompt + "<|suffix|>" + req.Suffix + turnAssistant
	default:
		s.render(c, s.template(c), []message{{Role: "user", Content: req.Prompt}}, nil)
	}
	d := s.openaiDialect("cmpl-", &req)
	if req.Debug && s.cfg.Kind == KindOllama {
		s.count.renders.Add(1)
		d.debug(w, c)
		return
	}
	s.generate(w, r, c, d)
}

func (s *Server) openaiDialect(prefix string, req *openaiRequest) *openaiDialect {
	return &openaiDialect{
		id: fmt.Sprint(prefix, s.seq.Add(1)), model: quoted(req.Model),
		usage: req.includeUsage(), created: time.Now().Unix(),
	}
}
