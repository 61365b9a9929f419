package schedule

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func ready(id cluster.NodeID, models ...string) *cluster.Node {
	n := &cluster.Node{ID: id, Name: string(id), Condition: cluster.Alive, State: cluster.Active,
		Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady}}
	for _, m := range models {
		n.Models = append(n.Models, cluster.Model{Name: m})
	}
	return n
}

func loaded(n *cluster.Node, model string, context int) *cluster.Node {
	n.Loaded = append(n.Loaded, cluster.Loaded{Name: model, ContextLength: context})
	return n
}

// v1 makes a node's engine one that only has the chat route of OpenAI's.
func v1(n *cluster.Node) *cluster.Node {
	n.Engine.Kind, n.Engine.Routes = cluster.OpenAI, []string{"/v1/chat/completions"}
	return n
}

func digest(n *cluster.Node, d string) *cluster.Node { n.Models[0].Digest = d; return n }

func with(n *cluster.Node, change func(*cluster.Node)) *cluster.Node { change(n); return n }

func TestPickPrefers(t *testing.T) {
	big := cluster.Request{Model: "m", PromptBytes: 100_000}
	for _, tc := range []struct {
		name    string
		nodes   []*cluster.Node
		request cluster.Request
		tried   []cluster.NodeID
		want    cluster.NodeID // "" for none
	}{
		{"the holder to others", []*cluster.Node{ready("a"), ready("b", "m")}, cluster.Request{Model: "M"}, nil, "b"},
		{"loaded to stored", []*cluster.Node{ready("a", "m"), loaded(ready("b", "m"), "m:latest", 4096)}, cluster.Request{Model: "m"}, nil, "b"},
		{"stored to loaded with too small a context", []*cluster.Node{loaded(ready("a", "m"), "m", 4096), ready("b", "m")}, big, nil, "b"},
		{"the larger context", []*cluster.Node{loaded(ready("a", "m"), "m", 4096), loaded(ready("b", "m"), "m", 262144)}, big, nil, "b"},
		{"alive to suspect", []*cluster.Node{with(loaded(ready("a", "m"), "m", 0), func(n *cluster.Node) { n.Condition = cluster.Suspect }), ready("b", "m")}, cluster.Request{Model: "m"}, nil, "b"},
		{"suspect to none", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.Condition = cluster.Suspect })}, cluster.Request{Model: "m"}, nil, "a"},
		{"no dead node", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.Condition = cluster.Dead })}, cluster.Request{Model: "m"}, nil, ""},
		{"no draining node", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.State = cluster.Draining })}, cluster.Request{Model: "m"}, nil, ""},
		{"no node whose engine is down", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.Engine.Condition = cluster.EngineDown })}, cluster.Request{Model: "m"}, nil, ""},
		{"none tried before", []*cluster.Node{ready("a", "m"), ready("b", "m")}, cluster.Request{Model: "m"}, []cluster.NodeID{"a"}, "b"},
		{"its own engine for a model that nobody holds", []*cluster.Node{ready("a"), ready("self")}, cluster.Request{Model: "x"}, nil, "self"},
		{"its own engine for a cloud model", []*cluster.Node{ready("a", "m:cloud"), ready("self")}, cluster.Request{Model: "m:cloud"}, nil, "self"},
		{"no other engine while its own is starting, for what names no model", []*cluster.Node{ready("a"), with(ready("self"), func(n *cluster.Node) { n.Engine.Condition = cluster.EngineStarting })}, cluster.Request{}, nil, ""},
		{"another engine while its own is starting, for a model", []*cluster.Node{ready("a", "m"), with(ready("self", "m"), func(n *cluster.Node) { n.Engine.Condition = cluster.EngineStarting })}, cluster.Request{Model: "m"}, nil, "a"},
		{"only nodes with the digest of its own", []*cluster.Node{with(ready("a", "m"), func(n *cluster.Node) { n.Models[0].Digest = "1" }), with(ready("self", "m"), func(n *cluster.Node) { n.Models[0].Digest = "2" })}, cluster.Request{Model: "m"}, nil, "self"},
		{"for Ollama's routes only Ollamas", []*cluster.Node{v1(ready("self", "m")), digest(ready("b", "m"), "1")}, cluster.Request{Path: "/api/chat", Model: "m"}, nil, "b"},
		{"nobody for Ollama's routes, if only others hold the model", []*cluster.Node{ready("a"), v1(ready("b", "m"))}, cluster.Request{Path: "/api/chat", Model: "m"}, nil, ""},
		{"its own engine's model for OpenAI's routes", []*cluster.Node{v1(ready("self", "m")), digest(ready("b", "m"), "1")}, cluster.Request{Path: "/v1/chat/completions", Model: "m"}, nil, "self"},
		{"no model without a digest after one with", []*cluster.Node{v1(ready("a", "m")), digest(ready("self", "m"), "1")}, cluster.Request{Path: "/v1/chat/completions", Model: "m"}, []cluster.NodeID{"self"}, ""},
		{"an engine that has the route, for a model that nobody holds", []*cluster.Node{v1(ready("self")), ready("b")}, cluster.Request{Path: "/api/chat", Model: "x"}, nil, "b"},
		{"an Ollama for a cloud model", []*cluster.Node{v1(ready("self")), ready("b")}, cluster.Request{Path: "/v1/chat/completions", Model: "x:cloud"}, nil, "b"},
		{"another engine while its own is starting, for a route that it will not have", []*cluster.Node{ready("a"), v1(with(ready("self"), func(n *cluster.Node) { n.Engine.Condition = cluster.EngineStarting }))}, cluster.Request{Path: "/api/pull"}, nil, "a"},
		{"any engine, if it has none", []*cluster.Node{ready("a"), with(ready("self"), func(n *cluster.Node) { n.Engine = nil })}, cluster.Request{}, nil, "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := scheduler(t, Default(), tc.nodes...)
			tc.request.Infers = tc.request.Model != ""
			for range 20 { // the draw is random
				var got cluster.NodeID
				if lease := s.Try(&tc.request, tc.tried); lease != nil {
					got = lease.Node.ID
					lease.Done(cluster.Outcome{})
				}
				if got != tc.want {
					t.Fatalf("picked %q, want %q", got, tc.want)
				}
			}
		})
	}
}

// scheduler has a View of the nodes, as the node "self" sees them.
func scheduler(t *testing.T, cfg Config, nodes ...*cluster.Node) *Scheduler {
	t.Helper()
	return scheduling(t, cfg, DefaultQueue(), func() *cluster.View { return cluster.NewView("self", time.Time{}, nodes) })
}

func scheduling(t *testing.T, cfg Config, q Queue, view func() *cluster.View) *Scheduler {
	t.Helper()
	s, err := New(cfg, q, DefaultStall(), Deps{View: view})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// prompt is a request that takes a slot for the model m.
func prompt(bytes int) *cluster.Request {
	return &cluster.Request{Model: "m", Path: "/api/chat", Infers: true, PromptBytes: bytes, MaxTokens: 100}
}

func slots(n *cluster.Node, total int) *cluster.Node { n.Slots.Total = total; return n }

func TestRequestsSpreadOverEqualNodes(t *testing.T) {
	for _, policy := range []Policy{TTFT, LeastLoaded, RoundRobin, Weighted} {
		s := scheduler(t, Config{Policy: policy}, slots(loaded(ready("a", "m"), "m", 0), 1000), slots(loaded(ready("b", "m"), "m", 0), 1000), slots(loaded(ready("c", "m"), "m", 0), 1000))
		count := map[cluster.NodeID]int{}
		for range 300 {
			count[s.Try(prompt(100), nil).Node.ID]++ // none is given back
		}
		spread := 25
		if policy == Weighted {
			spread = 50 // it is drawn
		}
		for id, n := range count {
			if n < 100-spread || n > 100+spread {
				t.Errorf("%s: %s got %d of 300: %v", policy, id, n, count)
			}
		}
	}
}

func TestAWeightIsAShare(t *testing.T) {
	s := scheduler(t, Config{Policy: Weighted, Weights: map[string]float64{"a": 3, "c": 0}}, slots(ready("a", "m"), 10000), slots(ready("b", "m"), 10000), slots(ready("c", "m"), 10000))
	count := map[cluster.NodeID]int{}
	for range 4000 {
		count[s.Try(prompt(100), nil).Node.ID]++
	}
	if count["c"] != 0 || count["a"] < 2800 || count["a"] > 3200 {
		t.Errorf("weights 3, 1 and 0: %v", count)
	}
}

func TestASlotIsGivenBackOnce(t *testing.T) {
	s := scheduler(t, Default(), slots(ready("a", "m"), 2))
	first, second := s.Try(prompt(1), nil), s.Try(prompt(1), nil)
	if first == nil || second == nil || s.Try(prompt(1), nil) != nil {
		t.Fatal("two slots are lent twice")
	}
	first.Done(cluster.Outcome{})
	first.Done(cluster.Outcome{})
	if s.Try(prompt(1), nil) == nil || s.Try(prompt(1), nil) != nil {
		t.Error("a slot given back twice counts once")
	}
}

func TestOthersRequestsCountUntilTheyAreSaidToHaveEnded(t *testing.T) {
	s := scheduler(t, Default(), slots(ready("a", "m"), 2), slots(ready("b", "m"), 2))
	s.Heard("a", 2)
	for range 2 {
		if lease := s.Try(prompt(1), nil); lease.Node.ID != "b" {
			t.Fatalf("sent to a node that others keep busy")
		}
	}
	if lease := s.Try(prompt(1), nil); lease == nil || lease.Node.ID != "a" {
		t.Fatal("a gateway may always have one request on a node: others' must not starve it")
	}
	if s.Try(prompt(1), nil) != nil {
		t.Fatal("more than one")
	}
	s.Heard("a", 1) // what this gateway has sent itself
	if lease := s.Try(prompt(1), nil); lease == nil || lease.Node.ID != "a" {
		t.Error("a's own count was not taken in")
	}
}

func prefixes(digests ...uint64) []cluster.Prefix {
	var list []cluster.Prefix
	for i, d := range digests {
		list = append(list, cluster.Prefix{Digest: d, Bytes: (i + 1) * 4000})
	}
	return list
}

func TestAFollowUpTurnReturnsToTheNodeThatHasItCached(t *testing.T) {
	nodes := func() []*cluster.Node {
		return []*cluster.Node{slots(loaded(ready("a", "m"), "m", 0), 1), slots(loaded(ready("b", "m"), "m", 0), 1), slots(loaded(ready("c", "m"), "m", 0), 1)}
	}
	for _, affinity := range []bool{true, false} {
		s := scheduler(t, Config{Policy: TTFT, Affinity: affinity}, nodes()...)
		stayed := 0
		for conversation := range uint64(20) {
			r := prompt(4000)
			r.Prefix = prefixes(conversation * 100)
			lease := s.Try(r, nil)
			first := lease.Node.ID
			lease.Done(cluster.Outcome{Result: cluster.Answered, First: time.Second, PromptTokens: 1000, OutputTokens: 10})
			r = prompt(8000)
			r.Prefix = prefixes(conversation*100, conversation*100+1)
			lease = s.Try(r, nil)
			if lease.Node.ID == first {
				stayed++
			}
			lease.Done(cluster.Outcome{})
		}
		if affinity && stayed != 20 || !affinity && stayed > 15 {
			t.Errorf("affinity %v: %d of 20 returned", affinity, stayed)
		}
	}
	// It does not wait there for longer than reading it elsewhere takes.
	s := scheduler(t, Default(), nodes()...)
	r := prompt(4000)
	r.Prefix = prefixes(7)
	lease := s.Try(r, nil)
	lease.Done(cluster.Outcome{Result: cluster.Answered, First: time.Second, PromptTokens: 1000, OutputTokens: 10, Prefill: time.Second, Total: time.Second})
	again := s.Try(r, nil)
	if again.Node.ID != lease.Node.ID {
		t.Fatal("it did not return at all")
	}
	s.node(lease.Node.ID).pair("m:latest").known.Store(&known{took: time.Minute, prefill: 1000, bytes: 4, memory: [remembered][]cluster.Prefix{r.Prefix}})
	if third := s.Try(r, nil); third == nil || third.Node.ID == lease.Node.ID {
		t.Error("it waits a minute for a second's reading")
	}
}

func TestAModelIsLoadedElsewhereOnlyWhenWaitingCostsMore(t *testing.T) {
	warm, cold := slots(loaded(ready("warm", "m"), "m", 0), 1), slots(ready("cold", "m"), 1)
	for _, n := range []*cluster.Node{warm, cold} {
		n.Models[0].Size = 5 << 30 // ten seconds and more from disk
	}
	s := scheduler(t, Default(), warm, cold)
	k := &known{took: 2 * time.Second, prefill: 1000, bytes: 4}
	s.node("warm").pair("m:latest").known.Store(k)
	if lease := s.Try(prompt(100), nil); lease.Node.ID != "warm" {
		t.Fatal("the loaded one is not preferred")
	}
	if s.Try(prompt(100), nil) != nil {
		t.Error("it does not wait two seconds rather than load for eleven")
	}
	s.node("warm").pair("m:latest").known.Store(&known{took: time.Minute, prefill: 1000, bytes: 4})
	if lease := s.Try(prompt(100), nil); lease == nil || lease.Node.ID != "cold" {
		t.Error("it waits a minute rather than load for eleven seconds")
	}
}

func TestOtherRunnerOptionsCountAsALoad(t *testing.T) {
	k := &known{asked: true, runner: 0, numCtx: 0}
	at := &cluster.Loaded{ContextLength: 4096}
	for _, tc := range []struct {
		name string
		k    *known
		r    cluster.Request
		same bool
	}{
		{"nothing asked", k, cluster.Request{}, true},
		{"the context that is loaded", k, cluster.Request{NumCtx: 4096}, true},
		{"another context", k, cluster.Request{NumCtx: 8192}, false},
		{"another option", k, cluster.Request{Runner: 7}, false},
		{"the same option", &known{asked: true, runner: 7}, cluster.Request{Runner: 7}, true},
		{"the usual context after another", &known{asked: true, numCtx: 4096}, cluster.Request{}, false},
		{"nothing known", &known{}, cluster.Request{Runner: 7}, true},
	} {
		if got := tc.k.sameRunner(at, &tc.r, 2048); got != tc.same {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestSpeedsAreLearnedFromPromptsThatAreNew(t *testing.T) {
	k := &known{}
	r := prompt(4000)
	r.Prefix = prefixes(1)
	answer := cluster.Outcome{Result: cluster.Answered, First: time.Second, PromptTokens: 1000, OutputTokens: 100, Prefill: 500 * time.Millisecond, Eval: 2 * time.Second, Total: 2500 * time.Millisecond}
	k.learn(time.Now(), r, answer, 0, 1, false, 3*time.Second)
	if k.prefill != 2000 || k.gap != 20*time.Millisecond || k.bytes != 4 || k.took != 3*time.Second {
		t.Fatalf("%+v", k)
	}
	answer.Prefill = time.Millisecond // the same prompt again, from the cache
	k.learn(time.Now(), r, answer, 0, 1, false, 3*time.Second)
	if k.prefill != 2000 {
		t.Errorf("a cached prompt was taken for a fast machine: %v tokens a second", k.prefill)
	}
	if n := k.cached(r, true); n != 1000 {
		t.Errorf("%d tokens cached", n)
	}
}

func TestHowManyRequestsAnEngineTakesIsLearned(t *testing.T) {
	// An engine with three slots, which lets the rest wait inside.
	p := (&nodeState{}).pair("m")
	serve := func(concurrent int) {
		o := cluster.Outcome{Result: cluster.Answered, First: 100 * time.Millisecond, Prefill: 100 * time.Millisecond, Eval: time.Second, Total: 1100 * time.Millisecond, OutputTokens: 10}
		if concurrent > 3 {
			o.First += time.Second
			o.Total += time.Second
		}
		p.learn(prompt(1), o, concurrent, concurrent, false, false, o.Total)
	}
	for range 50 {
		serve(int(p.limit.Load()))
	}
	if n := p.limit.Load(); n < 3 || n > 4 {
		t.Errorf("learned %d slots of 3", n)
	}
	wide := (&nodeState{}).pair("m")
	for i := 0; i < 2000 && wide.limit.Load() < 64; i++ {
		o := cluster.Outcome{Result: cluster.Answered, First: time.Millisecond, Eval: time.Second, Total: time.Second, OutputTokens: 10}
		wide.learn(prompt(1), o, int(wide.limit.Load()), int(wide.limit.Load()), false, false, time.Second)
		if i > 100 {
			t.Fatalf("an engine that nobody waits in is given %d at once after %d answers", wide.limit.Load(), i)
		}
	}
}

func TestLongAnswersAreNotWaitedForToLearnHowManyRun(t *testing.T) {
	s := scheduler(t, Default(), loaded(ready("a", "m"), "m", 0))
	var leases []*cluster.Lease
	for range 40 { // an engine that begins with each at once, and ends none
		lease := s.Try(prompt(1), nil)
		if lease == nil {
			t.Fatalf("after %d answers that have begun there is no room for another", len(leases))
		}
		lease.Began()
		leases = append(leases, lease)
	}
	// One that begins only when another has ended has waited inside: nothing is learned of it.
	p := s.node("a").pair("m:latest")
	p.limit.Store(40)
	late := s.lend(&candidate{node: leases[0].Node, state: s.node("a"), pair: p}, prompt(1))
	leases[0].Done(cluster.Outcome{})
	late.Began()
	if n := p.limit.Load(); n != 40 {
		t.Errorf("the limit became %d", n)
	}
}

func TestABreakerShutsOutAndLetsOneTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("bad", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		fail := func() {
			lease := s.Try(prompt(1), []cluster.NodeID{"good"})
			lease.Done(cluster.Outcome{Result: cluster.Failed})
		}
		for range opensAfter {
			fail()
		}
		for range 50 {
			lease := s.Try(prompt(1), nil)
			if lease.Node.ID != "good" {
				t.Fatal("a node that failed three times is still chosen")
			}
			lease.Done(cluster.Outcome{})
		}
		if lease := s.Try(prompt(1), []cluster.NodeID{"good"}); lease == nil {
			t.Fatal("the last fit node is shut out")
		} else {
			lease.Done(cluster.Outcome{})
		}
		time.Sleep(2 * time.Second) // its time is over: one may try
		var probe *cluster.Lease
		for range 100 {
			switch lease := s.Try(prompt(1), nil); {
			case lease.Node.ID != "bad":
				lease.Done(cluster.Outcome{})
			case probe != nil:
				t.Fatal("two try at once")
			default:
				probe = lease
			}
		}
		if probe == nil {
			t.Fatal("nobody tries")
		}
		probe.Done(cluster.Outcome{Result: cluster.Answered, First: time.Millisecond})
		seen := map[cluster.NodeID]bool{}
		for range 50 {
			seen[s.Try(prompt(1), nil).Node.ID] = true // none is given back
		}
		if !seen["bad"] {
			t.Error("a node that answered again is still shut out")
		}
	})
}

func TestALongAnswerThatHasBegunLetsOthersIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("bad", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		toBad := func() *cluster.Lease { return s.Try(prompt(1), []cluster.NodeID{"good"}) }
		shutOut := func() bool {
			for range 50 {
				lease := s.Try(prompt(1), nil)
				lease.Done(cluster.Outcome{})
				if lease.Node.ID == "bad" {
					return false
				}
			}
			return true
		}
		for range opensAfter {
			toBad().Done(cluster.Outcome{Result: cluster.Failed})
		}
		for range 2 {
			s.Try(prompt(1), []cluster.NodeID{"bad"}) // both have as much to do
		}
		early := toBad()
		early.Began()
		if !shutOut() {
			t.Fatal("an answer that began before its time was over lets all others in")
		}
		time.Sleep(2 * firstOut)
		long := toBad()
		if !shutOut() {
			t.Fatal("somebody else comes in before the one that tries is answered")
		}
		long.Began()
		time.Sleep(15 * time.Second) // until its failures are forgotten
		if shutOut() {
			t.Fatal("others wait for the end of an answer that has begun")
		}
		long.Done(cluster.Outcome{Result: cluster.Failed})
		if !shutOut() {
			t.Error("it broke again, and is not shut out")
		}
		early.Done(cluster.Outcome{})
	})
}

func TestAnEngineIsLeftAloneForAsLongAsItAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("busy", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		s.Try(prompt(1), []cluster.NodeID{"good"}).Done(cluster.Outcome{Result: cluster.Overloaded, RetryAfter: 20 * time.Second})
		time.Sleep(19 * time.Second)
		for range 50 {
			if s.Try(prompt(1), nil).Node.ID != "good" {
				t.Fatal("asked before its time")
			}
		}
	})
}

func TestBreakersNeverShutOutMoreThanHalf(t *testing.T) {
	for n, want := range map[int]int{1: 1, 2: 1, 3: 2, 4: 2, 5: 3} {
		var all []candidate
		for i := range n {
			all = append(all, candidate{ejected: time.Duration(i+1) * time.Second})
		}
		if left := withoutEjected(all); len(left) != want {
			t.Errorf("of %d that all fail %d are left, want %d", n, len(left), want)
		}
	}
}

func TestAnAliasStandsForItsModelsInOrder(t *testing.T) {
	s := scheduler(t, Config{Policy: TTFT, Aliases: map[string][]string{"GPT-4o": {"qwen3:30b", "m"}, "m": {"x"}}}, ready("a", "m"), ready("b", "qwen3:30b"))
	if got := s.Resolve("gpt-4o:latest"); len(got) != 2 || got[0] != "qwen3:30b" {
		t.Errorf("%v", got)
	}
	if got := s.Resolve("m"); got != nil {
		t.Errorf("a model that is there was hidden by an alias: %v", got)
	}
}

func TestAnAliasStandsForModelsThatAreThere(t *testing.T) {
	for _, tc := range []struct{ chain, want []string }{
		{[]string{"huge", "big", "m"}, []string{"m"}},
		{[]string{"huge", "M:latest", "big"}, []string{"M:latest"}},
		{[]string{"kimi:1t-cloud", "huge", "m"}, []string{"kimi:1t-cloud", "m"}}, // which every Ollama reaches
		{[]string{"huge", "big"}, []string{"big"}},                               // it is said not to be there
	} {
		s := scheduler(t, Config{Policy: TTFT, Aliases: map[string][]string{"gpt-4o": tc.chain}}, ready("a", "m"))
		if got := s.Resolve("gpt-4o"); !slices.Equal(got, tc.want) {
			t.Errorf("%v stands for %v, want %v", tc.chain, got, tc.want)
		}
	}
}

func TestLabelsAndAvailabilityLeaveNodesOut(t *testing.T) {
	a, b := ready("a", "m"), ready("b", "m")
	a.Labels = map[string]string{"gpu": "nvidia", "zone": "cellar"}
	s := scheduler(t, Default(), a, b)
	r := prompt(1)
	r.Labels = map[string]string{"gpu": "nvidia"}
	for range 20 {
		lease := s.Try(r, nil)
		if lease.Node.ID != "a" {
			t.Fatal("a node without the label")
		}
		lease.Done(cluster.Outcome{})
	}
	r.Labels["zone"] = "attic"
	if _, err := s.Acquire(t.Context(), r, nil); !errors.Is(err, cluster.ErrNobody) {
		t.Errorf("%v", err)
	}
	b.Unavailable = "on battery"
	for range 20 {
		if lease := s.Try(&cluster.Request{Model: "m"}, nil); lease.Node.ID != "a" {
			t.Fatal("a node that its owner keeps for himself")
		}
	}
}

func TestADamagedReplicaIsAskedOnlyWhenNoGoodOneServes(t *testing.T) {
	a, b := ready("a", "m"), ready("b", "m")
	b.Models[0].Damaged = true
	s := scheduler(t, Default(), a, b)
	for range 20 {
		lease := s.Try(&cluster.Request{Model: "m"}, nil)
		if lease.Node.ID != "a" {
			t.Fatal("a node whose files are damaged")
		}
		lease.Done(cluster.Outcome{})
	}
	if why := s.Explain(&cluster.Request{Model: "m"}).Candidates[1].Why; why != damaged {
		t.Errorf("explained as %q", why)
	}
	a = ready("a", "m")
	a.Condition = cluster.Dead
	s = scheduler(t, Default(), a, b)
	if lease := s.Try(&cluster.Request{Model: "m"}, nil); lease == nil || lease.Node.ID != "b" {
		t.Errorf("the last replica that serves is not asked: %v", lease)
	}
}

func TestWeightsTakeRequestsThatBeginAndNoOthersAnswers(t *testing.T) {
	a, b := ready("a", "m"), ready("b", "m")
	a.Models[0].Digest = "1"
	b.Engine = &cluster.Engine{Kind: cluster.LlamaServer, Condition: cluster.EngineReady, Routes: []string{"/v1/completions"}, Folder: true}
	b.Models[0].Digest, b.Models[0].Weights = "", "1"
	s := scheduler(t, Default(), a, b)
	for _, tc := range []struct {
		name, digest string
		tried, other cluster.NodeID // who can do it when the other cannot be asked
	}{
		{"begins", "", "a", "b"}, {"begins", "", "b", "a"}, {"goes on with the Ollama's", a.Models[0].Kin(), "b", "a"}, {"goes on with the weights'", b.Models[0].Kin(), "a", "b"},
		{"goes on with the Ollama's", a.Models[0].Kin(), "a", ""}, {"goes on with the weights'", b.Models[0].Kin(), "b", ""},
	} {
		r := &cluster.Request{Model: "m", Path: "/v1/completions", Infers: true, Pinned: tc.digest != "", Digest: tc.digest}
		lease, got := s.Try(r, []cluster.NodeID{tc.tried}), cluster.NodeID("")
		if lease != nil {
			got = lease.Node.ID
			lease.Done(cluster.Outcome{})
		}
		if got != tc.other {
			t.Errorf("what %s goes to %q without %s, want %q", tc.name, got, tc.tried, tc.other)
		}
	}
}

func TestExplainNamesEveryReplicaAndWhyNot(t *testing.T) {
	dead := with(ready("dead", "m"), func(n *cluster.Node) { n.Condition = cluster.Dead })
	played := with(ready("played", "m"), func(n *cluster.Node) { n.Unavailable = "GPU is busy with something else" })
	s := scheduler(t, Default(), slots(loaded(ready("a", "m"), "m", 4096), 2), dead, played, ready("without"))
	e := s.Explain(prompt(4000))
	if e.Chosen != "a" || len(e.Candidates) != 3 || e.Candidates[2].Why != "its owner keeps it: GPU is busy with something else" || e.Candidates[0].Why != "" || e.Candidates[1].Why != notServing || e.Candidates[0].PromptTokens != 1000 {
		t.Errorf("%+v", e)
	}
}

func TestAnEnginesSenselessFiguresMakeItNoBetter(t *testing.T) {
	for shift := range 63 {
		told := time.Duration(1) << shift
		for _, failed := range []int{0, 2} {
			s := scheduler(t, Default(), slots(ready("mad", "m"), 1000), slots(loaded(ready("sane", "m"), "m", 0), 1000))
			learn := func(id, not cluster.NodeID, o cluster.Outcome) {
				lease := s.Try(prompt(2000), []cluster.NodeID{not})
				if lease.Node.ID != id {
					t.Fatalf("%s serves", lease.Node.ID)
				}
				lease.Done(o)
			}
			learn("sane", "mad", cluster.Outcome{Result: cluster.Answered, First: time.Millisecond, Prefill: time.Millisecond, Total: 2 * time.Millisecond, PromptTokens: 500})
			learn("mad", "sane", cluster.Outcome{Result: cluster.Answered, First: time.Millisecond, Load: time.Minute + told, Prefill: told, Total: 2 * told, PromptTokens: 500})
			for range failed {
				learn("mad", "sane", cluster.Outcome{Result: cluster.Failed})
			}
			for range 20 {
				if lease := s.Try(prompt(2000), nil); lease.Node.ID != "sane" {
					t.Fatalf("an engine that tells 1<<%d ns and failed %d times gets a request", shift, failed)
				}
			}
		}
	}
}

func TestAnAnswerGoesOnWhereItsContextIsOrWouldBe(t *testing.T) {
	stored, small := ready("a", "m"), loaded(ready("a", "m"), "m", 4096)
	now := small
	s := scheduling(t, Default(), DefaultQueue(), func() *cluster.View { return cluster.NewView("self", time.Time{}, []*cluster.Node{now}) })
	if lease := s.Try(prompt(100), nil); lease == nil {
		t.Fatal("nobody serves")
	} else {
		lease.Done(cluster.Outcome{})
	}
	for name, tc := range map[string]struct {
		node    *cluster.Node
		numCtx  int
		serves  bool
		context int
	}{
		"loaded with less":                   {small, 0, false, 32768},
		"would load with less":               {stored, 0, false, 32768},
		"would load with as much":            {stored, 0, true, 4096},
		"loads anew with what was asked for": {small, 32768, true, 32768},
	} {
		now = tc.node
		r := prompt(100)
		r.Urgent, r.MinContext, r.NumCtx = true, tc.context, tc.numCtx
		lease := s.Try(r, nil)
		if (lease != nil) != tc.serves {
			t.Errorf("one that %s serves: %t", name, lease != nil)
		}
		if lease != nil {
			lease.Done(cluster.Outcome{})
		}
	}
}

func TestANodeOfNoWeightGetsNothingWhenTheOthersAreFull(t *testing.T) {
	node := func(id cluster.NodeID) *cluster.Node { return slots(loaded(ready(id, "m"), "m", 0), 1) }
	s := scheduler(t, Config{Policy: Weighted, Weights: map[string]float64{"b": 0}}, node("a"), node("b"), node("c"))
	for range 2 {
		if lease := s.Try(prompt(1), nil); lease == nil || lease.Node.ID == "b" {
			t.Fatalf("lent %+v", lease)
		}
	}
	if lease := s.Try(prompt(1), nil); lease != nil {
		t.Errorf("a node of weight 0 got a request when the others were full: %s", lease.Node.ID)
	}
	if lease := s.Try(prompt(1), []cluster.NodeID{"a", "c"}); lease != nil {
		t.Errorf("a node of weight 0 got a request after the others: %s", lease.Node.ID)
	}
}

func TestAnAnswerOfAModelWithoutADigestGoesOnWithItsLike(t *testing.T) {
	s := scheduler(t, Default(), v1(ready("a", "m")), digest(ready("self", "m"), "1")) // "1" stands for the name
	r := &cluster.Request{Model: "m", Path: "/v1/chat/completions", Infers: true, Urgent: true, Pinned: true}
	if lease := s.Try(r, nil); lease == nil || lease.Node.ID != "a" {
		t.Errorf("goes on at %+v", lease)
	}
	if lease := s.Try(r, []cluster.NodeID{"a"}); lease != nil {
		t.Errorf("goes on with another model of the same name, of %s", lease.Node.ID)
	}
}
