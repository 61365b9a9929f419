package enginetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
)

type responsesRequest struct {
	Model        string          `json:"model"`
	Input        responsesInput  `json:"input"`
	Instructions string          `json:"instructions"`
	Stream       bool            `json:"stream"`
	MaxTokens    *int            `json:"max_output_tokens"`
	Tools        json.RawMessage `json:"tools"`
	Temperature  *float64        `json:"temperature"`
	TopP         *float64        `json:"top_p"`
	Truncation   *string         `json:"truncation"`
	Text         struct {
		Format json.RawMessage `json:"format"`
	} `json:"text"`
	Reasoning struct {
		Effort  string `json:"effort"`
		Summary string `json:"summary"`
	} `json:"reasoning"`
}

// responsesInput is a string, spoken by the user, or a list of items.
type responsesInput []responsesItem

type responsesItem struct {
	Type      string `json:"type"`
	Role      string `json:"role"`
	Content   blocks `json:"content"`
	CallID    string `json:"call_id"`
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
	Output    blocks `json:"output"`
	Encrypted string `json:"encrypted_content"` // of reasoning: Ollama's is plain text
}

func (in *responsesInput) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*in = responsesInput{{Type: "message", Role: "user", Content: blocks{{Type: "text", Text: s}}}}
		return nil
	}
	return json.Unmarshal(b, (*[]responsesItem)(in))
}

// messages turns the items into Ollama's messages: reasoning and calls join the assistant's.
func (r *responsesRequest) messages() []message {
	var out []message
	if r.Instructions != "" {
		out = append(out, message{Role: "system", Content: r.Instructions})
	}
	var thinking string // waits for the assistant's next message
	for i, it := range r.Input {
		switch it.Type {
		case "reasoning":
			thinking = it.Encrypted
		case "", "message":
			m := message{Role: it.Role}
			m.Content, m.Images = it.Content.flatten()
			if m.Role == "assistant" {
				m.Thinking, thinking = thinking, ""
			}
			if last := r.callBefore(i, out); m.Role == "assistant" && last != nil {
				last.join(m)
				continue
			}
			out = append(out, m)
		case "function_call":
			if len(out) == 0 || out[len(out)-1].Role != "assistant" {
				out = append(out, message{Role: "assistant"})
			}
			m := &out[len(out)-1]
			m.ToolCalls = append(m.ToolCalls, toolCall{it.CallID, it.Name, canonical(json.RawMessage(it.Arguments))})
			if thinking != "" {
				m.Thinking, thinking = thinking, ""
			}
		case "function_call_output":
			text, images := it.Output.flatten()
			out = append(out, message{Role: "tool", Content: text, Images: images})
		}
	}
	if thinking != "" {
		out = append(out, message{Role: "assistant", Thinking: thinking})
	}
	return out
}

// callBefore returns the last of out if it calls the tool whose result is the item after i: a message
// between the two belongs to the call's.
func (r *responsesRequest) callBefore(i int, out []message) *message {
	if i+1 >= len(r.Input) || r.Input[i+1].Type != "function_call_output" || len(out) == 0 {
		return nil
	}
	last := &out[len(out)-1]
	if last.Role != "assistant" || !slices.ContainsFunc(last.ToolCalls, func(c toolCall) bool { return c.ID == r.Input[i+1].CallID }) {
		return nil
	}
	return last
}

// join adds what a later message of the same turn says.
func (m *message) join(later message) {
	if m.Content != "" && later.Content != "" {
		m.Content += "\n"
	}
	m.Content += later.Content
	m.Images = append(m.Images, later.Images...)
	if later.Thinking != "" {
		m.Thinking = later.Thinking
	}
}

// schema returns the one that the answer must follow, if any.
func (r *responsesRequest) schema() json.RawMessage {
	var f struct {
		Type   string          `json:"type"`
		Schema json.RawMessage `json:"schema"`
	}
	if len(r.Text.Format) == 0 || json.Unmarshal(r.Text.Format, &f) != nil || f.Type != "json_schema" {
		return nil
	}
	return f.Schema
}

func (s *Server) v1Responses(w http.ResponseWriter, r *http.Request) {
	errs := openaiErrors{}
	var req responsesRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	t, err := effort(req.Reasoning.Effort)
	if err != nil {
		errs.fail(w, http.StatusBadRequest, err.Error())
		return
	}
	m, ok := s.chatModel(w, errs, req.Model)
	if !ok {
		return
	}
	c := &call{model: m.Model, asked: req.Model, limit: -1, stream: req.Stream, temperature: orDefault(req.Temperature, 1)}
	if req.MaxTokens != nil {
		c.limit = *req.MaxTokens
	}
	if !s.capable(w, errs, c, "chat", t, req.Tools) {
		return
	}
	if !c.constrain(w, errs, req.schema()) {
		return
	}
	s.render(c, s.template(c), req.messages(), req.Tools)
	n := s.seq.Add(1)
	s.generate(w, r, c, &responsesDialect{
		req: &req, number: fmt.Sprint(n), created: time.Now().Unix(),
	})
}
