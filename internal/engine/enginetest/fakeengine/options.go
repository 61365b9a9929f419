package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

// options are what the command line and the environment say.
type options struct {
	listen, control string
	ignoreTerm      bool
	config          enginetest.Config
}

func (o *options) flags(fs *flag.FlagSet) {
	c := &o.config
	fs.StringVar(&o.listen, "listen", o.listen, "`HOST:PORT` to serve on")
	fs.StringVar(&o.control, "control", "", "second `HOST:PORT`, on which the fault refuse never applies; refuse then resets new connections at once")
	fs.BoolVar(&o.ignoreTerm, "ignore-term", false, "do not end on SIGTERM and SIGINT")
	fs.Func("kind", "API to serve: ollama, openai or llama-server", func(s string) error {
		c.Kind = enginetest.Kind(s)
		switch c.Kind {
		case enginetest.KindOllama, enginetest.KindOpenAI, enginetest.KindLlamaServer:
			return nil
		}
		return fmt.Errorf("neither ollama nor openai nor llama-server")
	})
	fs.StringVar(&c.Version, "version-string", c.Version, "what /api/version answers (default 0.33.0), and llama-server's build_info (default b11669-fake)")
	fs.Func("model", "a model to hold, repeatable: `NAME[,DIGEST][,size=BYTES][,ctx=TOKENS][,embedding][,thinking][,tools][,vision][,bos]`", o.addModel)
	fs.Func("folder", "`DIR` of models in Ollama's form: hold those there, and keep there what is pulled and created", func(s string) (err error) {
		c.Folder, err = filepath.Abs(s)
		return err
	})
	fs.IntVar(&c.Slots, "slots", c.Slots, "generations at once (default 1)")
	fs.IntVar(&c.Queue, "queue", c.Queue, "requests that may wait, -1 for none (default 512)")
	fs.IntVar(&c.Context, "context", c.Context, "context length in tokens without num_ctx (default 4096)")
	fs.IntVar(&c.Length, "length", c.Length, "tokens of an answer without a limit (default 64)")
	fs.IntVar(&c.ThinkLength, "think-length", 0, "tokens that a thinking model thinks before it answers (default 8)")
	fs.BoolVar(&c.ClosesAssistant, "closes-assistant", false, "the template closes the assistant's turn, also the last message")
	fs.DurationVar(&c.KeepAlive, "keep-alive", c.KeepAlive, "how long models stay loaded (default 5m)")
	fs.DurationVar(&c.LoadTime, "load-time", 0, "time to load a model")
	fs.Float64Var(&c.Prefill, "prefill", 0, "prompt tokens evaluated a second, 0 for at once")
	fs.DurationVar(&c.FirstToken, "first-token", 0, "time from prefill to the first token")
	fs.DurationVar(&c.TokenGap, "token-gap", 0, "time between two tokens")
	fs.DurationVar(&c.PullTime, "pull-time", 0, "how long a pull takes")
	fs.BoolVar(&c.Sampling, "sampling", false, "let temperature and seed change answers; without a seed each is another")
	fs.BoolVar(&c.Unaware, "unaware", false, "notice only when writing that a client has left")
	fs.BoolVar(&c.CPUOnly, "cpu-only", false, "report sizes of 0 in /api/ps")
	fs.BoolVar(&c.Strict, "strict", c.Strict, "check Host and Origin as Ollama does")
	fs.Uint64Var(&c.Seed, "seed", 0, "changes all answers")
}

// fromOllama takes what `ollama serve` takes from its environment.
func (o *options) fromOllama(getenv func(string) string) error {
	o.listen = ollamaHost(getenv("OLLAMA_HOST"))
	o.config.Strict = true
	for _, v := range []struct {
		name string
		to   *int
	}{
		{"OLLAMA_NUM_PARALLEL", &o.config.Slots},
		{"OLLAMA_MAX_QUEUE", &o.config.Queue},
		{"OLLAMA_CONTEXT_LENGTH", &o.config.Context},
	} {
		s := getenv(v.name)
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
		*v.to = n
	}
	return nil
}

// addModel reads NAME[,DIGEST][,size=BYTES][,ctx=TOKENS] and the words for what the model can do.
func (o *options) addModel(spec string) error {
	fields := strings.Split(spec, ",")
	m := enginetest.Model{Name: fields[0]}
	for _, f := range fields[1:] {
		key, value, ok := strings.Cut(f, "=")
		var err error
		switch {
		case f == "embedding":
			m.Embedding = true
		case f == "thinking":
			m.Thinking = true
		case f == "tools":
			m.Tools = true
		case f == "vision":
			m.Vision = true
		case f == "bos":
			m.BOS = true
		case !ok:
			m.Digest = strings.TrimPrefix(f, "sha256:")
		case key == "size":
			m.Size, err = strconv.ParseInt(value, 10, 64)
		case key == "ctx":
			m.ContextLength, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("unknown key %q", key)
		}
		if err != nil {
			return fmt.Errorf("model %q: %w", spec, err)
		}
	}
	o.config.Models = append(o.config.Models, m)
	return nil
}

func serverVersion(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var v struct {
		Version string `json:"version"`
	}
	err = json.NewDecoder(resp.Body).Decode(&v)
	return v.Version, err
}
