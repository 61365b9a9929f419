package registrytest

import (
	"context"
	"net"
	"sync"
)

// Network is a listener on 127.0.0.1 without sockets, and the way to it.
type Network struct {
	incoming chan net.Conn
	closed   chan struct{}
	close    sync.Once
	addr     *net.TCPAddr
}

// NewNetwork returns a Network whose address has a port.
func NewNetwork(port int) *Network {
	return &Network{incoming: make(chan net.Conn), closed: make(chan struct{}), addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}}
}

// DialContext connects, whatever the address.
func (n *Network) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case n.incoming <- &pipe{far, n.addr}:
		return &pipe{near, n.addr}, nil
	case <-n.closed:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept returns who connects next.
func (n *Network) Accept() (net.Conn, error) {
	select {
	case conn := <-n.incoming:
		return conn, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (n *Network) Close() error {
	n.close.Do(func() { close(n.closed) })
	return nil
}

// Addr is the address.
func (n *Network) Addr() net.Addr { return n.addr }

type pipe struct {
	net.Conn
	addr *net.TCPAddr
}

func (p *pipe) LocalAddr() net.Addr  { return p.addr }
func (p *pipe) RemoteAddr() net.Addr { return p.addr }
