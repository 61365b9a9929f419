package mesh

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// gate admits streams and hands them to listeners. Every stream begins with a preamble:
//
//	length of the protocol's name (1 byte), name, length of the certificate (2 bytes), certificate
//
// and is answered by one byte (see parseAnswer), after which it belongs to the protocol. The
// dialer does not wait for the answer, so admission costs no round trip.
type gate struct {
	local  cluster.NodeID
	deps   Deps
	limits Limits
	roster *roster

	pending, pendingStrangers chan struct{} // slots
	refused, dropped          atomic.Uint64

	mu        sync.Mutex
	closed    bool
	listeners map[string]*listener
	open      map[string]int // conns of Dial and Accept that are not closed, by protocol
	wg        sync.WaitGroup // of serve
}

func newGate(local cluster.NodeID, deps Deps, limits Limits, roster *roster) *gate {
	return &gate{
		local: local, deps: deps, limits: limits, roster: roster,
		pending:          make(chan struct{}, limits.Pending),
		pendingStrangers: make(chan struct{}, limits.PendingStrangers),
		listeners:        make(map[string]*listener),
		open:             make(map[string]int),
	}
}

// preamble is what a dialer writes first.
func (g *gate) preamble(protocol string) ([]byte, error) {
	var certificate []byte
	if g.deps.Certificate != nil {
		certificate = g.deps.Certificate()
	}
	if len(certificate) > maxCertificate {
		return nil, fmt.Errorf("membership certificate of %d bytes: at most %d", len(certificate), maxCertificate)
	}
	b := append([]byte{byte(len(protocol))}, protocol...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(certificate)))
	return append(b, certificate...), nil
}

func (g *gate) listen(protocol string, open bool) (net.Listener, error) {
	if err := checkProtocol(protocol); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, fmt.Errorf("listen %s: %w", protocol, net.ErrClosed)
	}
	if g.listeners[protocol] != nil {
		return nil, fmt.Errorf("listen %s: already listening", protocol)
	}
	l := newListener(g, protocol, open)
	g.listeners[protocol] = l
	return l, nil
}

// serve takes an inbound stream through the gate. It has the goroutine to itself.
func (g *gate) serve(s stream, from cluster.NodeID) {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		s.Reset()
		return
	}
	g.wg.Add(1)
	g.mu.Unlock()
	defer g.wg.Done()

	slots := g.pending
	if !g.roster.trusts(from) {
		slots = g.pendingStrangers
	}
	select {
	case slots <- struct{}{}:
	default:
		g.dropped.Add(1)
		s.Reset()
		return
	}
	c, l := g.admit(s, from)
	<-slots
	if c != nil {
		l.deliver(c)
	}
}

// admit reads a preamble and answers it. A stream that is not admitted it closes.
func (g *gate) admit(s stream, from cluster.NodeID) (*conn, *listener) {
	s.SetDeadline(time.Now().Add(g.limits.Preamble))
	protocol, certificate, err := readPreamble(s)
	if err != nil {
		g.dropped.Add(1)
		s.Reset()
		return nil, nil
	}
	g.mu.Lock()
	l := g.listeners[protocol]
	g.mu.Unlock()

	answer, release, refusal := []byte{answerOK}, func() {}, error(nil)
	if l != nil && l.open != nil {
		release, refusal = l.open.enter(from)
	} else if refusal = g.askAdmit(from, certificate); refusal == nil {
		g.roster.admit(from)
	} else {
		g.roster.dismiss(from)
	}
	switch {
	case refusal != nil:
		reason := strings.ToValidUTF8(refusal.Error(), "?")
		reason = reason[:min(len(reason), maxReason)]
		answer = append([]byte{answerRefused, byte(len(reason))}, reason...)
	case l == nil:
		answer = []byte{answerNoListener}
	}
	if answer[0] != answerOK {
		g.refused.Add(1)
		s.Write(answer) // a peer that does not get it sees the stream end
		s.Close()
		return nil, nil
	}
	if _, err = s.Write(answer); err == nil {
		err = s.SetDeadline(time.Time{})
	}
	if err != nil {
		release()
		g.dropped.Add(1)
		s.Reset()
		return nil, nil
	}
	c := g.newConn(s, from, protocol, release)
	c.answered.Store(true)
	return c, l
}

func (g *gate) askAdmit(from cluster.NodeID, certificate []byte) error {
	if g.deps.Admit == nil {
		return fmt.Errorf("no members are admitted here")
	}
	return g.deps.Admit(from, certificate)
}

// newConn makes a conn that is counted until it is closed.
func (g *gate) newConn(s stream, remote cluster.NodeID, protocol string, release func()) *conn {
	g.mu.Lock()
	g.open[protocol]++
	g.mu.Unlock()
	return &conn{s: s, local: Addr{g.local}, remote: Addr{remote}, onClose: func() {
		release()
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.open[protocol]--; g.open[protocol] == 0 {
			delete(g.open, protocol)
		}
	}}
}

// close closes the listeners and waits for the streams at the gate, which must have failed or
// else keep it waiting for Limits.Preamble.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	var all []*listener
	for _, l := range g.listeners {
		all = append(all, l)
	}
	g.mu.Unlock()
	for _, l := range all {
		l.Close()
	}
	g.wg.Wait()
}

func readPreamble(r io.Reader) (protocol string, certificate []byte, err error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:1]); err != nil {
		return "", nil, err
	}
	name := make([]byte, n[0])
	if _, err := io.ReadFull(r, name); err != nil {
		return "", nil, err
	}
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return "", nil, err
	}
	size := binary.BigEndian.Uint16(n[:])
	if err := checkProtocol(string(name)); err != nil {
		return "", nil, err
	}
	if size > maxCertificate {
		return "", nil, fmt.Errorf("certificate of %d bytes: at most %d", size, maxCertificate)
	}
	certificate = make([]byte, size)
	_, err = io.ReadFull(r, certificate)
	return string(name), certificate, err
}
