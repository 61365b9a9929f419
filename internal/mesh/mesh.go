// Package mesh lets nodes find each other and talk: an identity for ever, Listen and Dial by
// node id over libp2p streams, the gate that keeps strangers out, and heartbeats.
//
// It does not decide who is a member (Deps.Admit does), whether a silent node is dead (it reports
// beats and broken streams, the caller judges), or what an entry says (opaque bytes).
//
// Invariants:
//   - A connection handed out by Accept is from the node that its RemoteAddr names, and that
//     node was admitted when the stream began. Only listeners of ListenOpen skip the gate.
//   - Nothing that a peer sends, or does not send, blocks a listener, panics or grows without
//     bound; every bound stands in Limits.
//   - Once Disconnect returns, everything open with that node has failed.
//   - No package-level state: any number of nodes live in one process.
//
// Start reading at Transport, which the libp2p Host and the in-memory Memory both satisfy; then
// gate (how a stream is admitted), conn, and Heartbeats. "Peer" is a node as libp2p sees it.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Transport is what the rest of the node needs of the mesh. A *Host and a *MemoryNode are one.
type Transport interface {
	// ID is the own node.
	ID() cluster.NodeID

	// Listen accepts streams of a protocol (1 to 64 bytes, such as "raft/1") from admitted nodes.
	Listen(protocol string) (net.Listener, error)

	// ListenOpen accepts streams of a protocol from anyone, rate-limited (Limits.Open…).
	ListenOpen(protocol string) (net.Listener, error)

	// Dial opens a stream. It does not wait for the peer to admit us: when the peer refuses, the
	// first Read returns a *RefusedError, when nothing listens there, ErrNoListener. A failure to
	// reach the peer is a *DialError. Without a deadline in ctx, 10 s apply.
	Dial(ctx context.Context, id cluster.NodeID, protocol string) (net.Conn, error)

	// Disconnect closes every connection with a peer; all that is open on them fails at once.
	Disconnect(id cluster.NodeID)

	// ClearBackoff forgets that a peer could not be reached, so that the next Dial really tries.
	ClearBackoff(id cluster.NodeID)

	// Watch calls fn when the first connection with a peer comes and when the last one goes, in
	// this order for each peer, until stop is called. fn must return at once and must not call
	// Watch or stop.
	Watch(fn func(id cluster.NodeID, connected bool)) (stop func())
}

// Deps are the functions that the mesh asks. All may be called from many goroutines.
type Deps struct {
	// Certificate gives the own membership certificate, which begins every stream that we dial:
	// at most 1 KiB, empty before joining. Nil means empty.
	Certificate func() []byte

	// Admit decides whether a node may use member protocols. It is asked once a stream, after
	// TLS has proved the node's id; the error's text is told to the peer. Nil admits nobody.
	Admit func(id cluster.NodeID, certificate []byte) error

	// Found is told the addresses at which mDNS has seen a node. Anybody on the network can
	// claim anything there, so it is a hint where to dial, never a reason to trust. It must not
	// block. Only the Host uses it.
	Found func(id cluster.NodeID, addrs []string)
}

// ErrNoListener says that the peer was reached, and admitted us, but nothing listens there.
var ErrNoListener = errors.New("no listener for this protocol")

// ErrForeign says that the peer was reached but does not speak this mesh's protocol: another
// version of OllamaMax, or another program with libp2p.
var ErrForeign = errors.New("peer speaks another mesh protocol")

// RefusedError says that the peer was reached but its gate did not let us in. Nothing that was
// written has been acted upon.
type RefusedError struct {
	Peer   cluster.NodeID
	Reason string // as told by the peer, at most 255 bytes of valid UTF-8
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("open stream to %s: refused: %s", e.Peer, e.Reason)
}

// DialError says that a peer could not be reached.
type DialError struct {
	Peer cluster.NodeID

	// Refused tells that every address that was tried answered, and said that nothing listens
	// there: the machine lives and the process is gone.
	Refused bool

	// TimedOut tells that at least one address did not answer in time: no evidence but silence.
	TimedOut bool

	Err error
}

func (e *DialError) Error() string { return fmt.Sprintf("dial %s: %v", e.Peer, e.Err) }

// Unwrap gives the cause.
func (e *DialError) Unwrap() error { return e.Err }

// Timeout makes a DialError a net.Error.
func (e *DialError) Timeout() bool { return e.TimedOut }

// Temporary makes a DialError a net.Error.
func (e *DialError) Temporary() bool { return true }

// IsTimeout tells silence from an answer: whether an error of Dial, Read, Write or of
// HeartbeatDeps.Closed means only that time ran out.
func IsTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout() ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

const (
	dialTimeout     = 10 * time.Second // of Dial, without a deadline in the context
	maxProtocol     = 64               // bytes of a protocol's name
	maxCertificate  = 1 << 10          // bytes
	maxReason       = 255              // bytes
	maxProtocolRule = "1 to 64 bytes"
)

func checkProtocol(protocol string) error {
	if len(protocol) == 0 || len(protocol) > maxProtocol {
		return fmt.Errorf("protocol %q: want %s", protocol, maxProtocolRule)
	}
	return nil
}
