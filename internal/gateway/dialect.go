package gateway

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
)

// dialect is a family of APIs with its own form of errors.
type dialect int

const (
	ollama dialect = iota
	openai
	anthropic
)

// dialectOf returns the dialect of a client's route.
func dialectOf(path string) dialect {
	switch {
	case path == "/v1/messages":
		return anthropic
	case strings.HasPrefix(path, "/v1/"):
		return openai
	}
	return ollama
}

// errorTypes are the words of OpenAI and Anthropic for a status, as Ollama uses them.
func (d dialect) errorType(status int) string {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return "invalid_request_error"
	case http.StatusNotFound:
		return "not_found_error"
	}
	if d == anthropic {
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

// body returns an error's body in the dialect, as Ollama writes it.
func (d dialect) body(status int, message string) []byte {
	var v any
	switch d {
	case openai:
		v = openaiError{openaiDetail{Message: message, Type: d.errorType(status)}}
	case anthropic:
		v = anthropicError{"error", anthropicDetail{d.errorType(status), message}, "req_" + strings.ToLower(rand.Text())[:24]}
	default:
		v = ollamaError{message}
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings always marshal
	}
	return data
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
	RequestID string          `json:"request_id"`
}

type anthropicDetail struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}
