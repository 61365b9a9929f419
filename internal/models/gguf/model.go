package gguf

import (
	"errors"
	"fmt"
	"io"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// ErrNoWeights says that a model has no GGUF file: it is in another format, or runs elsewhere.
var ErrNoWeights = errors.New("model has no GGUF file")

// The kinds of blobs that are GGUF files.
const (
	mediaModel     = "application/vnd.ollama.image.model"
	mediaDraft     = "application/vnd.ollama.image.draft" // a small model that guesses what the model will say
	mediaProjector = "application/vnd.ollama.image.projector"
	mediaAdapter   = "application/vnd.ollama.image.adapter"
)

// File is a file of a model, to be read.
type File interface {
	io.ReaderAt
	io.Closer
}

// OfModel is the memory that a model takes with all its files, which are opened by their digests: 64
// hexadecimal digits. The context is that of the model itself, not of a draft.
func OfModel(m manifest.Manifest, open func(digest string) (File, error), cache CacheType) (cluster.Footprint, error) {
	var sum cluster.Footprint
	found := false
	for _, b := range m.Blobs {
		switch b.MediaType {
		case mediaModel, mediaDraft, mediaProjector, mediaAdapter:
		default:
			continue
		}
		f, err := ofBlob(b, open, cache)
		if err != nil {
			return cluster.Footprint{}, fmt.Errorf("blob %s: %w", b.Digest, err)
		}
		sum.Weights += f.Weights
		switch b.MediaType {
		case mediaModel:
			found = true
			sum.Context = max(sum.Context, f.Context)
			sum.PerToken += f.PerToken
		case mediaDraft:
			sum.PerToken += f.PerToken
		}
	}
	if !found {
		return cluster.Footprint{}, ErrNoWeights
	}
	return sum, nil
}

func ofBlob(b manifest.Blob, open func(digest string) (File, error), cache CacheType) (cluster.Footprint, error) {
	f, err := open(b.Digest)
	if err != nil {
		return cluster.Footprint{}, err
	}
	defer f.Close()
	h, err := Read(f, b.Size)
	return h.Footprint(cache), err
}
