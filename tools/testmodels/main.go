// Testmodels writes the small GGUF models that the tests and the demo run on a
// machine that has no model weights: sentence, noise and embed. It trains
// nothing and reads nothing. The same flags give the same bytes, every time and
// on every machine.
//
// Start reading in llama.go, which lays out a model of the llama architecture;
// noise.go and sentence.go fill one in.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ollama/ollama/fs/ggml"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "testmodels:", err)
		os.Exit(1)
	}
}

// run parses args and writes what they ask for, either all models into a
// folder or one model into a file.
func run(args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("testmodels", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("out", "", "write sentence.gguf, noise.gguf and embed.gguf into this `folder`")
	name := flags.String("model", "", "write one model: sentence, noise or embed")
	file := flags.String("o", "", "with -model, the `file` to write")
	layers := flags.Int("layers", 0, "layers (default 4; 1 for sentence)")
	width := flags.Int("width", 256, "embedding length of noise and embed, a multiple of 64; 10 * layers * width^2 weights")
	kind := flags.String("type", "f32", "how weights are stored: f32 or f16")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || (*out == "") == (*name == "") || (*name == "") != (*file == "") {
		return fmt.Errorf("give either -out FOLDER, or -model NAME and -o FILE")
	}

	names, path := []string{*name}, func(string) string { return *file }
	if *out != "" {
		names, path = []string{"sentence", "noise", "embed"}, func(name string) string {
			return filepath.Join(*out, name+".gguf")
		}
	}
	for _, name := range names {
		m, err := newModel(name, *layers, *width, *kind)
		if err != nil {
			return err
		}
		if err := write(path(name), m); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// newModel lays out the named model. Zero layers means the model's default.
func newModel(name string, layers, width int, kind string) (model, error) {
	weights, ok := map[string]ggml.TensorType{"f32": ggml.TensorTypeF32, "f16": ggml.TensorTypeF16}[kind]
	if !ok {
		return model{}, fmt.Errorf("type %q: want f32 or f16", kind)
	}
	if width <= 0 || width%headLength != 0 {
		return model{}, fmt.Errorf("width %d: want a multiple of %d", width, headLength)
	}
	if layers < 0 {
		return model{}, fmt.Errorf("layers %d: want at least 1", layers)
	}
	if layers == 0 {
		layers = 4
		if name == "sentence" {
			layers = 1
		}
	}
	switch name {
	case "noise":
		return noise(name, layers, width, weights), nil
	case "embed":
		m := noise(name, layers, width, weights)
		m.kv["pooling_type"] = uint32(1) // mean: what makes Ollama embed with it
		return m, nil
	case "sentence":
		return sentence(newBigrams(text), layers, weights), nil
	default:
		return model{}, fmt.Errorf("model %q: want sentence, noise or embed", name)
	}
}

// write puts m into path by way of a temporary file beside it, so that path
// never holds half a model.
func write(path string, m model) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := ggml.WriteGGUF(f, m.kv, m.tensors); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
