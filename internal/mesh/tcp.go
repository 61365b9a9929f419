package mesh

import (
	"context"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/ollamamax/ollamamax/internal/socket"
)

// directTCP is libp2p's TCP transport over package socket's connections. It listens without
// SO_REUSEPORT, with which a second node would share the port and take half of our peers. It dials itself,
// because libp2p's transport does not see that our connections are of TCP: it complains of each on the
// standard error, and leaves them as they are.
type directTCP struct {
	*tcp.TcpTransport
	upgrader transport.Upgrader
	manager  network.ResourceManager
}

func newTCP(upgrader transport.Upgrader, manager network.ResourceManager) (*directTCP, error) {
	t, err := tcp.NewTCPTransport(upgrader, manager, nil, tcp.DisableReuseport())
	return &directTCP{t, upgrader, manager}, err
}

// Dial is transport.Transport's.
func (t *directTCP) Dial(ctx context.Context, at ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.DialWithUpdates(ctx, at, p, nil)
}

// DialWithUpdates is transport.DialUpdater's.
func (t *directTCP) DialWithUpdates(ctx context.Context, at ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	scope, err := t.manager.OpenConnection(network.DirOutbound, true, at)
	if err != nil {
		return nil, err
	}
	var conn manet.Conn
	if err = scope.SetPeer(p); err == nil {
		conn, err = connect(ctx, at)
	}
	if err != nil {
		scope.Done()
		return nil, err
	}
	if updates != nil {
		select {
		case updates <- transport.DialUpdate{Kind: transport.UpdateKindHandshakeProgressed, Addr: at}:
		default: // whoever does not listen is not waited for
		}
	}
	return t.upgrader.Upgrade(ctx, t, conn, network.DirOutbound, p, scope) // which ends the scope if it fails
}

// connectWithin is libp2p's time for a connection, without its handshake.
const connectWithin = 5 * time.Second

func connect(ctx context.Context, at ma.Multiaddr) (manet.Conn, error) {
	network, addr, err := manet.DialArgs(at)
	if err != nil {
		return nil, err
	}
	plain, err := (&net.Dialer{Timeout: connectWithin}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn, err := manet.WrapNetConn(socket.Direct(abrupt(plain)))
	if err != nil {
		_ = plain.Close() // it was never told to anybody
	}
	return conn, err
}

// abrupt has a connection be reset when it is closed, as libp2p does: nothing of it is left in the kernel.
func abrupt(conn net.Conn) net.Conn {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // one that is closed already says so itself
	}
	return conn
}

type abruptListener struct{ net.Listener }

func (l abruptListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return abrupt(conn), nil
}

// Listen is transport.Transport's.
func (t *directTCP) Listen(at ma.Multiaddr) (transport.Listener, error) {
	network, addr, err := manet.DialArgs(at)
	if err != nil {
		return nil, err
	}
	plain, err := net.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	l, err := manet.WrapNetListener(socket.Listen(abruptListener{plain}))
	if err != nil {
		_ = plain.Close() // it was never told to anybody
		return nil, err
	}
	return t.upgrader.UpgradeGatedMaListener(t, t.upgrader.GateMaListener(l)), nil
}
