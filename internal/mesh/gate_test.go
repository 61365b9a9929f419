package mesh

import (
	"bytes"
	"errors"
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func FuzzReadPreamble(f *testing.F) {
	g := newGate("a", Deps{Certificate: func() []byte { return []byte("certificate") }}, Limits{}.withDefaults(), newRoster())
	good, err := g.preamble("raft/1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, data []byte) {
		protocol, certificate, err := readPreamble(bytes.NewReader(data))
		if err != nil {
			return
		}
		again := newGate("a", Deps{Certificate: func() []byte { return certificate }}, Limits{}.withDefaults(), newRoster())
		b, err := again.preamble(protocol)
		if err != nil || !bytes.HasPrefix(data, b) {
			t.Errorf("%q became %q, %v", data, b, err)
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	for _, answer := range []string{"\x00", "\x01\x02no", "\x02", "\x09"} {
		f.Add([]byte(greeting + answer))
	}
	f.Add([]byte("\x13/multistream/1.0.0\n\x03na\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for read := 0; ; {
			need, err := parseAnswer([]byte(greeting), data[:read], "b")
			if err != nil || need == 0 || read+need > len(data) {
				return
			}
			read += need
		}
	})
}

func TestAnswersMeanWhatTheySay(t *testing.T) {
	refused := new(RefusedError)
	for name, c := range map[string]struct {
		data string
		ok   func(error) bool
	}{
		"admitted":    {greeting + "\x00", func(err error) bool { return err == nil }},
		"refused":     {greeting + "\x01\x02no", func(err error) bool { return errors.As(err, &refused) && refused.Reason == "no" }},
		"no listener": {greeting + "\x02", func(err error) bool { return err == ErrNoListener }},
		"unknown":     {greeting + "\x07", func(err error) bool { return err == ErrForeign }},
		"not ours":    {"\x13/multistream/1.0.0\n\x03na\n", func(err error) bool { return err == ErrForeign }},
	} {
		var err error
		for read, need := 0, 1; need > 0 && err == nil; read += need {
			if read > len(c.data) {
				t.Fatalf("%s: wants more than there is", name)
			}
			need, err = parseAnswer([]byte(greeting), []byte(c.data)[:read], "b")
		}
		if !c.ok(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheOpenListenerIsBoundedInAll(t *testing.T) {
	s := newTurnstile(Limits{OpenStreams: 1000, OpenPerSecond: 5, OpenPerPeer: 1})
	passed := 0
	for i := range 3 * maxTurnstilePeers { // a stranger with as many ids as it likes
		if _, err := s.enter(cluster.NodeID(rune(i))); err == nil {
			passed++
		}
	}
	if passed < 20 || passed > 30 || len(s.peers) > maxTurnstilePeers {
		t.Errorf("%d passed, %d peers kept", passed, len(s.peers))
	}
}
