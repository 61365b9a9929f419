package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestAPortInUseIsExplained(t *testing.T) {
	for _, listen := range []string{loopbackTCP, loopbackQUIC} {
		first := openHost(t, listen, Deps{})
		addr := first.p2p.Network().ListenAddresses()[0].String()
		h, err := Open(Config{Listen: []string{loopbackTCP, addr}}, newKey(t), nil, Deps{})
		if err == nil {
			h.Close()
			t.Fatalf("%s: two hosts on one port", listen)
		}
		for _, want := range []string{addr, "in use", "--p2p-listen"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", listen, err, want)
			}
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]Config{
		"no address":     {},
		"no multiaddr":   {Listen: []string{"0.0.0.0:11436"}},
		"negative limit": {Listen: []string{loopbackTCP}, Limits: Limits{Backlog: -1}},
	} {
		if h, err := Open(c, newKey(t), nil, Deps{}); err == nil {
			h.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

func TestConnectAndAddresses(t *testing.T) {
	a, b := openHost(t, loopbackTCP, Deps{}), openHost(t, "/ip4/0.0.0.0/tcp/0", Deps{})
	for _, addr := range b.Addrs() {
		if !strings.HasSuffix(addr, "/p2p/"+string(b.ID())) || strings.Contains(addr, "0.0.0.0") {
			t.Errorf("address %s", addr)
		}
	}
	if addrs := a.Addrs(); len(addrs) != 1 || !strings.HasPrefix(addrs[0], "/ip4/127.0.0.1/tcp/") {
		t.Errorf("addresses %v", addrs)
	}
	reached, err := b.Connect(t.Context(), append(a.Addrs(), b.Addrs()...))
	if err != nil || !slices.Equal(reached, []cluster.NodeID{a.ID()}) {
		t.Errorf("reached %v, %v", reached, err)
	}
	if reached, err = b.Connect(t.Context(), append(a.Addrs(), "nonsense")); err == nil || len(reached) != 1 {
		t.Errorf("reached %v, %v", reached, err)
	}
	announcing, err := Open(Config{Listen: []string{loopbackTCP}, Announce: []string{"/dns4/example.org/tcp/1"}},
		newKey(t), nil, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer announcing.Close()
	if addrs := announcing.Addrs(); len(addrs) != 1 || addrs[0] != "/dns4/example.org/tcp/1/p2p/"+string(announcing.ID()) {
		t.Errorf("announced %v", addrs)
	}
}

func TestOnlyTheNewestAddressesAreKept(t *testing.T) {
	a, b := openHost(t, loopbackTCP, Deps{}), openHost(t, loopbackTCP, Deps{})
	id, _ := peer.Decode(string(b.ID()))
	for i := range 3 * maxAddrs {
		a.AddAddrs(b.ID(), []string{fmt.Sprintf("/ip4/192.0.2.1/tcp/%d", i+1)})
	}
	if skipped := a.AddAddrs(b.ID(), []string{"nonsense", "/ip4/192.0.2.1/tcp/7/p2p/" + string(a.ID())}); skipped != 2 {
		t.Errorf("skipped %d of 2 bad addresses", skipped)
	}
	addrs := a.p2p.Peerstore().Addrs(id)
	if len(addrs) != maxAddrs {
		t.Errorf("%d addresses", len(addrs))
	}
	for _, addr := range addrs {
		if port, _ := addr.ValueForProtocol(6); len(port) < 2 || port <= "64" {
			t.Errorf("kept the old %s", addr)
		}
	}
}

func TestADeadProcessAndASilentMachineDiffer(t *testing.T) {
	a, b := openHost(t, loopbackTCP, Deps{}), openHost(t, loopbackTCP, Deps{})
	a.AddAddrs(b.ID(), b.Addrs())
	b.Close()
	var e *DialError
	if _, err := a.Dial(t.Context(), b.ID(), "test/1"); !errors.As(err, &e) || !e.Refused || IsTimeout(err) {
		t.Errorf("closed host: %v", err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c := openHost(t, loopbackTCP, Deps{})
	a.AddAddrs(c.ID(), []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", silent.Addr().(*net.TCPAddr).Port)})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.Dial(ctx, c.ID(), "test/1"); !errors.As(err, &e) || e.Refused || !IsTimeout(err) {
		t.Errorf("silent machine: %v", err)
	}
}

// stranger is a libp2p host that keeps to no rules. Its streams fail when it has gone too far.
func stranger(t *testing.T, to *Host) (open func(data string)) {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	info, err := peer.AddrInfoFromString(to.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Connect(t.Context(), *info); err != nil {
		t.Fatal(err)
	}
	conn := h.Network().ConnsToPeer(info.ID)[0]
	return func(data string) {
		if s, err := conn.NewStream(t.Context()); err == nil {
			s.Write([]byte(data))
		}
	}
}

func TestAStrangerBlocksNobody(t *testing.T) {
	p := pair{refusal: new(atomic.Pointer[string])}
	a, b := openHost(t, loopbackTCP, p.deps()), openHost(t, loopbackTCP, p.deps())
	a.AddAddrs(b.ID(), b.Addrs())
	l := listen(t, b)
	go echoes(l)
	for range 3 {
		open := stranger(t, b)
		for range 100 {
			open(greeting) // and no preamble
		}
	}
	for _, bad := range []string{
		greeting + "\x00", greeting + "\x06test/1\xff\xff", greeting + strings.Repeat("\xff", 300),
		"\x13/multistream/9.9.9\n", strings.Repeat("\x00", 100), "\x13/multistream/1.0.0\n\x05/no/\n",
	} {
		open := stranger(t, b)
		open(bad)
	}
	c := dial(t, a, b)
	mustWrite(t, c, "hello")
	mustRead(t, c, "hello")
	if s := b.Stats(); s.Pending > b.config.Limits.PendingStrangers || s.Strangers == 0 || s.Streams["test/1"] != 1 {
		t.Errorf("%+v", s)
	}
}

func TestStrangersAreFewAndGo(t *testing.T) {
	p := pair{refusal: new(atomic.Pointer[string])}
	b, err := Open(Config{Listen: []string{loopbackTCP}, Limits: Limits{Strangers: 3, StrangerStreams: 4}}, newKey(t), nil, p.deps())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for range 3 {
		stranger(t, b)
	}
	fourth, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer fourth.Close()
	info, _ := peer.AddrInfoFromString(b.Addrs()[0])
	if fourth.Connect(t.Context(), *info); b.Stats().Strangers > 3 {
		t.Errorf("%+v", b.Stats())
	}
	// A member comes in all the same, and its limits are a member's at once.
	a := openHost(t, loopbackTCP, p.deps())
	b.Protect([]cluster.NodeID{a.ID()})
	a.Protect([]cluster.NodeID{b.ID()})
	a.AddAddrs(b.ID(), b.Addrs())
	checkManyStreams(t, pair{a: a, b: b})

	b.sweep(time.Now().Add(time.Hour))
	if s := b.Stats(); s.Strangers != 0 || s.Connections != 1 {
		t.Errorf("%+v", s)
	}
}

// TestARefusedMemberIsAStranger has a member that was admitted by its certificate barred.
func TestARefusedMemberIsAStranger(t *testing.T) {
	p := pair{refusal: new(atomic.Pointer[string])}
	a, b := openHost(t, loopbackTCP, p.deps()), openHost(t, loopbackTCP, p.deps())
	a.AddAddrs(b.ID(), b.Addrs())
	go echoes(listen(t, b))
	c := dial(t, a, b)
	mustWrite(t, c, "x")
	mustRead(t, c, "x")
	if s := b.Stats(); s.Strangers != 0 {
		t.Errorf("admitted: %+v", s)
	}
	reason := "removed"
	p.refusal.Store(&reason)
	if _, err := dial(t, a, b).Read(make([]byte, 1)); err == nil {
		t.Fatal("not refused")
	}
	if s := b.Stats(); s.Strangers != 1 || s.Refused != 1 {
		t.Errorf("refused: %+v", s)
	}
}

// TestDisconnectDoesNotWaitForASilentPeer has the network swallow everything, with all buffers
// full, as when a machine loses power.
func TestDisconnectDoesNotWaitForASilentPeer(t *testing.T) {
	p := pair{refusal: new(atomic.Pointer[string])}
	a, b := openHost(t, loopbackTCP, p.deps()), openHost(t, loopbackTCP, p.deps())
	a.Protect([]cluster.NodeID{b.ID()})
	b.Protect([]cluster.NodeID{a.ID()}) // a stranger may not open so many streams before the first is admitted
	proxy, stall := stallingProxy(t, b)
	a.AddAddrs(b.ID(), []string{proxy})
	listen(t, b)
	conns := make([]net.Conn, 100)
	for i := range conns {
		conns[i] = dial(t, a, b)
	}
	stall()
	var work sync.WaitGroup
	for _, c := range conns { // fill all buffers
		work.Go(func() {
			for err := error(nil); err == nil; {
				c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
				_, err = c.Write(make([]byte, 64<<10))
			}
			c.SetWriteDeadline(time.Time{})
		})
	}
	work.Wait()
	for _, c := range conns {
		work.Go(func() { c.Write(make([]byte, 64<<10)) })
		work.Go(func() { io.Copy(io.Discard, c) })
	}
	begin := time.Now()
	a.Disconnect(b.ID())
	work.Wait()
	if d := time.Since(begin); d > 3*time.Second { // yamux's own patience is 10 s
		t.Errorf("everything had failed after %v", d)
	}
}

// stallingProxy forwards to a host until stall is called.
func stallingProxy(t *testing.T, to *Host) (addr string, stall func()) {
	t.Helper()
	target := to.p2p.Network().ListenAddresses()[0]
	port, err := target.ValueForProtocol(6)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stalled, done := make(chan struct{}), make(chan struct{})
	var work sync.WaitGroup
	forward := func(to, from net.Conn) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			select {
			case <-stalled:
				<-done
			default:
			}
			if err != nil {
				break
			}
			to.Write(buf[:n])
		}
		to.Close()
		from.Close()
	}
	work.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", "127.0.0.1:"+port)
			if err != nil {
				in.Close()
				continue
			}
			work.Go(func() { forward(out, in) })
			work.Go(func() { forward(in, out) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		to.Close()
		close(done)
		work.Wait()
	})
	return fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port), func() { close(stalled) }
}

func TestARequestPassesABulkTransfer(t *testing.T) {
	for _, write := range []int{16 << 10, 64 << 10, 1 << 20} {
		for _, streams := range []int{1, 4} {
			t.Run(fmt.Sprintf("%d streams write %d KiB", streams, write>>10), func(t *testing.T) {
				requestBesideBulk(t, write, streams)
			})
		}
	}
}

// requestBesideBulk reports; it asserts nothing about time.
func requestBesideBulk(t *testing.T, write, streams int) {
	p := hostPair(loopbackTCP)(t)
	go echoes(listen(t, p.b))
	bulk, err := p.b.Listen("bulk/1")
	if err != nil {
		t.Fatal(err)
	}
	defer bulk.Close()
	var received atomic.Int64
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range streams {
		out, err := p.a.Dial(ctx, p.b.ID(), "bulk/1")
		if err != nil {
			t.Fatal(err)
		}
		in := accept(t, bulk)
		work.Go(func() {
			defer out.Close()
			for b := make([]byte, write); ctx.Err() == nil; {
				if _, err := out.Write(b); err != nil {
					t.Error(err)
					return
				}
			}
		})
		work.Go(func() {
			b := make([]byte, 256<<10)
			for {
				n, err := in.Read(b)
				received.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	c := dial(t, p.a, p.b)
	begin := time.Now()
	var trips []time.Duration
	for received.Load() < 64<<20 || len(trips) < 100 {
		start := time.Now()
		mustWrite(t, c, "heartbeat")
		mustRead(t, c, "heartbeat")
		trips = append(trips, time.Since(start))
	}
	rate := float64(received.Load()) / time.Since(begin).Seconds() / 1e6
	slices.Sort(trips)
	t.Logf("%.0f MB/s; round trip: median %v, 99%% %v, longest %v",
		rate, trips[len(trips)/2], trips[len(trips)*99/100], trips[len(trips)-1])
	cancel()
}
