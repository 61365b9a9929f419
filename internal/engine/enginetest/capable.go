package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
)

// think is whether the model shall think, if the request says.
type think struct{ said, on bool }

// UnmarshalJSON takes what Ollama's think takes: a boolean or a level.
func (t *think) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	const want = `"high", "medium", "low", "max", true, or false)`
	switch v := v.(type) {
	case nil:
	case bool:
		*t = think{true, v}
	case string:
		if !slices.Contains([]string{"high", "medium", "low", "max"}, v) {
			return fmt.Errorf("invalid think value: %q (must be %s", v, want)
		}
		*t = think{true, true}
	default:
		return fmt.Errorf("think must be a boolean or string (%s", want)
	}
	return nil
}

// effort reads OpenAI's reasoning effort.
func effort(level string) (think, error) {
	switch level {
	case "":
		return think{}, nil
	case "none":
		return think{true, false}, nil
	case "minimal", "low", "medium", "high", "xhigh", "ultra", "max":
		return think{true, true}, nil
	}
	return think{}, fmt.Errorf("invalid reasoning value: %q (must be \"minimal\", \"low\", \"medium\", \"high\", \"xhigh\", \"ultra\", \"max\", or \"none\")", level)
}

// capable says whether c's model can do what is asked; if not, it has answered. It notes in c
// whether a model that thinks is told not to.
func (s *Server) capable(w http.ResponseWriter, errs failer, c *call, what string, t think, tools json.RawMessage) bool {
	m := c.model
	var refusal string
	switch {
	case s.cfg.Kind != KindOllama && !m.Embedding:
	case t.on && !m.Thinking:
		refusal = fmt.Sprintf("%q does not support thinking", c.asked)
	case m.Embedding, m.lost:
		refusal = fmt.Sprintf("%q does not support %s", c.asked, what)
	case !m.Tools && len(parseTools(tools)) > 0:
		refusal = parseName(m.Name).full() + " does not support tools"
	}
	if refusal != "" {
		errs.fail(w, http.StatusBadRequest, refusal)
		return false
	}
	c.quiet = m.Thinking && t.said && !t.on
	return true
}

// constrain takes a format as Ollama does: "json" or a schema, of which only that it is one counts.
// If it is something else it has answered.
func (c *call) constrain(w http.ResponseWriter, errs failer, format json.RawMessage) bool {
	switch f := string(format); {
	case f == "" || f == "null" || f == `""`:
	case f == `"json"` || f[0] == '{':
		c.object = true
	default:
		errs.fail(w, http.StatusInternalServerError, fmt.Sprintf("invalid format: %q; expected \"json\" or a valid JSON Schema object", f))
		return false
	}
	return true
}

// chatModelError is what the chat handler, and all /v1 routes built on it, say of a model.
func chatModelError(err error, model string) (status int, text string) {
	switch {
	case err == nil:
		return 0, ""
	case errors.Is(err, errNoModel):
		return http.StatusNotFound, fmt.Sprintf("model '%s' not found", model)
	}
	return http.StatusBadRequest, err.Error()
}

// chatModel finds the model of a /v1 route built on the chat handler, or answers.
func (s *Server) chatModel(w http.ResponseWriter, errs failer, model string) (heldModel, bool) {
	m, err := s.catalog.find(model)
	if status, text := chatModelError(err, model); status != 0 {
		errs.fail(w, status, text)
		return m, false
	}
	return m, true
}
