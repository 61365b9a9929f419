package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// talker is a node with a fake Ollama that holds a model, and the flags given.
func talker(t *testing.T, name, model string, flags ...string) *member {
	t.Helper()
	m, addr := &member{name: name, dataDir: filepath.Join(t.TempDir(), name)}, freeAddr(t)
	m.fake, m.engine = start(t, nil, fakeBinary, append([]string{"-listen", addr, "-slots", "128", "-model", model}, flags...)...), "http://"+addr
	m.args = []string{"--engine-url", m.engine, "--config", configured(t, "engine: {slots: 128}\n")}
	return m
}

// loaded has the engines of talkers load their model, and waits until the door knows.
func loaded(t *testing.T, door *member, members ...*member) {
	t.Helper()
	for _, m := range members {
		if code, text := ask(t, "POST", m.engine+"/api/generate", `{"model":"m"}`); code != 200 {
			t.Fatalf("load on %s: %d %s", m.name, code, text)
		}
	}
	eventually(t, 30*time.Second, "all have it loaded", func() bool {
		_, text := ask(t, "GET", door.url+"/api/v1/models/m", "")
		return strings.Count(text, `"loaded":true`) >= len(members)
	})
}

// told is what the model m says to prompts, from an engine of its own, without delay.
func told(t *testing.T, prompts []prompt) []reply {
	t.Helper()
	return undisturbed(t, startFake(t, "-slots", "128"), prompts)
}

func TestFiguresOfFrozenEngines(t *testing.T) {
	figures(t)
	c := form(t, evenly(t, ""), talker(t, "b", "m", "-token-gap", "20ms"), talker(t, "c", "m", "-token-gap", "20ms"))
	door, prompts := c[0], mixed(18, "m", 100)
	loaded(t, door, c[1:]...)
	want := undisturbed(t, door.url, prompts) // shows what gaps are usual
	var all tally
	for round := range 2 {
		for _, victim := range c[1:] {
			r := interrupt(t, door, prompts, 20, func() { fault(t, victim, `{"kind":"freeze"}`) }, victim.name)
			all.add(r, want, 0)
			fault(t, victim, `{"kind":"none"}`)
			if n := r.goneOn(); n == 0 && round == 0 {
				t.Errorf("%s served nothing when it froze", victim.name)
			}
		}
	}
	all.report(t, "engines frozen in mid-stream, 20 ms between tokens")
	if longest := quantile(all.pauses, 1); longest > 5*time.Second {
		t.Errorf("a stream went on only after %v", longest)
	}
	by, n := resumes(t, door)
	if by[`broke="frozen",method="raw"`] != n || n == 0 {
		t.Errorf("how streams went on is counted as %v", by)
	}
}

func TestAnEngineThatFreezesBeforeItsFirstTokenIsLeftAndOneThatLoadsIsNot(t *testing.T) {
	t.Parallel()
	const load = 13 * time.Second // an engine that need not load has 10 s
	c := form(t, evenDoor(t), talker(t, "b", "m", "-token-gap", "2ms"), talker(t, "c", "m", "-token-gap", "2ms"),
		talker(t, "d", "slow", "-load-time", load.String()), talker(t, "e", "slow", "-load-time", load.String()))
	door, prompts := c[0], append(mixed(6, "m", 50), newPrompt("whole-0", "/v1/messages", "m", "tell all", 50, false), newPrompt("whole-1", "/api/chat", "m", "tell all", 50, false))
	loaded(t, door, c[1:3]...)
	want := undisturbed(t, door.url, prompts)
	began := time.Now()
	loading := askAll(t.Context(), door.url, []prompt{newPrompt("load", "/api/chat", "slow", "hello", 20, true)})
	fault(t, c[1], `{"kind":"freeze"}`)
	wait := askAll(t.Context(), door.url, prompts)
	frozen := map[string]bool{}
	eventually(t, 9*time.Second, "the frozen engine alone is silent", func() bool { // it has 10 s at least
		clear(frozen)
		others := 0
		for id, r := range underWay(t, door) {
			switch r.Node {
			case "b":
				frozen[id] = true
			case "c", "":
				others++
			}
		}
		return others == 0 && len(frozen) > 0
	})
	var longest time.Duration
	n := 0
	for i, r := range wait() {
		if why := r.incomplete(); why != "" {
			t.Errorf("%s: %s", prompts[i].path, why)
			continue
		}
		if why := r.differs(&want[i]); why != "" {
			t.Errorf("%s: %s", prompts[i].path, why)
		}
		if frozen[prompts[i].id] {
			n++
			longest = max(longest, r.lines[0].at.Sub(began))
			if r.node != "c" {
				t.Errorf("%s was answered by %s", prompts[i].id, r.node)
			}
		}
	}
	t.Logf("frozen before the first token: %d answers began elsewhere after at most %v", n, longest.Round(time.Millisecond))
	if n == 0 || longest > 20*time.Second {
		t.Errorf("%d answers began elsewhere, after at most %v", n, longest)
	}
	slow := loading()[0]
	took := time.Since(began)
	if why := slow.incomplete(); why != "" {
		t.Error("the model that loads: ", why)
	}
	if n := statsOf(t, c[3].engine).Requests + statsOf(t, c[4].engine).Requests; n != 1 || took < load || took > load+10*time.Second {
		t.Errorf("a load of %v: the engines were asked %d times, and it took %v", load, n, took)
	}
}

func TestFiguresOfStreamsThatGoOnWhereTheirModelMustBeLoaded(t *testing.T) {
	figures(t)
	const load = 3 * time.Second
	door := fakeMember(t, "a")
	door.args = append(door.args, "--config", configured(t, "schedule: {policy: weighted, weights: {c: 0}}\n"))
	c := form(t, door, talker(t, "b", "m", "-token-gap", "10ms"), talker(t, "c", "m", "-token-gap", "10ms", "-load-time", load.String()))
	loaded(t, c[0], c[1])
	prompts := mixed(6, "m", 200)
	want := told(t, prompts)
	var all tally
	r := killing(t, c[0], prompts, 50, c[1])
	all.add(r, want, 0)
	all.report(t, fmt.Sprintf("the other node loads for %v, which only Ollama's own routes tell", load))
	if longest := quantile(all.pauses, 1); all.broken != len(prompts) || longest < load || longest > load+3*time.Second {
		t.Errorf("%d of %d broke; the pause with a load of %v is %v", all.broken, len(prompts), load, longest)
	}
}

func TestFiguresOfStreamsThatOutliveTheGraceOfTheirNode(t *testing.T) {
	figures(t)
	c := form(t, evenDoor(t), talker(t, "b", "m", "-token-gap", "100ms"), talker(t, "c", "m", "-token-gap", "100ms"))
	loaded(t, c[0], c[1:]...)
	prompts := mixed(24, "m", 400) // 40 s, and the grace is 30 s
	want := told(t, prompts)
	round := &interrupted{prompts: prompts, wait: askAll(t.Context(), c[0].url, prompts), failed: []string{"b"}}
	round.first = begun(t, c[0], prompts, 1)
	asked := time.Now()
	round.at = asked
	if err := c[1].Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-c[1].exited
	stopped := time.Since(asked)
	var all tally
	all.add(round, want, 0)
	all.report(t, fmt.Sprintf("a node stopped after %v", stopped.Round(time.Millisecond)))
	if stopped < 29*time.Second || stopped > 40*time.Second || c[1].err != nil {
		t.Errorf("the node stopped after %v: %v", stopped, c[1].err)
	}
	if _, n := resumes(t, c[0]); n != round.goneOn() || n == 0 {
		t.Errorf("%d streams went on, want %d", n, round.goneOn())
	}
}

// killEngine kills the engine that a member supervises, and all its processes; the node lives.
func killEngine(t *testing.T, m *member) {
	t.Helper()
	if err := syscall.Kill(-enginePID(t, m.dataDir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func TestStreamsWaitForTheirEngineToBeStartedAgain(t *testing.T) {
	t.Parallel()
	c := form(t, teller(t, "a"))
	prompts := mixed(12, "m", 400)
	want := undisturbed(t, c[0].url, prompts)
	r := &interrupted{prompts: prompts, wait: askAll(t.Context(), c[0].url, prompts), failed: []string{"a"}}
	r.first = begun(t, c[0], prompts, 50)
	r.at = time.Now()
	killEngine(t, c[0])
	var all tally
	all.add(r, want, firstToken)
	all.report(t, "the only engine killed")
	if all.broken != len(prompts) {
		t.Errorf("%d of %d broke", all.broken, len(prompts))
	}
}

func TestStreamsOfAnEngineThatDiesBesideItsNodeGoOnElsewhere(t *testing.T) {
	t.Parallel()
	a := teller(t, "a")
	a.args = append(a.args, "--config", configured(t, "engine: {slots: 128}\nschedule: {policy: least-loaded}\n"+unfrozen))
	c := form(t, a, teller(t, "b"))
	loadEverywhere(t, c[0], "m", c...)
	prompts := mixed(12, "m", 400)
	want := undisturbed(t, c[0].url, prompts)
	var all tally
	for _, victim := range c {
		r := interrupt(t, c[0], prompts, 20, func() { killEngine(t, victim) }, victim.name)
		all.add(r, want, firstToken)
		if r.goneOn() == 0 {
			t.Errorf("%s served nothing when its engine died", victim.name)
		}
		c.settled(t)
	}
	all.report(t, "engines killed beside their nodes")
	limit := 3 * time.Second
	if raceFlag != nil {
		limit = 15 * time.Second
	}
	if p := quantile(all.pauses, 1); p > limit {
		t.Errorf("a stream went on only after %v", p)
	}
}
