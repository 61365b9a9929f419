package enginetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// fakeTemplate is the template of all models, as Ollama shows it.
const fakeTemplate = "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}\n{{ end }}" + turnAssistant

// fakeConfig is the configuration of all models that the fake makes.
const fakeConfig = `{"model_format":"gguf","model_family":"fake","model_families":["fake"],"model_type":"1.0B","file_type":"F16","architecture":"amd64","os":"linux"}` + "\n"

// WriteModel writes a model into a folder of Ollama's form (Config.Folder), in place of one with that name, and returns
// its digest, which is all that its answers depend on. It has three blobs: size bytes of weights, which cannot be compressed
// and depend on the seed, a template and a configuration. Servers of that folder hold it at once.
func WriteModel(dir, name string, size int64, seed uint64) (digest string, err error) {
	n := parseName(name)
	if !n.valid() {
		return "", fmt.Errorf("write model %s: %w", name, errBadName)
	}
	f := &folder{dir: dir}
	var layers []layer
	for _, part := range []struct {
		media string
		from  io.Reader
	}{
		{mediaWeights, weights(size, seed)},
		{mediaTemplate, strings.NewReader(fakeTemplate)},
		{mediaConfig, strings.NewReader(fakeConfig)},
	} {
		l, err := f.add(part.media, part.from)
		if err != nil {
			return "", fmt.Errorf("write model %s: %w", name, err)
		}
		layers = append(layers, l)
	}
	data, err := encode(layers[2], layers[:2])
	if err == nil {
		err = f.put(f.written(n), data)
	}
	if err != nil {
		return "", fmt.Errorf("write model %s: %w", name, err)
	}
	return hexDigest(string(data)), nil
}

// weights are a GGUF's head, if there is room for it, and noise.
func weights(size int64, seed uint64) io.Reader {
	head := ggufHead()
	if int64(len(head)) > size {
		head = nil
	}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return io.LimitReader(io.MultiReader(bytes.NewReader(head), rand.NewChaCha8(key)), size)
}

// ggufHead is a GGUF of no tensors that tells of a small model.
func ggufHead() []byte {
	const typeUint32, typeString = 4, 8
	numbers := []struct {
		key   string
		value uint32
	}{
		{"fake.block_count", 4}, {"fake.context_length", 131072}, {"fake.embedding_length", EmbeddingLength},
		{"fake.attention.head_count", 4}, {"fake.attention.head_count_kv", 4},
	}
	order := binary.LittleEndian
	text := func(b []byte, s string) []byte { return append(order.AppendUint64(b, uint64(len(s))), s...) }
	b := order.AppendUint32([]byte("GGUF"), 3)
	b = order.AppendUint64(b, 0)
	b = order.AppendUint64(b, uint64(1+len(numbers)))
	b = text(order.AppendUint32(text(b, "general.architecture"), typeString), "fake")
	for _, n := range numbers {
		b = order.AppendUint32(order.AppendUint32(text(b, n.key), typeUint32), n.value)
	}
	return b
}

// encode writes a manifest as an Ollama writes one that it makes: with a final newline.
func encode(config layer, layers []layer) ([]byte, error) {
	data, err := json.Marshal(filed{2, mediaManifest, config, layers})
	return append(data, '\n'), err
}

// add writes a blob, if it is not there.
func (f *folder) add(media string, from io.Reader) (layer, error) {
	dir := filepath.Join(f.dir, "blobs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return layer{}, err
	}
	file, err := os.CreateTemp(dir, "sha256-")
	if err != nil {
		return layer{}, err
	}
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(file, sum), from)
	digest := "sha256:" + hex.EncodeToString(sum.Sum(nil))
	path, bad := f.blobPath(digest)
	if err = errors.Join(err, file.Chmod(0o644), file.Close(), bad); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return layer{}, errors.Join(err, os.Remove(file.Name()))
	}
	return layer{MediaType: media, Digest: digest, Size: size}, nil
}

// blob returns the size of a blob that is there.
func (f *folder) blob(digest string) (int64, bool) {
	path, err := f.blobPath(digest)
	if err != nil {
		return 0, false
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	return info.Size(), true
}

// create makes a model of another one in the folder, or of blobs, and deletes what only the old one of that name had.
func (f *folder) create(wanted string, req *manageRequest, say func(progress) error) error {
	n := f.existing(parseName(wanted))
	var old []layer
	if m, err := f.read(n); err == nil {
		old = m.all()
	}
	config, layers, err := f.base(req)
	if err != nil {
		return err
	}
	params, err := f.params(layers, req.Parameters)
	if err != nil {
		return err
	}
	for _, change := range []struct{ media, text string }{
		{mediaTemplate, req.Template}, {mediaSystem, req.System}, {mediaParams, params},
	} {
		if change.text == "" {
			continue
		}
		l, err := f.add(change.media, strings.NewReader(change.text))
		if err != nil {
			return err
		}
		layers = append(slices.DeleteFunc(layers, func(l layer) bool { return l.MediaType == change.media }), l)
	}
	for _, l := range layers {
		if err := say(progress{Status: "using existing layer " + l.Digest}); err != nil {
			return err
		}
	}
	if err := say(progress{Status: "writing manifest"}); err != nil {
		return err
	}
	data, err := encode(config, layers)
	if err == nil {
		err = f.put(n, data)
	}
	if err != nil {
		return err
	}
	return f.dropped(old)
}

// base is what a model begins as.
func (f *folder) base(req *manageRequest) (config layer, layers []layer, err error) {
	if req.From != "" {
		m, err := f.find(req.From)
		if err != nil {
			return config, nil, err
		}
		for i := range m.Layers {
			m.Layers[i].From = m.name.String()
		}
		return m.Config, m.Layers, nil
	}
	for _, file := range slices.Sorted(maps.Keys(req.Files)) {
		digest := req.Files[file]
		size, ok := f.blob(digest)
		if !ok {
			return config, nil, &refusal{http.StatusInternalServerError, missingBlob(digest)}
		}
		layers = append(layers, layer{MediaType: mediaWeights, Digest: digest, Size: size})
	}
	config, err = f.add(mediaConfig, strings.NewReader(fakeConfig))
	return config, layers, err
}

// params are those of the layers, changed by a request's; "" if there are none.
func (f *folder) params(layers []layer, changes json.RawMessage) (string, error) {
	all := map[string]any{}
	for _, l := range layers {
		if l.MediaType != mediaParams {
			continue
		}
		path, err := f.blobPath(l.Digest)
		if err != nil {
			return "", err
		}
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &all)
		}
		if err != nil {
			return "", err
		}
	}
	if len(changes) > 0 {
		if err := json.Unmarshal(changes, &all); err != nil {
			return "", err
		}
	}
	if len(all) == 0 {
		return "", nil
	}
	data, err := json.Marshal(all)
	return string(data) + "\n", err
}
