package mesh

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// bare is an upgrader that leaves connections as they are, for the test to look at.
type bare struct {
	transport.Upgrader
	dialed    chan manet.Conn
	listening chan manet.Listener
}

func (b bare) Upgrade(_ context.Context, _ transport.Transport, c manet.Conn, _ network.Direction, _ peer.ID, _ network.ConnManagementScope) (transport.CapableConn, error) {
	b.dialed <- c
	return nil, errors.New("not upgraded")
}

func (b bare) GateMaListener(l manet.Listener) transport.GatedMaListener {
	b.listening <- l
	return nil
}

func (bare) UpgradeGatedMaListener(transport.Transport, transport.GatedMaListener) transport.Listener {
	return nil
}

// TestConnectionsAreResetWhenTheyAreClosed: what libp2p does to its own connections, which ours are not.
func TestConnectionsAreResetWhenTheyAreClosed(t *testing.T) {
	b := bare{dialed: make(chan manet.Conn, 1), listening: make(chan manet.Listener, 1)}
	tcp, err := newTCP(b, &network.NullResourceManager{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tcp.Listen(ma.StringCast(loopbackTCP)); err != nil {
		t.Fatal(err)
	}
	l := <-b.listening
	defer l.Close()
	for _, closes := range []string{"who dialed", "who listened"} {
		if _, err := tcp.Dial(t.Context(), l.Multiaddr(), "peer"); err == nil || err.Error() != "not upgraded" {
			t.Fatal(err)
		}
		var near, far net.Conn = <-b.dialed, nil
		if far, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		if closes == "who listened" {
			near, far = far, near
		}
		_ = near.Close()
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s closes: the other reads %v", closes, err)
		}
		_ = far.Close()
	}
}
