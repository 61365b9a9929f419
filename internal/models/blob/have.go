package blob

import (
	"fmt"
	"math/bits"
)

// Map tells which pieces of a blob are there, a bit each, the first piece in the lowest bit of the first byte.
type Map []byte

// NewMap makes an empty map of so many pieces.
func NewMap(pieces int) Map { return make(Map, (pieces+7)/8) }

// FullMap makes a map in which every piece is there.
func FullMap(pieces int) Map {
	m := NewMap(pieces)
	for i := range pieces {
		m.Set(i)
	}
	return m
}

// Has tells whether a piece is there.
func (m Map) Has(i int) bool { return m[i/8]&(1<<(i%8)) != 0 }

// Set notes that a piece is there.
func (m Map) Set(i int) { m[i/8] |= 1 << (i % 8) }

// Count is how many are there.
func (m Map) Count() (n int) {
	for _, b := range m {
		n += bits.OnesCount8(b)
	}
	return n
}

// Check is an error if the map, which came from a peer, is not one of so many pieces.
func (m Map) Check(pieces int) error {
	if len(m) != (pieces+7)/8 {
		return fmt.Errorf("map of %d bytes for %d pieces", len(m), pieces)
	}
	if rest := pieces % 8; rest != 0 && m[len(m)-1]>>rest != 0 {
		return fmt.Errorf("map has more than %d pieces", pieces)
	}
	return nil
}
