package resume

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/ollama/ollama/anthropic"
	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/openai"
	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// request is what deciding needs of a client's request.
type request struct {
	path       string
	body       []byte // the first JSON value of the body
	list       []member
	native     *native
	tools      bool // the model may call tools
	format     bool // the answer is bound to a grammar
	choices    int  // answers asked for at once
	appendable bool // PrefillBody can lengthen it
}

// read reads a request for a target. That of an Ollama is read by Ollama's own types, so that it means
// the same; native is nil where those do not read it.
func read(path string, body []byte, f Facts) (*request, error) {
	path = canonical(path)
	switch path {
	case pathChat, pathGenerate:
		if f.Kind != cluster.Ollama && f.Kind != "" {
			return nil, fmt.Errorf("the engine has no %s", path)
		}
	case pathChatCompletions, pathCompletions, pathMessages, pathResponses:
	default:
		return nil, fmt.Errorf("%s generates no text", path)
	}
	list, closing, err := members(body)
	if err != nil {
		return nil, err
	}
	r := &request{path: path, body: body[:closing+1], list: list, choices: 1}
	if f.Kind == cluster.Ollama || f.Kind == "" {
		if n, err := convert(path, r.body, f); err == nil {
			r.native = n
			r.tools, r.format = len(n.tools()) > 0, bound(n.format())
		}
		return r, nil
	}
	r.readOther(f)
	return r, nil
}

// readOther reads what the engines of the /v1 routes know besides.
func (r *request) readOther(f Facts) {
	for _, name := range []string{"tools", "functions"} {
		r.tools = r.tools || len(r.get(name).Array()) > 0
	}
	for _, kind := range []gjson.Result{r.get("response_format").Get("type"), r.get("text").Get("format.type")} {
		r.format = r.format || kind.Exists() && kind.Str != "text"
	}
	for _, name := range []string{"json_schema", "grammar", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"} {
		value := r.get(name)
		r.format = r.format || value.Type != gjson.Null && value.Raw != `""`
	}
	r.choices = max(1, int(r.get("n").Int()), int(r.get("best_of").Int()))
	switch r.path {
	case pathCompletions:
		prompt := r.get("prompt")
		if prompt.IsArray() {
			var texts []gjson.Result
			for _, element := range prompt.Array() {
				if element.Type == gjson.String || element.IsArray() {
					texts = append(texts, element)
				}
			}
			r.choices = max(r.choices, len(texts))
			prompt = prompt.Get("0")
		}
		r.appendable = prompt.Type == gjson.String && !r.get("echo").Bool() && r.get("suffix").Str == ""
	case pathResponses:
		input := r.get("input")
		r.appendable = input.Type == gjson.String || input.IsArray() && !fromAssistant(input)
	default:
		messages := r.get("messages")
		r.appendable = messages.IsArray() &&
			(!fromAssistant(messages) || !r.continued(f) || lastOf(messages).Get("content").Type == gjson.String)
	}
}

// get returns the last value of that name, as the engines do.
func (r *request) get(name string) gjson.Result { return gjson.ParseBytes(last(r.body, r.list, name)) }

// continued tells whether the engine takes an assistant's last message as the beginning of its answer.
func (r *request) continued(f Facts) bool {
	return f.Kind == cluster.LlamaServer || r.get("continue_final_message").Bool()
}

func lastOf(list gjson.Result) gjson.Result {
	elements := list.Array()
	if len(elements) == 0 {
		return gjson.Result{}
	}
	return elements[len(elements)-1]
}

func fromAssistant(list gjson.Result) bool { return lastOf(list).Get("role").Str == "assistant" }

// limit returns how many tokens the answer may have; -1 for no limit. Ollama passes no limit of 0 on.
func (r *request) limit(f Facts) int {
	if f.Kind == cluster.Ollama || f.Kind == "" {
		if r.native == nil {
			return -1
		}
		limit, given := integer(r.native.options()["num_predict"])
		if !given {
			limit = f.NumPredict
		}
		if limit <= 0 {
			return -1
		}
		return limit
	}
	for _, name := range r.limits() {
		if value := r.get(name); value.Type == gjson.Number {
			return max(int(value.Int()), -1)
		}
	}
	return -1
}

// limits names the fields that limit an answer on an engine of the /v1 routes, the strongest first.
func (r *request) limits() []string {
	if r.path == pathResponses {
		return []string{"n_predict", "max_output_tokens"}
	}
	return []string{"n_predict", "max_completion_tokens", "max_tokens"}
}

// integer reads a number as Ollama reads an option.
func integer(v any) (int, bool) {
	switch n := v.(type) {
	case float64:
		return int(n), true
	case int:
		return n, true
	}
	return 0, false
}

// native is a request as Ollama's own handlers get it: one of the two.
type native struct {
	chat     *api.ChatRequest
	generate *api.GenerateRequest
}

// convert makes of a client's request what Ollama's middleware makes of it.
func convert(path string, body []byte, f Facts) (*native, error) {
	switch path {
	case pathChat:
		return decoded(body, func(r api.ChatRequest) (*native, error) { return &native{chat: &r}, nil })
	case pathGenerate:
		return decoded(body, func(r api.GenerateRequest) (*native, error) { return &native{generate: &r}, nil })
	case pathChatCompletions:
		return decoded(body, func(r openai.ChatCompletionRequest) (*native, error) {
			chat, err := openai.FromChatRequest(r)
			return &native{chat: chat}, err
		})
	case pathCompletions:
		return decoded(body, func(r openai.CompletionRequest) (*native, error) {
			generate, err := openai.FromCompleteRequest(r)
			return &native{generate: &generate}, err
		})
	case pathResponses:
		return decoded(body, func(r openai.ResponsesRequest) (*native, error) {
			chat, err := openai.FromResponsesRequest(r)
			return &native{chat: chat}, err
		})
	}
	return decoded(body, func(r anthropic.MessagesRequest) (*native, error) {
		chat, err := anthropic.FromMessagesRequest(r)
		if err == nil && !f.Thinks && chat.Think.Bool() {
			chat.Think = nil // only on this route Ollama lets it pass
		}
		return &native{chat: chat}, err
	})
}

func decoded[T any](body []byte, next func(T) (*native, error)) (*native, error) {
	var r T
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&r); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	n, err := next(r)
	if err != nil {
		return nil, fmt.Errorf("convert request: %w", err)
	}
	return n, nil
}

func (n *native) options() map[string]any {
	if n.chat != nil {
		return n.chat.Options
	}
	return n.generate.Options
}

func (n *native) tools() api.Tools {
	if n.chat != nil {
		return n.chat.Tools
	}
	return nil
}

func (n *native) format() json.RawMessage {
	if n.chat != nil {
		return n.chat.Format
	}
	return n.generate.Format
}

// bound tells whether a format is one: Ollama takes two spellings as none.
func bound(format json.RawMessage) bool {
	return len(format) > 0 && string(format) != "null" && string(format) != `""`
}

// thinks tells whether a model that can think does for this request.
func (n *native) thinks() bool {
	think := n.think()
	return think == nil || think.Bool()
}

func (n *native) think() *api.ThinkValue {
	if n.chat != nil {
		return n.chat.Think
	}
	return n.generate.Think
}

// chatLike tells whether Ollama renders the prompt from messages, as for a chat.
func (n *native) chatLike() bool {
	g := n.generate
	return n.chat != nil || !g.Raw && g.Suffix == "" && g.Template == "" && len(g.Context) == 0
}

// images are the request's, in the order in which Ollama numbers them.
func (n *native) images() []api.ImageData {
	if n.generate != nil {
		return n.generate.Images
	}
	var all []api.ImageData
	for _, m := range n.chat.Messages {
		all = append(all, m.Images...)
	}
	return all
}
