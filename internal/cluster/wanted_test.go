package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func placed(model string, change func(*Place)) Command {
	p := &Place{Model: model}
	change(p)
	return Command{At: start, Place: p}
}

func ref[T any](v T) *T { return &v }

func TestAModelIsPlacedAndPlacedOtherwise(t *testing.T) {
	s, _ := founded(t)
	s = must(t, s, placed("User/M", func(p *Place) { p.Digest, p.Replicas = ref(digestOf(0)), ref(Replicas(3)) }))
	w, ok := s.WantedModel("user/m:latest")
	if want := (Wanted{Name: "User/M", Digest: digestOf(0), Replicas: 3, Version: s.Version}); !ok || cmp.Diff(want, w) != "" {
		t.Fatal(cmp.Diff(want, w))
	}
	again := must(t, s, placed("user/M:latest", func(p *Place) { p.Replicas = ref(Replicas(3)) }))
	if again != s {
		t.Error("the same placement changed something")
	}
	s = must(t, s, placed("user/M", func(p *Place) { p.Nodes, p.Replicas = &[]NodeID{"a"}, ref(EveryNode) }))
	if w, _ = s.WantedModel("user/m"); w.Digest != digestOf(0) || w.Replicas != EveryNode || len(w.Nodes) != 1 {
		t.Errorf("%+v", w)
	}
}

func TestPlacementsThatCannotBeAreRefused(t *testing.T) {
	s, _ := founded(t)
	s = must(t, s, placed("m", func(p *Place) { p.Digest, p.Nodes = ref(digestOf(0)), &[]NodeID{"a"} }))
	seen := s.Models["m:latest"].Version
	s = must(t, s, placed("m", func(p *Place) { p.Pin, p.Seen = ref(true), seen }))
	for what, c := range map[string]struct {
		cmd  Command
		want error
	}{
		"unknown model":            {placed("other", func(p *Place) { p.Replicas = ref(Replicas(2)) }), ErrUnknownModel},
		"unknown node":             {placed("m", func(p *Place) { p.Nodes = &[]NodeID{"z"} }), ErrUnknownNode},
		"more replicas than nodes": {placed("m", func(p *Place) { p.Replicas = ref(Replicas(2)) }), ErrContradiction},
		"by one who saw another":   {placed("m", func(p *Place) { p.Pin, p.Seen = ref(false), seen }), ErrChanged},
		"no replica at all":        {placed("m", func(p *Place) { p.Replicas = ref(Replicas(0)) }), ErrBadCommand},
		"a name with a line's end": {placed("m\n", func(p *Place) { p.Digest = ref(digestOf(0)) }), ErrBadCommand},
		"a digest that is none":    {placed("m", func(p *Place) { p.Digest = ref("../x") }), ErrBadCommand},
		"another root":             {Command{At: start, SetRoot: &SetRoot{Blob: digestOf(1), Root: Root{digestOf(0), 1}, Instead: digestOf(2)}}, ErrChanged},
	} {
		next, err := s.Apply(c.cmd)
		if !errors.Is(err, c.want) || next != s {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestADeletionIsRememberedUntilTheModelIsPulledAgain(t *testing.T) {
	s, _ := founded(t)
	s = must(t, s, placed("m", func(p *Place) { p.Digest = ref(digestOf(0)) }))
	s = must(t, s, Command{At: start.Add(time.Hour), Forget: &Forget{Model: "M"}})
	if _, ok := s.WantedModel("m"); ok || s.Models["m:latest"].Deleted == nil || !s.Models["m:latest"].Deleted.Equal(start.Add(time.Hour)) {
		t.Fatalf("%+v", s.Models)
	}
	if _, err := s.Apply(placed("m", func(p *Place) { p.Replicas = ref(Replicas(2)) })); !errors.Is(err, ErrUnknownModel) {
		t.Error(err)
	}
	s = must(t, s, placed("m", func(p *Place) { p.Digest = ref(digestOf(1)) }))
	if w, ok := s.WantedModel("m"); !ok || w.Digest != digestOf(1) {
		t.Errorf("%+v", w)
	}
	s = must(t, s, Command{At: start, Forget: &Forget{Model: "m", Kept: true}})
	if len(s.Models) != 0 {
		t.Errorf("%+v", s.Models)
	}
}

func TestAPlacementThatIsToldTwiceIsAgreedOnce(t *testing.T) {
	s, _ := founded(t)
	s = must(t, s, placed("m", func(p *Place) { p.Digest = ref(digestOf(0)) }))
	pin := placed("m", func(p *Place) { p.Pin, p.Seen = ref(true), s.Models["m:latest"].Version })
	s = must(t, s, pin)
	if next, err := s.Apply(pin); err != nil || next != s {
		t.Error(err)
	}
	s = must(t, s, Command{At: start.Add(time.Hour), Forget: &Forget{Model: "m"}})
	if _, err := s.Apply(pin); !errors.Is(err, ErrChanged) {
		t.Errorf("after it was deleted: %v", err)
	}
}

func TestNothingIsForgottenThatIsWantedInAnotherWay(t *testing.T) {
	s, _ := founded(t)
	s = must(t, s, placed("m", func(p *Place) { p.Digest = ref(digestOf(0)) }))
	seen := s.Models["m:latest"].Version
	s = must(t, s, placed("m", func(p *Place) { p.Pin = ref(true) }))
	forget := Command{At: start, Forget: &Forget{Model: "m", Kept: true, Seen: seen}}
	if next, err := s.Apply(forget); !errors.Is(err, ErrChanged) || next != s {
		t.Error(err)
	}
	forget.Forget.Seen = s.Models["m:latest"].Version
	if s = must(t, s, forget); len(s.Models) != 0 {
		t.Errorf("%+v", s.Models)
	}
}

func TestARemovedNodeIsWantedForNothing(t *testing.T) {
	s, tok := founded(t)
	s = must(t, s, joins("b", "beta", tok, start))
	s = must(t, s, placed("two", func(p *Place) {
		p.Digest, p.Nodes, p.Replicas = ref(digestOf(0)), &[]NodeID{"a", "b"}, ref(Replicas(2))
	}))
	s = must(t, s, placed("one", func(p *Place) { p.Digest, p.Nodes = ref(digestOf(0)), &[]NodeID{"b"} }))
	s = must(t, s, Command{At: start, Remove: &Remove{ID: "b"}})
	if two, one := s.Models["two:latest"], s.Models["one:latest"]; two.Replicas != 1 || len(two.Nodes) != 1 || one.Nodes != nil {
		t.Errorf("%+v %+v", two, one)
	}
}

func TestAStateOfBeforeModelsWerePlacedIsRead(t *testing.T) {
	s, _ := founded(t)
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(strings.Replace(string(b), `"format":2`, `"format":1`, 1), `,"models":{},"roots":{}`, "", 1)
	if old == string(b) || strings.Contains(old, "roots") {
		t.Fatal(old)
	}
	back, err := DecodeState([]byte(old))
	if err != nil || cmp.Diff(s, back) != "" {
		t.Error(err, cmp.Diff(s, back))
	}
}

func TestReplicasAreANumberOrAll(t *testing.T) {
	for text, want := range map[string]Replicas{"1": 1, "12": 12, `"all"`: EveryNode, `"3"`: 3} {
		var r Replicas
		if err := r.UnmarshalJSON([]byte(text)); err != nil || r != want {
			t.Errorf("%s: %v %v", text, r, err)
		}
	}
	for _, text := range []string{"0", "-1", "1.5", `"some"`, "null", "99999999"} {
		if err := new(Replicas).UnmarshalJSON([]byte(text)); err == nil {
			t.Errorf("%s was read", text)
		}
	}
}

func TestAFootprintGrowsWithTheContext(t *testing.T) {
	f := &Footprint{Weights: 1000, PerToken: 2, Context: 100}
	if f.Memory(10) != 1020 || f.Memory(1000) != 1200 || (*Footprint)(nil).Memory(1) != 0 || (&Footprint{PerToken: 1}).Memory(1) != 0 {
		t.Error(f.Memory(10), f.Memory(1000))
	}
}

func TestTheAgreedDigestStandsForANameWhileALivingNodeHoldsIt(t *testing.T) {
	for what, tc := range map[string]struct {
		wanted    string
		condition Condition
		digest    string
	}{
		"nothing is agreed":          {"", Alive, "old"},
		"the new one is agreed":      {"new", Alive, "new"},
		"its only holder is suspect": {"new", Suspect, "new"},
		"its only holder is dead":    {"new", Dead, "old"},
		"nobody holds what is":       {"newer", Alive, "old"},
	} {
		node := func(id NodeID, condition Condition, digest string) *Node {
			return &Node{ID: id, Name: string(id), Condition: condition, Engine: &Engine{Kind: Ollama}, Models: []Model{{Name: "M", Digest: digest}}}
		}
		v := NewView("a", start, []*Node{node("a", Alive, "old"), node("b", Alive, "old"), node("c", tc.condition, "new")})
		v.Wanted = map[string]string{"m:latest": tc.wanted}
		if got := v.ChosenDigest("m", "/api/chat"); got != tc.digest {
			t.Errorf("%s: %s stands for it", what, got)
		}
	}
}
