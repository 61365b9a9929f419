package consensus

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
)

// findDamage looks for what bbolt (file format 2) does not survive: it trusts its pages, and on
// one that was zeroed or cut off it crashes or never returns. It follows every page from the root
// and changes nothing. A file that is missing, empty or not ours to read is bbolt's to judge.
func findDamage(path string) error {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return nil // bbolt says what is wrong, or makes a new one
	}
	return findDamageIn(b)
}

func findDamageIn(b []byte) error {
	w := pages{b: b, seen: map[uint64]bool{}}
	root, freelist, err := w.head()
	if err != nil {
		return err
	}
	if _, flags, _, err := w.page(freelist); err != nil || flags != pageFreelist {
		return fmt.Errorf("the list of free pages is unreadable")
	}
	return w.walk(root)
}

const (
	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageFreelist = 0x10
	pageHeader   = 16
	element      = 16
	leafBucket   = 0x01 // the element is a bucket
)

// pages is a whole bbolt file, in this machine's byte order.
type pages struct {
	b    []byte
	size uint64 // of a page
	n    uint64 // pages in use
	seen map[uint64]bool
}

// head finds the newer valid one of the two headers.
func (w *pages) head() (root, freelist uint64, err error) {
	newest := uint64(0)
	o := binary.NativeEndian
	// The second header begins one page later, and only the first says how long that is.
	sizes := []int{0, 4096, 8192, 16384, 32768, 65536}
	if len(w.b) >= pageHeader+64 {
		sizes = append(sizes, int(o.Uint32(w.b[pageHeader+8:])))
	}
	for _, at := range sizes {
		if at < 0 || at > len(w.b)-pageHeader-64 {
			continue
		}
		m := w.b[at+pageHeader:]
		sum := fnv.New64a()
		sum.Write(m[:56])
		if o.Uint32(m) != 0xED0CDAED || o.Uint32(m[4:]) != 2 || o.Uint64(m[56:]) != sum.Sum64() {
			continue
		}
		if tx := o.Uint64(m[48:]) + 1; tx > newest {
			newest = tx
			w.size, root, freelist, w.n = uint64(o.Uint32(m[8:])), o.Uint64(m[16:]), o.Uint64(m[32:]), o.Uint64(m[40:])
		}
	}
	switch {
	case newest == 0:
		return 0, 0, fmt.Errorf("it has no valid header")
	case w.size < 1024 || w.n > uint64(len(w.b))/w.size:
		return 0, 0, fmt.Errorf("it is cut short: %d bytes for %d pages", len(w.b), w.n)
	}
	return root, freelist, nil
}

// page returns a page with its overflow, its kind and its number of elements.
func (w *pages) page(id uint64) (p []byte, flags, count int, err error) {
	if id < 2 || id >= w.n {
		return nil, 0, 0, fmt.Errorf("page %d is referred to but not there", id)
	}
	o := binary.NativeEndian
	p = w.b[id*w.size:]
	overflow := uint64(o.Uint32(p[12:]))
	if o.Uint64(p) != id || id+overflow >= w.n {
		return nil, 0, 0, fmt.Errorf("page %d is overwritten", id)
	}
	return p[:(1+overflow)*w.size], int(o.Uint16(p[8:])), int(o.Uint16(p[10:])), nil
}

func (w *pages) walk(id uint64) error {
	if w.seen[id] {
		return fmt.Errorf("page %d is referred to twice", id)
	}
	w.seen[id] = true
	p, flags, count, err := w.page(id)
	if err != nil {
		return err
	}
	if flags != pageBranch && flags != pageLeaf || flags == pageBranch && count == 0 || pageHeader+count*element > len(p) {
		return fmt.Errorf("page %d is overwritten", id)
	}
	o := binary.NativeEndian
	for i := range count {
		at := pageHeader + i*element
		e := p[at:]
		if flags == pageBranch {
			if err := w.walk(o.Uint64(e[8:])); err != nil {
				return err
			}
			continue
		}
		value := uint64(at) + uint64(o.Uint32(e[4:])) + uint64(o.Uint32(e[8:]))
		end := value + uint64(o.Uint32(e[12:]))
		if end > uint64(len(p)) {
			return fmt.Errorf("page %d is overwritten", id)
		}
		if o.Uint32(e)&leafBucket != 0 {
			if end-value < 16 {
				return fmt.Errorf("page %d is overwritten", id)
			}
			if root := o.Uint64(p[value:]); root != 0 { // else the bucket lies within the value
				if err := w.walk(root); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
