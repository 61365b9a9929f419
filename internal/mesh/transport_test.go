package mesh

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// pair is two Transports that can reach each other and admit each other, until refusal is set.
type pair struct {
	a, b    Transport
	refusal *atomic.Pointer[string]
}

func (p pair) admit(_ cluster.NodeID, certificate []byte) error {
	if reason := p.refusal.Load(); reason != nil {
		return errors.New(*reason)
	}
	if string(certificate) != "certificate" {
		return fmt.Errorf("certificate is %q", certificate)
	}
	return nil
}

func (p pair) deps() Deps {
	return Deps{Admit: p.admit, Certificate: func() []byte { return []byte("certificate") }}
}

func hostPair(listen string) func(t *testing.T) pair {
	return func(t *testing.T) pair {
		p := pair{refusal: new(atomic.Pointer[string])}
		a, b := openHost(t, listen, p.deps()), openHost(t, listen, p.deps())
		a.Protect([]cluster.NodeID{b.ID()})
		b.Protect([]cluster.NodeID{a.ID()})
		a.AddAddrs(b.ID(), b.Addrs())
		b.AddAddrs(a.ID(), a.Addrs())
		p.a, p.b = a, b
		return p
	}
}

func memoryPair(t *testing.T) pair {
	m := NewMemory()
	p := pair{refusal: new(atomic.Pointer[string])}
	a, b := m.Node("a", p.deps()), m.Node("b", p.deps())
	t.Cleanup(func() { a.Close(); b.Close() })
	p.a, p.b = a, b
	return p
}

func newKey(t *testing.T) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func openHost(t *testing.T, listen string, deps Deps) *Host {
	t.Helper()
	h, err := Open(Config{Listen: []string{listen}}, newKey(t), nil, deps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

const (
	loopbackTCP  = "/ip4/127.0.0.1/tcp/0"
	loopbackQUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
)

func TestHostOverTCPConforms(t *testing.T)  { conform(t, hostPair(loopbackTCP)) }
func TestHostOverQUICConforms(t *testing.T) { conform(t, hostPair(loopbackQUIC)) }
func TestMemoryConforms(t *testing.T)       { conform(t, memoryPair) }

func TestMemoryConformsInABubble(t *testing.T) {
	for _, c := range promises {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { c.check(t, memoryPair(t)) })
		})
	}
}

// conform checks what every Transport promises.
func conform(t *testing.T, open func(*testing.T) pair) {
	for _, c := range promises {
		t.Run(c.name, func(t *testing.T) { c.check(t, open(t)) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, pair)
}{
	{"echo", checkEcho},
	{"half close", checkHalfClose},
	{"deadlines", checkDeadlines},
	{"deadline before the answer", checkEarlyDeadline},
	{"large transfer", checkLargeTransfer},
	{"refused with a reason", checkRefused},
	{"no listener", checkNoListener},
	{"open to strangers", checkOpen},
	{"close unblocks", checkCloseUnblocks},
	{"many streams", checkManyStreams},
	{"disconnect breaks everything", checkDisconnect},
	{"watch", checkWatch},
	{"unknown node", checkUnknown},
}

func listen(t *testing.T, n Transport) net.Listener {
	t.Helper()
	l, err := n.Listen("test/1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, from, to Transport) net.Conn {
	t.Helper()
	c, err := from.Dial(t.Context(), to.ID(), "test/1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echoes accepts until the listener closes.
func echoes(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func mustWrite(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func checkEcho(t *testing.T, p pair) {
	go echoes(listen(t, p.b))
	c := dial(t, p.a, p.b)
	if got := c.RemoteAddr().String(); got != string(p.b.ID()) {
		t.Errorf("remote address %q, want %q", got, p.b.ID())
	}
	for range 3 {
		mustWrite(t, c, "hello")
		mustRead(t, c, "hello")
	}
}

func checkHalfClose(t *testing.T, p pair) {
	l := listen(t, p.b)
	c := dial(t, p.a, p.b)
	mustWrite(t, c, "question")
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	s := accept(t, l)
	if got := s.RemoteAddr().String(); got != string(p.a.ID()) {
		t.Errorf("remote address %q, want %q", got, p.a.ID())
	}
	question, err := io.ReadAll(s)
	if err != nil || string(question) != "question" {
		t.Fatalf("read %q, %v", question, err)
	}
	mustWrite(t, s, "answer")
	s.Close()
	answer, err := io.ReadAll(c)
	if err != nil || string(answer) != "answer" {
		t.Fatalf("read %q, %v", answer, err)
	}
}

func checkDeadlines(t *testing.T, p pair) {
	l := listen(t, p.b)
	c := dial(t, p.a, p.b)
	s := accept(t, l)
	mustWrite(t, s, "x")
	mustRead(t, c, "x")

	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	if !errors.Is(err, os.ErrDeadlineExceeded) || !IsTimeout(err) {
		t.Fatalf("read after the deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	mustWrite(t, s, "y")
	mustRead(t, c, "y")

	c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	for range 1000 { // until all windows are full
		if _, err = c.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write after the deadline: %v", err)
	}
}

func checkEarlyDeadline(t *testing.T, p pair) {
	l := listen(t, p.b)
	c := dial(t, p.a, p.b)
	c.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	mustWrite(t, accept(t, l), "late")
	mustRead(t, c, "late")
}

func checkLargeTransfer(t *testing.T, p pair) {
	l := listen(t, p.b)
	data := make([]byte, 8<<20)
	rand.Read(data)
	go func() {
		c, err := p.a.Dial(context.Background(), p.b.ID(), "test/1")
		if err != nil {
			return
		}
		defer c.Close()
		c.Write(data)
		c.(interface{ CloseWrite() error }).CloseWrite()
		c.Read(make([]byte, 1))
	}()
	s := accept(t, l)
	got, err := io.ReadAll(s)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Fatalf("received %d bytes of %d, %v", len(got), len(data), err)
	}
}

func checkRefused(t *testing.T, p pair) {
	reason := "removed from the cluster " + strings.Repeat("x", 300)
	p.refusal.Store(&reason)
	l := listen(t, p.b)
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	c := dial(t, p.a, p.b)
	io.WriteString(c, "let me in")
	for range 2 {
		_, err := c.Read(make([]byte, 1))
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Peer != p.b.ID() || refused.Reason != reason[:255] {
			t.Fatalf("read: %v", err)
		}
	}
	l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
}

func checkNoListener(t *testing.T, p pair) {
	c := dial(t, p.a, p.b)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrNoListener) {
		t.Fatalf("read: %v", err)
	}
	if _, err := p.a.Listen(strings.Repeat("x", 65)); err == nil {
		t.Error("listened on a protocol whose name is too long")
	}
	listen(t, p.b)
	if _, err := p.b.Listen("test/1"); err == nil {
		t.Error("listened twice")
	}
}

func checkOpen(t *testing.T, p pair) {
	reason := "a stranger"
	p.refusal.Store(&reason)
	l, err := p.b.ListenOpen("join/1")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echoes(l)
	refused := 0
	for range 20 {
		c, err := p.a.Dial(t.Context(), p.b.ID(), "join/1")
		if err != nil {
			t.Fatal(err)
		}
		var e *RefusedError
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); errors.As(err, &e) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if refused == 0 || refused == 20 {
		t.Errorf("%d of 20 refused", refused)
	}
}

func checkCloseUnblocks(t *testing.T, p pair) {
	l := listen(t, p.b)
	c := dial(t, p.a, p.b)
	s := accept(t, l)
	mustWrite(t, s, "x")
	mustRead(t, c, "x")
	errs := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		errs <- err
	}()
	go func() {
		_, err := l.Accept()
		errs <- err
	}()
	c.Close()
	l.Close()
	for range 2 {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	}
	if _, err := s.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end read %v, want EOF", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	listen(t, p.b) // the protocol is free again
}

func checkManyStreams(t *testing.T, p pair) {
	go echoes(listen(t, p.b))
	const n = 200
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dial(t, p.a, p.b)
	}
	var work sync.WaitGroup
	for i, c := range conns {
		work.Go(func() {
			text := bytes.Repeat(fmt.Appendf(nil, "stream %d ", i), 100)
			got := make([]byte, len(text))
			for range 5 {
				if _, err := c.Write(text); err != nil {
					t.Errorf("stream %d: %v", i, err)
					return
				}
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, text) {
					t.Errorf("stream %d: %v", i, err)
					return
				}
			}
		})
	}
	work.Wait()
}

func checkDisconnect(t *testing.T, p pair) {
	l := listen(t, p.b)
	c := dial(t, p.a, p.b)
	s := accept(t, l)
	mustWrite(t, s, "x")
	mustRead(t, c, "x")
	p.a.Disconnect(p.b.ID())
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("could write after Disconnect")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || IsTimeout(err) {
		t.Errorf("read after Disconnect: %v", err)
	}
	if _, err := s.Read(make([]byte, 1)); err == nil || IsTimeout(err) {
		t.Errorf("the peer's read after Disconnect: %v", err)
	}
	c = dial(t, p.a, p.b)
	mustWrite(t, accept(t, l), "again")
	mustRead(t, c, "again")
}

func checkWatch(t *testing.T, p pair) {
	events := make(chan string, 10)
	defer p.a.Watch(func(id cluster.NodeID, up bool) { events <- fmt.Sprint("a sees b ", id == p.b.ID(), up) })()
	defer p.b.Watch(func(id cluster.NodeID, up bool) { events <- fmt.Sprint("b sees a ", id == p.a.ID(), up) })()
	both := func(up bool) {
		t.Helper()
		want := map[string]bool{fmt.Sprint("a sees b ", true, up): true, fmt.Sprint("b sees a ", true, up): true}
		for range 2 {
			got := <-events
			if !want[got] {
				t.Errorf("event %q, want one of %v", got, want)
			}
			delete(want, got)
		}
	}
	l := listen(t, p.b)
	dial(t, p.a, p.b)
	accept(t, l)
	both(true)
	dial(t, p.a, p.b) // no event: not the first
	accept(t, l)
	p.b.Disconnect(p.a.ID())
	both(false)
}

func checkUnknown(t *testing.T, p pair) {
	stranger, err := NodeID(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []cluster.NodeID{stranger, p.a.ID()} {
		var e *DialError
		if _, err := p.a.Dial(t.Context(), id, "test/1"); !errors.As(err, &e) || e.Refused || e.TimedOut {
			t.Errorf("dial %s: %#v", id, err)
		}
	}
}
