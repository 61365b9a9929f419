package blob

import (
	"bytes"
	"errors"
	"io"
)

// stateFile remembers what is there of a Partial:
//
//	"omxpart1" (8), root of the list (32), 1 if the list was found to be the digest's (1), a byte a piece
//
// A file that is not like this, be it cut off, be it another list's, makes every piece one that is to be
// verified: that costs reading, and loses nothing.
type stateFile struct{ file }

const (
	stateMagic = "omxpart1"
	stateWhole = len(stateMagic) + 32
	stateHead  = stateWhole + 1
)

func (f stateFile) set(i int, s byte) error { return f.put([]byte{s}, stateHead+i) }
func (f stateFile) sync() error             { return f.Sync() }

func (f stateFile) setWhole() error { return f.put([]byte{1}, stateWhole) }

func (f stateFile) put(b []byte, at int) error {
	_, err := f.WriteAt(b, int64(at))
	return err
}

// create writes the states of a blob's pieces.
func (f stateFile) create(l *List, pieces []byte, whole bool) error {
	root := l.Root()
	b := append([]byte(stateMagic), root[:]...)
	b = append(b, 0)
	if whole {
		b[stateWhole] = 1
	}
	if err := f.put(append(b, pieces...), 0); err != nil {
		return err
	}
	return f.sync()
}

func (f stateFile) load(l *List) (pieces []byte, whole bool, err error) {
	b := make([]byte, stateHead+l.Len())
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	root := l.Root()
	pieces = b[stateHead:]
	sound := n == len(b) && bytes.HasPrefix(b, append([]byte(stateMagic), root[:]...))
	for _, s := range pieces {
		sound = sound && s <= synced
	}
	if !sound {
		pieces = bytes.Repeat([]byte{written}, l.Len())
		return pieces, false, f.create(l, pieces, false)
	}
	return pieces, b[stateWhole] == 1, nil
}
