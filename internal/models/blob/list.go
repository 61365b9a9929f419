package blob

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

const (
	minPiece  = 1 << 10
	maxPieces = 1 << 18 // of a blob: 1 TiB

	listHead = 4 + 8 + sha256.Size

	// MaxEncoded is the most bytes that an encoded list has.
	MaxEncoded = listHead + maxPieces*sha256.Size

	rootDomain = "ollamamax blob list 1\x00"
)

// Root is the hash of a list, and thereby of everything in it.
type Root [sha256.Size]byte

// String is the root's 64 hexadecimal digits.
func (r Root) String() string { return hex.EncodeToString(r[:]) }

// ParseRoot reads what String wrote.
func ParseRoot(s string) (r Root, err error) {
	if n, err := hex.Decode(r[:], []byte(s[:min(len(s), 2*len(r))])); err != nil || n != len(r) || len(s) != 2*n {
		return Root{}, fmt.Errorf("root %.80q: want 64 hexadecimal digits", s)
	}
	return r, nil
}

// List is the SHA-256 hashes of a blob's pieces, with its digest and size. It is immutable and comes
// from Make or Decode only, so that it is always in itself right.
type List struct {
	digest Digest
	size   int64
	piece  int
	hashes []byte // one behind the other
}

// Make reads a blob to its end and makes its list, with pieces of a size that is a power of two up to PieceSize.
// It is an error if the bytes do not have the digest. It takes about a second a gigabyte; the context ends it.
func Make(ctx context.Context, r io.Reader, want Digest, pieceSize int) (*List, error) {
	if _, err := ParseDigest(string(want)); err != nil {
		return nil, err
	}
	if err := checkPieceSize(pieceSize); err != nil {
		return nil, err
	}
	l := &List{digest: want, piece: pieceSize}
	whole, buf := sha256.New(), make([]byte, pieceSize)
	for err := error(nil); err == nil; {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var n int
		if n, err = io.ReadFull(r, buf); n > 0 {
			sum := sha256.Sum256(buf[:n])
			l.hashes = append(l.hashes, sum[:]...)
			l.size += int64(n)
			whole.Write(buf[:n])
		}
		if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("read %s: %w", want, err)
		}
		if l.Len() > maxPieces {
			return nil, fmt.Errorf("list %s: more than %d pieces", want, maxPieces)
		}
	}
	if got := Digest(digestPrefix + hex.EncodeToString(whole.Sum(nil))); got != want {
		return nil, fmt.Errorf("list %s: the bytes are those of %s: %w", want, got, ErrWrong)
	}
	return l, nil
}

func checkPieceSize(n int) error {
	if n < minPiece || n > PieceSize || n&(n-1) != 0 {
		return fmt.Errorf("pieces of %d bytes: want a power of two from %d to %d", n, minPiece, PieceSize)
	}
	return nil
}

// Digest is the blob's.
func (l *List) Digest() Digest { return l.digest }

// Size is the blob's bytes.
func (l *List) Size() int64 { return l.size }

// PieceSize is the bytes of every piece but the last.
func (l *List) PieceSize() int { return l.piece }

// Len is the number of pieces.
func (l *List) Len() int { return len(l.hashes) / sha256.Size }

// Span is where a piece begins in the blob and how many bytes it has.
func (l *List) Span(i int) (offset int64, n int) {
	offset = int64(i) * int64(l.piece)
	return offset, int(min(int64(l.piece), l.size-offset))
}

// Check is ErrWrong if b is not the piece.
func (l *List) Check(i int, b []byte) error {
	if i < 0 || i >= l.Len() {
		return fmt.Errorf("piece %d of %s: it has %d", i, l.digest, l.Len())
	}
	_, n := l.Span(i)
	if len(b) != n || sha256.Sum256(b) != [sha256.Size]byte(l.hashes[i*sha256.Size:]) {
		return fmt.Errorf("piece %d of %s: %w", i, l.digest, ErrWrong)
	}
	return nil
}

// Root is the list's. It covers the size and the digest: two lists with one root are equal.
func (l *List) Root() Root { return rootOf(l.Encode()) }

func rootOf(encoded []byte) (r Root) {
	h := sha256.New()
	io.WriteString(h, rootDomain)
	h.Write(encoded)
	h.Sum(r[:0])
	return r
}

// Encode gives the list's bytes for peers and disks:
//
//	bytes a piece (4), size (8), digest (32), hashes (32 each)
//
// Numbers are big-endian.
func (l *List) Encode() []byte {
	b := make([]byte, 0, listHead+len(l.hashes))
	b = binary.BigEndian.AppendUint32(b, uint32(l.piece))
	b = binary.BigEndian.AppendUint64(b, uint64(l.size))
	sum := l.digest.Sum()
	return append(append(b, sum[:]...), l.hashes...)
}

// Decode reads what Encode wrote, wherever it comes from: the root decides whether it is right.
func Decode(b []byte, root Root) (*List, error) {
	if len(b) < listHead || len(b) > MaxEncoded {
		return nil, fmt.Errorf("decode list: %d bytes", len(b))
	}
	if rootOf(b) != root {
		return nil, fmt.Errorf("decode list: root is not %s: %w", root, ErrWrong)
	}
	l := &List{piece: int(binary.BigEndian.Uint32(b))}
	if err := checkPieceSize(l.piece); err != nil {
		return nil, fmt.Errorf("decode list: %w", err)
	}
	size := binary.BigEndian.Uint64(b[4:])
	if size > uint64(l.piece)*maxPieces {
		return nil, fmt.Errorf("decode list: %d bytes are too many", size)
	}
	pieces := (size + uint64(l.piece) - 1) / uint64(l.piece)
	if uint64(len(b)-listHead) != pieces*sha256.Size {
		return nil, fmt.Errorf("decode list: %d bytes for %d pieces", len(b), pieces)
	}
	l.size = int64(size)
	l.digest = DigestOf([sha256.Size]byte(b[12:]))
	l.hashes = append([]byte(nil), b[listHead:]...)
	return l, nil
}
