package main

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/ollama/ollama/fs/ggml"
)

// noise is a llama with random weights over the 256 bytes. What it answers is
// printable and without sense, depends on every byte of the prompt, and reads
// back as the tokens it was made of: a stream that goes on elsewhere from its
// exact text goes on as it would have, and from any other text it does not.
func noise(name string, layers, width int, weights ggml.TensorType) model {
	s := shape{layers: layers, width: width, heads: width / headLength, head: headLength, feedForward: 2 * width}
	return llama(name, s, bytesOnly(), weights, func(tensor string, inputs int) fill {
		if strings.HasSuffix(tensor, "_norm.weight") {
			return func(int, int) float32 { return 1 }
		}
		// A uniform draw of this bound keeps a vector of unit elements at unit
		// elements. The gains are by experiment: with less attention answers forget
		// the prompt, with more they magnify the rounding in which a prompt read in
		// one go differs from one read token by token.
		bound := math.Sqrt(3 / float64(inputs))
		switch {
		case tensor == "token_embd.weight":
			bound = math.Sqrt(3)
		case tensor == "output.weight":
			bound *= 4
		case strings.HasSuffix(tensor, "attn_q.weight"), strings.HasSuffix(tensor, "attn_k.weight"):
			bound *= 3
		}
		draw := uniform(tensor, float32(bound))
		return func(row, _ int) float32 {
			value := draw()
			if tensor == "output.weight" && (row < ' ' || row > '~') {
				return 0
			}
			return value
		}
	})
}

// uniform draws from (-bound, bound), the same numbers for the same seed.
func uniform(seed string, bound float32) func() float32 {
	h := fnv.New64a()
	h.Write([]byte(seed))
	source := rand.NewPCG(h.Sum64(), 0)
	return func() float32 {
		unit := float32(source.Uint64()>>40) / (1 << 24) // 24 bits: exact in a float32
		return bound * (2*unit - 1)
	}
}
