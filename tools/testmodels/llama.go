package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/ollama/ollama/fs/ggml"
	"github.com/x448/float16"
)

const (
	headLength    = 64
	contextLength = 4096

	// Token types of the GGUF format.
	tokenNormal  = 1
	tokenControl = 3
)

// model is a GGUF file before it is written. Its keys without a known prefix
// are the architecture's own.
type model struct {
	kv      ggml.KV
	tensors []*ggml.Tensor
}

// shape is what a llama needs to know of its size.
type shape struct {
	layers, width, heads, head, feedForward int
}

// fill gives the weight at a column (the input) and a row (the output) of a
// matrix; a vector is a matrix of one row. Elements are asked for row by row,
// each once, so a fill may draw from a generator.
type fill func(row, column int) float32

// filler makes the fill of the tensor with the given name, as it stands in the
// file, and input length.
type filler func(name string, inputs int) fill

// llama lays out a model of the llama architecture with the vocabulary v.
// Matrices are stored as weights, vectors always as f32.
func llama(name string, s shape, v vocabulary, weights ggml.TensorType, fill filler) model {
	fileType := ggml.FileTypeF32
	if weights == ggml.TensorTypeF16 {
		fileType = ggml.FileTypeF16
	}
	m := model{kv: ggml.KV{
		"general.architecture":             "llama",
		"general.name":                     name,
		"general.file_type":                fileType,
		"general.quantization_version":     uint32(2),
		"block_count":                      uint32(s.layers),
		"context_length":                   uint32(contextLength),
		"embedding_length":                 uint32(s.width),
		"feed_forward_length":              uint32(s.feedForward),
		"attention.head_count":             uint32(s.heads),
		"attention.head_count_kv":          uint32(s.heads),
		"attention.key_length":             uint32(s.head),
		"attention.value_length":           uint32(s.head),
		"attention.layer_norm_rms_epsilon": float32(1e-5),
		"rope.dimension_count":             uint32(s.head),
		"vocab_size":                       uint32(len(v.tokens)),
		"tokenizer.ggml.model":             "gpt2",
		"tokenizer.ggml.pre":               v.splitter,
		"tokenizer.ggml.tokens":            v.tokens,
		"tokenizer.ggml.token_type":        v.types(),
		"tokenizer.ggml.merges":            v.merges,
		"tokenizer.ggml.bos_token_id":      uint32(endOfText),
		"tokenizer.ggml.eos_token_id":      uint32(endOfText),
		"tokenizer.ggml.add_bos_token":     false,
		"tokenizer.ggml.add_eos_token":     false,
	}}
	vector := func(name string, length int) {
		m.tensors = append(m.tensors, &ggml.Tensor{
			Name: name, Kind: uint32(ggml.TensorTypeF32), Shape: []uint64{uint64(length)},
			WriterTo: elements{1, length, ggml.TensorTypeF32, func() func(int, int) float32 { return fill(name, length) }},
		})
	}
	matrix := func(name string, inputs, outputs int) {
		m.tensors = append(m.tensors, &ggml.Tensor{
			Name: name, Kind: uint32(weights), Shape: []uint64{uint64(inputs), uint64(outputs)},
			WriterTo: elements{outputs, inputs, weights, func() func(int, int) float32 { return fill(name, inputs) }},
		})
	}
	matrix("token_embd.weight", s.width, len(v.tokens))
	for i := range s.layers {
		layer := fmt.Sprintf("blk.%d.", i)
		vector(layer+"attn_norm.weight", s.width)
		matrix(layer+"attn_q.weight", s.width, s.heads*s.head)
		matrix(layer+"attn_k.weight", s.width, s.heads*s.head)
		matrix(layer+"attn_v.weight", s.width, s.heads*s.head)
		matrix(layer+"attn_output.weight", s.heads*s.head, s.width)
		vector(layer+"ffn_norm.weight", s.width)
		matrix(layer+"ffn_gate.weight", s.width, s.feedForward)
		matrix(layer+"ffn_up.weight", s.width, s.feedForward)
		matrix(layer+"ffn_down.weight", s.feedForward, s.width)
	}
	vector("output_norm.weight", s.width)
	matrix("output.weight", s.width, len(v.tokens))
	return m
}

// elements writes a tensor as it is filled, so that no tensor is ever whole in
// memory. A new fill for each write keeps two writes equal.
type elements struct {
	rows, columns int
	kind          ggml.TensorType
	fill          func() func(row, column int) float32
}

func (e elements) WriteTo(w io.Writer) (int64, error) {
	out, at := bufio.NewWriterSize(w, 1<<16), e.fill()
	var written int64
	var b [4]byte
	for row := range e.rows {
		for column := range e.columns {
			n, value := 4, at(row, column)
			if e.kind == ggml.TensorTypeF16 {
				n = 2
				binary.LittleEndian.PutUint16(b[:], float16.Fromfloat32(value).Bits())
			} else {
				binary.LittleEndian.PutUint32(b[:], math.Float32bits(value))
			}
			if _, err := out.Write(b[:n]); err != nil {
				return written, err
			}
			written += int64(n)
		}
	}
	return written, out.Flush()
}
