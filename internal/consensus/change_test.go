package consensus

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// parse reads a picture from words such as "a:leader b:voter c:voter? d:observer x:voter!gone".
// ? is unsteady, ! lost; "gone" is no member; a word without a role is a member raft has not met.
func parse(text string, want int) picture {
	p := picture{want: want, is: map[cluster.NodeID]condition{}}
	for _, w := range strings.Fields(text) {
		name, role, _ := strings.Cut(w, ":")
		id := cluster.NodeID(name)
		p.is[id] = up
		if strings.Contains(role, "?") {
			p.is[id] = unsteady
		}
		if strings.Contains(role, "!") {
			p.is[id] = lost
		}
		if !strings.Contains(role, "gone") {
			p.members = append(p.members, id)
		}
		switch {
		case strings.HasPrefix(role, "leader"):
			p.self = id
			p.servers = append(p.servers, voter{id, true})
		case strings.HasPrefix(role, "voter"):
			p.servers = append(p.servers, voter{id, true})
		case strings.HasPrefix(role, "observer"):
			p.servers = append(p.servers, voter{id, false})
		}
		p.leaving = p.leaving || strings.Contains(role, "leaving")
	}
	return p
}

func TestNextChange(t *testing.T) {
	for name, row := range map[string]struct{ is, want string }{
		"alone":                                {"a:leader", ""},
		"a new member is observed":             {"a:leader b", "observe b"},
		"two nodes stay one voter":             {"a:leader b:observer", ""},
		"two of three begin with the older":    {"a:leader b:observer c:observer", "promote b"},
		"then the other":                       {"a:leader b:voter c:observer", "promote c"},
		"not with only one that is up":         {"a:leader b:observer c:observer?", ""},
		"an even count shrinks":                {"a:leader b:voter c:observer!", "demote b"},
		"three voters of four":                 {"a:leader b:voter c:voter d:observer", ""},
		"five voters of five":                  {"a:leader b:voter c:voter d:observer e:observer", "promote d"},
		"never more than wanted":               {"a:leader b:voter c:voter d:voter e:voter f:observer g:observer", ""},
		"a lost voter's place is taken first":  {"a:leader b:voter! c:voter d:observer", "promote d"},
		"before it is demoted":                 {"a:leader b:voter! c:voter d:voter", "demote b"},
		"an unsteady one keeps it":             {"a:leader b:voter? c:voter d:observer", ""},
		"a lost one too, without replacement":  {"a:leader b:voter! c:voter d:observer?", ""},
		"a former observer is dropped":         {"a:leader b:observergone", "drop b"},
		"a former voter is dropped":            {"a:leader b:voter c:votergone", "drop c"},
		"then the even rest shrinks":           {"a:leader b:voter", "demote b"},
		"a former voter is replaced first":     {"a:leader b:voter c:votergone d:observer", "promote d"},
		"unsteady goes where dropping harms":   {"a:leader b:voter? c:votergone", "demote b"},
		"a removed leader hands over":          {"a:leadergone b:voter c:voter", "transfer b"},
		"to one that is up":                    {"a:leadergone b:voter? c:voter", "transfer c"},
		"a removed sole voter makes an heir":   {"a:leadergone b:observer", "promote b"},
		"then hands over":                      {"a:leadergone b:voter", "transfer b"},
		"a removed leader without heir stays":  {"a:leadergone b:observer?", ""},
		"leaving with a majority left":         {"a:leaderleaving b:voter c:voter", "transfer b"},
		"leaving as the only voter":            {"a:leaderleaving b:observer", "promote b"},
		"leaving as one of two voters":         {"a:leaderleaving b:voter", "transfer b"},
		"leaving with one of three lost":       {"a:leaderleaving b:voter c:voter!", "demote c"},
		"leaving with nobody there":            {"a:leaderleaving b:observer!", ""},
		"leaving takes an observer that is up": {"a:leaderleaving b:voter c:voter! d:observer e:observer", "promote d"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if c, ok := nextChange(parse(row.is, 5)); ok {
				got = fmt.Sprintf("%s %s", c.do, c.id)
			}
			if got != row.want {
				t.Errorf("%s: got %q, want %q", row.is, got, row.want)
			}
		})
	}
}

// TestNextChangeHoldsForEveryPicture walks through every picture of up to five nodes that can have
// a leader, and follows the changes until there are none: that must come soon, and on the way and
// at the end the promises of nextChange must hold.
func TestNextChangeHoldsForEveryPicture(t *testing.T) {
	pictures, changes := 0, 0
	var nodes [5]int // digits of a picture: role 0..2 (none, observer, voter) x member 0..1 x condition 0..2
	n := len(nodes)
	if testing.Short() {
		n = 4
	}
	var walk func(i int)
	walk = func(i int) {
		if i < n {
			for d := range 18 {
				nodes[i] = d
				// The order of equals does not matter beyond the leader: walk each set once.
				if i > 1 && nodes[i] < nodes[i-1] {
					continue
				}
				walk(i + 1)
			}
			return
		}
		for _, want := range []int{1, 2, 3, 5} {
			for _, leaving := range []bool{false, true} {
				if p, ok := build(nodes[:n], want, leaving); ok {
					pictures++
					changes += follow(t, p)
					if t.Failed() {
						t.FailNow()
					}
				}
			}
		}
	}
	for _, self := range []int{2*6 + 0 + 2, 2*6 + 3 + 2} { // a voter that is up: former member, member
		nodes[0] = self
		walk(1)
	}
	t.Logf("%d pictures, %d changes", pictures, changes)
}

func build(nodes []int, want int, leaving bool) (picture, bool) {
	p := picture{want: want, leaving: leaving, self: "a", is: map[cluster.NodeID]condition{}}
	for i, d := range nodes {
		id := cluster.NodeID(rune('a' + i))
		role, member, is := d/6, d/3%2 == 1, condition(d%3)
		if role == 0 && is != up {
			return p, false // raft knows nothing of its condition
		}
		p.is[id] = is
		if member {
			p.members = append(p.members, id)
		}
		if role > 0 {
			p.servers = append(p.servers, voter{id, role == 2})
		}
	}
	return p, len(p.members) > 0 && quorate(p)
}

func quorate(p picture) bool {
	alive := 0
	for _, v := range p.voters() {
		if p.condition(v) == up {
			alive++
		}
	}
	return alive >= len(p.voters())/2+1
}

// follow applies changes until there are none and returns how many.
func follow(t *testing.T, p picture) int {
	start := fmt.Sprintf("%+v", p)
	trail := ""
	for step := range 4*len(p.is) + 4 {
		c, ok := nextChange(p)
		if !ok {
			settled(t, p, start+trail)
			return step
		}
		trail += fmt.Sprintf("\n%s %s", c.do, c.id)
		p.servers = slices.Clone(p.servers)
		at := slices.IndexFunc(p.servers, func(v voter) bool { return v.id == c.id })
		switch c.do {
		case observe:
			p.servers = append(p.servers, voter{c.id, false})
		case promote:
			p.servers[at].votes = true
		case demote:
			p.servers[at].votes = false
		case drop:
			p.servers = slices.Delete(p.servers, at, at+1)
		case transfer:
			if p.condition(c.id) != up || !p.servers[at].votes || !slices.Contains(p.members, c.id) {
				t.Errorf("leadership went to %s, which is no voter that is up: %s%s", c.id, start, trail)
				return step
			}
			p.is[p.self] = up
			p.self, p.leaving = c.id, false
		}
		if (c.do == demote || c.do == drop) && c.id == p.self {
			t.Errorf("the leader took its own vote: %s%s", start, trail)
		}
		if !quorate(p) {
			t.Errorf("no majority is up any more: %s%s", start, trail)
		}
	}
	t.Errorf("does not settle: %s%s", start, trail)
	return 0
}

// settled checks what must hold when there is nothing left to change.
func settled(t *testing.T, p picture, how string) {
	goes := p.leaving || !slices.Contains(p.members, p.self)
	votes := map[cluster.NodeID]bool{}
	for _, v := range p.voters() {
		votes[v] = true
	}
	if heir, _ := p.heir(votes); goes && heir != "" {
		t.Errorf("an heir %s is up, but the leader stays: %s", heir, how)
	}
	if goes {
		return // nobody could take over; nothing was made worse
	}
	for _, s := range p.servers {
		if !slices.Contains(p.members, s.id) && !s.votes {
			t.Errorf("former member %s still observes: %s", s.id, how)
		}
	}
	unsteadyOnes := 0
	for _, is := range p.is {
		if is != up {
			unsteadyOnes++
		}
	}
	n := len(votes)
	if unsteadyOnes == 0 {
		ideal := min(len(p.members), p.want)
		if ideal -= 1 - ideal%2; n != ideal {
			t.Errorf("all are up, but %d vote instead of %d: %s", n, ideal, how)
		}
	}
	// An even number may only stay while taking a vote away would cost the majority.
	if n%2 == 0 {
		for _, v := range p.voters() {
			if v != p.self && p.safeWithout(votes, v) {
				t.Errorf("%d voters stay although %s could go: %s", n, v, how)
				return
			}
		}
	}
}
