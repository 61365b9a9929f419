package e2e

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
)

func TestAClusterOverQUICAlone(t *testing.T) {
	var members []*member
	for _, name := range []string{"a", "b", "c"} {
		m := fakeMember(t, name, "m", "at-"+name)
		m.quic = true
		members = append(members, m)
	}
	c := form(t, members...)
	s, _ := status(t, c[0])
	for _, n := range s.Nodes {
		if len(n.P2PAddrs) == 0 || slices.ContainsFunc(n.P2PAddrs, func(a string) bool { return !strings.Contains(a, "/quic-v1") }) {
			t.Fatalf("%s listens on %v", n.Name, n.P2PAddrs)
		}
	}
	for _, m := range c {
		for _, at := range []string{"a", "b", "c"} {
			if code, node, text := generate(t, m, "at-"+at, "x"); code != 200 || node != at {
				t.Errorf("%s asked for at-%s: %d from %s: %s", m.name, at, code, node, text)
			}
		}
	}
	loseUnderLoad(t, c, func() *member { return c[2] }, 40, "m", 8)
}

// multicast tells whether this machine hears its own multicast, without which nobody finds anybody.
func multicast(t *testing.T) bool {
	t.Helper()
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}
	listener, err := net.ListenMulticastUDP("udp4", nil, group)
	if err != nil {
		return false
	}
	defer listener.Close()
	sender, err := net.DialUDP("udp4", nil, group)
	if err != nil {
		return false
	}
	defer sender.Close()
	if _, err := sender.Write(make([]byte, 12)); err != nil {
		return false
	}
	_ = listener.SetReadDeadline(time.Now().Add(time.Second))
	_, _, err = listener.ReadFrom(make([]byte, 1500))
	return err == nil
}

func TestMembersThatMovedFindEachOtherOnTheLocalNetwork(t *testing.T) {
	t.Parallel()
	if !multicast(t) {
		t.Skip("this machine does not hear its own multicast, as in some containers: mDNS cannot work here")
	}
	file := filepath.Join(t.TempDir(), "mdns.yaml")
	if err := os.WriteFile(file, []byte("p2p: {mdns: true}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(m *member) *member { m.args = append(m.args, "--config", file); return m }
	a, b := open(fakeMember(t, "a", "m")), open(fakeMember(t, "b", "m"))
	stranger := open(fakeMember(t, "stranger", "m"))
	form(t, stranger)
	c := form(t, a, b)
	for _, m := range c {
		m.stop(t)
	}
	for _, m := range c {
		m.api, m.p2p = freeAddr(t), freeAddr(t)
		m.start(t) // all it knows of the other is where it was
	}
	began := time.Now()
	for _, m := range c {
		m.up(t)
	}
	c.settled(t)
	t.Logf("both had moved; settled %v after the last start", time.Since(began).Round(time.Millisecond))
	s, _ := status(t, stranger)
	id := s.Nodes[0].ID
	eventually(t, 30*time.Second, "the stranger is seen, and is no member", func() bool {
		s, ok := status(t, a)
		return ok && len(s.Nodes) == 2 && slices.ContainsFunc(s.Pending, func(p api.Stranger) bool { return p.ID == id })
	})
	if text, code := run(t, "status", "--api", a.url); code != 0 || !strings.Contains(text, string(id)) {
		t.Errorf("%d %s", code, text)
	}
}
