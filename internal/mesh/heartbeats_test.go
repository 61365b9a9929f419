package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// beater is a node with heartbeats that keeps what it is told.
type beater struct {
	Transport
	hb   *Heartbeats
	stop func()
	told chan struct{} // signalled at each callback

	mu      sync.Mutex
	members []cluster.NodeID
	pulse   Pulse
	version uint64
	entry   []byte

	pulses  map[cluster.NodeID]Pulse
	beats   map[cluster.NodeID]int
	at      map[cluster.NodeID]time.Time
	entries map[cluster.NodeID]string // "boot version data"
	pulls   map[cluster.NodeID]int
	closed  map[cluster.NodeID][]error
}

func newBeater(t *testing.T, transport Transport, boot uint64, members ...cluster.NodeID) *beater {
	b := &beater{
		Transport: transport, told: make(chan struct{}, 1), members: members, version: 1, entry: []byte("first"),
		pulses: make(map[cluster.NodeID]Pulse), beats: make(map[cluster.NodeID]int),
		at: make(map[cluster.NodeID]time.Time), entries: make(map[cluster.NodeID]string),
		pulls: make(map[cluster.NodeID]int), closed: make(map[cluster.NodeID][]error),
	}
	locked := func(fn func()) { b.mu.Lock(); defer b.mu.Unlock(); fn(); signal(b.told) }
	var err error
	b.hb, err = NewHeartbeats(HeartbeatConfig{Boot: boot}, transport, HeartbeatDeps{
		Members: func() (m []cluster.NodeID) { locked(func() { m = b.members }); return m },
		Pulse:   func() (p Pulse) { locked(func() { p = b.pulse }); return p },
		Entry:   func() (v uint64, e []byte) { locked(func() { v, e = b.version, b.entry }); return v, e },
		Heard: func(id cluster.NodeID, p Pulse, at time.Time) {
			locked(func() { b.pulses[id] = p; b.beats[id]++; b.at[id] = at })
		},
		EntryReceived: func(id cluster.NodeID, boot, version uint64, data []byte) {
			locked(func() { b.entries[id] = fmt.Sprintf("%d %d %s", boot, version, data); b.pulls[id]++ })
		},
		Closed: func(id cluster.NodeID, err error) {
			locked(func() { b.closed[id] = append(b.closed[id], err) })
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.hb.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

// set changes the state and tells.
func (b *beater) set(fn func()) {
	b.mu.Lock()
	fn()
	b.mu.Unlock()
	b.hb.Notify()
}

// with reads under the lock.
func with[T any](b *beater, fn func() T) T {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fn()
}

func (b *beater) beatsOf(id cluster.NodeID) int { return with(b, func() int { return b.beats[id] }) }
func (b *beater) entryOf(id cluster.NodeID) string {
	return with(b, func() string { return b.entries[id] })
}
func (b *beater) closedOf(id cluster.NodeID) []error {
	return with(b, func() []error { return b.closed[id] })
}

func admitAll(cluster.NodeID, []byte) error { return nil }

var five = []cluster.NodeID{"a", "b", "c", "d", "e"}

// beating makes nodes that all know each other, stops them at the end, and lets them settle.
func beating(t *testing.T, m *Memory, ids ...cluster.NodeID) map[cluster.NodeID]*beater {
	nodes := make(map[cluster.NodeID]*beater)
	for _, id := range ids {
		nodes[id] = newBeater(t, m.Node(id, Deps{Admit: admitAll}), 1, ids...)
	}
	t.Cleanup(func() {
		for id, n := range nodes {
			n.stop()
			m.Kill(id)
		}
	})
	settle(4 * time.Second)
	return nodes
}

// settle lets fake time pass and everything that is due happen.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestBeatsComeEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := beating(t, NewMemory(), five...)
		before := nodes["a"].beatsOf("b")
		settle(10 * time.Second)
		for _, x := range nodes {
			for _, y := range nodes {
				if x == y {
					continue
				}
				if e := x.entryOf(y.ID()); e != "1 1 first" {
					t.Errorf("%s has of %s the entry %q", x.ID(), y.ID(), e)
				}
				if n := with(x, func() int { return x.pulls[y.ID()] }); n != 1 {
					t.Errorf("%s pulled the entry of %s %d times", x.ID(), y.ID(), n)
				}
				if c := x.closedOf(y.ID()); len(c) > 1 { // a dial before the other listened
					t.Errorf("%s saw the stream with %s close: %v", x.ID(), y.ID(), c)
				}
			}
		}
		if n := nodes["a"].beatsOf("b") - before; n != 10 {
			t.Errorf("%d beats in 10 s", n)
		}
	})
}

func TestAChangeReachesAllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := beating(t, NewMemory(), five...)
		want := Pulse{Busy: 1, Total: 2, Queue: 3, Draining: true}
		c := nodes["c"]
		c.set(func() { c.pulse, c.version, c.entry = want, 2, []byte("second") })
		settle(100 * time.Millisecond)
		for id, n := range nodes {
			if id == "c" {
				continue
			}
			if e := n.entryOf("c"); e != "1 2 second" {
				t.Errorf("%s has the entry %q", id, e)
			}
			if p := with(n, func() Pulse { return n.pulses["c"] }); p != want {
				t.Errorf("%s has the pulse %+v", id, p)
			}
		}
	})
}

func TestManyChangesMakeFewBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := beating(t, NewMemory(), "a", "b")
		before := nodes["b"].beatsOf("a")
		for i := range 1000 {
			nodes["a"].set(func() { nodes["a"].pulse.Busy = i })
			settle(time.Millisecond)
		}
		settle(100 * time.Millisecond)
		if n := nodes["b"].beatsOf("a") - before; n > 25 {
			t.Errorf("%d beats in 1.1 s", n)
		}
		if p := with(nodes["b"], func() Pulse { return nodes["b"].pulses["a"] }); p.Busy != 999 {
			t.Errorf("the last change was not told: %+v", p)
		}
	})
}

func TestAKilledPeerIsSeenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		nodes := beating(t, m, five...)
		before := make(map[cluster.NodeID]int)
		for id, n := range nodes {
			before[id] = len(n.closedOf("c"))
		}
		m.Kill("c")
		synctest.Wait()
		for _, id := range []cluster.NodeID{"a", "b", "d", "e"} {
			c := nodes[id].closedOf("c")
			if len(c) <= before[id] || IsTimeout(c[len(c)-1]) {
				t.Errorf("%s saw %v", id, c)
			}
		}
		settle(3 * time.Second)
		var dial *DialError
		if c := nodes["a"].closedOf("c"); !errors.As(c[len(c)-1], &dial) || !dial.Refused {
			t.Errorf("a redialed and saw %v", c[len(c)-1])
		}
	})
}

func TestAFrozenPeerIsSilentAndBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		nodes := beating(t, m, five...)
		m.Freeze("c")
		a := nodes["a"]
		heard, others, closed := a.beatsOf("c"), a.beatsOf("b"), len(a.closedOf("c"))
		settle(10 * time.Second)
		if n := a.beatsOf("c"); n != heard {
			t.Errorf("heard %d beats of a frozen peer", n-heard)
		}
		if c := a.closedOf("c"); len(c) != closed {
			t.Errorf("closed: %v", c)
		}
		if n := a.beatsOf("b") - others; n != 10 {
			t.Errorf("heard %d beats of another in 10 s", n)
		}
		settle(20 * time.Second)
		if c := a.closedOf("c"); len(c) == closed || !IsTimeout(c[len(c)-1]) {
			t.Errorf("after 30 s of silence: %v", c)
		}
		m.Thaw("c")
		settle(3 * time.Second)
		if a.beatsOf("c") == heard {
			t.Error("heard nothing after the thaw")
		}
	})
}

func TestALinkRecovers(t *testing.T) {
	for _, silence := range []time.Duration{2 * time.Second, 20 * time.Second, 5 * time.Minute} {
		for _, disconnect := range []string{"", "a", "b", "ab"} {
			t.Run(fmt.Sprint(silence, " disconnected by ", disconnect), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := NewMemory()
					nodes := beating(t, m, "a", "b")
					m.Cut("a", "b")
					settle(time.Second)
					for _, id := range disconnect {
						nodes[cluster.NodeID(id)].Disconnect(map[rune]cluster.NodeID{'a': "b", 'b': "a"}[id])
					}
					settle(silence)
					m.Heal("a", "b")
					settle(4 * time.Second)
					a, b := nodes["a"].beatsOf("b"), nodes["b"].beatsOf("a")
					settle(10 * time.Second)
					if a, b = nodes["a"].beatsOf("b")-a, nodes["b"].beatsOf("a")-b; a != 10 || b != 10 {
						t.Errorf("%d and %d beats in 10 s; %v; %v", a, b, nodes["a"].closedOf("b"), nodes["b"].closedOf("a"))
					}
				})
			})
		}
	}
}

func TestARestartedPeerIsHeardAndAnOldOneIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		nodes := beating(t, m, "a", "b")
		a := nodes["a"]
		restart := func(boot uint64) {
			m.Kill("b")
			nodes["b"].stop()
			nodes["b"] = newBeater(t, m.Node("b", Deps{Admit: admitAll}), boot, "a", "b")
			settle(4 * time.Second)
		}
		before := a.beatsOf("b")
		restart(7)
		if a.beatsOf("b") == before || a.entryOf("b") != "7 1 first" {
			t.Errorf("after a restart: %d beats, entry %q", a.beatsOf("b")-before, a.entryOf("b"))
		}
		before = a.beatsOf("b")
		restart(6)
		if stale, _ := a.hb.Stats(); a.beatsOf("b") != before || a.entryOf("b") != "7 1 first" || stale == 0 {
			t.Errorf("after a stale restart: %d beats, entry %q, %d stale", a.beatsOf("b")-before, a.entryOf("b"), stale)
		}
	})
}

func TestTheOtherSideDialsWhenTheFirstCannot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		var refuse sync.Map
		admit := func(id cluster.NodeID, _ []byte) error {
			if _, no := refuse.Load(id); no {
				return errors.New("not here")
			}
			return nil
		}
		refuse.Store(cluster.NodeID("a"), true) // b refuses what a dials
		// Both are there before either beats: what a meets first is the refusal, not that nobody is there.
		na, nb := m.Node("a", Deps{Admit: admit}), m.Node("b", Deps{Admit: admit})
		a := newBeater(t, na, 1, "b")
		b := newBeater(t, nb, 1, "a")
		defer m.Kill("a")
		defer m.Kill("b")
		defer a.stop()
		defer b.stop()
		settle(10 * time.Second)
		var refused *RefusedError
		if c := a.closedOf("b"); len(c) == 0 || !errors.As(c[0], &refused) || refused.Reason != "not here" {
			t.Errorf("a saw %v", c)
		}
		if a.beatsOf("b") == 0 || b.beatsOf("a") == 0 {
			t.Errorf("%d and %d beats", a.beatsOf("b"), b.beatsOf("a"))
		}
	})
}

func TestAPeerThatIsNotReadyYetIsHeardSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		var ready atomic.Bool
		nb := m.Node("b", Deps{Admit: func(cluster.NodeID, []byte) error {
			if !ready.Load() {
				return errors.New("not a member yet")
			}
			return nil
		}})
		a := newBeater(t, m.Node("a", Deps{Admit: admitAll}), 1, "b")
		b := newBeater(t, nb, 1, "a")
		defer m.Kill("a")
		defer m.Kill("b")
		defer a.stop()
		defer b.stop()
		settle(100 * time.Millisecond)
		ready.Store(true)
		settle(300 * time.Millisecond)
		if len(a.closedOf("b")) == 0 || a.beatsOf("b") == 0 || b.beatsOf("a") == 0 {
			t.Errorf("after refusals %v: %d and %d beats", a.closedOf("b"), a.beatsOf("b"), b.beatsOf("a"))
		}
	})
}

func TestAMemberWeHaveNotHeardOfIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		a := newBeater(t, m.Node("a", Deps{Admit: admitAll}), 1)
		b := newBeater(t, m.Node("b", Deps{Admit: admitAll}), 1, "a")
		defer m.Kill("a")
		defer a.stop()
		settle(10 * time.Second)
		if a.beatsOf("b") == 0 || b.beatsOf("a") == 0 || a.entryOf("b") != "1 1 first" {
			t.Errorf("%d and %d beats, entry %q", a.beatsOf("b"), b.beatsOf("a"), a.entryOf("b"))
		}
		b.stop()
		m.Kill("b")
		settle(time.Second)
		a.hb.mu.Lock()
		defer a.hb.mu.Unlock()
		if len(a.hb.peers) != 0 {
			t.Error("it is not forgotten when it goes")
		}
	})
}

func TestALeavingNodeSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := beating(t, NewMemory(), five...)
		nodes["c"].set(func() { nodes["c"].pulse.Leaving = true })
		nodes["c"].stop()
		synctest.Wait()
		for id, n := range nodes {
			if id == "c" {
				continue
			}
			if !with(n, func() bool { return n.pulses["c"].Leaving }) {
				t.Errorf("%s was not told", id)
			}
			if c := n.closedOf("c"); len(c) == 0 || c[len(c)-1] != io.EOF {
				t.Errorf("%s saw %v", id, c)
			}
		}
	})
}

func TestALargeEntryArrivesAndATooLargeOneDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := beating(t, NewMemory(), "a", "b")
		large := bytes.Repeat([]byte("x"), MaxEntry)
		nodes["b"].set(func() { nodes["b"].version, nodes["b"].entry = 2, large })
		settle(100 * time.Millisecond)
		if e := nodes["a"].entryOf("b"); e != "1 2 "+string(large) {
			t.Errorf("an entry of %d bytes arrived as %d", len(large), len(e)-4)
		}
		nodes["b"].set(func() { nodes["b"].version, nodes["b"].entry = 3, append(large, 'x') })
		settle(5 * time.Second)
		if _, failed := nodes["b"].hb.Stats(); failed == 0 {
			t.Error("nobody counted the failure")
		}
		if with(nodes["a"], func() int { return nodes["a"].pulls["b"] }) != 2 {
			t.Error("a too large entry arrived")
		}
	})
}

func TestHeartbeatsOverHosts(t *testing.T) {
	p := hostPair(loopbackTCP)(t)
	a, b := newBeater(t, p.a, 1, p.b.ID()), newBeater(t, p.b, 1, p.a.ID())
	defer a.stop()
	defer b.stop()
	for a.entryOf(p.b.ID()) == "" {
		<-a.told
	}
	for b.entryOf(p.a.ID()) == "" {
		<-b.told
	}
	p.b.(*Host).Close()
	for c := a.closedOf(p.b.ID()); len(c) == 0 || IsTimeout(c[len(c)-1]); c = a.closedOf(p.b.ID()) {
		<-a.told
	}
}

func FuzzReadBeat(f *testing.F) {
	f.Add(beat{boot: 1, seq: 2, version: 3, pulse: Pulse{Busy: 4, Total: 5, Queue: 6, Draining: true}}.append(nil))
	f.Add([]byte{199})
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := readBeat(bytes.NewReader(data))
		if err != nil {
			return
		}
		again, err := readBeat(bytes.NewReader(b.append(nil)))
		if err != nil || again != b {
			t.Errorf("%+v became %+v, %v", b, again, err)
		}
	})
}
