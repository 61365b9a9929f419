package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// crash ends a member as a power cut would: the node and every process that it started.
func (m *member) crash(t *testing.T) {
	t.Helper()
	var record struct{ PID int }
	if data, err := os.ReadFile(filepath.Join(m.dataDir, "engine.json")); err == nil {
		if err := json.Unmarshal(data, &record); err != nil {
			t.Fatal(err)
		}
	}
	_ = m.Process.Kill()
	if record.PID > 1 {
		_ = syscall.Kill(-record.PID, syscall.SIGKILL)
	}
	<-m.exited
}

// supervisedFake is a node that supervises a fake Ollama, as it would a real one.
func supervisedFake(t *testing.T, name string) *member {
	t.Helper()
	return &member{name: name, dataDir: filepath.Join(t.TempDir(), name), args: []string{"--engine-command", fakeBinary},
		env: []string{"FAKEENGINE_MODELS=m", "FAKEENGINE_CHILD=1", "FAKEENGINE_ARGS=-slots 64 -first-token 20ms -token-gap 2ms"}}
}

// loseUnderLoad has a cluster lose a node under load. A loss that is noticed late may be the machine's, which
// stood still: of three the one in the middle counts.
func loseUnderLoad(t *testing.T, c testCluster, victim func() *member, rate int, model string, tokens int) {
	t.Helper()
	limit := 2 * time.Second
	if c[0].quic { // a killed process is only silent: no kernel says that it is gone
		limit = 4 * time.Second
	}
	lose := func() time.Duration {
		return loseOneUnderLoad(t, c, victim(), &load{rate: rate, model: model, tokens: tokens})
	}
	if noticed := lose(); noticed <= limit || raceFlag != nil {
		return
	}
	for range 2 {
		if noticed := lose(); noticed > limit {
			t.Errorf("dead in every view only after %v", noticed)
		}
	}
}

// loseOneUnderLoad kills a node under load that goes through the others, and starts it again. It returns after
// how long all others saw it dead.
func loseOneUnderLoad(t *testing.T, c testCluster, victim *member, l *load) (noticed time.Duration) {
	t.Helper()
	var rest testCluster
	for _, m := range c {
		if m != victim {
			rest = append(rest, m)
			l.targets = append(l.targets, m.url)
		}
	}
	l.begin()
	time.Sleep(2 * time.Second)
	victim.crash(t)
	died := time.Now()
	for _, m := range rest {
		eventually(t, 30*time.Second, m.name+" sees "+victim.name+" dead", func() bool { return condition(t, m, victim.name) == cluster.Dead })
	}
	noticed = time.Since(died)
	eventually(t, 30*time.Second, "the rest can agree", func() bool {
		s, ok := status(t, rest[0])
		return ok && s.Quorum && s.Leader != victim.name && s.Leader != ""
	})
	agreed := time.Since(died)
	time.Sleep(time.Second)
	victim.start(t)
	back := time.Now()
	victim.up(t)
	c.settled(t)
	t.Logf("dead in every view after %v; a leader and quorum after %v; restarted and settled in %v",
		noticed.Round(time.Millisecond), agreed.Round(time.Millisecond), time.Since(back).Round(time.Millisecond))
	l.end(t)
	return noticed
}

func TestLosingANodeUnderLoadLosesNothingThatHadNotBegun(t *testing.T) {
	rate := 200
	if raceFlag != nil {
		rate = 60 // what the detector leaves of these machines
	}
	for _, which := range []string{"follower", "leader"} {
		t.Run(which, func(t *testing.T) {
			c := form(t, supervisedFake(t, "a"), supervisedFake(t, "b"), supervisedFake(t, "c"))
			loseUnderLoad(t, c, func() *member {
				leader, others := c.leader(t)
				if which == "leader" {
					return leader
				}
				return others[0]
			}, rate, "m", 16)
		})
	}
}

func TestLosingANodeWithRealEnginesLosesNothingThatHadNotBegun(t *testing.T) {
	c := testCluster{realMember(t, "a"), realMember(t, "b"), realMember(t, "c")}
	for _, m := range c { // each keeps the model, and none is frozen: three engines on one machine have each other wait
		m.args = append(m.args, "--config", configured(t, "models: {replicas: 3}\ngateway: {stall: {first_floor: 50s}}\n"))
	}
	form(t, c...)
	for _, m := range c {
		create(t, m.url, "noise", filepath.Join(engineDir(t), "noise.gguf"))
		if code, text := ask(t, "POST", m.url+"/api/generate", `{"model":"noise","prompt":"x","stream":false,"options":{"num_predict":1}}`); code != 200 {
			t.Fatal(text)
		}
	}
	c.settled(t)
	rate := 20
	if raceFlag != nil {
		rate = 10
	}
	loseUnderLoad(t, c, func() *member { _, others := c.leader(t); return others[1] }, rate, "noise", 8)
	loseUnderLoad(t, c, func() *member { leader, _ := c.leader(t); return leader }, rate, "noise", 8)
}

func TestWithoutAQuorumPromptsAreAnsweredAndWritesSayWhy(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m"))
	spare := newToken(t, c[0])
	c[1].crash(t)
	c[2].crash(t)
	eventually(t, 20*time.Second, "the third sees that it is alone", func() bool {
		s, ok := status(t, c[0])
		return ok && !s.Quorum && condition(t, c[0], "b") == cluster.Dead && condition(t, c[0], "c") == cluster.Dead
	})
	for i := range 20 {
		if code, node, text := generate(t, c[0], "m", fmt.Sprint(i)); code != 200 || node != "a" {
			t.Fatalf("%d from %q: %s", code, node, text)
		}
	}
	if code, text := ask(t, "GET", c[0].url+"/readyz", ""); code != 200 {
		t.Errorf("a node without a quorum is ready, since it answers prompts: %d %s", code, text)
	}
	text, code := run(t, "remove", "b", "--api", c[0].url)
	if code != 1 || !strings.Contains(text, "quorum") || !strings.Contains(text, "ollamamax recover") {
		t.Errorf("a write without a quorum: %d %s", code, text)
	}
	// A join fails clearly, keeps nothing, and works once there is a quorum again.
	d := fakeMember(t, "d", "m")
	d.api, d.p2p = freeAddr(t), freeAddr(t)
	host, port, _ := strings.Cut(d.p2p, ":")
	text, code = run(t, "serve", "--config", quietConfig(t), "--name", "d", "--listen", d.api, "--p2p-listen", "/ip4/"+host+"/tcp/"+port,
		"--data-dir", d.dataDir, "--engine-url", d.engine, "--join", spare, "--log-level", "error")
	if code != 1 || !strings.Contains(text, "quorum") {
		t.Errorf("a join without a quorum: %d %s", code, text)
	}
	c[1].start(t)
	c[1].up(t)
	eventually(t, 30*time.Second, "a write works again", func() bool {
		_, code := run(t, "drain", "c", "--api", c[0].url)
		return code == 0
	})
	d.start(t, "--join", spare)
	d.up(t)
	eventually(t, 20*time.Second, "the newcomer is a member", func() bool { return condition(t, c[0], "d") == cluster.Alive })
}

func TestEitherOfTwoNodesMayBeClosed(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"voter", "observer"} {
		t.Run(which, func(t *testing.T) {
			c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"))
			leader, others := c.leader(t)
			closed, stays := leader, others[0]
			if which == "observer" {
				closed, stays = stays, closed
			}
			closed.stop(t)
			if code, _, text := generate(t, stays, "m", "x"); code != 200 {
				t.Errorf("%d %s", code, text)
			}
			if text, code := run(t, "remove", closed.name, "--api", stays.url); code != 0 {
				t.Fatalf("remove %s on %s: %d %s", closed.name, stays.name, code, text)
			}
			if s, _ := status(t, stays); len(s.Nodes) != 1 || !s.Quorum {
				t.Errorf("%+v", s)
			}
			// The removed one finds out, says so, and serves from its own engine alone.
			closed.start(t)
			eventually(t, 20*time.Second, "the removed node says so", func() bool {
				s, ok := status(t, closed)
				return ok && len(s.Nodes) == 1 && s.Nodes[0].State == cluster.Removed
			})
			eventually(t, 10*time.Second, "the removed node serves from its own engine", func() bool {
				code, node, _ := generate(t, closed, "m", "x")
				return code == 200 && node == closed.name
			})
			if code, text := ask(t, "GET", closed.url+"/readyz", ""); code != 503 {
				t.Errorf("a removed node is no member, and not ready: %d %s", code, text)
			}
			closed.stop(t)
			// It does not come back with its old identity.
			text, code := run(t, "serve", "--config", quietConfig(t), "--name", closed.name, "--listen", closed.api, "--p2p-listen", "/ip4/127.0.0.1/tcp/0",
				"--data-dir", closed.dataDir, "--engine-url", closed.engine, "--join", newToken(t, stays), "--log-level", "error")
			if code != 1 || !strings.Contains(text, "empty data directory") {
				t.Errorf("%d %s", code, text)
			}
		})
	}
}

func TestARemovedNodeThatRunsGetsNowhere(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m", "at-b"), fakeMember(t, "c", "m"))
	if text, code := run(t, "remove", "b", "--api", c[2].url); code != 0 {
		t.Fatalf("%d %s", code, text)
	}
	eventually(t, 20*time.Second, "b says that it was removed", func() bool {
		s, ok := status(t, c[1])
		return ok && len(s.Nodes) == 1 && s.Nodes[0].State == cluster.Removed
	})
	for _, m := range []*member{c[0], c[2]} {
		eventually(t, 10*time.Second, m.name+" has no prompt served by the removed node", func() bool {
			code, _, _ := generate(t, m, "at-b", "x")
			return code == 404
		})
	}
	if code, node, text := generate(t, c[1], "at-b", "x"); code != 200 || node != "b" {
		t.Errorf("the removed node's own engine: %d from %s: %s", code, node, text)
	}
	if text, code := run(t, "token", "create", "--api", c[1].url); code != 1 {
		t.Errorf("a removed node makes tokens: %s", text)
	}
	testCluster{c[0], c[2]}.settled(t) // two are left: one voter, one observer
}

func TestTheRunningVoterOfTwoCanGo(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"leave", "remove, asked of the other", "remove, asked of itself"} {
		t.Run(how, func(t *testing.T) {
			c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"))
			voter, others := c.leader(t)
			other := others[0]
			args := map[string][]string{
				"leave":                      {"leave", "--api", voter.url},
				"remove, asked of the other": {"remove", voter.name, "--api", other.url},
				"remove, asked of itself":    {"remove", voter.name, "--api", voter.url},
			}[how]
			if text, code := run(t, args...); code != 0 {
				t.Fatalf("%v: %d %s", args, code, text)
			}
			others.settled(t)
			newToken(t, other)
			voter.stop(t)
			newToken(t, other)
		})
	}
	// Nobody is there to take over: it says so, and stays.
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"))
	voter, others := c.leader(t)
	others[0].crash(t)
	eventually(t, 20*time.Second, "the other is dead", func() bool { return condition(t, voter, others[0].name) == cluster.Dead })
	if text, code := run(t, "leave", "--api", voter.url); code != 1 || !strings.Contains(text, "no other node is up") {
		t.Errorf("leave of the only voter: %d %s", code, text)
	}
	// It stays what it was: the other comes back, is closed again, and blocks nothing.
	others[0].start(t)
	others[0].up(t)
	c.settled(t)
	_, others = c.leader(t)
	others[0].stop(t)
	leader, _ := c.leader(t)
	if text, code := run(t, "remove", others[0].name, "--api", leader.url); code != 0 {
		t.Errorf("remove after a leave that was refused: %d %s", code, text)
	}
}

func TestANodeCanLeave(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"leader", "follower"} {
		t.Run(which, func(t *testing.T) {
			c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m"))
			leader, others := c.leader(t)
			leaving, rest := others[0], testCluster{leader, others[1]}
			if which == "leader" {
				leaving, rest = leader, others
			}
			if text, code := run(t, "leave", "--api", leaving.url); code != 0 {
				t.Fatalf("leave: %d %s", code, text)
			}
			rest.settled(t)
			if s, _ := status(t, leaving); len(s.Nodes) != 1 || s.Nodes[0].State != cluster.Removed {
				t.Errorf("%+v", s.Nodes)
			}
			if text, code := run(t, "drain", leaving.name, "--api", rest[0].url); code != 1 || !strings.Contains(text, "ollamamax nodes") {
				t.Errorf("a node that left can be named: %d %s", code, text)
			}
		})
	}
}

func TestDrainLetsStreamsEndAndSendsNothingNew(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a"), supervisedFake(t, "b"), fakeMember(t, "c"))
	resp, err := client.Post(c[0].url+"/api/generate", "application/json", strings.NewReader(`{"model":"m","prompt":"x","options":{"num_predict":6000}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() {
		t.Fatal("no first record")
	}
	if text, code := run(t, "drain", "b", "--api", c[2].url); code != 0 {
		t.Fatalf("drain: %d %s", code, text)
	}
	state := func(m *member) (state cluster.ServiceState) {
		s, _ := status(t, m)
		for _, n := range s.Nodes {
			if n.Name == "b" {
				state = n.State
			}
		}
		return state
	}
	eventually(t, 20*time.Second, "b is draining", func() bool { return state(c[0]) == cluster.Draining })
	if code, _, text := generate(t, c[0], "m", "x"); code != 503 {
		t.Errorf("a draining node, the only one with the model, took new work: %d %s", code, text)
	}
	// b hears what was agreed with the leader's next message.
	eventually(t, 10*time.Second, "the draining node is not ready", func() bool { code, _ := ask(t, "GET", c[1].url+"/readyz", ""); return code == 503 })
	last := ""
	for lines.Scan() {
		last = lines.Text()
	}
	if !strings.Contains(last, `"done":true`) {
		t.Errorf("the stream was not let to its end: %q", last)
	}
	if code, text := ask(t, "POST", c[0].url+"/api/copy", `{"source":"m","destination":"m2"}`); code != 200 {
		t.Errorf("copy on a draining holder: %d %s", code, text)
	}
	eventually(t, 30*time.Second, "b is drained", func() bool { return state(c[0]) == cluster.Drained && state(c[2]) == cluster.Drained })
	if text, code := run(t, "undrain", "b", "--api", c[1].url); code != 0 {
		t.Fatalf("undrain: %d %s", code, text)
	}
	eventually(t, 30*time.Second, "b serves again", func() bool { code, _, _ := generate(t, c[0], "m", "x"); return code == 200 })
}

func TestLeadershipIsHandedOver(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m"), fakeMember(t, "d", "m"))
	_, others := c.leader(t)
	var voter, observer *member
	s, _ := status(t, c[0])
	for _, n := range s.Nodes {
		for _, m := range others {
			switch {
			case n.Name == m.name && n.Role == cluster.Voter:
				voter = m
			case n.Name == m.name:
				observer = m
			}
		}
	}
	if voter == nil || observer == nil || s.Voters != 3 {
		t.Fatalf("four nodes are three voters and an observer: %+v", s)
	}
	if text, code := run(t, "leader", voter.name, "--api", observer.url); code != 0 {
		t.Fatalf("leader %s: %d %s", voter.name, code, text)
	}
	eventually(t, 30*time.Second, "the new leader leads", func() bool { s, _ := status(t, observer); return s.Leader == voter.name })
	if text, code := run(t, "leader", observer.name, "--api", c[0].url); code != 1 || !strings.Contains(text, "observer") {
		t.Errorf("an observer cannot lead: %d %s", code, text)
	}
	// A leader that is asked to stop hands over: nobody waits for an election.
	voter.stop(t)
	eventually(t, 10*time.Second, "another leads after the leader's stop", func() bool {
		s, _ := status(t, observer)
		return s.Leader != voter.name && s.Leader != "" && s.Quorum
	})
}

func TestADeadVoterIsReplacedAndReturnsAsAnObserver(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m"), fakeMember(t, "d", "m"))
	role := func(m *member, name string) (role cluster.Role) {
		s, _ := status(t, m)
		for _, n := range s.Nodes {
			if n.Name == name {
				role = n.Role
			}
		}
		return role
	}
	leader, others := c.leader(t)
	var victim, observer *member
	for _, m := range others {
		if role(leader, m.name) == cluster.Voter {
			victim = m
		} else {
			observer = m
		}
	}
	victim.crash(t)
	died := time.Now()
	eventually(t, 30*time.Second, "the observer votes in the dead one's place", func() bool {
		return role(leader, observer.name) == cluster.Voter && role(leader, victim.name) == cluster.Observer
	})
	t.Logf("the dead voter was replaced after %v", time.Since(died).Round(time.Millisecond))
	victim.start(t)
	victim.up(t)
	c.settled(t)
	if got := role(leader, victim.name); got != cluster.Observer {
		t.Errorf("it returns as %s", got)
	}
}

func TestRecoverMakesTheLastNodeTheOnlyVoter(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m"))
	if text, code := run(t, "recover", "--data-dir", c[0].dataDir); code != 1 || !strings.Contains(text, "another") {
		t.Errorf("recover beside a running node: %d %s", code, text)
	}
	for _, m := range c {
		m.crash(t)
	}
	text, code := run(t, "recover", "--data-dir", c[0].dataDir)
	if code != 0 {
		t.Fatalf("recover: %d %s", code, text)
	}
	c[0].start(t)
	c[0].up(t)
	eventually(t, 30*time.Second, "the recovered node leads", func() bool { s, _ := status(t, c[0]); return s.Leader == "a" && s.Quorum && s.Voters == 1 })
	for _, gone := range []string{"b", "c"} {
		if text, code := run(t, "remove", gone, "--api", c[0].url); code != 0 {
			t.Errorf("remove %s: %d %s", gone, code, text)
		}
	}
	if text, code := run(t, "recover", "--data-dir", t.TempDir()); code != 1 || !strings.Contains(text, "--data-dir") {
		t.Errorf("recover in an empty directory: %d %s", code, text)
	}
}
