// Package meshtest has hosts on this machine for tests that measure, and what a bare stream between two of
// them carries: the control of all that moves bytes over the mesh.
//
// Start reading at Stream.
package meshtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/mesh"
)

// Hosts opens n hosts over TCP on loopback that know each other as members. The caller closes them.
func Hosts(n int) (hosts []*mesh.Host, err error) {
	defer func() {
		if err != nil {
			for _, h := range hosts {
				err = errors.Join(err, h.Close())
			}
		}
	}()
	var ids []cluster.NodeID
	admit := mesh.Deps{Admit: func(cluster.NodeID, []byte) error { return nil }}
	for range n {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			return hosts, err
		}
		h, err := mesh.Open(mesh.Config{Listen: []string{"/ip4/127.0.0.1/tcp/0"}}, key, nil, admit)
		if err != nil {
			return hosts, err
		}
		hosts, ids = append(hosts, h), append(ids, h.ID())
	}
	for _, h := range hosts {
		h.Protect(ids)
		for _, other := range hosts {
			if other != h {
				h.AddAddrs(other.ID(), other.Addrs())
			}
		}
	}
	return hosts, nil
}

// How much a stream's writer writes at a time.
const (
	Round   = 64 << 10          // as most programs do: the mesh makes four messages of it and a small fifth
	Fitting = 4 * (16<<10 - 12) // four messages: nothing is faster
)

// Stream sends so many bytes on one stream, from memory to nowhere, some at a time, and returns how many a second came.
func Stream(ctx context.Context, from, to mesh.Transport, size int64, write int) (perSecond float64, err error) {
	const protocol = "stream/1"
	l, err := from.Listen(protocol)
	if err != nil {
		return 0, err
	}
	sent := make(chan error, 1)
	defer func() { err = errors.Join(err, l.Close(), <-sent) }()
	go func() { sent <- send(l, size, write) }()
	c, err := to.Dial(ctx, from.ID(), protocol)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := c.Write([]byte{1}); err != nil { // all is connected and admitted
		return 0, err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return 0, err
	}
	began := time.Now()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
	if err == nil && n != size {
		err = fmt.Errorf("%d of %d bytes came: %w", n, size, io.ErrUnexpectedEOF)
	}
	return float64(n) / time.Since(began).Seconds(), err
}

func send(l net.Listener, size int64, write int) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	buf := make([]byte, write)
	for left := size; left > 0; left -= int64(len(buf)) {
		if _, err := c.Write(buf[:min(left, int64(write))]); err != nil {
			return err
		}
	}
	return nil
}
