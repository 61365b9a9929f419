package enginetest

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	gotemplate "text/template"
)

const (
	// turnAssistant is where the template lets the assistant speak; every rendered prompt ends with
	// it or with an answer begun after it, and what the model says follows directly.
	turnAssistant = "<|assistant|>"
	turnUser      = "<|user|>\n"
	// turnEnd closes an assistant's turn where Config.ClosesAssistant.
	turnEnd = "<|end|>"
	// turnBegin is the token that begins every text of a model with BOS.
	turnBegin = "<|begin|>"
)

// message is one turn of a chat, from whatever dialect.
type message struct {
	Role      string     `json:"role"`
	Content   string     `json:"content"`
	Thinking  string     `json:"thinking"`
	Images    []string   `json:"images"`
	ToolCalls []toolCall `json:"tool_calls"`
}

// template is how a model's prompts are rendered.
type template struct {
	begins  bool // with the token that begins a text
	quiet   bool // a model that thinks is told not to
	closes  bool // every turn of the assistant is closed, also the last message
	prefill bool // the last message, if it is the assistant's, stays open
}

func (s *Server) template(c *call) template {
	return template{
		begins: c.model.BOS && s.cfg.Kind != KindLlamaServer, // which strips it from what it renders
		quiet:  c.quiet, closes: s.cfg.ClosesAssistant,
		prefill: s.cfg.Kind != KindOpenAI && !s.cfg.ClosesAssistant,
	}
}

// render makes c's prompt of messages, dropping the oldest that are not of the system until it fits
// into the context. A former answer stands as it was spoken, so that a longer chat has the shorter
// one with its answer as a prefix.
func (s *Server) render(c *call, t template, msgs []message, tools json.RawMessage) {
	limit := s.contextLength(c)
	declared := parseTools(tools)
	for {
		c.text, c.images = t.render(msgs, declared)
		if Tokens(c.text) <= limit {
			return
		}
		oldest := slices.IndexFunc(msgs, func(m message) bool { return m.Role != "system" })
		if oldest < 0 || oldest == len(msgs)-1 {
			return // the last stays whatever its length; run cuts it
		}
		msgs = slices.Delete(slices.Clone(msgs), oldest, oldest+1)
	}
}

func (t template) render(msgs []message, tools []tool) (string, []string) {
	var b strings.Builder
	var images []string
	if t.begins {
		b.WriteString(turnBegin)
	}
	writeTools(&b, tools)
	for i, m := range msgs {
		role := strings.ToLower(m.Role)
		assistant := role == "assistant"
		open := assistant && t.prefill && i == len(msgs)-1 && len(m.ToolCalls) == 0
		if assistant {
			b.WriteString(turnAssistant)
		} else {
			b.WriteString("<|")
			b.WriteString(role)
			b.WriteString("|>\n")
		}
		if assistant && m.Thinking != "" || open && t.quiet {
			b.WriteString(thinkOpen)
			b.WriteString(m.Thinking)
			b.WriteString(thinkClose)
		}
		for _, img := range m.Images {
			b.WriteString("[img-")
			b.WriteString(strconv.Itoa(len(images)))
			b.WriteByte(']')
			images = append(images, img)
		}
		b.WriteString(m.Content)
		for _, tc := range m.ToolCalls {
			b.WriteString(tc.raw())
		}
		if open {
			return b.String(), images
		}
		if assistant && t.closes {
			b.WriteString(turnEnd)
		}
		b.WriteByte('\n')
	}
	b.WriteString(turnAssistant)
	if t.quiet {
		b.WriteString(thinkOpen + thinkClose)
	}
	return b.String(), images
}

// renderPrompt makes c's prompt of a request to generate: its template's if it brings one, after the
// conversation that its context stands for.
func (s *Server) renderPrompt(c *call, req *ollamaRequest) error {
	switch {
	case req.Template != "":
		t, err := gotemplate.New("").Parse(req.Template)
		if err != nil {
			return err
		}
		var b strings.Builder
		if err := t.Execute(&b, map[string]string{"System": req.System, "Prompt": req.Prompt, "Suffix": req.Suffix, "Response": ""}); err != nil {
			return err
		}
		c.text = b.String() + turnAssistant
	case req.Suffix != "":
		c.text = "<|prefix|>" + req.Prompt + "<|suffix|>" + req.Suffix + turnAssistant
	default:
		var msgs []message
		if req.System != "" {
			msgs = append(msgs, message{Role: "system", Content: req.System})
		}
		msgs = append(msgs, message{Role: "user", Content: req.Prompt, Images: req.Images})
		s.render(c, s.template(c), msgs, nil)
	}
	if len(req.Context) > 0 {
		c.text = detokenize(req.Context) + c.text
	}
	return nil
}

// detokenize stands for the text of tokens that nobody has made.
func detokenize(ids []int) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(" t" + strconv.Itoa(id))
	}
	return b.String()
}
