package gguf

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

type opened struct {
	*bytes.Reader
	count *int
}

func (o opened) Close() error { *o.count--; return nil }

func TestAModelsFilesAddUp(t *testing.T) {
	t.Parallel()
	files := map[string][]byte{
		"model":     llama(32, 4096, 32, 8).file(5000),
		"part":      newHead().key("split.no", uint16(1)).file(3000),
		"projector": of("clip", "vision.block_count", uint32(27)).file(700),
		"adapter":   llama(32, 4096, 32, 8).key("general.type", "adapter").file(60), // whose keys are those of its model
		"draft":     llama(2, 64, 2, 2).file(9),
		"bad":       []byte("no model"),
	}
	const template = "application/vnd.ollama.image.template"
	for _, tc := range []struct {
		name  string
		blobs map[string]string // media types
		want  cluster.Footprint
		err   string
	}{
		{"one file", map[string]string{"model": mediaModel, "bad": template}, cluster.Footprint{Weights: 5000, PerToken: 131072, Context: 131072}, ""},
		{"all kinds", map[string]string{"model": mediaModel, "part": mediaModel, "projector": mediaProjector, "adapter": mediaAdapter, "draft": mediaDraft},
			cluster.Footprint{Weights: 8769, PerToken: 131072 + 2*2*64*2, Context: 131072}, ""},
		{"no file", map[string]string{"bad": template}, cluster.Footprint{}, ErrNoWeights.Error()},
		{"a projector alone", map[string]string{"projector": mediaProjector}, cluster.Footprint{}, ErrNoWeights.Error()},
		{"one is damaged", map[string]string{"model": mediaModel, "bad": mediaProjector}, cluster.Footprint{}, "blob bad"},
		{"one is not there", map[string]string{"model": mediaModel, "gone": mediaAdapter}, cluster.Footprint{}, "blob gone"},
	} {
		var m manifest.Manifest
		for digest, media := range tc.blobs {
			m.Blobs = append(m.Blobs, manifest.Blob{MediaType: media, Digest: digest, Size: int64(len(files[digest]))})
		}
		count := 0
		f, err := OfModel(m, func(digest string) (File, error) {
			b, ok := files[digest]
			if !ok {
				return nil, fs.ErrNotExist
			}
			count++
			return opened{bytes.NewReader(b), &count}, nil
		}, F16)
		if f != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %+v, %v", tc.name, f, err)
		}
		if count != 0 {
			t.Errorf("%s: %d files are left open", tc.name, count)
		}
		if tc.name == "one is not there" && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}
