package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/gateway/resume"
)

// thinkingModel makes a model that thinks until it says a certain letter: noise opens no tags, but will
// say some letter soon.
func thinkingModel(t *testing.T, urls []string, name, question string) {
	t.Helper()
	prompt := "<|user|>" + question + "<|end|><|assistant|>(T)"
	_, text := ask(t, "POST", urls[0]+"/api/generate", fmt.Sprintf(`{"model":"go","raw":true,"stream":false,"prompt":%q,"options":{"temperature":0,"num_predict":60}}`, prompt))
	said := gjson.Get(text, "response").Str
	for at := 8; at < 30; at++ {
		letter := said[at]
		if letter < 'A' || letter > 'Z' && letter < 'a' || letter > 'z' || strings.IndexByte(said, letter) != at || said[at+1] == ' ' || said[at-1] == ' ' || said[0] == ' ' {
			continue
		}
		for _, url := range urls {
			createFrom(t, url, name, "go", map[string]any{"template": `{{- range .Messages }}<|{{ .Role }}|>{{ if .Thinking }}(T){{ .Thinking }}` + string(letter) +
				`{{ end }}{{ .Content }}<|end|>{{ end }}<|assistant|>{{ if .Think }}(T){{ end }}`})
		}
		return
	}
	t.Fatalf("no letter ends thinking in %q", said)
}

func TestAnAnswerThatWasThoughtOverGoesOn(t *testing.T) {
	first, second := startOllama(t), startOllama(t)
	continuationModels(t, first)
	continuationModels(t, second)
	const question = "What floats?"
	thinkingModel(t, []string{first, second}, "thinks", question)
	chat := fmt.Sprintf(`"messages":[{"role":"user","content":%q}]`, question)
	for _, tc := range []struct {
		name, path, body string
		method           resume.Method
	}{
		{"chat", "/api/chat", chat + `,"options":{"temperature":0,"num_predict":90}`, resume.Probe},
		{"generate", "/api/generate", fmt.Sprintf(`"prompt":%q,"options":{"temperature":0,"num_predict":90}`, question), resume.Probe},
		{"OpenAI's chat", "/v1/chat/completions", chat + `,"temperature":0,"max_tokens":90,"reasoning_effort":"low"`, resume.Probe},
		{"messages", "/v1/messages", chat + `,"temperature":0,"max_tokens":90,"thinking":{"type":"enabled","budget_tokens":1024}`, resume.Probe},
		{"responses", "/v1/responses", fmt.Sprintf(`"input":%q,"temperature":0,"max_output_tokens":90`, question), resume.Probe},
		{"told not to think", "/api/chat", chat + `,"think":false,"options":{"temperature":0,"num_predict":90}`, resume.Raw},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCut(t, first, second, tc.path, "thinks", fmt.Sprintf(`{"model":"thinks","stream":true,%s}`, tc.body))
			c.method = tc.method
			if !c.facts.Thinks || (tc.method == resume.Probe) != (len(c.whole.thinking) > 5) {
				t.Fatalf("%+v thought %q", c.facts, c.whole.thinking)
			}
			for _, at := range []int{1, 5, 17, 28, len(c.whole.pieces) - 1} {
				c.check(t, at)
			}
			c.control(t, 3)
			if cut := c.answer(0); tc.method == resume.Probe {
				cut.Thinking = cut.Thinking[:3]
				if method, _ := resume.Decide(cut, c.facts); method != resume.Replay {
					t.Errorf("cut while thinking it goes on by %s", method)
				}
			}
		})
	}
}

// startLlamaServer runs a llama-server with noise and returns its URL.
func startLlamaServer(t *testing.T) string {
	t.Helper()
	addr := freeAddr(t)
	host, port, _ := strings.Cut(addr, ":")
	start(t, nil, llamaServer(t), "--host", host, "--port", port, "--model", filepath.Join(engineDir(t), "noise.gguf"), "--alias", "noise", "--ctx-size", "2048", "--parallel", "1")
	url := "http://" + addr
	eventually(t, 30*time.Second, "llama-server answers", func() bool { return answers(url + "/health") })
	return url
}

func TestALlamaServerGoesOnInTheTextOfAnother(t *testing.T) {
	first, second := startLlamaServer(t), startLlamaServer(t)
	const turns = `"messages":[{"role":"user","content":"Hé \"x\""},{"role":"assistant","content":"Ho"},{"role":"user","content":"%s now?"}]`
	facts := resume.Facts{Kind: cluster.LlamaServer}
	for _, tc := range []struct{ name, path, body string }{
		{"chat", "/v1/chat/completions", turns + `,"temperature":0,"max_tokens":60`},
		{"chat that the client had begun", "/v1/chat/completions", `"messages":[{"role":"user","content":"%s"},{"role":"assistant","content":"Once "}],"temperature":0,"max_completion_tokens":60`},
		{"completion", "/v1/completions", `"prompt":"%s tea","temperature":0,"max_tokens":60,"frequency_penalty":0.5`},
		{"completion of one text in a list", "/v1/completions", `"prompt":["%s tea"],"temperature":0,"n_predict":60`},
		{"messages", "/v1/messages", `"system":"Be short.",` + turns + `,"temperature":0,"max_tokens":60`},
		{"responses", "/v1/responses", `"input":"%s the harbour?","temperature":0,"max_output_tokens":60`},
		{"responses of many turns", "/v1/responses", `"instructions":"Be short.","input":[{"role":"user","content":"Hi"},{"type":"message","role":"assistant","content":[{"type":"output_text","text":"Ho"}]},{"role":"user","content":"%s"}],"temperature":0,"max_output_tokens":60`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body := func(word string) string { return `{"model":"noise","stream":true,` + fmt.Sprintf(tc.body, word) + `}` }
			whole := streamed(t, first, tc.path, body("Where"))
			if len(whole.pieces) != 60 {
				t.Fatalf("%d records: %q", len(whole.pieces), whole.text())
			}
			wholly := 0
			for _, at := range []int{1, 7, 19, 33, 48, 59} {
				a := resume.Answer{Path: tc.path, Body: []byte(body("Where")), Text: strings.Join(whole.pieces[:at], ""), Pieces: at}
				if method, why := resume.Decide(a, facts); method != resume.Prefill {
					t.Fatalf("it goes on by %s: %s", method, why)
				}
				rest, err := resume.PrefillBody(a, facts)
				if err != nil {
					t.Fatal(err)
				}
				got := streamed(t, second, tc.path, string(rest))
				if len(got.pieces) != 60-at {
					t.Errorf("cut after %d records it has %d more, want %d", at, len(got.pieces), 60-at)
				}
				if a.Text+got.text() == whole.text() {
					wholly++
				} else if n := at + same(got.text(), whole.text()[at:]); !rounds(t, second, a, whole.text()[:n]) {
					t.Errorf("cut after %d records it went on otherwise:\n%q\nwant\n%q", at, got.text(), whole.text()[at:])
				}
				a.Body = []byte(body("There"))
				if rest, err = resume.PrefillBody(a, facts); err != nil {
					t.Fatal(err)
				}
				if other := streamed(t, second, tc.path, string(rest)); at == 1 && same(other.text(), whole.text()[at:]) > 8 {
					t.Errorf("cut after %d records it went on alike behind another prompt: the comparison shows nothing", at)
				}
			}
			if wholly == 0 {
				t.Error("no cut went on as the whole answer")
			}
		})
	}
}

// rounds tells whether after a text two tokens are so close that rounding decides between them.
func rounds(t *testing.T, url string, a resume.Answer, text string) bool {
	t.Helper()
	prompt := gjson.GetBytes(a.Body, "prompt").Str + gjson.GetBytes(a.Body, "prompt.0").Str
	if prompt == "" {
		type message struct {
			Role    string `json:"role"`
			Content string `json:"content"`
		}
		var messages []message
		for _, place := range []string{"system", "instructions"} {
			if system := gjson.GetBytes(a.Body, place).Str; system != "" {
				messages = append(messages, message{"system", system})
			}
		}
		for _, m := range append(gjson.GetBytes(a.Body, "messages").Array(), gjson.GetBytes(a.Body, "input").Array()...) {
			switch content := m.Get("content"); {
			case m.Type == gjson.String:
				messages = append(messages, message{"user", m.Str})
			case content.IsArray():
				messages = append(messages, message{m.Get("role").Str, content.Get("0.text").Str})
			default:
				messages = append(messages, message{m.Get("role").Str, content.Str})
			}
		}
		body, err := json.Marshal(map[string]any{"messages": messages})
		if err != nil {
			t.Fatal(err)
		}
		_, rendered := ask(t, "POST", url+"/apply-template", string(body), "Connection", "close")
		prompt = gjson.Get(rendered, "prompt").Str
	}
	body, err := json.Marshal(map[string]any{"prompt": prompt + text, "n_predict": 1, "n_probs": 2, "temperature": 0})
	if err != nil {
		t.Fatal(err)
	}
	_, answer := ask(t, "POST", url+"/completion", string(body), "Connection", "close")
	top := gjson.Get(answer, "completion_probabilities.0.top_logprobs")
	margin := top.Get("0.logprob").Num - top.Get("1.logprob").Num
	t.Logf("after %d tokens the first is ahead by %.4f: %s", len(text), margin, top.Raw)
	return len(top.Array()) > 1 && margin < tie
}

// A model whose file has a template that opens its thinking: /api/generate leaves that in the text, and
// the text goes on within it.
func TestThinkingThatIsLeftInTheTextGoesOn(t *testing.T) {
	first, second := startOllama(t), startOllama(t)
	file := withBOS(t, filepath.Join(engineDir(t), "noise.gguf"), "<s>", `{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% else %}<think>{% endif %}{% endif %}`)
	create(t, first, "thinks", file)
	create(t, second, "thinks", file)
	for path, body := range map[string]string{
		"/api/generate":   `"prompt":"Hi","options":{"temperature":0,"num_predict":50}`,
		"/v1/completions": `"prompt":"Hi","temperature":0,"max_tokens":50`,
	} {
		c := newCut(t, first, second, path, "thinks", `{"model":"thinks","stream":true,`+body+`}`)
		if !c.facts.Thinks || len(c.whole.thinking) != 0 {
			t.Errorf("%+v thought %q", c.facts, c.whole.thinking)
		}
		for _, at := range []int{1, 9, 22, 36, 49} {
			c.check(t, at)
		}
		c.control(t, 3)
	}
}

func TestASeedMakesADrawnAnswerRepeatable(t *testing.T) {
	first, second := startOllama(t, "noise"), startOllama(t, "noise")
	for path, body := range map[string]string{
		"/api/chat":            `{"model":"noise","messages":[{"role":"user","content":"Hi"}],"options":{"num_predict":20}}`,
		"/api/generate":        `{"model":"noise","prompt":"Hi","options":{"num_predict":20}}`,
		"/v1/chat/completions": `{"model":"noise","messages":[{"role":"user","content":"Hi"}],"max_tokens":20,"stream":true}`,
		"/v1/completions":      `{"model":"noise","prompt":"Hi","max_tokens":20,"stream":true}`,
	} {
		if !resume.NeedsSeed(path, []byte(body), resume.Facts{Kind: cluster.Ollama, Thinks: true}) {
			t.Errorf("%s needs no seed", path)
		}
		seeded := string(resume.WithSeed(path, []byte(body), 4711))
		whole, again, other := streamed(t, first, path, seeded).text(), streamed(t, second, path, seeded).text(), streamed(t, second, path, body).text()
		if whole != again || whole == other {
			t.Errorf("%s says %q, again %q, and without the seed %q", path, whole, again, other)
		}
	}
}
