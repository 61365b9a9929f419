package mesh

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// Pulse is what a node says of itself with each beat.
type Pulse struct {
	Busy, Total int  // slots
	Queue       int  // requests that wait
	Draining    bool // takes no new requests
	Leaving     bool // is about to stop: what follows is no fault
}

// beat is one heartbeat. On the wire: the length of the rest (1 byte), then boot, seq and
// version (8 bytes each), busy, total and queue (4 each), flags (1), and what later versions add.
type beat struct {
	boot, seq uint64 // of the sender, both increasing
	version   uint64 // of the sender's entry
	pulse     Pulse
}

const (
	beatSize     = 3*8 + 3*4 + 1
	maxBeat      = 199 // with the length byte at most 200 bytes
	flagDraining = 1 << 0
	flagLeaving  = 1 << 1
)

func (b beat) append(to []byte) []byte {
	to = append(to, beatSize)
	for _, n := range []uint64{b.boot, b.seq, b.version} {
		to = binary.BigEndian.AppendUint64(to, n)
	}
	for _, n := range []int{b.pulse.Busy, b.pulse.Total, b.pulse.Queue} {
		to = binary.BigEndian.AppendUint32(to, uint32(min(max(n, 0), math.MaxInt32)))
	}
	var flags byte
	if b.pulse.Draining {
		flags |= flagDraining
	}
	if b.pulse.Leaving {
		flags |= flagLeaving
	}
	return append(to, flags)
}

func readBeat(r io.Reader) (beat, error) {
	var buf [maxBeat]byte
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return beat{}, err
	}
	size := int(buf[0])
	if size < beatSize || size > maxBeat {
		return beat{}, fmt.Errorf("read beat: %d bytes, want %d to %d", size, beatSize, maxBeat)
	}
	if _, err := io.ReadFull(r, buf[:size]); err != nil {
		return beat{}, err
	}
	count := func(at int) int { return int(min(binary.BigEndian.Uint32(buf[at:]), math.MaxInt32)) }
	return beat{
		boot:    binary.BigEndian.Uint64(buf[0:]),
		seq:     binary.BigEndian.Uint64(buf[8:]),
		version: binary.BigEndian.Uint64(buf[16:]),
		pulse: Pulse{
			Busy: count(24), Total: count(28), Queue: count(32),
			Draining: buf[36]&flagDraining != 0, Leaving: buf[36]&flagLeaving != 0,
		},
	}, nil
}
