package resume

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// NeedsSeed tells whether an answer to the request may have to be replayed and could not be, because
// the engine draws at random and the request names no seed. Routes without a seed never do. It decodes
// the whole request only where there is a sign of such a need.
func NeedsSeed(path string, body []byte, f Facts) bool {
	if f.Kind == cluster.Ollama && !f.Thinks && f.Parser == "" && !slices.ContainsFunc(
		[]string{`"tools"`, `format"`, `"image`, `"input_audio"`}, func(sign string) bool { return bytes.Contains(body, []byte(sign)) }) {
		return false
	}
	r, err := read(path, body, f)
	if err != nil {
		return false
	}
	switch r.path {
	case pathMessages, pathResponses:
		return false
	}
	if r.native == nil && (f.Kind == cluster.Ollama || f.Kind == "") {
		return false // the engine will refuse it
	}
	if r.native != nil {
		options := r.native.options()
		if options["seed"] != nil || isZero(options["temperature"]) {
			return false
		}
		return r.tools || r.format || len(r.native.images()) > 0 || f.Thinks && r.native.thinks() || f.Parser != ""
	}
	if temperature := r.get("temperature"); r.get("seed").Type != gjson.Null || temperature.Type == gjson.Number && temperature.Num == 0 {
		return false
	}
	// Of a chat nobody knows whether its model thinks, after which it can only be asked for again.
	return r.path == pathChatCompletions || r.tools || r.format || f.Thinks || !r.appendable
}

// isZero tells whether an option is given and 0.
func isZero(option any) bool { return option == 0.0 || option == float32(0) }

// WithSeed returns the body with a seed where its route takes one, and every other byte as it was.
func WithSeed(path string, body []byte, seed int) []byte {
	list, closing, err := members(body)
	if err != nil {
		return body
	}
	value := strconv.Itoa(seed)
	switch canonical(path) {
	case pathChatCompletions, pathCompletions:
		return with(body, closing, written{"seed", value})
	case pathChat, pathGenerate:
	default:
		return body
	}
	for _, m := range slices.Backward(list) {
		if !m.is("options") {
			continue
		}
		options := body[m.value:m.end]
		if string(options) == "null" {
			break
		}
		_, innerClosing, err := members(options)
		if err != nil {
			return body // the engine will refuse it
		}
		return slices.Concat(body[:m.value], with(options, innerClosing, written{"seed", value}), body[m.end:])
	}
	return with(body, closing, written{"options", `{"seed":` + value + `}`})
}

// with returns the text with one more member of the object that it begins with, which ends at closing.
func with(text []byte, closing int, m written) []byte {
	open := bytes.IndexByte(text, '{')
	return slices.Concat(text[:open], withMembers(text[open:closing+1], m), text[closing+1:])
}
