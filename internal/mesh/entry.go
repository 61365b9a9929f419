package mesh

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// An entry is pulled over a stream of its own, on which the answerer only writes: boot, version
// (8 bytes each), length (4), data.

const (
	entryProtocol = "entry/1"
	entryTimeout  = 10 * time.Second
	entryServers  = 64 // pulls answered at a time; more wait
)

// MaxEntry is the most bytes that an entry may have.
const MaxEntry = 4 << 20

// stamp orders the entries of one node.
type stamp struct{ boot, version uint64 }

func (s stamp) newer(than stamp) bool {
	return s.boot > than.boot || s.boot == than.boot && s.version > than.version
}

type pulled struct {
	stamp stamp
	data  []byte
	err   error
}

// pull asks a peer for its entry.
func (h *Heartbeats) pull(ctx context.Context, id cluster.NodeID) pulled {
	ctx, cancel := context.WithTimeout(ctx, entryTimeout)
	defer cancel()
	c, err := h.transport.Dial(ctx, id, entryProtocol)
	if err != nil {
		return pulled{err: err}
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	var head [20]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return pulled{err: fmt.Errorf("read entry: %w", err)}
	}
	size := binary.BigEndian.Uint32(head[16:])
	if size > MaxEntry {
		return pulled{err: fmt.Errorf("read entry: %d bytes, at most %d", size, MaxEntry)}
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(c, data); err != nil {
		return pulled{err: fmt.Errorf("read entry: %w", err)}
	}
	return pulled{
		stamp: stamp{binary.BigEndian.Uint64(head[0:]), binary.BigEndian.Uint64(head[8:])},
		data:  data,
	}
}

// answerPulls serves the own entry until the listener closes.
func (h *Heartbeats) answerPulls(l net.Listener) {
	slots := make(chan struct{}, entryServers)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		slots <- struct{}{}
		h.work.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			version, data := h.deps.Entry()
			if len(data) > MaxEntry {
				h.failedPulls.Add(1) // the peer, too, sees it fail
				return
			}
			head := binary.BigEndian.AppendUint64(nil, h.config.Boot)
			head = binary.BigEndian.AppendUint64(head, version)
			head = binary.BigEndian.AppendUint32(head, uint32(len(data)))
			c.SetWriteDeadline(time.Now().Add(entryTimeout))
			if _, err := c.Write(head); err == nil {
				c.Write(data) // a peer that does not get it whole asks again
			}
		})
	}
}
