package resume

import (
	"bytes"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// AsStream returns a request that wants no stream as one that does, whose records record.Fold makes
// the body of; every other byte stays as it was. False: it wants what a stream does not show, or what
// only its engine can refuse.
func AsStream(path string, body []byte) ([]byte, bool) {
	path = canonical(path)
	v1 := path != pathChat && path != pathGenerate
	body = bytes.TrimSpace(body)
	object := gjson.ParseBytes(body)
	if !object.IsObject() || !bytes.HasSuffix(body, []byte("}")) {
		return nil, false
	}
	ok, streamed := true, gjson.Null
	options := "{}"
	object.ForEach(func(key, value gjson.Result) bool {
		switch name := strings.ToLower(key.Str); {
		case name == "stream":
			streamed = value.Type
		case name == "stream_options" && value.IsObject():
			options = value.Raw
		case name == "stream_options" && v1:
			ok = value.Type == gjson.Null
		case v1:
			ok = streams(path, name, value)
		}
		return ok
	})
	if !ok || streamed != gjson.False && streamed != gjson.Null {
		return nil, false
	}
	if path == pathChatCompletions || path == pathCompletions { // their streams tell no counts unasked
		counted := string(withMembers([]byte(options), written{"include_usage", "true"}))
		return withMembers(body, written{"stream", "true"}, written{"stream_options", counted}), true
	}
	return withMembers(body, written{"stream", "true"}), true
}

// streams tells whether an answer can be folded to a request that has a member of this name, in lower
// case, and value.
func streams(path, name string, value gjson.Result) bool {
	switch name {
	case "n", "best_of", "n_cmpl": // several answers at once
		return value.Int() <= 1
	case "prompt": // several prompts
		return !value.IsArray()
	case "logprobs": // those of a completion count its characters; 0 asks some engines for those of what was said
		return path != pathCompletions || value.Type == gjson.Null || value.Type == gjson.False
	case "tools": // some the engine uses itself, or lists otherwise
		return !slices.ContainsFunc(value.Array(), func(tool gjson.Result) bool {
			kind := tool.Get("type").Str
			return path == pathResponses && kind != "function" || path == pathMessages && strings.HasPrefix(kind, "web_")
		})
	case "echo", "audio", "store", "background", "conversation", "previous_response_id", "functions", "web_search_options",
		"use_beam_search", "n_probs", "prompt_logprobs", "return_progress", "return_tokens", "return_token_ids",
		"return_hidden_states", "return_meta_info", "_debug_render_only": // a stream lacks what these bring, or has it otherwise
		return !given(value)
	}
	return true
}

// given tells whether a value asks for something.
func given(value gjson.Result) bool {
	switch value.Type {
	case gjson.Null, gjson.False:
		return false
	case gjson.Number:
		return value.Num != 0
	}
	return true
}
