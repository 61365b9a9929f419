package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// generating are the routes that generate, in the order in which tests go through them.
var generating = []string{"/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}

// prompt is a request for text, at temperature 0.
type prompt struct {
	id, path, body string
	stream         bool
}

// newPrompt makes a prompt on one of the generating routes with a limit of tokens.
func newPrompt(id, path, model, text string, limit int, stream bool) prompt {
	form := map[string]string{
		"/api/generate":        `{"model":%q,"prompt":%q,"stream":%v,"options":{"temperature":0,"num_predict":%d}}`,
		"/api/chat":            `{"model":%q,"messages":[{"role":"user","content":%q}],"stream":%v,"options":{"temperature":0,"num_predict":%d}}`,
		"/v1/completions":      `{"model":%q,"prompt":%q,"stream":%v,"temperature":0,"max_tokens":%d}`,
		"/v1/responses":        `{"model":%q,"input":%q,"stream":%v,"temperature":0,"max_output_tokens":%d}`,
		"/v1/chat/completions": `{"model":%q,"messages":[{"role":"user","content":%q}],"stream":%v,"temperature":0,"max_tokens":%d}`,
		"/v1/messages":         `{"model":%q,"messages":[{"role":"user","content":%q}],"stream":%v,"temperature":0,"max_tokens":%d}`,
	}[path]
	return prompt{id: id, path: path, body: fmt.Sprintf(form, model, text, stream, limit), stream: stream}
}

// reply is what a client gets for a prompt.
type reply struct {
	node   string // that began it
	status int
	err    error // of asking or reading
	lines  []line

	text     string
	reason   string // why it ended
	tokens   int    // of prompt and answer, as the end says; 0: not told
	shape    string // what the records are, besides pieces of text
	ends     int    // terminal records
	failures []string
	ids      map[string]bool

	gap           time.Duration // the longest between two pieces of text
	load, prefill time.Duration // as the end says
}

type line struct {
	text string
	at   time.Time
}

// ask sends the prompt and reads the answer to its end, as fast as it comes.
func (p prompt) ask(ctx context.Context, url string) (r reply) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+p.path, strings.NewReader(p.body))
	if err != nil {
		return reply{err: err}
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Request-Id", p.id)
	resp, err := loadClient.Do(request)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	r.node, r.status = resp.Header.Get("X-Ollamamax-Node"), resp.StatusCode
	for body := bufio.NewReaderSize(resp.Body, 16<<10); ; {
		text, err := body.ReadString('\n')
		if text != "" {
			r.lines = append(r.lines, line{text, time.Now()})
		}
		if err != nil {
			if err != io.EOF {
				r.err = err
			}
			break
		}
	}
	p.read(&r)
	return r
}

// read takes the answer apart. It knows nothing of how the gateway reads one.
func (p prompt) read(r *reply) {
	r.ids = map[string]bool{}
	var said strings.Builder
	var last time.Time
	var shape []string
	sequence, prompt, output := int64(-1), 0, 0
	for _, l := range r.lines {
		text := strings.TrimSpace(strings.TrimPrefix(l.text, "data:"))
		switch {
		case text == "" || strings.HasPrefix(text, "event:"):
			continue
		case text == "[DONE]":
			r.ends++
			continue
		case !gjson.Valid(text):
			r.failures = append(r.failures, "no record: "+text)
			continue
		}
		rec := gjson.Parse(text)
		kind := rec.Get("type").Str
		if e := rec.Get("error"); e.Exists() && e.Type != gjson.Null || kind == "error" || kind == "response.failed" {
			r.failures = append(r.failures, text)
		}
		piece := pieceOf(rec)
		said.WriteString(piece)
		if piece != "" && p.stream {
			if !last.IsZero() {
				r.gap = max(r.gap, l.at.Sub(last))
			}
			last = l.at
		} else {
			shape = append(shape, kind)
		}
		if whole := rec.Get("text"); kind == "response.output_text.done" && whole.Str != said.String() {
			r.failures = append(r.failures, "the text as a whole is another than its pieces: "+text)
		}
		if n := rec.Get("sequence_number"); n.Exists() {
			if n.Int() != sequence+1 && sequence >= 0 {
				r.failures = append(r.failures, fmt.Sprintf("record %d follows record %d", n.Int(), sequence))
			}
			sequence = n.Int()
		}
		for _, place := range []string{"id", "message.id", "response.id", "item_id", "item.id", "output.0.id", "response.output.0.id"} {
			if id := rec.Get(place).Str; id != "" {
				r.ids[id] = true
			}
		}
		r.reason = firstOf(rec, r.reason, "done_reason", "choices.0.finish_reason", "delta.stop_reason", "stop_reason", "response.status", "status")
		for _, place := range []string{"prompt_eval_count", "usage.prompt_tokens", "usage.input_tokens", "response.usage.input_tokens"} {
			prompt = max(prompt, int(rec.Get(place).Int()))
		}
		for _, place := range []string{"eval_count", "usage.completion_tokens", "usage.output_tokens", "response.usage.output_tokens"} {
			output = max(output, int(rec.Get(place).Int()))
		}
		if d := rec.Get("load_duration"); d.Exists() {
			r.load, r.prefill = time.Duration(d.Int()), time.Duration(rec.Get("prompt_eval_duration").Int())
		}
		if rec.Get("done").Bool() || kind == "message_stop" || kind == "response.completed" || kind == "response.incomplete" || !p.stream && r.reason != "" && !rec.Get("done").Exists() {
			r.ends++
		}
	}
	r.text, r.shape = said.String(), strings.Join(shape, " ")
	r.tokens = prompt + output
}

// pieceOf is the text that a record brings, or a whole answer.
func pieceOf(rec gjson.Result) string {
	if kind := rec.Get("type").Str; strings.HasPrefix(kind, "response.") {
		if kind == "response.output_text.delta" {
			return rec.Get("delta").Str
		}
		return ""
	}
	return firstOf(rec, "", "response", "message.content", "choices.0.delta.content", "choices.0.message.content", "choices.0.text",
		"delta.text", "output.0.content.0.text", "content.0.text")
}

// firstOf is the first string that is there and not empty, or what it is otherwise.
func firstOf(rec gjson.Result, otherwise string, places ...string) string {
	for _, place := range places {
		if v := rec.Get(place); v.Type == gjson.String && v.Str != "" {
			return v.Str
		}
	}
	return otherwise
}

// incomplete says what is missing of a whole answer; "" if nothing is.
func (r *reply) incomplete() string {
	switch {
	case r.err != nil:
		return fmt.Sprintf("broke off after %d lines: %v", len(r.lines), r.err)
	case r.status != http.StatusOK:
		return fmt.Sprintf("status %d: %.300v", r.status, r.failures)
	case len(r.failures) > 0:
		return "failed: " + r.failures[0]
	case r.ends != 1:
		return fmt.Sprintf("%d terminal records", r.ends)
	}
	return ""
}

// differs says in what the reply is another than one that nothing disturbed; "" if in nothing but ids,
// times and where the text is cut.
func (r *reply) differs(want *reply) string {
	if r.text != want.text {
		at := 0
		for at < min(len(r.text), len(want.text)) && r.text[at] == want.text[at] {
			at++
		}
		return fmt.Sprintf("the text differs from byte %d of %d on: %.40q, want %.40q", at, len(want.text), r.text[at:], want.text[at:])
	}
	if r.reason != want.reason || r.tokens != want.tokens {
		return fmt.Sprintf("it ends by %q with %d tokens, want %q with %d", r.reason, r.tokens, want.reason, want.tokens)
	}
	if r.shape != want.shape {
		return fmt.Sprintf("its records are %q, want %q", r.shape, want.shape)
	}
	if len(r.ids) != len(want.ids) {
		return fmt.Sprintf("it has the ids %v, of one answer there are as many as in %v", r.ids, want.ids)
	}
	return ""
}

// askAll asks all prompts at once and returns a function that waits for the replies.
func askAll(ctx context.Context, url string, prompts []prompt) (wait func() []reply) {
	replies := make([]reply, len(prompts))
	var asking sync.WaitGroup
	for i, p := range prompts {
		asking.Go(func() { replies[i] = p.ask(ctx, url) })
	}
	return func() []reply { asking.Wait(); return replies }
}

// undisturbed asks all prompts and fails the test if an answer is not whole.
func undisturbed(t *testing.T, url string, prompts []prompt) []reply {
	t.Helper()
	replies := askAll(t.Context(), url, prompts)()
	for i := range replies {
		if why := replies[i].incomplete(); why != "" {
			t.Fatalf("%s, undisturbed: %s", prompts[i].path, why)
		}
	}
	return replies
}

// tally is how streams fared.
type tally struct {
	streams, broken, complete, equal int
	pauses, others                   []time.Duration // the longest gaps of broken streams, and of others
	problems                         []string
}

// add counts the replies of a round. own is what the second node took before its first token that its
// answer does not tell.
func (s *tally) add(round *interrupted, want []reply, own time.Duration) {
	got := round.wait()
	for i, p := range round.prompts {
		s.streams++
		r := &got[i]
		was := round.broken(i)
		if was {
			s.broken++
		}
		why := r.incomplete()
		if why == "" {
			s.complete++
			if why = r.differs(&want[i]); why == "" {
				s.equal++
			}
		}
		if why != "" {
			s.problems = append(s.problems, fmt.Sprintf("%s %s (stream: %v, broken: %v): %s", p.id, p.path, p.stream, was, why))
		}
		switch {
		case !p.stream || r.err != nil:
		case was:
			s.pauses = append(s.pauses, r.gap-r.load-r.prefill-own)
		default:
			s.others = append(s.others, r.gap)
		}
	}
}

// quantile is the value below which a share of the durations lies.
func quantile(d []time.Duration, share float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(int(share*float64(len(d))), len(d)-1)].Round(time.Millisecond)
}

// report logs the tally and fails the test for each answer that is not whole and equal.
func (s *tally) report(t *testing.T, what string) {
	t.Helper()
	percent := func(n int) float64 { return 100 * float64(n) / float64(max(s.streams, 1)) }
	t.Logf("%s: %d streams, %d of them had their node taken away: %.2f %% complete, %.2f %% equal; pause p50 %v, p99 %v, longest %v; longest gap of the others p50 %v, p99 %v",
		what, s.streams, s.broken, percent(s.complete), percent(s.equal), quantile(s.pauses, .5), quantile(s.pauses, .99), quantile(s.pauses, 1),
		quantile(s.others, .5), quantile(s.others, .99))
	for i, why := range s.problems {
		if i < 8 {
			t.Error(why)
		}
	}
	if n := len(s.problems); n > 8 {
		t.Errorf("and so on: %d in all", n)
	}
}
