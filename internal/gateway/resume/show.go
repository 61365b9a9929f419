package resume

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// ReadShow reads an Ollama's answer of /api/show. If verbose is true, the answer does not hold all
// that is to be known, and has to be asked for with "verbose": true, which can make it megabytes.
func ReadShow(answer []byte) (f Facts, verbose bool, err error) {
	show := gjson.ParseBytes(answer)
	if !gjson.ValidBytes(answer) || !show.Get("model_info").IsObject() {
		return Facts{}, false, errors.New("read what the engine shows of the model: not an answer of /api/show")
	}
	commands := commandsOf(show.Get("modelfile").Str)
	f = Facts{
		Kind:     cluster.Ollama,
		Renderer: cmp.Or(show.Get("renderer").Str, commands["RENDERER"]), // 0.33 has the fields and leaves them empty
		Parser:   cmp.Or(show.Get("parser").Str, commands["PARSER"]),
	}
	// Unless the model has another template that Ollama prefers, it shows this one.
	f.Jinja = f.Renderer == "" && strings.Contains(show.Get("template").Str, "{%")
	f.Thinks = slices.ContainsFunc(show.Get("capabilities").Array(), func(c gjson.Result) bool { return c.Str == "thinking" })
	if family := show.Get("details.family").Str; f.Parser == "" && (family == "gptoss" || family == "gpt-oss") {
		f.Parser = "harmony" // which the older of them do not name
	}
	for line := range strings.Lines(show.Get("parameters").Str) {
		if words := strings.Fields(line); len(words) == 2 && words[0] == "num_predict" {
			f.NumPredict, _ = strconv.Atoi(words[1]) // what is no number is no limit
		}
	}
	info := func(key string) gjson.Result { return show.Get("model_info").Get("tokenizer\\.ggml\\." + key) }
	pre, model := info("pre").Str, info("model").Str
	if f.Renderer != "" && (info("add_bos_token").Bool() || pre == "lfm2" || pre == "gemma4" || model == "gemma4") {
		tokens := info("tokens")
		f.BOS = tokens.Get(strconv.FormatInt(info("bos_token_id").Int(), 10)).Str
		verbose = !tokens.IsArray() || len(tokens.Raw) < len(`["",""]`)
	}
	return f, verbose, nil
}

// commandsOf returns the commands of a Modelfile that stand on one line, as Ollama writes them; texts of
// several lines are in quotes, whose lines are none.
func commandsOf(modelfile string) map[string]string {
	commands, quote := map[string]string{}, ""
	for line := range strings.Lines(modelfile) {
		line = strings.TrimRight(line, "\r\n")
		if quote != "" {
			if strings.HasSuffix(line, quote) {
				quote = ""
			}
			continue
		}
		name, text, _ := strings.Cut(line, " ")
		if name == "MESSAGE" {
			_, text, _ = strings.Cut(text, " ")
		}
		for _, mark := range []string{`"""`, `"`} {
			if rest, ok := strings.CutPrefix(text, mark); ok {
				if !strings.HasSuffix(rest, mark) {
					quote = mark
				}
				break
			}
		}
		if quote == "" {
			commands[name] = text
		}
	}
	return commands
}

// Continues tells, by an engine's own description of a model (an element of /v1/models), whether it is
// one of those that heed continue_final_message.
func Continues(v1 []byte) bool {
	owner := gjson.GetBytes(v1, "owned_by").Str
	return owner == "vllm" || owner == "sglang"
}
