package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// All our protocols share this one of libp2p's, and are told apart in the preamble: so identify
// tells strangers nothing, and a new listener needs no announcement to every peer.
const streamProtocol = "/ollamamax/mesh/1"

// greeting is multistream-select for streamProtocol, as both sides send it. The dialer sends it
// together with the preamble instead of waiting (host.NewStream waits for identify).
const greeting = "\x13/multistream/1.0.0\n" + "\x12" + streamProtocol + "\n"

// Dial is Transport's.
func (h *Host) Dial(ctx context.Context, id cluster.NodeID, protocol string) (net.Conn, error) {
	if err := checkProtocol(protocol); err != nil {
		return nil, fmt.Errorf("dial %s: %w", id, err)
	}
	preamble, err := h.gate.preamble(protocol)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", id, err)
	}
	p, err := peer.Decode(string(id))
	if err != nil {
		return nil, fmt.Errorf("dial %q: not a node id: %w", id, err)
	}
	ctx, cancel := withDialTimeout(ctx)
	defer cancel()
	s, err := h.p2p.Network().NewStream(ctx, p)
	if err != nil {
		return nil, dialError(ctx, id, err)
	}
	if err := s.SetProtocol(streamProtocol); err != nil {
		s.Reset()
		return nil, dialError(ctx, id, err)
	}
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	_, err = s.Write(append([]byte(greeting), preamble...))
	if !stop() || err != nil {
		s.Reset()
		return nil, dialError(ctx, id, err)
	}
	c := h.gate.newConn(s, id, protocol, func() {})
	c.echo = []byte(greeting)
	return c, nil
}

func withDialTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, dialTimeout)
}

// dialError says what the failure of a dial tells about the peer.
func dialError(ctx context.Context, id cluster.NodeID, err error) error {
	if cause := ctx.Err(); cause != nil {
		err = cause
	}
	e := &DialError{Peer: id, Err: err, TimedOut: IsTimeout(err)}
	var attempts *swarm.DialError
	if errors.As(err, &attempts) {
		e.Refused = len(attempts.DialErrors) > 0
		for _, a := range attempts.DialErrors {
			refused := errors.Is(a.Cause, syscall.ECONNREFUSED) || errors.Is(a.Cause, wsaeconnrefused)
			e.Refused = e.Refused && refused
			e.TimedOut = e.TimedOut || IsTimeout(a.Cause)
		}
	}
	return e
}

// Errors of Windows that package syscall does not map.
const (
	wsaeaddrinuse   = syscall.Errno(10048)
	wsaeconnrefused = syscall.Errno(10061)
)
