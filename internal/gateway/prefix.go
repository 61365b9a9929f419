package gateway

import (
	"hash/maphash"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// A prompt's prefix is digested in pieces that end where a message does, and within a long one at
// fixed distances, which grow: the first ones tell short prompts apart, the last ones keep a long
// prompt's list short. Two prompts are cut alike as far as they are alike.
const (
	shortest    = 256
	piecesASize = 32
	mostPieces  = 256
)

// prefix returns the digests of the prompt's growing beginning.
func (g *Gateway) prefix(req *request) []cluster.Prefix {
	if req.PromptBytes < shortest/4 || req.Model == "" {
		return nil
	}
	c := chain{seed: g.seed, list: make([]cluster.Prefix, 0, 8)}
	for _, part := range req.parts {
		if part[0] != '[' {
			c.add(part)
			continue
		}
		gjson.Parse(part).ForEach(func(_, message gjson.Result) bool {
			c.add(message.Raw)
			return len(c.list) < mostPieces
		})
	}
	return c.list
}

// chain digests a text piece by piece, each digest standing for all before it too.
type chain struct {
	seed   maphash.Seed
	digest uint64
	bytes  int
	list   []cluster.Prefix
}

func (c *chain) add(text string) {
	for text != "" && len(c.list) < mostPieces {
		n := min(len(text), shortest<<min(len(c.list)/piecesASize*2, 16))
		c.digest = (c.digest ^ maphash.String(c.seed, text[:n])) * 0x9e3779b97f4a7c15
		c.bytes += n
		c.list = append(c.list, cluster.Prefix{Digest: c.digest, Bytes: c.bytes})
		text = text[n:]
	}
}
