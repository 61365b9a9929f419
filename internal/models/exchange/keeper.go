package exchange

import (
	"context"
	"errors"

	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// keeper verifies and writes the pieces of a Transfer, so that sources go on sending meanwhile.
type keeper struct {
	t       *Transfer
	partial *blob.Partial
	pieces  chan arrival // not buffered: who has a piece to hand over stops reading
}

// arrival is a piece that came whole.
type arrival struct {
	from  *source
	piece int
	bytes []byte
}

// room waits until the node's transfers have room for a piece of n bytes.
func (k *keeper) room(ctx context.Context, n int) ([]byte, error) {
	if err := k.t.x.memory.Acquire(ctx, int64(n)); err != nil {
		return nil, err
	}
	return k.t.x.buffers.get(n), nil
}

func (k *keeper) free(b []byte) {
	k.t.x.buffers.put(b)
	k.t.x.memory.Release(int64(len(b)))
}

// run keeps pieces until there are no more.
func (k *keeper) run() {
	for a := range k.pieces {
		err := k.partial.WritePiece(a.piece, a.bytes)
		k.free(a.bytes)
		k.note(a, err)
	}
}

// drop gives up a piece that came: the transfer ends.
func (k *keeper) drop(a arrival) {
	k.free(a.bytes)
	k.t.mu.Lock()
	defer k.t.mu.Unlock()
	k.t.picker.kept(a.from.view, a.piece, false)
}

func (k *keeper) note(a arrival, err error) {
	wrong := errors.Is(err, blob.ErrWrong)
	if wrong { // here, for its connection may have ended meanwhile
		k.t.ended(a.from.id, err)
		a.from.cancel()
	}
	k.t.mu.Lock()
	if err == nil {
		k.t.node(a.from.id).wait = 0
	}
	if k.t.picker.kept(a.from.view, a.piece, err == nil) {
		k.t.finish()
	}
	k.t.mu.Unlock()
	if err != nil && !wrong {
		k.t.fail(err)
		return
	}
	k.t.wakeAll()
}

// buffers keeps some pieces' memory for the next ones.
type buffers struct{ free chan []byte }

func newBuffers() buffers { return buffers{make(chan []byte, 16)} }

func (p buffers) get(n int) []byte {
	select {
	case b := <-p.free:
		if cap(b) >= n {
			return b[:n]
		}
	default:
	}
	return make([]byte, n)
}

func (p buffers) put(b []byte) {
	select {
	case p.free <- b:
	default:
	}
}
