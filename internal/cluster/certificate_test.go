package cluster

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestAdmit(t *testing.T) {
	s, tok := founded(t)
	behind := s // has not heard of b yet
	b := must(t, s, joins("b", "beta", tok, start))
	bCert := issue(t, b, "b")
	removed := must(t, b, Command{At: start, Remove: &Remove{ID: "b"}})
	other, _ := founded(t)
	alien := issue(t, other, "a")
	flipped := append([]byte(nil), bCert...)
	flipped[len(flipped)-1] ^= 1
	stolen := removed.Barred["b"]
	forgedSerial := *b
	forgedSerial.Members = map[NodeID]Member{"e": {ID: "e", Serial: stolen.Serial}}
	trust := s.Trust()

	for name, row := range map[string]struct {
		state *State
		known Trust
		id    NodeID
		cert  []byte
		want  error
	}{
		"a member needs no certificate":          {b, trust, "b", nil, nil},
		"nor a valid one":                        {b, trust, "b", []byte("rubbish"), nil},
		"a member we have not heard of":          {behind, trust, "b", bCert, nil},
		"a member before we have caught up":      {NewState(), trust, "b", bCert, nil},
		"a removed one":                          {removed, trust, "b", bCert, ErrBarred},
		"a removed one's serial":                 {removed, trust, "e", issue(t, &forgedSerial, "e"), ErrBarred},
		"a stranger":                             {b, trust, "z", nil, ErrNotMember},
		"a stranger with another's certificate":  {b, trust, "z", bCert, ErrBadCertificate},
		"another cluster's member":               {b, trust, "z", alien, ErrBadCertificate},
		"a changed certificate":                  {behind, trust, "b", flipped, ErrBadCertificate},
		"a cut certificate":                      {behind, trust, "b", bCert[:len(bCert)-1], ErrBadCertificate},
		"a long certificate":                     {behind, trust, "b", make([]byte, MaxCertificate+1), ErrBadCertificate},
		"anyone while we belong to no cluster":   {NewState(), Trust{}, "b", bCert, ErrNotMember},
		"a certificate judged by the wrong root": {NewState(), other.Trust(), "b", bCert, ErrBadCertificate},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Admit(row.state, row.known, row.id, row.cert); !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
		})
	}
	if _, err := s.Issue("b"); !errors.Is(err, ErrUnknownNode) {
		t.Errorf("issued for a stranger: %v", err)
	}
}

func issue(t testing.TB, s *State, id NodeID) []byte {
	t.Helper()
	c, err := s.Issue(id)
	if err != nil {
		t.Fatal(err)
	}
	b := c.Marshal()
	if len(b) > MaxCertificate {
		t.Fatalf("%d bytes", len(b))
	}
	return b
}

func FuzzParseCertificate(f *testing.F) {
	s, _ := founded(f)
	f.Add(issue(f, s, "a"))
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{certificateV1}, 100))
	f.Add(append([]byte{certificateV1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCertificate(b)
		if err != nil {
			if !errors.Is(err, ErrBadCertificate) {
				t.Errorf("untyped: %v", err)
			}
			return
		}
		if !bytes.Equal(c.Marshal(), b) {
			t.Errorf("%x comes back as %x", b, c.Marshal())
		}
		_ = c.Verify(s.Trust(), "a")
	})
}

func TestTokenComesBackFromItsText(t *testing.T) {
	many := make([]string, 32)
	for i := range many {
		many[i] = "/ip4/10.0.0.1/tcp/11436/p2p/" + strings.Repeat("Q", 200)
	}
	for name, addrs := range map[string][]string{"one address": addrsOf("a"), "more than fit": many} {
		t.Run(name, func(t *testing.T) {
			tok, _, err := NewToken(start, time.Hour, "cluster", addrs)
			if err != nil {
				t.Fatal(err)
			}
			text := tok.Text()
			if len(text) > MaxToken || strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
				t.Errorf("%d bytes: %s", len(text), text)
			}
			for _, pasted := range []string{text, "  " + text + "\r\n", text[:20] + "\n" + text[20:]} {
				back, err := ParseToken(pasted)
				if err != nil {
					t.Fatal(err)
				}
				if back.Text() != text || back.ClusterID != "cluster" || !bytes.Equal(back.Secret, tok.Secret) {
					t.Errorf("comes back as %+v", back)
				}
			}
			for cut := range text {
				if _, err := ParseToken(text[:cut]); !errors.Is(err, ErrTokenDamaged) {
					t.Fatalf("cut to %d of %d: %v", cut, len(text), err)
				}
			}
		})
	}
	if _, _, err := NewToken(start, time.Hour, "cluster", nil); err == nil {
		t.Error("a token without an address")
	}
	if _, _, err := NewToken(start, 0, "cluster", addrsOf("a")); err == nil {
		t.Error("a token that is over at once")
	}
	for _, text := range []string{"", "omx2-abc", "hello", TokenPrefix, strings.Repeat("x", 3*MaxToken)} {
		if _, err := ParseToken(text); !errors.Is(err, ErrTokenDamaged) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	tok, _, err := NewToken(start, time.Hour, "cluster", addrsOf("a"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.Text())
	f.Add(tok.Text()[:50])
	f.Add(TokenPrefix + base64.RawURLEncoding.EncodeToString([]byte(`{"c":"x"}1234`)))
	f.Add("omx1-")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, ErrTokenDamaged) {
				t.Errorf("untyped: %v", err)
			}
			return
		}
		if again, err := ParseToken(tok.Text()); err != nil || again.Text() != tok.Text() {
			t.Errorf("%q does not come back: %v", text, err)
		}
	})
}

func FuzzDecodeCommand(f *testing.F) {
	s, tok := founded(f)
	for _, c := range []Command{joins("b", "beta", tok, start), {At: start, Drain: &Drain{ID: "a", On: true}}} {
		b, err := c.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"at":"2026-05-04T12:00:00Z","drain":{"id":"a"},"later":1}`))
	f.Add([]byte(`{"at":"2026-05-04T12:00:00Z","explode":{"id":"a"}}`))
	f.Add([]byte(`{"at":"2026-05-04T12:00:00Z","drain":{"id":"a"}} {}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCommand(b)
		if err != nil {
			if !errors.Is(err, ErrBadCommand) {
				t.Errorf("untyped: %v", err)
			}
			return
		}
		if _, err := c.Encode(); err != nil {
			t.Errorf("decoded but cannot be encoded: %v", err)
		}
		n, err := s.Apply(c)
		if n == nil || err != nil && n != s {
			t.Errorf("Apply returned %v, %v", n, err)
		}
	})
}
