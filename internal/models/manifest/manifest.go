package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// MaxSize bounds a manifest's bytes: the largest, of a model with a blob for each tensor, have some thousand
// lines of 200.
const MaxSize = 4 << 20

// ErrNoLayers is returned for a manifest of a model that has no files: another machine answers for it.
var ErrNoLayers = errors.New("it names no layers")

// Blob is one file of a model.
type Blob struct {
	MediaType string
	// Digest is the SHA-256 of its bytes: 64 hexadecimal digits, without "sha256:".
	Digest string
	// Size in bytes.
	Size int64
}

// Manifest is what a model consists of.
type Manifest struct {
	// Model is the SHA-256 of the manifest's bytes: 64 hexadecimal digits.
	Model string
	// Blobs are the layers in their order and then the configuration, each digest once.
	Blobs []Blob
}

// Wanted is a blob that somebody is to get, and where its bytes go, in their order.
type Wanted struct {
	Blob
	To io.Writer
}

// Size is how many bytes the model's blobs have together.
func (m Manifest) Size() (size int64) {
	for _, b := range m.Blobs {
		size += b.Size
	}
	return size
}

// Blob returns the blob with a digest.
func (m Manifest) Blob(digest string) (Blob, bool) {
	for _, b := range m.Blobs {
		if b.Digest == digest {
			return b, true
		}
	}
	return Blob{}, false
}

// Parse reads a manifest's bytes, which somebody else wrote.
func Parse(data []byte) (Manifest, error) {
	if len(data) > MaxSize {
		return Manifest{}, fmt.Errorf("read manifest: it has %d bytes, more than %d", len(data), MaxSize)
	}
	type layer struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int64  `json:"size"`
	}
	var wire struct {
		Config layer   `json:"config"`
		Layers []layer `json:"layers"`
	}
	if err := json.Unmarshal(data, &wire); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	if len(wire.Layers) == 0 {
		return Manifest{}, fmt.Errorf("read manifest: %w", ErrNoLayers)
	}
	m := Manifest{Model: DigestOf(data)}
	all := wire.Layers
	if wire.Config.Digest != "" {
		all = append(all, wire.Config)
	}
	sizes := make(map[string]int64, len(all))
	var total int64
	for _, l := range all {
		digest, ok := CutDigest(l.Digest)
		if !ok {
			return Manifest{}, fmt.Errorf("read manifest: %q is no digest of SHA-256", l.Digest)
		}
		if size, seen := sizes[digest]; seen {
			if size != l.Size {
				return Manifest{}, fmt.Errorf("read manifest: blob %s has %d and %d bytes", digest, size, l.Size)
			}
			continue
		}
		if total += l.Size; l.Size < 0 || total < 0 {
			return Manifest{}, fmt.Errorf("read manifest: blob %s has %d bytes", digest, l.Size)
		}
		sizes[digest] = l.Size
		m.Blobs = append(m.Blobs, Blob{MediaType: l.MediaType, Digest: digest, Size: l.Size})
	}
	return m, nil
}

// DigestOf is the SHA-256 of data in hexadecimal digits.
func DigestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// IsDigest tells whether text is 64 hexadecimal digits, none of them a capital.
func IsDigest(text string) bool {
	if len(text) != 2*sha256.Size {
		return false
	}
	for i := range len(text) {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// CutDigest takes "sha256:" from a digest, or "sha256-" as in the name of a file.
func CutDigest(text string) (string, bool) {
	digest, ok := strings.CutPrefix(text, "sha256:")
	if !ok {
		digest, ok = strings.CutPrefix(text, "sha256-")
	}
	digest = strings.ToLower(digest)
	return digest, ok && IsDigest(digest)
}

// Matching returns the bytes whose digest is the model's: data, or data with a final newline more or less. An
// Ollama that made a model wrote one and pushes the manifest without it; and for some lengths it does not
// count it when it says the model's digest.
func Matching(data []byte, model string) ([]byte, bool) {
	for _, form := range [][]byte{data, append(bytes.Clone(data), '\n'), bytes.TrimSuffix(data, []byte("\n"))} {
		if DigestOf(form) == model {
			return form, true
		}
	}
	return nil, false
}
