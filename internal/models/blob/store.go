package blob

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Source is a whole blob to read. ReadAt may be called from many goroutines.
type Source interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Store is where whole blobs lie that are not ours: Open is fs.ErrNotExist for one that does not lie there.
type Store interface {
	Open(d Digest) (Source, error)
}

// Folder is a Store: the models folder of an Ollama, whose blobs are the files blobs/sha256-….
type Folder string

// Open opens a blob. Its bytes are not verified: who gets pieces of it does that.
func (f Folder) Open(d Digest) (Source, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return nil, err
	}
	return OpenFile(filepath.Join(string(f), "blobs", "sha256-"+d.Hex()))
}

// OpenFile opens a file that is a blob.
func OpenFile(path string) (Source, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open blob %s: %w", path, fs.ErrInvalid)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return openFile{file, info.Size()}, nil
}

// Taken is how many bytes of a blob lie there, be it that the engine is pulling it still.
func (f Folder) Taken(d Digest) int64 {
	file := filepath.Join(string(f), "blobs", "sha256-"+d.Hex())
	if info, err := os.Stat(file); err == nil {
		return info.Size()
	}
	if info, err := os.Stat(file + "-partial"); err == nil {
		return onDisk(info)
	}
	return 0
}

type openFile struct {
	*os.File
	size int64
}

func (f openFile) Size() int64 { return f.size }

// Whole is a blob of which every piece is there, as a Partial is one of which some are.
type Whole struct {
	list   *List
	source Source
}

// NewWhole joins a blob and its list. It owns the source.
func NewWhole(l *List, s Source) (*Whole, error) {
	if s.Size() != l.size {
		s.Close()
		return nil, fmt.Errorf("open %s: it has %d bytes, its list %d: %w", l.digest, s.Size(), l.size, ErrWrong)
	}
	return &Whole{l, s}, nil
}

// List is the blob's.
func (w *Whole) List() *List { return w.list }

// Have is all.
func (w *Whole) Have() Map { return FullMap(w.list.Len()) }

// Changed returns a channel that is never closed.
func (w *Whole) Changed() <-chan struct{} { return nil }

// ReadAt reads the blob's bytes.
func (w *Whole) ReadAt(b []byte, offset int64) (int, error) { return w.source.ReadAt(b, offset) }

// Close closes the source.
func (w *Whole) Close() error { return w.source.Close() }
