// Package gguf reads from the head of a model's file how much memory the model takes: its weights, and the cache of keys
// and values for each token of context.
//
// It reads GGUF of the versions 2 and 3, little-endian, of which it looks at a few keys and at where the tensors lie. It reads no
// tensor, and knows nothing of vocabularies and templates.
//
// Invariants:
//   - Not more is read than the head and 64 KiB, nor than 128 MiB, whatever the file says.
//   - A file that is damaged or hostile is an ErrFormat that says where; it costs no memory.
//   - What it says of the cache is an upper bound: see Head.Footprint.
//
// Start reading at Read, then Head.Footprint and OfModel.
package gguf

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// ErrFormat says that a file is no GGUF that can be read: another format, damaged, or cut off.
var ErrFormat = errors.New("not a sound GGUF file")

func badFormat(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// The most that a file may have of something. The largest models there are have a hundredth of it.
const (
	maxKeys    = 1 << 16
	maxLayers  = 1 << 12
	maxHeads   = 1 << 16
	maxLength  = 1 << 24 // elements of a head's key, of an embedding
	maxAlign   = 1 << 20
	maxKept    = 64
	maxTensors = 1 << 22
	maxCached  = 1 << 30 // elements for a token: times the largest context, it fits
)

// Head is what the head of a file says.
type Head struct {
	// Architecture is the model's, as "llama"; "" for a part of a model that does not say.
	Architecture string
	// Weights is the bytes of the tensors.
	Weights int64
	// Context is the most tokens that the model was made for; 0 when the file does not say.
	Context int

	cached int64 // elements of the cache for a token of context
}

// The keys that are kept. They begin with the architecture, which may stand behind them.
const (
	keyArchitecture = "general.architecture"
	keyAlignment    = "general.alignment"

	keyLayers       = ".block_count"
	keyContext      = ".context_length"
	keyEmbedding    = ".embedding_length"
	keyHeads        = ".attention.head_count"
	keyCachedHeads  = ".attention.head_count_kv"
	keyKeyLength    = ".attention.key_length"
	keyValueLength  = ".attention.value_length"
	keySharedLayers = ".attention.shared_kv_layers"
	keyInterval     = ".full_attention_interval"
)

// kept tells whether a key may be wanted.
func kept(key string) bool {
	if key == keyAlignment {
		return true
	}
	return slices.ContainsFunc([]string{keyLayers, keyContext, keyEmbedding, keyHeads, keyCachedHeads, keyKeyLength, keyValueLength, keySharedLayers, keyInterval},
		func(end string) bool { return strings.HasSuffix(key, end) })
}

// Read reads the head of a file that has so many bytes. An error that is no ErrFormat is r's.
func Read(r io.ReaderAt, size int64) (Head, error) {
	h, err := read(newReader(r, size), size)
	if err != nil {
		return Head{}, fmt.Errorf("read head of model: %w", err)
	}
	return h, nil
}

func read(r *reader, size int64) (h Head, err error) {
	tensors, keys, err := r.begin()
	if err != nil {
		return h, err
	}
	values := values{}
	for range keys {
		key, err := r.text(maxText)
		if err != nil {
			return h, err
		}
		if err := r.value(key, &h.Architecture, values); err != nil {
			return h, fmt.Errorf("key %.80q: %w", key, err)
		}
	}
	if h.Weights, err = r.tensors(tensors, size, values); err != nil {
		return h, err
	}
	context, err := values.number(h.Architecture+keyContext, math.MaxInt32, 0)
	if err != nil {
		return h, err
	}
	h.Context = int(context)
	h.cached, err = values.cached(h.Architecture)
	return h, err
}

// values are the numbers of the keys that are kept: one, or those of an array.
type values map[string][]int64

// number is that of a key that has one, at most most; def if it is not there.
func (v values) number(key string, most, def int64) (int64, error) {
	all, ok := v[key]
	switch {
	case !ok:
		return def, nil
	case len(all) != 1:
		return 0, badFormat("key %q: it is not one whole number", key)
	case all[0] < 0 || all[0] > most:
		return 0, badFormat("key %q: %d is not from 0 to %d", key, all[0], most)
	}
	return all[0], nil
}

// each are the numbers of a key for each layer, of which the file may say one for all.
func (v values) each(key string, layers, most int64, def []int64) ([]int64, error) {
	all, ok := v[key]
	if !ok {
		return def, nil
	}
	for _, n := range all {
		if n < 0 || n > most {
			return nil, badFormat("key %q: %d is not from 0 to %d", key, n, most)
		}
	}
	if len(all) == 1 {
		return slices.Repeat(all, int(layers)), nil
	}
	if int64(len(all)) < layers {
		return nil, badFormat("key %q: %d whole numbers for %d layers", key, len(all), layers)
	}
	return all[:layers], nil
}

// cached counts the elements of the cache for a token.
func (v values) cached(architecture string) (int64, error) {
	if strings.Contains(architecture, "bert") { // encoders: they see the whole text at once
		return 0, nil
	}
	var err error
	number := func(end string, most, def int64) (n int64) {
		if err == nil {
			n, err = v.number(architecture+end, most, def)
		}
		return n
	}
	layers := number(keyLayers, maxLayers, 0)
	embedding := number(keyEmbedding, maxLength, 0)
	shared := number(keySharedLayers, maxLayers, 0)
	interval := number(keyInterval, maxLayers, 0)
	if err != nil {
		return 0, err
	}
	heads, err := v.each(architecture+keyHeads, layers, maxHeads, nil)
	if err != nil {
		return 0, err
	}
	cached, err := v.each(architecture+keyCachedHeads, layers, maxHeads, heads)
	if err != nil {
		return 0, err
	}
	var length int64 // of a head, when the file does not say it: the longest of any layer
	for _, n := range heads {
		if n > 0 {
			length = max(length, embedding/n)
		}
	}
	keyed, valued := number(keyKeyLength, maxLength, length), number(keyValueLength, maxLength, length)
	if err != nil {
		return 0, err
	}
	var sum int64
	for i, n := range cached {
		if interval > 1 && (int64(i)+1)%interval != 0 || int64(i) >= layers-shared {
			continue // recurrent; or it looks into another's cache
		}
		sum += n * (keyed + valued)
	}
	if sum > maxCached {
		return 0, badFormat("a token has %d elements in the cache, more than %d", sum, maxCached)
	}
	return sum, nil
}

// CacheType is the form in which an engine caches keys and values: Ollama's OLLAMA_KV_CACHE_TYPE.
type CacheType string

// The forms of the cache. Others are taken for F16.
const (
	F16 CacheType = "f16" // Ollama's, when nothing is said
	Q8  CacheType = "q8_0"
	Q4  CacheType = "q4_0"
)

// bytes is how much so many elements take.
func (c CacheType) bytes(elements int64) int64 {
	switch c { // a block of 32 elements has a scale of two bytes
	case Q8:
		return (elements*34 + 31) / 32
	case Q4:
		return (elements*18 + 31) / 32
	}
	return elements * 2
}

// Footprint is the memory that the file takes in an engine. Of a file without layers, as a projector, it is the weights.
//
// The cache for a token is, summed over the layers, the heads that are cached, times the lengths of a key and of a value. Layers
// that the file says to have no cache, being recurrent or using another's, count nothing. It is more than is taken by
// models whose layers look back through a window only (Gemma, gpt-oss), by those that keep the values within the
// keys (DeepSeek), and for layers that predict further tokens. The engine's own buffers, which depend on its batches, are not in it.
func (h Head) Footprint(cache CacheType) cluster.Footprint {
	return cluster.Footprint{Weights: h.Weights, PerToken: cache.bytes(h.cached), Context: h.Context}
}
