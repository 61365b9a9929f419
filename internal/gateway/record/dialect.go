package record

import (
	"encoding/json"
	"net/http"
	"strings"
)

// Dialect is a family of APIs with its own form of errors.
type Dialect uint8

// The dialects.
const (
	OllamaDialect Dialect = iota
	OpenAIDialect
	AnthropicDialect
)

// DialectOf returns the dialect of a client's route, whether it generates or not.
func DialectOf(path string) Dialect {
	switch {
	case path == "/v1/messages":
		return AnthropicDialect
	case strings.HasPrefix(path, "/v1/"):
		return OpenAIDialect
	}
	return OllamaDialect
}

// ErrorType returns the word of the dialect for a status, as Ollama uses it.
func (d Dialect) ErrorType(status int) string {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return "invalid_request_error"
	case http.StatusNotFound:
		return "not_found_error"
	}
	if d == AnthropicDialect {
		switch status {
		case http.StatusUnauthorized:
			return "authentication_error"
		case http.StatusForbidden:
			return "permission_error"
		case http.StatusTooManyRequests:
			return "rate_limit_error"
		case http.StatusServiceUnavailable:
			return "overloaded_error"
		}
	}
	return "api_error"
}

// AppendError appends an error's JSON in the dialect, as Ollama writes it. The request's id is
// Anthropic's, and may be "".
func (d Dialect) AppendError(b []byte, status int, message, request string) []byte {
	var v any
	switch d {
	case OpenAIDialect:
		v = openaiError{openaiDetail{Message: message, Type: d.ErrorType(status)}}
	case AnthropicDialect:
		v = anthropicError{"error", anthropicDetail{d.ErrorType(status), message}, request}
	default:
		v = ollamaError{message}
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings always marshal
	}
	return append(b, data...)
}

// The forms below have their fields in Ollama's order, since clients see the bytes.

type ollamaError struct {
	Error string `json:"error"`
}

type openaiError struct {
	Error openaiDetail `json:"error"`
}

type openaiDetail struct {
	Message string `json:"message"`
	Type    string `json:"type"`
	Param   any    `json:"param"`
	Code    any    `json:"code"`
}

type anthropicError struct {
	Type      string          `json:"type"`
	Error     anthropicDetail `json:"error"`
	RequestID string          `json:"request_id,omitempty"`
}

type anthropicDetail struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}
