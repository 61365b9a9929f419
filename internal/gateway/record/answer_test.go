package record

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// answer is what a client reads from a stream, with a parser that has nothing in common with ours.
type answer struct {
	Text, Thinking string
	Calls          string // names and arguments
	Reason         string
	Prompt, Output float64
}

// read reads a stream as a client does and fails the test if it is not whole and in order. The
// ids are those of the answer, to which all records must belong.
func read(t *testing.T, f Form, stream []byte) (a answer, ids map[string]bool) {
	t.Helper()
	r := &reader{t: t, form: f, ids: map[string]bool{}, sequence: -1, items: map[string]*strings.Builder{}, done: map[string]bool{}}
	for len(stream) > 0 {
		n := f.Split(stream)
		if n == 0 {
			t.Fatalf("a stream that ends within a record: %q", stream)
		}
		rec := string(stream[:n])
		stream = stream[n:]
		if r.terminal {
			t.Fatalf("behind the terminal record: %q", rec)
		}
		data := rec
		if !f.lines() {
			event := ""
			data = ""
			for line := range strings.Lines(rec) {
				line = strings.TrimRight(line, "\r\n")
				if s, ok := strings.CutPrefix(line, "data: "); ok {
					data += s
				}
				if s, ok := strings.CutPrefix(line, "event: "); ok {
					event = s
				}
			}
			if data == "[DONE]" {
				r.terminal = true
				continue
			}
			r.event = event
		}
		var v map[string]any
		if err := json.Unmarshal([]byte(data), &v); err != nil {
			t.Fatalf("record %q: %v", rec, err)
		}
		r.record(v)
	}
	if !r.terminal {
		t.Fatal("no terminal record")
	}
	return r.answer, r.ids
}

type reader struct {
	answer
	t        *testing.T
	form     Form
	event    string
	ids      map[string]bool
	terminal bool
	finished bool
	role     int
	sequence float64
	blocks   []string // kinds; "" once closed
	items    map[string]*strings.Builder
	done     map[string]bool
}

func str(v any) string {
	s, _ := v.(string)
	return s
}

func num(v any) float64 {
	n, _ := v.(float64)
	return n
}

func obj(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func (r *reader) record(v map[string]any) {
	switch r.form {
	case Generate, Chat:
		r.ids[str(v["model"])] = true
		if str(v["created_at"]) == "" {
			r.t.Fatalf("no time: %v", v)
		}
		m := v
		if r.form == Chat {
			m = obj(v["message"])
			if str(m["role"]) != "assistant" {
				r.t.Fatalf("role: %v", v)
			}
		}
		r.Text += str(m["response"]) + str(m["content"])
		r.Thinking += str(m["thinking"])
		for _, c := range list(m["tool_calls"]) {
			f := obj(obj(c)["function"])
			r.Calls += fmt.Sprint(f["name"], f["arguments"])
		}
		r.terminal = v["done"] == true
		r.Reason += str(v["done_reason"])
		r.Prompt += num(v["prompt_eval_count"])
		r.Output += num(v["eval_count"])
	case ChatCompletions, Completions:
		r.chunk(v)
	case Messages:
		r.message(v)
	case Responses:
		r.response(v)
	}
}

func (r *reader) chunk(v map[string]any) {
	r.ids[fmt.Sprint(v["id"], v["model"], v["system_fingerprint"], v["object"])] = true
	for _, c := range list(v["choices"]) {
		c := obj(c)
		if r.finished {
			r.t.Fatalf("a choice behind the finish: %v", v)
		}
		d := obj(c["delta"])
		if str(d["role"]) != "" {
			r.role++
		}
		if r.form == ChatCompletions && r.role != 1 {
			r.t.Fatalf("the role was told %d times: %v", r.role, v)
		}
		r.Text += str(d["content"]) + str(c["text"])
		r.Thinking += str(d["reasoning"]) + str(d["reasoning_content"])
		for _, c := range list(d["tool_calls"]) {
			f := obj(obj(c)["function"])
			r.Calls += str(f["name"]) + str(f["arguments"])
		}
		r.Reason += str(c["finish_reason"])
		r.finished = str(c["finish_reason"]) != ""
	}
	u := obj(v["usage"])
	r.Prompt += num(u["prompt_tokens"])
	r.Output += num(u["completion_tokens"])
}

func (r *reader) message(v map[string]any) {
	if r.event != str(v["type"]) {
		r.t.Fatalf("event %s: %v", r.event, v)
	}
	index := int(num(v["index"]))
	if strings.HasPrefix(r.event, "content_block_") && r.event != "content_block_start" && (index >= len(r.blocks) || r.blocks[index] == "") {
		r.t.Fatalf("block %d is not open: %v", index, v)
	}
	switch r.event {
	case "message_start":
		r.ids[str(obj(v["message"])["id"])] = true
	case "content_block_start":
		if index != len(r.blocks) {
			r.t.Fatalf("block %d starts after %d: %v", index, len(r.blocks), v)
		}
		b := obj(v["content_block"])
		r.blocks = append(r.blocks, str(b["type"]))
		r.Calls += str(b["name"])
	case "content_block_delta":
		d := obj(v["delta"])
		r.Text += str(d["text"])
		r.Thinking += str(d["thinking"])
		r.Calls += str(d["partial_json"])
		if kind := r.blocks[index]; str(d["text"]) != "" && kind != "text" || str(d["thinking"]) != "" && kind != "thinking" {
			r.t.Fatalf("in a block of %s: %v", kind, v)
		}
	case "content_block_stop":
		r.blocks[index] = ""
	case "message_delta":
		r.Reason += str(obj(v["delta"])["stop_reason"])
		r.Output += num(obj(v["usage"])["output_tokens"])
		if strings.Join(r.blocks, "") != "" {
			r.t.Fatalf("blocks are open: %q", r.blocks)
		}
	case "message_stop":
		r.terminal = true
	}
}

func (r *reader) response(v map[string]any) {
	if r.event != str(v["type"]) {
		r.t.Fatalf("event %s: %v", r.event, v)
	}
	if n, ok := v["sequence_number"].(float64); ok {
		if n != r.sequence+1 {
			r.t.Fatalf("sequence %v after %v", n, r.sequence)
		}
		r.sequence = n
	} else if r.sequence >= 0 {
		r.t.Fatalf("no sequence number: %v", v)
	}
	item := obj(v["item"])
	id := str(v["item_id"]) + str(item["id"])
	if _, ok := v["output_index"].(float64); id != "" && ok != (r.sequence >= 0) {
		r.t.Fatalf("an index or not: %v", v)
	}
	if _, ok := v["content_index"].(float64); strings.HasPrefix(r.event, "response.output_text") && ok != (r.sequence >= 0) {
		r.t.Fatalf("an index or not: %v", v)
	}
	said := r.items[id]
	if id != "" && r.event != "response.output_item.added" && (said == nil || r.done[id]) {
		r.t.Fatalf("of an item that is not open: %v", v)
	}
	same := func(text any) {
		if str(text) != said.String() {
			r.t.Fatalf("said %q: %v", said, v)
		}
	}
	switch r.event {
	case "response.created", "response.in_progress":
		r.ids[str(obj(v["response"])["id"])] = true
	case "response.output_item.added":
		if said != nil {
			r.t.Fatalf("added twice: %v", v)
		}
		r.items[id] = &strings.Builder{}
		r.Calls += str(item["name"])
	case "response.output_text.delta":
		r.Text += str(v["delta"])
		said.WriteString(str(v["delta"]))
	case "response.reasoning_summary_text.delta", "response.reasoning_text.delta":
		r.Thinking += str(v["delta"])
		said.WriteString(str(v["delta"]))
	case "response.function_call_arguments.delta":
		r.Calls += str(v["delta"])
	case "response.output_text.done", "response.reasoning_summary_text.done", "response.reasoning_text.done":
		same(v["text"])
	case "response.content_part.done":
		same(obj(v["part"])["text"])
	case "response.output_item.done":
		r.done[id] = true
		r.output(item)
	case "response.completed":
		r.terminal = true
		whole := obj(v["response"])
		r.ids[str(whole["id"])] = true
		r.Reason = str(whole["status"])
		r.Prompt = num(obj(whole["usage"])["input_tokens"])
		r.Output = num(obj(whole["usage"])["output_tokens"])
		for _, item := range list(whole["output"]) {
			r.output(obj(item))
		}
		if len(list(whole["output"])) != len(r.items) {
			r.t.Fatalf("%d items were added: %v", len(r.items), whole["output"])
		}
	}
}

// output checks that an item says at its end what was said in it.
func (r *reader) output(item map[string]any) {
	said := r.items[str(item["id"])]
	if said == nil {
		r.t.Fatalf("was never added: %v", item)
	}
	for _, part := range append(list(item["content"]), list(item["summary"])...) {
		if text := str(obj(part)["text"]); text != said.String() {
			r.t.Fatalf("said %q: %v", said, item)
		}
	}
}

// capture is a stream of a real engine.
type capture struct {
	name   string
	form   Form
	usage  bool
	stream []byte
}

func captures(t testing.TB) (all []capture) {
	t.Helper()
	forms := map[string]Form{"generate": Generate, "chat": Chat, "chatcompletions": ChatCompletions,
		"completions": Completions, "responses": Responses, "messages": Messages}
	files, err := filepath.Glob("testdata/*.stream")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".stream")
		if strings.HasSuffix(name, "-load") { // no stream, though one was asked for
			continue
		}
		form, _, _ := strings.Cut(name, "-")
		all = append(all, capture{name, forms[form], strings.Contains(string(data), `"usage":{`), data})
	}
	return all
}

// split cuts a stream into its records.
func split(t testing.TB, f Form, stream []byte) (recs [][]byte) {
	t.Helper()
	for len(stream) > 0 {
		n := f.Split(stream)
		if n == 0 {
			t.Fatalf("no whole record: %q", stream)
		}
		recs = append(recs, stream[:n:n])
		stream = stream[n:]
	}
	return recs
}
