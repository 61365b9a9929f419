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
	MaxTokens *int            `json:"max_tokens"`
	Stop      texts           `json:"stop"`
	Tools     json.RawMessage `json:"tools"`
	Debug     bool            `json:"_debug_render_only"`
	Continue  bool            `json:"continue_final_message"` // vLLM; KindOpenAI only
}

type openaiMessage struct {
	Role      string          `json:"role"`
	Content   any             `json:"content"`
	ToolCalls json.RawMessage `json:"tool_calls"`
}

func (r *openaiRequest) call(m Model) *call {
	c := &call{model: m, limit: -1, stop: r.Stop.sequences(), stream: r.Stream}
	if r.MaxTokens != nil {
		c.limit = *r.MaxTokens
	}
	return c
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
			out = append(out, message{Role: m.Role, Content: content, ToolCalls: m.ToolCalls})
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
		default:
			if m.ToolCalls == nil {
				return nil, fmt.Errorf("invalid message content type: %T", content)
			}
			out = append(out, message{Role: m.Role, ToolCalls: m.ToolCalls})
		}
	}
	return out, nil
}

// chatModel finds the model of a /v1 route built on the chat handler, or answers.
func (s *Server) chatModel(w http.ResponseWriter, errs failer, model, what string) (heldModel, bool) {
	m, err := s.catalog.find(model)
	status, text := chatModelError(err, model)
	if status == 0 && m.Embedding {
		status, text = http.StatusBadRequest, fmt.Sprintf("%q does not support %s", model, what)
	}
	if status != 0 {
		errs.fail(w, status, text)
		return m, false
	}
	return m, true
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
	m, ok := s.chatModel(w, errs, req.Model, "chat")
	if !ok {
		return
	}
	c := req.call(m.Model)
	c.text, c.images = render(msgs, req.Tools, s.contextLength(c))
	if req.Continue && s.cfg.Kind == KindOpenAI && msgs[len(msgs)-1].Role == "assistant" {
		c.text = strings.TrimSuffix(c.text, "\n"+turnAssistant)
	}
	d := s.openaiDialect("chatcmpl-", &req)
	d.chat = true
	if req.Debug && s.cfg.Kind == KindOllama {
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
	case m.Embedding:
		errs.fail(w, http.StatusBadRequest, fmt.Sprintf("%q does not support generate", req.Model))
		return
	}
	c := req.call(m.Model)
	switch {
	case s.cfg.Kind == KindOpenAI:
		c.text = req.Prompt
	case req.Suffix != "":
		c.text = "<|prefix|>" + req.Prompt + "<|suffix|>" + req.Suffix + turnAssistant
	default:
		c.text, _ = render([]message{{Role: "user", Content: req.Prompt}}, nil, s.contextLength(c))
	}
	d := s.openaiDialect("cmpl-", &req)
	if req.Debug && s.cfg.Kind == KindOllama {
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

// openaiDialect writes the records of /v1/chat/completions and /v1/completions.
type openaiDialect struct {
	openaiErrors
	id, model string // model is quoted
	created   int64
	chat      bool
	usage     bool // asked for in streams
	opened    bool // the chunk with the role went out
}

func (d *openaiDialect) contentTypes() (stream, whole string) { return typeSSE, typeBareJSON }

func (d *openaiDialect) piece(b []byte, _, json string) []byte {
	b = d.head(append(b, "data: "...), d.model, "chat.completion.chunk")
	return append(d.chunk(b, json, "null"), "\n\n"...)
}

// head writes an object as far as its choices.
func (d *openaiDialect) head(b []byte, model, chatObject string) []byte {
	b = append(append(append(b, `{"id":"`...), d.id...), `","object":"`...)
	if d.chat {
		b = append(b, chatObject...)
	} else {
		b = append(b, "text_completion"...)
	}
	b = appendInt(b, `","created":`, d.created)
	return append(append(append(b, `,"model":"`...), model...), `","system_fingerprint":"fp_ollama","choices":[`...)
}

// chunk writes one choice and closes the object; reason is JSON.
func (d *openaiDialect) chunk(b []byte, json, reason string) []byte {
	switch {
	case !d.chat:
		b = append(append(append(b, `{"text":"`...), json...), `","index":0`...)
	case reason != "null":
		b = append(b, `{"index":0,"delta":{}`...)
	case d.opened:
		b = append(append(append(b, `{"index":0,"delta":{"content":"`...), json...), `"}`...)
	default:
		d.opened = true
		b = append(append(append(b, `{"index":0,"delta":{"role":"assistant","content":"`...), json...), `"}`...)
	}
	b = append(append(append(b, `,"finish_reason":`...), reason...), `}]`...)
	if d.usage && !d.chat {
		b = append(b, `,"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}`...)
	}
	return append(b, '}')
}

func (d *openaiDialect) end(b []byte, r *result) []byte {
	if d.chat && !d.opened {
		b = d.piece(b, "", "")
	}
	b = d.head(append(b, "data: "...), d.model, "chat.completion.chunk")
	b = append(d.chunk(b, "", `"`+r.reason+`"`), "\n\n"...)
	if d.usage {
		b = d.head(append(b, "data: "...), d.model, "chat.completion.chunk")
		b = append(d.counts(append(b, ']'), r), "}\n\n"...)
	}
	return append(b, "data: [DONE]\n\n"...)
}

func (d *openaiDialect) counts(b []byte, r *result) []byte {
	b = appendInt(b, `,"usage":{"prompt_tokens":`, int64(r.promptTokens))
	b = appendInt(b, `,"completion_tokens":`, int64(r.tokens))
	return append(appendInt(b, `,"total_tokens":`, int64(r.promptTokens+r.tokens)), '}')
}

func (d *openaiDialect) whole(b []byte, text string, r *result) []byte {
	b = d.head(b, d.model, "chat.completion")
	if d.chat {
		b = append(append(append(b, `{"index":0,"message":{"role":"assistant","content":"`...), quoted(text)...), `"},"finish_reason":"`...)
	} else {
		b = append(append(append(b, `{"text":"`...), quoted(text)...), `","index":0,"finish_reason":"`...)
	}
	b = append(append(b, r.reason...), `"}]`...)
	return append(d.counts(b, r), "}\n"...)
}

// died is the empty chunk without a model that Ollama sends; the stream then ends without [DONE].
func (d *openaiDialect) died(b []byte) []byte {
	d.opened = true
	b = d.head(append(b, "data: "...), "", "chat.completion.chunk")
	return append(d.chunk(b, "", "null"), "\n\n"...)
}

// debug answers _debug_render_only. As in Ollama 0.33, only a whole chat completion carries the
// rendering: a completion and a stream have no field for it.
func (d *openaiDialect) debug(w http.ResponseWriter, c *call) {
	if c.stream {
		writeBytes(w, http.StatusOK, typeSSE, d.piece(nil, "", ""))
		return
	}
	if !d.chat {
		b := append(d.head(nil, d.model, ""), `{"text":"","index":0,"finish_reason":null}]`...)
		writeBytes(w, http.StatusOK, typeBareJSON, append(d.counts(b, &result{}), "}\n"...))
		return
	}
	b := append(d.head(nil, d.model, "chat.completion"), `{"index":0,"message":{"role":"","content":""},"finish_reason":null}]`...)
	b = append(d.counts(b, &result{}), `,"_debug_info":{"rendered_template":"`+quoted(c.text)+`"`...)
	if len(c.images) > 0 {
		b = appendInt(b, `,"image_count":`, int64(len(c.images)))
	}
	writeBytes(w, http.StatusOK, typeBareJSON, append(b, "}}\n"...))
}
