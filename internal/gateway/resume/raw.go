package resume

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ollama/ollama/api"
)

// renderKeepAlive keeps the model loaded until the request that follows a rendering, which brings the
// client's own keep_alive. It is Ollama's default.
const renderKeepAlive = "5m"

// sentinel stands for the delivered text in a rendering that only asks where it would stand. No
// template changes it, and no model writes it.
const sentinel = "ollamamax-goes-on-here"

// Rendering is a prompt as the target would give it to its model.
type Rendering struct {
	Text   string
	Images int // how many pictures go with it
}

// Render returns the request that asks an Ollama for the prompt of a client's request: a POST that
// loads the model, with the client's runner options, and generates nothing.
func Render(a Answer, f Facts) (path string, body []byte, err error) {
	fields := []field{{"_debug_render_only", true}, {"keep_alive", renderKeepAlive}, {"stream", false}}
	path = canonical(a.Path)
	switch path {
	case pathChat, pathGenerate: // as the client wrote it, with what a newer Ollama may know and we do not
		body, err = edit(a.Body, fields...)
		return path, body, err
	}
	n, err := nativeOf(a, f)
	if err != nil {
		return "", nil, err
	}
	if n.chat != nil {
		path, body, err = pathChat, nil, nil
		body, err = marshal(n.chat)
	} else {
		path = pathGenerate
		body, err = marshal(n.generate)
	}
	if err == nil {
		body, err = edit(body, fields...)
	}
	return path, body, err
}

// RenderWhole is Render for a conversation in which the assistant has begun to answer: it has thought
// what was delivered, and says something by which ProbedBody finds where its text stands.
func RenderWhole(a Answer, f Facts) (path string, body []byte, err error) {
	n, err := nativeOf(a, f)
	if err != nil {
		return "", nil, err
	}
	if !n.chatLike() {
		return "", nil, errors.New("render an answer that has begun: the prompt is not made of messages")
	}
	begun := api.Message{Role: "assistant", Thinking: a.Thinking, Content: sentinel}
	chat := n.chat
	if chat == nil {
		g := n.generate
		chat = &api.ChatRequest{Model: g.Model, Options: g.Options, Think: g.Think, Truncate: g.Truncate, Shift: g.Shift}
		if g.System != "" {
			chat.Messages = append(chat.Messages, api.Message{Role: "system", Content: g.System})
		}
		chat.Messages = append(chat.Messages, api.Message{Role: "user", Content: g.Prompt, Images: g.Images})
	}
	chat.Messages = append(chat.Messages, begun)
	body, err = marshal(chat)
	if err != nil {
		return "", nil, err
	}
	body, err = edit(body, field{"_debug_render_only", true}, field{"keep_alive", renderKeepAlive}, field{"stream", false})
	return pathChat, body, err
}

// ReadRendering reads the answer to a request of Render or RenderWhole.
func ReadRendering(answer []byte) (Rendering, error) {
	var r struct {
		Error string         `json:"error"`
		Debug *api.DebugInfo `json:"_debug_info"`
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return Rendering{}, fmt.Errorf("read rendering: %w", err)
	}
	if r.Error != "" {
		return Rendering{}, fmt.Errorf("read rendering: %s", r.Error)
	}
	if r.Debug == nil {
		return Rendering{}, errors.New("read rendering: the engine does not render without generating")
	}
	return Rendering{Text: r.Debug.RenderedTemplate, Images: r.Debug.ImageCount}, nil
}

// RawBody returns the body for /api/generate by which an Ollama goes on behind a rendering and the
// delivered text, as a stream.
func RawBody(a Answer, plain Rendering, f Facts) ([]byte, error) {
	n, err := nativeOf(a, f)
	if err != nil {
		return nil, err
	}
	return n.raw(a, plain, plain.Text+a.Text, f)
}

// ProbedBody is RawBody with what the whole rendering shows before the text. It fails if the target
// renders an answer that has begun otherwise than by adding to the plain rendering.
func ProbedBody(a Answer, plain, whole Rendering, f Facts) ([]byte, error) {
	n, err := nativeOf(a, f)
	if err != nil {
		return nil, err
	}
	added, ok := strings.CutPrefix(whole.Text, plain.Text)
	if !ok {
		return nil, errors.New("go on behind a rendering: an answer that has begun changes the prompt")
	}
	before, _, ok := strings.Cut(added, sentinel)
	if !ok || strings.Count(added, sentinel) > 1 {
		return nil, errors.New("go on behind a rendering: the template does not show the text once")
	}
	if thought := strings.TrimSpace(a.Thinking); !strings.Contains(before, thought) {
		return nil, errors.New("go on behind a rendering: the template does not show what was thought")
	}
	return n.raw(a, plain, plain.Text+before+a.Text, f)
}

func nativeOf(a Answer, f Facts) (*native, error) { return convert(canonical(a.Path), a.Body, f) }

// raw writes the request. Raw mode applies the model's own options, stop sequences among them, like
// any other; it parses thinking unless told not to.
func (n *native) raw(a Answer, plain Rendering, prompt string, f Facts) ([]byte, error) {
	images := n.images()
	if plain.Images != len(images) {
		return nil, fmt.Errorf("go on behind a rendering: it has %d of %d images", plain.Images, len(images))
	}
	for i := range images {
		if strings.Count(plain.Text, fmt.Sprintf("[img-%d]", i)) != 1 {
			return nil, fmt.Errorf("go on behind a rendering: it does not show where image %d is", i)
		}
	}
	if f.Renderer != "" && n.chatLike() {
		// A built-in renderer writes the token that the tokenizer adds too, and Ollama takes one away;
		// in raw mode it knows only Gemma's.
		prompt = strings.TrimPrefix(prompt, f.BOS)
	}
	out := api.GenerateRequest{
		Prompt: prompt, Raw: true, Stream: new(true), Think: &api.ThinkValue{Value: false},
		Images: images, Options: map[string]any{},
	}
	if c := n.chat; c != nil {
		out.Model, out.KeepAlive, out.Truncate, out.Shift = c.Model, c.KeepAlive, c.Truncate, c.Shift
		out.Logprobs, out.TopLogprobs = c.Logprobs, c.TopLogprobs
	} else {
		g := n.generate
		out.Model, out.KeepAlive, out.Truncate, out.Shift = g.Model, g.KeepAlive, g.Truncate, g.Shift
		out.Logprobs, out.TopLogprobs = g.Logprobs, g.TopLogprobs
	}
	for name, value := range n.options() {
		out.Options[name] = value
	}
	if limit := (&request{native: n}).limit(Facts{NumPredict: f.NumPredict}); limit >= 0 {
		rest := limit - a.Pieces
		if rest <= 0 {
			return nil, errors.New("go on behind a rendering: nothing is left of the limit of tokens")
		}
		out.Options["num_predict"] = rest
	}
	return marshal(out)
}
