package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

const (
	maxHead = 128 << 20 // the largest vocabularies have 20 MB
	maxText = 256       // of a text that is kept; the longest key has 70
)

// The types of a value.
const (
	typeUint8 = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeString
	typeArray
	typeUint64
	typeInt64
	typeFloat64
)

// width is the bytes of a value that has always as many; 0 of the others.
func width(kind uint64) int {
	switch kind {
	case typeUint8, typeInt8, typeBool:
		return 1
	case typeUint16, typeInt16:
		return 2
	case typeUint32, typeInt32, typeFloat32:
		return 4
	case typeUint64, typeInt64, typeFloat64:
		return 8
	}
	return 0
}

// reader reads the head front to back.
type reader struct {
	buf  *bufio.Reader
	at   int64
	end  int64 // of the file, or of what may be read of it
	size int64 // of the file
}

func newReader(r io.ReaderAt, size int64) *reader {
	end := max(0, min(size, maxHead))
	return &reader{buf: bufio.NewReaderSize(io.NewSectionReader(r, 0, end), 64<<10), end: end, size: size}
}

// need is an error unless so many bytes are left.
func (r *reader) need(n uint64) error {
	switch {
	case n <= uint64(r.end-r.at):
		return nil
	case r.end < r.size && n <= uint64(r.size-r.at):
		return badFormat("its head has more than %d MiB", maxHead>>20)
	}
	return badFormat("it is cut off: at %d of %d bytes %d more are wanted", r.at, r.size, n)
}

func (r *reader) done(n int, err error) error {
	r.at += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return badFormat("it is cut off at %d of %d bytes", r.at, r.size)
	}
	return err
}

func (r *reader) skip(n uint64) error {
	if err := r.need(n); err != nil {
		return err
	}
	return r.done(r.buf.Discard(int(n)))
}

// number reads a whole number of so many bytes.
func (r *reader) number(width int) (uint64, error) {
	if err := r.need(uint64(width)); err != nil {
		return 0, err
	}
	var b [8]byte
	if err := r.done(io.ReadFull(r.buf, b[:width])); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// text reads a text; one that is longer than most is skipped, and "".
func (r *reader) text(most uint64) (string, error) {
	n, err := r.number(8)
	if err != nil {
		return "", err
	}
	if n > most {
		return "", r.skip(n)
	}
	if err := r.need(n); err != nil {
		return "", err
	}
	b := make([]byte, n)
	err = r.done(io.ReadFull(r.buf, b))
	return string(b), err
}

// begin reads how many tensors and keys there are.
func (r *reader) begin() (tensors, keys uint64, err error) {
	magic, err := r.number(4)
	if err != nil {
		return 0, 0, err
	}
	if magic != 'G'|'G'<<8|'U'<<16|'F'<<24 {
		return 0, 0, badFormat("it begins otherwise")
	}
	version, err := r.number(4)
	if err != nil {
		return 0, 0, err
	}
	switch {
	case version != 0 && version&0xffff == 0:
		return 0, 0, badFormat("it is big-endian")
	case version != 2 && version != 3:
		return 0, 0, badFormat("version %d, want 2 or 3", version)
	}
	if tensors, err = r.number(8); err != nil {
		return 0, 0, err
	}
	if keys, err = r.number(8); err != nil {
		return 0, 0, err
	}
	if tensors > maxTensors || keys > maxKeys {
		return 0, 0, badFormat("%d tensors and %d keys are too many", tensors, keys)
	}
	return tensors, keys, nil
}

// value reads the value of a key, and keeps it if it may be wanted.
func (r *reader) value(key string, architecture *string, values values) error {
	kind, err := r.number(4)
	if err != nil {
		return err
	}
	switch {
	case key == keyArchitecture:
		if kind != typeString {
			return badFormat("it is no text")
		}
		*architecture, err = r.text(maxText)
		return err
	case !kept(key):
		return r.skipValue(kind)
	}
	count := uint64(1)
	if kind == typeArray {
		if kind, count, err = r.array(); err != nil {
			return err
		}
	}
	switch _, twice := values[key]; {
	case twice:
		return badFormat("it is there twice")
	case len(values) == maxKept:
		return badFormat("more than %d keys of its sort", maxKept)
	}
	values[key] = nil
	if !whole(kind) || count > maxLayers { // an error for who needs it
		return r.skipElements(kind, count)
	}
	for range count {
		n, err := r.integer(kind)
		if err != nil {
			return err
		}
		values[key] = append(values[key], n)
	}
	return nil
}

// whole tells whether values of a type are whole numbers.
func whole(kind uint64) bool {
	switch kind {
	case typeFloat32, typeBool, typeFloat64:
		return false
	}
	return width(kind) > 0
}

// integer reads a whole number of a type. What is too large for it is negative.
func (r *reader) integer(kind uint64) (int64, error) {
	n, err := r.number(width(kind))
	switch kind {
	case typeInt8:
		return int64(int8(n)), err
	case typeInt16:
		return int64(int16(n)), err
	case typeInt32:
		return int64(int32(n)), err
	}
	return int64(n), err
}

func (r *reader) skipValue(kind uint64) (err error) {
	count := uint64(1)
	if kind == typeArray {
		if kind, count, err = r.array(); err != nil {
			return err
		}
	}
	return r.skipElements(kind, count)
}

// array reads an array's type and length.
func (r *reader) array() (kind, count uint64, err error) {
	if kind, err = r.number(4); err != nil {
		return 0, 0, err
	}
	count, err = r.number(8)
	return kind, count, err
}

func (r *reader) skipElements(kind, count uint64) error {
	if err := r.need(count); err != nil { // each has a byte at least: so the product fits
		return err
	}
	if kind != typeString {
		if width(kind) == 0 {
			return badFormat("a value of the unknown type %d", kind)
		}
		return r.skip(count * uint64(width(kind)))
	}
	for range count {
		if _, err := r.text(0); err != nil {
			return err
		}
	}
	return nil
}

// tensors reads where the tensors lie, and returns how many bytes they have.
func (r *reader) tensors(count uint64, size int64, values values) (int64, error) {
	align, err := values.number(keyAlignment, maxAlign, 32)
	if err != nil {
		return 0, err
	}
	if align == 0 {
		return 0, badFormat("tensors begin at multiples of 0")
	}
	var last uint64 // the tensor that begins last
	for range count {
		if _, err := r.text(0); err != nil {
			return 0, err
		}
		dimensions, err := r.number(4)
		if err != nil {
			return 0, err
		}
		if err := r.skip(8*dimensions + 4); err != nil { // sizes and type
			return 0, err
		}
		offset, err := r.number(8)
		if err != nil {
			return 0, err
		}
		last = max(last, offset)
	}
	begin := (r.at + align - 1) / align * align
	if count > 0 && (begin >= size || last >= uint64(size-begin)) {
		return 0, badFormat("it is cut off: of its %d bytes tensors want more than %d", size, uint64(begin)+last)
	}
	return max(0, size-begin), nil
}
