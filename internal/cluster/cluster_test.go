package cluster

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func addrsOf(id string) []string { return []string{"/ip4/10.0.0.1/tcp/11436/p2p/" + id} }

// founded returns a State with the member a, and a token.
func founded(t testing.TB) (*State, JoinToken) {
	t.Helper()
	cmd, err := NewFound(start, "a", "alpha", addrsOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	s := must(t, NewState(), cmd)
	tok, create, err := NewToken(start, time.Hour, s.ClusterID, addrsOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	return must(t, s, create), tok
}

func must(t testing.TB, s *State, c Command) *State {
	t.Helper()
	n, err := s.Apply(c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func joins(id, name string, tok JoinToken, at time.Time) Command {
	return Command{At: at, Join: &Join{ID: NodeID(id), Name: name, Addrs: addrsOf(id), TokenID: tok.ID, SecretHash: tok.Hash()}}
}

func TestApplyRefuses(t *testing.T) {
	s, tok := founded(t)
	s = must(t, s, joins("b", "beta", tok, start))
	s = must(t, s, joins("c", "gamma", tok, start))
	s = must(t, s, Command{At: start, Remove: &Remove{ID: "c", Why: "broken"}})
	again, _ := NewFound(start, "x", "x", nil)
	forged := tok
	forged.Secret = make(Secret, 32)
	bad := "no spaces allowed"
	for name, row := range map[string]struct {
		cmd  Command
		want error
	}{
		"founding twice":          {again, ErrAlreadyFounded},
		"no change at all":        {Command{At: start}, ErrBadCommand},
		"two changes":             {Command{At: start, Drain: &Drain{ID: "a"}, Remove: &Remove{ID: "a"}}, ErrBadCommand},
		"no time":                 {Command{Drain: &Drain{ID: "a"}}, ErrBadCommand},
		"a malformed id":          {Command{At: start, Drain: &Drain{ID: "a b"}}, ErrBadCommand},
		"a malformed name":        {Command{At: start, Update: &Update{ID: "a", Name: &bad}}, ErrBadCommand},
		"an address without peer": {Command{At: start, Update: &Update{ID: "a", Addrs: &[]string{"/ip4/1.2.3.4/tcp/1"}}}, ErrBadCommand},
		"draining a stranger":     {Command{At: start, Drain: &Drain{ID: "z", On: true}}, ErrUnknownNode},
		"draining a removed one":  {Command{At: start, Drain: &Drain{ID: "c", On: true}}, ErrBarred},
		"removing a stranger":     {Command{At: start, Remove: &Remove{ID: "z"}}, ErrUnknownNode},
		"a removed one joins":     {joins("c", "gamma", tok, start), ErrBarred},
		"a late joiner":           {joins("d", "delta", tok, start.Add(time.Hour)), ErrTokenExpired},
		"the wrong secret":        {joins("d", "delta", forged, start), ErrTokenSecret},
		"another cluster's token": {joins("d", "delta", JoinToken{ID: "other", Secret: tok.Secret}, start), ErrTokenUnknown},
		"revoking an unknown one": {Command{At: start, RevokeToken: &RevokeToken{ID: "other"}}, ErrTokenUnknown},
		"a token that is over":    {Command{At: start, CreateToken: &CreateToken{ID: "t", Hash: tok.Hash(), ExpiresAt: start}}, ErrTokenExpired},
		"a taken token id":        {Command{At: start, CreateToken: &CreateToken{ID: tok.ID, Hash: forged.Hash(), ExpiresAt: start.Add(1)}}, ErrBadCommand},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.Apply(row.cmd)
			if !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			if got != s {
				t.Error("a refused command changed the State")
			}
			if back := ErrorFromCode(ErrorCode(err), err.Error()); !errors.Is(back, row.want) || back.Error() != err.Error() {
				t.Errorf("over the wire it becomes %v", back)
			}
		})
	}
	if _, err := NewState().Apply(Command{At: start, Drain: &Drain{ID: "a"}}); !errors.Is(err, ErrNotFounded) {
		t.Errorf("before the founding: %v", err)
	}
	one := must(t, s, Command{At: start, Remove: &Remove{ID: "b"}})
	if _, err := one.Apply(Command{At: start, Remove: &Remove{ID: "a"}}); !errors.Is(err, ErrLastMember) {
		t.Errorf("removing the last: %v", err)
	}
}

func TestMembersGetDistinctNamesAndSerials(t *testing.T) {
	s, tok := founded(t)
	for i, row := range []struct{ id, name, want string }{
		{"b", "alpha", "alpha-2"}, {"c", "Alpha", "Alpha-3"}, {"d", "alpha-2", "alpha-2-2"},
		{"e", strings.Repeat("x", 63), strings.Repeat("x", 63)}, {"f", strings.Repeat("x", 63), strings.Repeat("x", 61) + "-2"},
	} {
		s = must(t, s, joins(row.id, row.name, tok, start))
		m := s.Members[NodeID(row.id)]
		if m.Name != row.want || m.Serial != uint64(i+2) {
			t.Errorf("%s: name %q serial %d, want %q %d", row.id, m.Name, m.Serial, row.want, i+2)
		}
	}
	name := "alpha"
	if n := must(t, s, Command{At: start, Update: &Update{ID: "b", Name: &name}}); n.Members["b"].Name != "alpha-2" {
		t.Errorf("renamed to %q", n.Members["b"].Name)
	}
}

func TestCommandsMayBeRepeated(t *testing.T) {
	s, tok := founded(t)
	for name, cmd := range map[string]Command{
		"join":   joins("b", "beta", tok, start),
		"drain":  {At: start, Drain: &Drain{ID: "a", On: true}},
		"update": {At: start, Update: &Update{ID: "a", Addrs: &[]string{"/dns4/x/tcp/1/p2p/a"}}},
		"token":  {At: start, CreateToken: &CreateToken{ID: "t", Hash: tok.Hash(), ExpiresAt: start.Add(time.Hour)}},
	} {
		once := must(t, s, cmd)
		if once.Version != s.Version+1 {
			t.Errorf("%s: version %d after %d", name, once.Version, s.Version)
		}
		if twice := must(t, once, cmd); twice != once {
			t.Errorf("%s: the repetition changed the State", name)
		}
	}
	b := must(t, s, joins("b", "beta", tok, start))
	// A newcomer that lost the answer may ask again even with a token that is over.
	if n := must(t, b, joins("b", "beta", tok, start.Add(2*time.Hour))); n != b {
		t.Error("joining again changed the State")
	}
	gone := must(t, b, Command{At: start, Remove: &Remove{ID: "b"}})
	if n := must(t, gone, Command{At: start, Remove: &Remove{ID: "b"}}); n != gone {
		t.Error("removing again changed the State")
	}
}

func TestTokensEndAndAreSwept(t *testing.T) {
	s, tok := founded(t)
	revoked := must(t, s, Command{At: start, RevokeToken: &RevokeToken{ID: tok.ID}})
	if _, err := revoked.Apply(joins("b", "beta", tok, start)); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("after revocation: %v", err)
	}
	later := must(t, s, Command{At: start.Add(48 * time.Hour), CreateToken: &CreateToken{ID: "t", Hash: tok.Hash(), ExpiresAt: start.Add(72 * time.Hour)}})
	if _, kept := later.Tokens[tok.ID]; kept || len(later.Tokens) != 1 {
		t.Errorf("tokens: %v", later.Tokens)
	}
}

func TestMemberIsFoundByNameAndID(t *testing.T) {
	s, tok := founded(t)
	s = must(t, s, joins("12D3KooWaaaaaaXXXXXX", "beta", tok, start))
	s = must(t, s, joins("12D3KooWbbbbbbYYYYYY", "gamma", tok, start))
	for ask, want := range map[string]any{
		"alpha": NodeID("a"), "a": NodeID("a"), "BETA": NodeID("12D3KooWaaaaaaXXXXXX"),
		"12D3KooWbbbbbbYYYYYY": NodeID("12D3KooWbbbbbbYYYYYY"), "YYYYYY": NodeID("12D3KooWbbbbbbYYYYYY"),
		"12D3KooWa": NodeID("12D3KooWaaaaaaXXXXXX"), "12D3KooW": ErrAmbiguousNode, "YYYYY": ErrUnknownNode, "": ErrUnknownNode,
	} {
		m, err := s.Member(ask)
		switch want := want.(type) {
		case NodeID:
			if m.ID != want || err != nil {
				t.Errorf("%q: %s, %v; want %s", ask, m.ID, err, want)
			}
		case error:
			if !errors.Is(err, want) {
				t.Errorf("%q: %v; want %v", ask, err, want)
			}
		}
	}
}

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		"host.local": "host.local", "My Laptop!": "My-Laptop", "": "node", "---": "node", "žluť": "lu",
		strings.Repeat("y", 80): strings.Repeat("y", 63), "a  b": "a-b",
	} {
		if got := CleanName(in); got != want || !validName(got) {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	s, tok := founded(t)
	for _, text := range []string{fmt.Sprintf("%v %+v %#v %s %x", s, s, s, s.SigningKey, s.SigningKey), fmt.Sprintf("%v %+v %#v", tok, tok, tok)} {
		if strings.Contains(text, fmt.Sprintf("%x", []byte(s.SigningKey))) || strings.Contains(text, fmt.Sprint([]byte(s.SigningKey))) ||
			strings.Contains(text, fmt.Sprint([]byte(tok.Secret))) || !strings.Contains(text, "(secret)") {
			t.Errorf("shows a secret: %s", text)
		}
	}
}

// TestApplyHoldsForAnyCommands drives States with random commands: Apply never panics, never
// changes the State it was given, gives every node the same State, and survives a snapshot.
func TestApplyHoldsForAnyCommands(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 7))
		one, two := NewState(), NewState()
		for step := range 60 {
			cmd := randomCommand(rng)
			before, err := one.Encode()
			if err != nil {
				t.Fatal(err)
			}
			next, err1 := one.Apply(cmd)
			after, _ := one.Encode()
			if string(before) != string(after) {
				t.Fatalf("seed %d step %d: Apply changed its State", seed, step)
			}
			b, err := cmd.Encode()
			if err != nil { // malformed: nobody may take it
				if err1 == nil {
					t.Fatalf("seed %d step %d: applied what cannot be proposed: %v", seed, step, err)
				}
				continue
			}
			sent, err := DecodeCommand(b)
			if err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			var err2 error
			two, err2 = two.Apply(sent)
			if (err1 == nil) != (err2 == nil) || ErrorCode(err1) != ErrorCode(err2) || err1 != nil && ErrorCode(err1) == "" {
				t.Fatalf("seed %d step %d: %v here, %v there", seed, step, err1, err2)
			}
			if diff := cmp.Diff(next, two); diff != "" {
				t.Fatalf("seed %d step %d: two nodes differ:\n%s", seed, step, diff)
			}
			if changed := next != one; changed != (next.Version == one.Version+1) || err1 != nil && changed {
				t.Fatalf("seed %d step %d: version %d after %d, error %v", seed, step, next.Version, one.Version, err1)
			}
			one = next
			names := map[string]bool{}
			for id, m := range one.Members {
				if _, barred := one.Barred[id]; barred || names[strings.ToLower(m.Name)] || m.Serial >= one.NextSerial || !validName(m.Name) {
					t.Fatalf("seed %d step %d: member %+v", seed, step, m)
				}
				names[strings.ToLower(m.Name)] = true
			}
			if one.Founded() && len(one.Members) == 0 {
				t.Fatalf("seed %d step %d: nobody is left", seed, step)
			}
			file, err := one.Encode()
			if err != nil {
				t.Fatal(err)
			}
			back, err := DecodeState(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(one, back); diff != "" {
				t.Fatalf("seed %d step %d: a snapshot loses something:\n%s", seed, step, diff)
			}
			if step%10 == 0 {
				two = back // a node that was restarted
			}
		}
	}
}

func digestOf(n int) string { return strings.Repeat(string(rune('a'+n)), 64) }

func randomCommand(rng *rand.Rand) Command {
	id := func() NodeID { return NodeID([]string{"a", "b", "c", "d", "", "x y"}[rng.IntN(6)]) }
	name := func() string { return []string{"n", "N", "n-2", "", "a b"}[rng.IntN(5)] }
	hash := func() []byte { h := sha256.Sum256([]byte{byte(rng.IntN(2))}); return h[:] }
	at := start.Add(time.Duration(rng.IntN(100)) * time.Hour).In(time.FixedZone("x", rng.IntN(3)*3600))
	c := Command{At: at}
	for c.Kind() == "" || rng.IntN(20) == 0 {
		switch rng.IntN(12) {
		case 0:
			key := ed25519.NewKeyFromSeed(make([]byte, 32))
			c.Found = &Found{ClusterID: "k" + string(id()), PublicKey: key.Public().(ed25519.PublicKey), SigningKey: Secret(key), ID: id(), Name: name()}
		case 1, 2, 3:
			c.Join = &Join{ID: id(), Name: name(), Addrs: addrsOf("q")[:rng.IntN(2)], TokenID: string(id()), SecretHash: hash()}
		case 4:
			c.Remove = &Remove{ID: id()}
		case 5:
			c.Drain = &Drain{ID: id(), On: rng.IntN(2) == 0}
		case 6, 7:
			c.CreateToken = &CreateToken{ID: string(id()), Hash: hash(), ExpiresAt: at.Add(time.Duration(rng.IntN(50)-5) * time.Hour)}
			if rng.IntN(4) == 0 {
				c.CreateToken, c.RevokeToken = nil, &RevokeToken{ID: string(id())}
			}
		case 8:
			n, a := name(), addrsOf("r")[:rng.IntN(2)]
			c.Update = &Update{ID: id(), Name: &n, Addrs: &a}
		case 9:
			digest, replicas, nodes := digestOf(rng.IntN(2)), Replicas(rng.IntN(5)-1), []NodeID{id(), id()}[:rng.IntN(3)]
			labels := map[string]string{name(): "v"}
			c.Place = &Place{Model: name(), Digest: &digest, Nodes: &nodes, Labels: &labels, Seen: uint64(rng.IntN(20)) * uint64(rng.IntN(2))}
			if rng.IntN(2) == 0 {
				c.Place.Digest, c.Place.Labels, c.Place.Replicas = nil, nil, &replicas
			}
		case 10:
			c.Forget = &Forget{Model: name(), Kept: rng.IntN(2) == 0}
		case 11:
			c.SetRoot = &SetRoot{Blob: digestOf(rng.IntN(2)), Root: Root{Hash: digestOf(rng.IntN(3)), Size: int64(rng.IntN(3))}}
			if rng.IntN(2) == 0 {
				c.SetRoot.Instead = digestOf(rng.IntN(3))
			}
		}
	}
	return c
}
