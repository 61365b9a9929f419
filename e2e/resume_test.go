package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
)

// firstToken is how long the tellers' engines take before their first token: what stands for the
// reading of a prompt.
const firstToken = 20 * time.Millisecond

// unfrozen has a gateway take no engine for frozen because the machine stood still for a moment.
const unfrozen = "gateway: {stall: {floor: 20s}}\n"

// evenDoor is a node that holds no model and spreads what it is asked evenly: with the policy ttft a node
// that has just failed is looked at with suspicion, and serves little.
func evenDoor(t *testing.T) *member {
	t.Helper()
	return evenly(t, unfrozen)
}

// evenly is evenDoor with more in its configuration, or less.
func evenly(t *testing.T, config string) *member {
	t.Helper()
	m := fakeMember(t, "a")
	m.args = append(m.args, "--config", configured(t, "schedule: {policy: least-loaded}\n"+config))
	return m
}

// teller is a node that supervises a fake Ollama, which says a hundred tokens a second.
func teller(t *testing.T, name string) *member {
	t.Helper()
	m := supervisedFake(t, name)
	m.env = []string{"FAKEENGINE_MODELS=m", "FAKEENGINE_CHILD=1", fmt.Sprintf("FAKEENGINE_ARGS=-slots 128 -first-token %v -token-gap 10ms", firstToken)}
	m.args = append(m.args, "--config", configured(t, "engine: {slots: 128}\n"+unfrozen))
	return m
}

// mixed are prompts on all generating routes; one in four wants its answer whole.
func mixed(n int, model string, limit int) (prompts []prompt) {
	for i := range n {
		path := generating[i%len(generating)]
		prompts = append(prompts, newPrompt(fmt.Sprintf("stream-%d", i), path, model, fmt.Sprintf("tell me tale %d", i), limit, i/len(generating)%4 != 2))
	}
	return prompts
}

// underWay lists what a member is serving, by id.
func underWay(t *testing.T, m *member) map[string]api.Request {
	t.Helper()
	var list api.Requests
	_, text := ask(t, "GET", m.url+"/api/v1/requests", "")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	all := map[string]api.Request{}
	for _, r := range list.Requests {
		all[r.ID] = r
	}
	return all
}

// begun waits until the prompts are under way at the door, each with so many pieces, and returns the
// node that each was last seen on.
func begun(t *testing.T, door *member, prompts []prompt, pieces int64) (first map[string]string) {
	t.Helper()
	first, ready := map[string]string{}, map[string]bool{}
	eventually(t, 20*time.Second, "all answers have begun", func() bool {
		for id, r := range underWay(t, door) {
			if r.Node != "" {
				first[id] = r.Node
			}
			ready[id] = ready[id] || r.Node != "" && r.Pieces >= pieces
		}
		return len(ready) == len(prompts) && !slices.Contains(slices.Collect(maps.Values(ready)), false)
	})
	return first
}

// interrupted is prompts whose answers lose their nodes in mid-stream.
type interrupted struct {
	prompts []prompt
	wait    func() []reply
	first   map[string]string // which node each answer began on
	failed  []string
	at      time.Time // before they failed
}

// interrupt asks all prompts at the door, has their nodes fail in mid-stream, and waits until the
// door says that each answer goes on elsewhere.
func interrupt(t *testing.T, door *member, prompts []prompt, pieces int64, fail func(), failed ...string) *interrupted {
	t.Helper()
	s := &interrupted{prompts: prompts, wait: askAll(t.Context(), door.url, prompts), failed: failed}
	s.first = begun(t, door, prompts, pieces)
	s.at = time.Now()
	fail()
	eventually(t, 20*time.Second, "the requests that are listed go on elsewhere", func() bool {
		all := underWay(t, door)
		return !slices.ContainsFunc(prompts, func(p prompt) bool {
			r, listed := all[p.id]
			return listed && slices.Contains(failed, s.first[p.id]) && (r.Resumes == 0 || slices.Contains(failed, r.Node))
		})
	})
	return s
}

// broken tells whether a prompt's answer began on a node that failed, and had not ended before.
func (s *interrupted) broken(i int) bool {
	lines := s.wait()[i].lines
	return slices.Contains(s.failed, s.first[s.prompts[i].id]) && (len(lines) == 0 || lines[len(lines)-1].at.After(s.at))
}

// goneOn is how many answers must have gone on elsewhere.
func (s *interrupted) goneOn() (n int) {
	for i := range s.prompts {
		if s.broken(i) {
			n++
		}
	}
	return n
}

// killing is interrupt by the death of nodes, and of their engines.
func killing(t *testing.T, door *member, prompts []prompt, pieces int64, victims ...*member) *interrupted {
	t.Helper()
	var names []string
	for _, m := range victims {
		names = append(names, m.name)
	}
	return interrupt(t, door, prompts, pieces, func() {
		var dying sync.WaitGroup
		for _, m := range victims {
			dying.Go(func() { m.crash(t) })
		}
		dying.Wait()
	}, names...)
}

// resumes is how often the member's gateway had streams go on, by how they broke and went on.
func resumes(t *testing.T, m *member) (by map[string]int, n int) {
	t.Helper()
	by = map[string]int{}
	_, text := ask(t, "GET", m.url+"/metrics", "")
	for l := range strings.Lines(text) {
		labels, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(l), "ollamamax_resumes_total{"), "} ")
		if ok && strings.HasPrefix(l, "ollamamax_resumes_total{") {
			var count int
			if _, err := fmt.Sscan(value, &count); err != nil {
				t.Fatal(err)
			}
			by[labels] = count
			n += count
		}
	}
	return by, n
}

var engineStarted = regexp.MustCompile(`msg="engine started".* addr=(\S+)`)

// loadEverywhere has the engines that members supervise load a model, and waits until the door knows.
func loadEverywhere(t *testing.T, door *member, model string, members ...*member) {
	t.Helper()
	for _, m := range members {
		started := engineStarted.FindAllStringSubmatch(m.output.String(), -1)
		if code, text := ask(t, "POST", "http://"+started[len(started)-1][1]+"/api/generate", fmt.Sprintf(`{"model":%q}`, model)); code != 200 {
			t.Fatalf("load %s on %s: %d %s", model, m.name, code, text)
		}
	}
	eventually(t, 30*time.Second, "all have it loaded", func() bool {
		_, text := ask(t, "GET", door.url+"/api/v1/models/"+model, "")
		return strings.Count(text, `"loaded":true`) >= len(members)
	})
}

// back starts killed members again and waits until they can serve.
func back(t *testing.T, c testCluster, victims ...*member) {
	t.Helper()
	for _, m := range victims {
		m.start(t)
	}
	for _, m := range victims {
		m.up(t)
	}
	c.settled(t)
}

func TestStreamsSurviveTheDeathOfTheirNode(t *testing.T) {
	t.Parallel()
	c := form(t, evenDoor(t), teller(t, "b"), teller(t, "c"))
	loadEverywhere(t, c[0], "m", c[1:]...)
	door, prompts := c[0], mixed(24, "m", 400)
	want := undisturbed(t, door.url, prompts)
	var all tally
	for _, victim := range c[1:] {
		logged := len(door.output.String())
		_, counted := resumes(t, door)
		paused := metric(t, door, "ollamamax_resume_pause_seconds_count")
		round := killing(t, door, prompts, 30, victim)
		all.add(round, want, firstToken)
		n := round.goneOn()
		if n == 0 {
			t.Errorf("%s served nothing when it was killed", victim.name)
		}
		by, now := resumes(t, door)
		if now-counted != n || by[`broke="reset",method="raw"`] != now || metric(t, door, "ollamamax_resume_pause_seconds_count")-paused != float64(n) {
			t.Errorf("%d streams went on, ollamamax_resumes_total counts %d (all: %v)", n, now-counted, by)
		}
		said := 0
		for l := range strings.Lines(door.output.String()[logged:]) {
			if strings.Contains(l, `msg="stream broke and goes on"`) && strings.Contains(l, "broke=reset") && strings.Contains(l, "failed="+victim.name) && strings.Contains(l, "pause=") {
				said++
			}
		}
		if said != n {
			t.Errorf("%d streams went on, the log says it of %d", n, said)
		}
		back(t, c, victim)
	}
	all.report(t, "one of three nodes killed")
}

func TestFiguresOfStreamsWhoseNodesDie(t *testing.T) {
	figures(t)
	for _, tc := range []struct {
		name    string
		rounds  int
		tellers []string
		die     int
	}{{"one of three nodes", 20, []string{"b", "c"}, 1}, {"two of four nodes", 4, []string{"b", "c", "d"}, 2}} {
		t.Run(tc.name, func(t *testing.T) {
			c := testCluster{evenDoor(t)}
			for _, name := range tc.tellers {
				c = append(c, teller(t, name))
			}
			form(t, c...)
			loadEverywhere(t, c[0], "m", c[1:]...)
			door, prompts := c[0], mixed(64, "m", 200)
			want := undisturbed(t, door.url, prompts)
			var all tally
			for round := range tc.rounds {
				var victims []*member
				for i := range tc.die {
					victims = append(victims, c[1+(round+i)%len(tc.tellers)])
				}
				r := killing(t, door, prompts, int64(10+10*(round%7)), victims...)
				back(t, c, victims...) // while the answers go on
				all.add(r, want, firstToken)
			}
			all.report(t, fmt.Sprintf("%s killed, %d rounds", tc.name, tc.rounds))
			if p99 := quantile(all.pauses, .99); p99 > 3*time.Second {
				t.Errorf("the pause is %v at p99", p99)
			}
			by, _ := resumes(t, door)
			t.Logf("resumes: %v", by)
		})
	}
}
