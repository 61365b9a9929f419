package exchange

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// A connection is about one blob. Both sides send frames:
//
//	kind (1), bytes that follow (4, big-endian), these bytes
//
// The one that fetches begins with want. The other answers have, and got whenever it has more, or no,
// which ends the connection. Each ask has exactly one answer, in the order of the asks: all of the piece in data frames, or
// lack. A cancel makes a lack likely. list is answered by list frames, the last of them empty.
const (
	kindWant   byte = 1 // digest (32), root of the list (32)
	kindList   byte = 2 // empty; the answer: a part of the encoded list
	kindAsk    byte = 3 // piece (4)
	kindCancel byte = 4 // piece (4)
	kindPing   byte = 5 // empty; keeps an idle connection

	kindHave byte = 16 // a blob.Map
	kindGot  byte = 17 // pieces (4 each)
	kindData byte = 18 // piece (4), the bytes that follow on those before
	kindLack byte = 19 // piece (4)
	kindNo   byte = 20 // a reason, at most 255 bytes
)

const (
	maxFrame  = 64 << 10 // with its head
	frameHead = 5
	maxBody   = maxFrame - frameHead
	dataHead  = 4
	maxData   = maxBody - dataHead
	wantBody  = 64
	maxReason = 255

	// sentData is what is sent of a piece in a frame: with its heads what the mesh sends in four messages, without a small fifth.
	sentData = 4*(16<<10-12) - frameHead - dataHead

	maxGot = 1024 // pieces in a got

	// maxQueue is how many asks of a connection wait at a server. More end it.
	maxQueue = 16
)

// errNonsense says that a peer does not keep to the protocol, which no accident of the network explains.
var errNonsense = errors.New("not the protocol")

func nonsense(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errNonsense, fmt.Sprintf(format, args...))
}

// head begins a frame of so many bytes in b.
func head(b []byte, kind byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(b, kind), uint32(n))
}

// indexed is a frame of a kind that names pieces.
func indexed(kind byte, pieces ...int) []byte {
	b := head(nil, kind, 4*len(pieces))
	for _, i := range pieces {
		b = binary.BigEndian.AppendUint32(b, uint32(i))
	}
	return b
}

// readHead reads a frame's head and checks that a frame of that kind may have so many bytes.
func readHead(r io.Reader) (kind byte, n int, err error) {
	var b [frameHead]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, 0, err
	}
	kind = b[0]
	size := binary.BigEndian.Uint32(b[1:])
	least, most := bounds(kind)
	if most < 0 || size < uint32(least) || size > uint32(most) {
		return 0, 0, nonsense("frame of kind %d with %d bytes", kind, size)
	}
	return kind, int(size), nil
}

// bounds are the least and the most bytes that follow a head; none for unknown kinds.
func bounds(kind byte) (least, most int) {
	switch kind {
	case kindWant:
		return wantBody, wantBody
	case kindPing:
		return 0, 0
	case kindAsk, kindCancel, kindLack:
		return 4, 4
	case kindList, kindHave:
		return 0, maxBody
	case kindGot:
		return 4, 4 * maxGot
	case kindData:
		return dataHead + 1, maxBody
	case kindNo:
		return 0, maxReason
	}
	return 0, -1
}

// readPieces reads the indices of a frame of n bytes; of a blob with so many pieces.
func readPieces(r io.Reader, n, pieces int) ([]int, error) {
	if n%4 != 0 {
		return nil, nonsense("frame of %d bytes with indices", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	all := make([]int, n/4)
	for k := range all {
		i := binary.BigEndian.Uint32(b[4*k:])
		if uint64(i) >= uint64(pieces) {
			return nil, nonsense("piece %d of %d", i, pieces)
		}
		all[k] = int(i)
	}
	return all, nil
}

func readPiece(r io.Reader, pieces int) (int, error) {
	all, err := readPieces(r, 4, pieces)
	if err != nil {
		return 0, err
	}
	return all[0], nil
}

func wantFrame(d blob.Digest, root blob.Root) []byte {
	b := head(nil, kindWant, wantBody)
	sum := d.Sum()
	return append(append(b, sum[:]...), root[:]...)
}

func readWant(r io.Reader) (blob.Digest, blob.Root, error) {
	kind, n, err := readHead(r)
	if err != nil {
		return "", blob.Root{}, err
	}
	if kind != kindWant {
		return "", blob.Root{}, nonsense("frame of kind %d before the first", kind)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", blob.Root{}, err
	}
	return blob.DigestOf([32]byte(b)), blob.Root(b[32:]), nil
}

func readMap(r io.Reader, n, pieces int) (blob.Map, error) {
	if n != (pieces+7)/8 {
		return nil, nonsense("map of %d bytes for %d pieces", n, pieces)
	}
	m := make(blob.Map, n)
	if _, err := io.ReadFull(r, m); err != nil {
		return nil, err
	}
	if err := m.Check(pieces); err != nil {
		return nil, nonsense("%v", err)
	}
	return m, nil
}
