package resume

import (
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

const hello = `"messages":[{"role":"user","content":"Hello"}]`

const tool = `"tools":[{"type":"function","function":{"name":"f","description":"","parameters":{"type":"object","properties":{}}}}]`

var (
	plain    = Facts{Kind: cluster.Ollama}
	thinking = Facts{Kind: cluster.Ollama, Thinks: true}
	llama    = Facts{Kind: cluster.LlamaServer}
	vllm     = Facts{Kind: cluster.OpenAI, Continues: true}
	openAI   = Facts{Kind: cluster.OpenAI}
)

func TestDecideKnowsEveryCase(t *testing.T) {
	t.Parallel()
	text := Answer{Text: "Once", Pieces: 1}
	thought := Answer{Thinking: "Hm", Text: "Once", Pieces: 2}
	for _, tc := range []struct {
		name, path, body string
		got              Answer
		facts            Facts
		want             Method
	}{
		{"plain text", "/api/chat", hello, text, plain, Raw},
		{"plain text, our other name of the route", "/api/v1/chat", hello, text, plain, Raw},
		{"plain text, sampled", "/api/chat", hello + `,"options":{"temperature":1}`, text, plain, Raw},
		{"plain text, stop sequences", "/api/chat", hello + `,"options":{"stop":["x"]}`, text, plain, Raw},
		{"images", "/api/chat", `"messages":[{"role":"user","content":"Hello","images":["aGk="]}]`, text, plain, Raw},
		{"generate", "/api/generate", `"prompt":"Hello"`, text, plain, Raw},
		{"generate with suffix, system, context", "/api/generate", `"prompt":"Hello","suffix":"x","system":"y","context":[1]`, text, plain, Raw},
		{"generate with a template", "/api/generate", `"prompt":"Hello","template":"{{ .Prompt }}"`, text, plain, Raw},
		{"OpenAI's chat", "/v1/chat/completions", hello, text, plain, Raw},
		{"OpenAI's completion", "/v1/completions", `"prompt":"Hello"`, text, plain, Raw},
		{"messages", "/v1/messages", hello + `,"max_tokens":9`, text, plain, Raw},
		{"responses", "/v1/responses", `"input":"Hello"`, text, plain, Raw},

		{"thinking, cut in the text", "/api/chat", hello, thought, thinking, Probe},
		{"thinking, cut in the text of generate", "/api/generate", `"prompt":"Hello"`, thought, thinking, Probe},
		{"thinking, cut in the text of a prompt without messages", "/api/generate", `"prompt":"Hello","suffix":"x"`, thought, thinking, Replay},
		{"thinking that was skipped", "/v1/chat/completions", hello, text, thinking, Probe},
		{"thinking that was skipped, without messages", "/api/generate", `"prompt":"Hello","template":"x"`, text, thinking, Replay},
		{"thinking that was asked for in vain", "/v1/messages", hello + `,"max_tokens":9,"thinking":{"type":"enabled"}`, text, plain, Raw},
		{"thinking switched off", "/api/chat", hello + `,"think":false`, text, thinking, Raw},
		{"thinking switched off in OpenAI's words", "/v1/chat/completions", hello + `,"reasoning_effort":"none"`, text, thinking, Raw},
		{"thinking left in the text", "/api/generate", `"prompt":"Hello"`, text, Facts{Kind: cluster.Ollama, Thinks: true, Jinja: true}, Raw},
		{"thinking left in a raw text", "/api/generate", `"prompt":"Hello","raw":true`, text, thinking, Raw},
		{"an answer that Ollama takes apart", "/api/chat", hello + `,"think":false`, text, Facts{Kind: cluster.Ollama, Parser: "harmony"}, Probe},
		{"an answer that Ollama takes apart, without messages", "/api/generate", `"prompt":"Hello","suffix":"x"`, text, Facts{Kind: cluster.Ollama, Parser: "qwen3-coder"}, Raw},
		{"cut while thinking", "/api/chat", hello, Answer{Thinking: "Hm", Pieces: 1}, thinking, Replay},

		{"tools, only text so far", "/api/chat", hello + "," + tool, text, plain, Replay},
		{"tools, only thinking so far", "/v1/chat/completions", hello + "," + tool, Answer{Thinking: "Hm", Pieces: 1}, thinking, Replay},
		{"tools of messages", "/v1/messages", hello + `,"max_tokens":9,"tools":[{"name":"f","input_schema":{"type":"object"}}]`, text, plain, Replay},
		{"tools of responses", "/v1/responses", `"input":"Hello","tools":[{"type":"function","name":"f","parameters":{"type":"object"}}]`, text, plain, Replay},
		{"no tools in the list", "/api/chat", hello + `,"tools":[]`, text, plain, Raw},
		{"a tool call went out", "/api/chat", hello + "," + tool, Answer{Text: "Once", Pieces: 1, ToolDone: true}, plain, None},
		{"a tool call went out and nothing is left", "/api/chat", hello + "," + tool + `,"options":{"num_predict":1}`, Answer{Text: "Once", Pieces: 1, ToolDone: true}, plain, None},

		{"format", "/api/chat", hello + `,"format":"json"`, text, plain, Replay},
		{"format of generate", "/api/generate", `"prompt":"Hello","format":{"type":"object"}`, text, plain, Replay},
		{"no format, in Ollama's two spellings", "/api/chat", hello + `,"format":""`, text, plain, Raw},
		{"format of OpenAI's chat", "/v1/chat/completions", hello + `,"response_format":{"type":"json_object"}`, text, plain, Replay},
		{"format text", "/v1/chat/completions", hello + `,"response_format":{"type":"text"}`, text, plain, Raw},
		{"format of responses", "/v1/responses", `"input":"Hello","text":{"format":{"type":"json_schema","schema":{"type":"object"}}}`, text, plain, Replay},

		{"nothing left of the limit", "/api/chat", hello + `,"options":{"num_predict":2}`, thought, thinking, Finish},
		{"nothing left of the model's own limit", "/api/chat", hello, text, Facts{Kind: cluster.Ollama, NumPredict: 1}, Finish},
		{"something left of the limit", "/v1/messages", hello + `,"max_tokens":2`, text, plain, Raw},
		{"a limit of none", "/api/chat", hello + `,"options":{"num_predict":-1}`, text, plain, Raw},
		{"nothing was delivered", "/api/chat", hello, Answer{}, plain, Replay},

		{"llama-server's chat", "/v1/chat/completions", hello, text, llama, Prefill},
		{"llama-server's messages", "/v1/messages", hello, text, llama, Prefill},
		{"llama-server's responses", "/v1/responses", `"input":"Hello"`, text, llama, Prefill},
		{"llama-server's responses that the client had begun", "/v1/responses", `"input":[{"role":"assistant","content":"x"}]`, text, llama, Replay},
		{"llama-server's completion", "/v1/completions", `"prompt":"Hello"`, text, llama, Prefill},
		{"llama-server's chat with parts that the client had begun", "/v1/chat/completions", `"messages":[{"role":"assistant","content":[{"type":"text","text":"x"}]}]`, text, llama, Replay},
		{"llama-server's thinking", "/v1/chat/completions", hello, thought, llama, Replay},
		{"llama-server's tools", "/v1/chat/completions", hello + "," + tool, text, llama, Replay},
		{"llama-server's grammar", "/v1/completions", `"prompt":"Hello","grammar":"root ::= \"a\""`, text, llama, Replay},
		{"llama-server's format", "/v1/chat/completions", hello + `,"response_format":{"type":"json_schema"}`, text, llama, Replay},
		{"llama-server's limit", "/v1/chat/completions", hello + `,"max_completion_tokens":1,"max_tokens":9`, text, llama, Finish},
		{"Ollama's chat at llama-server", "/api/chat", hello, text, llama, None},

		{"vLLM's chat", "/v1/chat/completions", hello, text, vllm, Prefill},
		{"vLLM's messages", "/v1/messages", hello, text, vllm, Replay},
		{"an unknown engine's chat", "/v1/chat/completions", hello, text, openAI, Replay},
		{"an unknown engine's completion", "/v1/completions", `"prompt":"Hello"`, text, openAI, Prefill},
		{"a completion of one text in a list", "/v1/completions", `"prompt":["Hello"]`, text, openAI, Prefill},
		{"a completion of tokens", "/v1/completions", `"prompt":[1,2,3]`, text, openAI, Replay},
		{"a completion of several texts", "/v1/completions", `"prompt":["Hello","x"]`, text, openAI, None},
		{"a completion with its prompt before it", "/v1/completions", `"prompt":"Hello","echo":true`, text, openAI, Replay},
		{"a completion with a suffix", "/v1/completions", `"prompt":"Hello","suffix":"x"`, text, openAI, Replay},
		{"several answers at once", "/v1/chat/completions", hello + `,"n":2`, text, vllm, None},
		{"several answers at once, which Ollama does not know", "/v1/chat/completions", hello + `,"n":2`, text, plain, Raw},
		{"guided decoding", "/v1/chat/completions", hello + `,"guided_choice":["a","b"]`, text, vllm, Replay},

		{"what Ollama's types do not read", "/api/chat", `"messages":7`, text, plain, Replay},
		{"embeddings", "/v1/embeddings", `"input":"x"`, text, plain, None},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.got.Path, tc.got.Body = tc.path, []byte(`{"model":"m",`+tc.body+`}`)
			got, why := Decide(tc.got, tc.facts)
			if got != tc.want {
				t.Errorf("%s (%s), want %s", got, why, tc.want)
			}
			if (why == "") != (got == Raw || got == Prefill) {
				t.Errorf("%s because %q", got, why)
			}
		})
	}
}

func TestWhatIsNoRequestIsDecidedToBeNone(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{"nothing": "", "a list": `[]`, "half": `{"model":`, "null": `null`, "no JSON": `x`} {
		if got, why := Decide(Answer{Path: "/api/chat", Body: []byte(body), Text: "x", Pieces: 1}, plain); got != None || why == "" {
			t.Errorf("%s: %s (%s)", name, got, why)
		}
	}
}

// limitOf is how many tokens the answer to a request may have; -1 for no limit.
func limitOf(path string, body []byte, f Facts) int {
	r, err := read(path, body, f)
	if err != nil {
		return -1
	}
	return r.limit(f)
}

func TestLimitIsTheEnginesReading(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, path, body string
		facts            Facts
		want             int
	}{
		{"none", "/api/chat", ``, plain, -1},
		{"given", "/api/chat", `"options":{"num_predict":7}`, plain, 7},
		{"half a token", "/api/chat", `"options":{"num_predict":7.9}`, plain, 7},
		{"the last of two", "/api/chat", `"options":{"num_predict":7},"options":{"num_predict":8}`, plain, 8},
		{"the one of two that has it", "/api/chat", `"options":{"num_predict":7},"options":{"seed":8}`, plain, 7},
		{"without end", "/api/generate", `"options":{"num_predict":-1}`, plain, -1},
		{"as long as the context", "/api/generate", `"options":{"num_predict":-2}`, plain, -1},
		{"0, which Ollama leaves out", "/api/generate", `"options":{"num_predict":0}`, plain, -1},
		{"the model's", "/api/generate", ``, Facts{Kind: cluster.Ollama, NumPredict: 5}, 5},
		{"the client's before the model's", "/api/generate", `"options":{"num_predict":9}`, Facts{Kind: cluster.Ollama, NumPredict: 5}, 9},
		{"the client's none before the model's", "/api/generate", `"options":{"num_predict":-1}`, Facts{Kind: cluster.Ollama, NumPredict: 5}, -1},
		{"OpenAI's", "/v1/chat/completions", `"max_tokens":7`, plain, 7},
		{"OpenAI's new name, which Ollama does not know", "/v1/chat/completions", `"max_completion_tokens":7`, plain, -1},
		{"OpenAI's new name", "/v1/chat/completions", `"max_completion_tokens":7,"max_tokens":8`, llama, 7},
		{"llama-server's own", "/v1/completions", `"n_predict":6,"max_tokens":8`, llama, 6},
		{"null", "/v1/completions", `"max_tokens":null`, llama, -1},
		{"0", "/v1/completions", `"max_tokens":0`, llama, 0},
		{"negative", "/v1/completions", `"max_tokens":-5`, llama, -1},
		{"completion's", "/v1/completions", `"max_tokens":7`, plain, 7},
		{"messages'", "/v1/messages", `"max_tokens":7`, plain, 7},
		{"responses'", "/v1/responses", `"max_output_tokens":7`, plain, 7},
		{"responses' at llama-server", "/v1/responses", `"max_output_tokens":7`, llama, 7},
		{"a text", "/v1/completions", `"max_tokens":"7"`, plain, -1},
	} {
		if got := limitOf(tc.path, []byte("{"+tc.body+"}"), tc.facts); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestTheCountsOfAResumedAnswerAreThoseOfAWholeOne(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ pieces, promptEval, eval, prompt, output int }{
		"cut once":             {3, 13, 7, 10, 10},
		"cut at once":          {1, 11, 9, 10, 10},
		"ended as it went on":  {10, 20, 0, 10, 10},
		"counts of no sense":   {9, 4, 1, 0, 10},
		"nothing was had":      {0, 10, 5, 10, 5},
		"the engine says none": {4, 0, 0, 0, 4},
	} {
		if prompt, output := Count(tc.pieces, tc.promptEval, tc.eval); prompt != tc.prompt || output != tc.output {
			t.Errorf("%s: %d and %d, want %d and %d", name, prompt, output, tc.prompt, tc.output)
		}
	}
}
