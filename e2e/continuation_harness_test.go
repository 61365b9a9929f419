package e2e

import (
	"bytes"
	le "encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/gateway/resume"
)

// delivered is an answer as a client got it: the text of each record, and what the last one counted.
type delivered struct {
	pieces         []string
	thinking       []string // what was thought before the text, likewise
	reason         string
	prompt, output int
	logprobs       []string // the tokens that came with log probabilities
}

func (d delivered) text() string { return strings.Join(d.pieces, "") }

// streamed asks an engine for a streamed answer and reads it in the dialect of the route.
func streamed(t *testing.T, url, path, body string) delivered {
	t.Helper()
	status, text := ask(t, "POST", url+path, body, "Content-Type", "application/json", "Connection", "close") // which a llama-server does anyway
	if status != 200 {
		t.Fatalf("%s %s: %d %s", path, body, status, text)
	}
	var d delivered
	for line := range strings.Lines(text) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "data: ")
		record := gjson.Parse(line)
		if !record.IsObject() {
			continue
		}
		if e := record.Get("error"); e.Exists() {
			t.Fatalf("%s: %s", path, line)
		}
		if thought := record.Get("thinking").Str + record.Get("message.thinking").Str + record.Get("choices.0.delta.reasoning").Str + record.Get("delta.thinking").Str; thought != "" {
			d.thinking = append(d.thinking, thought)
		}
		piece := ""
		for _, place := range []string{"response", "message.content", "choices.0.delta.content", "choices.0.text", "delta.text"} {
			if value := record.Get(place); value.Type == gjson.String {
				piece += value.Str
			}
		}
		switch record.Get("type").Str {
		case "response.output_text.delta":
			piece = record.Get("delta").Str
		case "response.reasoning_summary_text.delta":
			d.thinking = append(d.thinking, record.Get("delta").Str)
		}
		if piece != "" {
			d.pieces = append(d.pieces, piece)
		}
		for _, list := range []string{"logprobs", "choices.0.logprobs.content"} {
			for _, token := range record.Get(list).Array() {
				d.logprobs = append(d.logprobs, token.Get("token").Str+token.Get("logprob").Raw)
			}
		}
		for _, place := range []string{"done_reason", "choices.0.finish_reason", "delta.stop_reason"} {
			if value := record.Get(place); value.Str != "" {
				d.reason = value.Str
			}
		}
		if record.Get("done").Bool() {
			d.prompt, d.output = int(record.Get("prompt_eval_count").Int()), int(record.Get("eval_count").Int())
		}
	}
	return d
}

// facts asks an engine what is to be known of a model.
func facts(t *testing.T, url, model string) resume.Facts {
	t.Helper()
	for _, verbose := range []bool{false, true} {
		status, text := ask(t, "POST", url+"/api/show", fmt.Sprintf(`{"model":%q,"verbose":%t}`, model, verbose))
		if status != 200 {
			t.Fatalf("show %s: %d %s", model, status, text)
		}
		f, more, err := resume.ReadShow([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return f
		}
	}
	t.Fatalf("show %s: not even the verbose answer tells all", model)
	return resume.Facts{}
}

// rendering asks an Ollama for the prompt of a request.
func rendering(t *testing.T, url string, path string, body []byte, err error) resume.Rendering {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	status, text := ask(t, "POST", url+path, string(body))
	r, err := resume.ReadRendering([]byte(text))
	if err != nil {
		t.Fatalf("render by %s: %d %v", path, status, err)
	}
	return r
}

// goOn has another Ollama give the rest of an answer, by the way that resume decides on. alter is done
// to the rendered prompt before.
func goOn(t *testing.T, url string, a resume.Answer, f resume.Facts, alter func(string) string) (resume.Method, delivered) {
	t.Helper()
	method, why := resume.Decide(a, f)
	var body []byte
	var err error
	plain := func() resume.Rendering {
		path, body, err := resume.Render(a, f)
		r := rendering(t, url, path, body, err)
		r.Text = alter(r.Text)
		return r
	}
	switch method {
	case resume.Raw:
		body, err = resume.RawBody(a, plain(), f)
	case resume.Probe:
		path, whole, renderErr := resume.RenderWhole(a, f)
		r := rendering(t, url, path, whole, renderErr)
		r.Text = alter(r.Text)
		body, err = resume.ProbedBody(a, plain(), r, f)
	default:
		t.Fatalf("%s: %s: %s", a.Path, method, why)
	}
	if err != nil {
		t.Fatal(err)
	}
	return method, streamed(t, url, "/api/generate", string(body))
}

func unaltered(s string) string { return s }

// createFrom makes a model of another, with what a Modelfile can add.
func createFrom(t *testing.T, url, model, from string, with map[string]any) {
	t.Helper()
	with["model"], with["from"], with["stream"] = model, from, false
	body, err := json.Marshal(with)
	if err != nil {
		t.Fatal(err)
	}
	if status, text := ask(t, "POST", url+"/api/create", string(body)); status != 200 || !strings.Contains(text, "success") {
		t.Fatalf("create %s: %d %s", model, status, text)
	}
}

// withBOS writes a copy of a model whose tokenizer puts its token, spelled as given, in front of every
// prompt, and with a chat template.
func withBOS(t *testing.T, file, token, chatTemplate string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const text = 8 // GGUF's number of the type
	str := func(s string) string { return string(le.LittleEndian.AppendUint64(nil, uint64(len(s)))) + s }
	for from, to := range map[string]string{
		"tokenizer.ggml.add_bos_token\x07\x00\x00\x00\x00": "tokenizer.ggml.add_bos_token\x07\x00\x00\x00\x01",
		str("<|endoftext|>"): str(token),
	} {
		if bytes.Count(data, []byte(from)) != 1 {
			t.Fatalf("%s has %q not once", file, from)
		}
		data = bytes.Replace(data, []byte(from), []byte(to), 1)
	}
	// A member more, so long that what follows stays aligned to 32 bytes.
	name, value := "general.description", ""
	if chatTemplate != "" {
		name, value = "tokenizer.chat_template", chatTemplate
	}
	member := func() string { return str(name) + string([]byte{text, 0, 0, 0}) + str(value) }
	for (len(member())+len(token)-len("<|endoftext|>"))%32 != 0 {
		value += " "
	}
	const count, first = 16, 24 // where GGUF has the number of members, and the first of them
	le.LittleEndian.PutUint64(data[count:], le.LittleEndian.Uint64(data[count:])+1)
	out := filepath.Join(t.TempDir(), "model.gguf")
	if err := os.WriteFile(out, append(data[:first:first], append([]byte(member()), data[first:]...)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// tie is the difference of log probabilities up to which rounding decides between two tokens: an
// engine rounds a text that it reads otherwise than one that it writes.
const tie = 0.1

// cutAnswer is an answer that one engine gave whole and another is to finish.
type cutAnswer struct {
	url, path, body string
	method          resume.Method // by which the rest is to be got
	before          string        // what the model writes before the text, or before what it thinks
	facts           resume.Facts
	whole           delivered
	// margins are how far ahead of the second each token was: one for each byte, since noise says its
	// answer byte by byte.
	margins []float64
}

func newCut(t *testing.T, first, second, path, model, body string) *cutAnswer {
	t.Helper()
	c := &cutAnswer{url: second, path: path, body: body, method: resume.Raw, facts: facts(t, second, model), whole: streamed(t, first, path, body)}
	if len(c.whole.pieces) < 30 {
		t.Fatalf("too short an answer to cut: %q", c.whole.text())
	}
	// The rendered prompt alone gives the whole answer.
	a := resume.Answer{Path: path, Body: []byte(body)}
	renderPath, rendered, err := resume.Render(a, c.facts)
	raw, err := resume.RawBody(a, rendering(t, first, renderPath, rendered, err), c.facts)
	if err != nil {
		t.Fatal(err)
	}
	var again map[string]any
	if err := json.Unmarshal(raw, &again); err != nil {
		t.Fatal(err)
	}
	again["logprobs"], again["top_logprobs"], again["stream"] = true, 2, false
	if raw, err = json.Marshal(again); err != nil {
		t.Fatal(err)
	}
	_, text := ask(t, "POST", first+"/api/generate", string(raw))
	got, thought := gjson.Get(text, "response").Str, strings.Join(c.whole.thinking, "")
	var ends bool
	if c.before, ends = strings.CutSuffix(got, c.whole.text()); !ends || !strings.HasPrefix(c.before, thought) || thought == "" && c.before != "" {
		t.Errorf("the rendered prompt alone gives\n%q\nwant\n%q and %q", got, thought, c.whole.text())
	}
	for _, token := range gjson.Get(text, "logprobs").Array()[len(c.before):] {
		c.margins = append(c.margins, token.Get("top_logprobs.0.logprob").Num-token.Get("top_logprobs.1.logprob").Num)
	}
	// The second engine knows nothing of the first's requests.
	if status, text := ask(t, "POST", second+"/api/generate", fmt.Sprintf(`{"model":%q,"keep_alive":0}`, model)); status != 200 {
		t.Fatalf("unload: %d %s", status, text)
	}
	return c
}

// answer is the cut answer with so many of its records delivered.
func (c *cutAnswer) answer(records int) resume.Answer {
	return resume.Answer{
		Path: c.path, Body: []byte(c.body), Text: strings.Join(c.whole.pieces[:records], ""),
		Thinking: strings.Join(c.whole.thinking, ""), Pieces: len(c.whole.thinking) + records,
	}
}

// check cuts the answer after so many records and tells whether it went on as the whole did to its end.
func (c *cutAnswer) check(t *testing.T, records int) bool {
	t.Helper()
	a, whole := c.answer(records), c.whole
	method, rest := goOn(t, c.url, a, c.facts, unaltered)
	if method != c.method {
		t.Errorf("it goes on by %s, want %s", method, c.method)
	}
	// A record of several tokens counts as one, and what stands between thinking and text not at all: the
	// limit is that much wider.
	uncounted := len(c.before) + len(a.Text) - a.Pieces
	got, want := a.Text+rest.text(), whole.text()
	if got != want {
		at := same(got, want)
		if at == len(want) && len(got)-len(want) <= uncounted {
			return true
		}
		if at < len(c.margins) && c.margins[at] < tie {
			t.Logf("cut after %d records, rounding decided token %d, which was ahead by %.4f", records, at, c.margins[at])
			return false
		}
		t.Errorf("cut after %d records it went on otherwise:\n%q\nwant\n%q", records, rest.text(), want[len(a.Text):])
	}
	if want := strings.NewReplacer("max_tokens", "length", "end_turn", "stop").Replace(whole.reason); want != "" && rest.reason != want {
		t.Errorf("cut after %d records it ended by %q, want %q", records, rest.reason, want)
	}
	if prompt, output := resume.Count(a.Pieces, rest.prompt, rest.output); whole.output != 0 && (prompt+output != whole.prompt+whole.output || uncounted == 0 && output != whole.output) {
		t.Errorf("cut after %d records it counts %d and %d tokens, want %d and %d", records, prompt, output, whole.prompt, whole.output)
	}
	if len(whole.logprobs) > 0 && len(rest.logprobs) != len(whole.logprobs)-len(a.Text) {
		t.Errorf("cut after %d records it has log probabilities of %d tokens, want %d", records, len(rest.logprobs), len(whole.logprobs)-len(a.Text))
	}
	return got == want
}

// control shows that check would see a wrong prompt.
func (c *cutAnswer) control(t *testing.T, records int) {
	t.Helper()
	a := c.answer(records)
	_, other := goOn(t, c.url, a, c.facts, func(prompt string) string { return prompt[:4] + "#" + prompt[5:] })
	if alike := same(other.text(), c.whole.text()[len(a.Text):]); alike > 8 {
		t.Errorf("cut after %d records it went on alike for %d tokens behind another prompt: the comparison shows nothing", records, alike)
	}
}

// same is for how many bytes two texts are the same.
func same(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}
