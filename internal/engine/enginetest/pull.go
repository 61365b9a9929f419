package enginetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// pull fetches the model of that name from the registry that the name says.
func (f *folder) pull(ctx context.Context, n name, insecure bool, say func(progress) error) error {
	n = f.existing(n)
	var old []layer
	if m, err := f.read(n); err == nil {
		old = m.all()
	}
	from := f.remote(n, insecure)
	var m filed
	data, err := from.manifest(ctx, n.tag)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return fmt.Errorf("pull model manifest: %w", err)
	}
	fresh := map[string]bool{}
	for _, l := range m.all() {
		came, err := from.fetch(ctx, l.Digest, say)
		if err != nil {
			return err
		}
		fresh[l.Digest] = fresh[l.Digest] || came
	}
	if err := say(progress{Status: "verifying sha256 digest"}); err != nil {
		return err
	}
	for _, l := range m.all() {
		if fresh[l.Digest] {
			if err := f.verify(l.Digest); err != nil {
				return err
			}
		}
	}
	if err := say(progress{Status: "writing manifest"}); err != nil {
		return err
	}
	if err := f.put(n, data); err != nil {
		return err
	}
	if len(unlike(old, m.all())) > 0 {
		if err := say(progress{Status: "removing unused layers"}); err != nil {
			return err
		}
		return f.dropped(old)
	}
	return nil
}

// unlike are the layers that are not among others.
func unlike(layers, others []layer) (out []layer) {
	among := map[string]bool{}
	for _, l := range others {
		among[l.Digest] = true
	}
	for _, l := range layers {
		if !among[l.Digest] {
			out = append(out, l)
		}
	}
	return out
}

// dropped deletes those of the layers' blobs that no model has any more.
func (f *folder) dropped(layers []layer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sweep(layers)
}

// verify hashes a blob, and deletes one that is wrong.
func (f *folder) verify(digest string) error {
	path, err := f.blobPath(digest)
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != digest {
		err := fmt.Errorf("digest mismatch, file must be downloaded again: want %s, got %s", digest, got)
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
