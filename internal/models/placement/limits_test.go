package placement_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/placement"
)

func expect(t *testing.T, in placement.Input, plan ...string) {
	t.Helper()
	if diff := cmp.Diff(append([]string{}, plan...), brief(placement.Plan(placement.Config{}, in))); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

func TestWhatIsUnderWayIsNotPlannedAgain(t *testing.T) {
	in := input(want(2), node("a", with(right)), node("b"), node("c"))
	in.Running = []placement.Action{{Kind: placement.Fetch, Node: "c", Name: "m:latest", Digest: right}}
	expect(t, in)

	in = input(want(1), node("a", with(right)), node("b", with(right)), node("c", with(right)))
	in.Running = []placement.Action{{Kind: placement.Remove, Node: "a", Name: "m", Digest: right}}
	expect(t, in)

	in = input(want(2, preloaded), node("a", with(right)), node("b", with(right)))
	in.Running = []placement.Action{{Kind: placement.Load, Node: "a", Name: "m", Digest: right}}
	expect(t, in, "load b m:latest")

	in = input(want(3), node("a", with(right), loaded(time.Hour)), node("b", with(right), loaded(time.Hour)), node("c", with(right)))
	for _, kind := range []placement.Kind{placement.Unload, placement.Remove} {
		in.Running = []placement.Action{{Kind: kind, Node: "a", Name: "m", Digest: right}}
		expect(t, in) // b is the last one that has it loaded
	}
}

func TestAReplicaThatIsBeingRemovedCountsNoMore(t *testing.T) {
	in := input(want(2), node("a", with(right)), node("b", with(right)), node("c"), node("d", with(right), condition(cluster.Dead)))
	in.Running = []placement.Action{{Kind: placement.Remove, Node: "a", Name: "m", Digest: right}}
	expect(t, in, "fetch c M from [a b]")

	in = input(want(2), node("a", with(right)), node("b", with(right)), node("c")) // one was too many a moment ago
	in.Running = []placement.Action{{Kind: placement.Remove, Node: "a", Name: "m", Digest: right}}
	expect(t, in, "fetch c M from [a b]")
}

func TestAFetchThatFailedIsTriedOnAnotherNode(t *testing.T) {
	in := input(want(2), node("a", with(right)), node("b"), node("c"))
	in.Failed = []placement.Action{{Kind: placement.Fetch, Node: "b", Name: "M", Digest: right}}
	expect(t, in, "fetch c M from [a]")
	in.Failed[0].Digest = wrong // another one failed
	expect(t, in, "fetch b M from [a]")
}

func TestADamagedReplicaThatCannotBeRepairedIsReplacedElsewhere(t *testing.T) {
	in := input(want(2), node("a", with(right)), node("b", with(right), damaged), node("c"))
	in.Failed = []placement.Action{{Kind: placement.Fetch, Node: "b", Name: "M", Digest: right}}
	expect(t, in, "fetch c M from [a]")
}

func TestARemovalThatFailedIsTriedOnAnotherNode(t *testing.T) {
	in := input(want(1), node("a", with(right)), node("b", with(right), memory(16*gb, 0)), node("c", with(right), memory(32*gb, 0)))
	in.Failed = []placement.Action{{Kind: placement.Remove, Node: "b", Name: "m", Digest: right}}
	expect(t, in, "remove c m:latest")
}

func TestANewLeaderTakesNothingAwayAtFirst(t *testing.T) {
	surplus := input(want(1), node("a", with(right)), node("b", with(right)))
	idle := input(want(2), node("a", with(right), loaded(time.Hour)), node("b", with(right), loaded(time.Hour)))
	lost := input(want(2), node("a", with(right)), node("b"))
	gone := input(want(1, deleted), node("a", with(right)))
	for _, in := range []*placement.Input{&surplus, &idle, &lost, &gone} {
		in.Since = now.Add(-time.Second)
	}
	expect(t, surplus)
	expect(t, idle)
	expect(t, lost, "fetch b M from [a]")
	expect(t, gone, "remove a m:latest") // somebody asked for it
	surplus.Since, idle.Since = now.Add(-10*time.Second), now.Add(-10*time.Second)
	expect(t, surplus, "remove b m:latest")
	expect(t, idle, "unload a m:latest")
}

func TestAReplicaBehindAnEngineThatStaysDownIsReplaced(t *testing.T) {
	in := input(want(2), node("a", with(right)), node("b", with(right), engine(cluster.EngineDown)), node("c"))
	in.Down = map[cluster.NodeID]time.Time{"b": now.Add(-time.Minute)}
	expect(t, in)
	in.Down["b"] = now.Add(-5 * time.Minute)
	expect(t, in, "fetch c M from [a b]")
	in.View.Node("b").Engine.Condition = cluster.EngineReady // it is back, and the caller has not forgotten yet
	expect(t, in)
}

// many places so many models of 4 GB on the first node, each wanted on so many.
func many(models int, replicas cluster.Replicas, nodes ...*cluster.Node) placement.Input {
	in := input(cluster.Wanted{}, nodes...)
	for i := range models {
		name, digest := fmt.Sprintf("m%02d:latest", i), fmt.Sprintf("%064d", i)
		named(name, digest, 4*gb)(nodes[0])
		in.State.Models[name] = cluster.Wanted{Name: name, Digest: digest, Replicas: replicas}
	}
	in.View = cluster.NewView("a", now, nodes)
	return in
}

func TestANodeFetchesTwoModelsAtATime(t *testing.T) {
	in := many(5, 2, node("a"), node("b"))
	expect(t, in, "fetch b m00:latest from [a]", "fetch b m01:latest from [a]")
	in.View.Node("b").Fetches = []cluster.Fetch{{Name: "theirs", Digest: wrong}}
	in.Running = []placement.Action{{Kind: placement.Fetch, Node: "b", Name: "m01", Digest: fmt.Sprintf("%064d", 1)}}
	expect(t, in)
	in.View.Node("b").Fetches[0] = cluster.Fetch{Name: "m01", Digest: fmt.Sprintf("%064d", 1)} // told twice
	expect(t, in, "fetch b m00:latest from [a]")
}

func TestANodeThatAloneHoldsThemGivesFourModelsAtATime(t *testing.T) {
	nodes := []*cluster.Node{node("a")}
	for i := range 9 {
		nodes = append(nodes, node(fmt.Sprint("n", i)))
	}
	plan := placement.Plan(placement.Config{}, many(9, cluster.EveryNode, nodes...))
	models, at := map[string]bool{}, map[cluster.NodeID]int{}
	for _, a := range plan {
		models[a.Name] = true
		at[a.Node]++
	}
	if len(models) > 4 || len(plan) != 18 {
		t.Errorf("%d fetches of %d models: %v", len(plan), len(models), brief(plan))
	}

	in := many(9, 2, nodes...)
	if plan = placement.Plan(placement.Config{}, in); len(plan) != 4 {
		t.Errorf("%d fetches: %v", len(plan), brief(plan))
	}
	in.Running = plan[:3]
	if plan = placement.Plan(placement.Config{}, in); len(plan) != 1 {
		t.Errorf("%d fetches beside three: %v", len(plan), brief(plan))
	}

	// More nodes may take what is on its way already: they feed each other.
	in = many(5, 2, nodes...)
	in.Running = placement.Plan(placement.Config{}, in)
	for key, w := range in.State.Models {
		w.Replicas = 3
		in.State.Models[key] = w
	}
	if plan = placement.Plan(placement.Config{}, in); len(plan) != 4 || slices.ContainsFunc(plan, func(a placement.Action) bool { return a.Name == "m04:latest" }) {
		t.Errorf("%d fetches of what is on its way: %v", len(plan), brief(plan))
	}
}

func TestWhatIsOnItsWayHasItsRoomOnTheDisk(t *testing.T) {
	in := many(2, 2, node("a"), node("b", disk(15*gb))) // room for one: twice 4 GB
	expect(t, in, "fetch b m00:latest from [a]")
}

func TestWhatNobodyHoldsYetHasItsRoomOnTheDiskWhereItIsFetched(t *testing.T) {
	told := node("b", disk(90*gb), memory(512*gb, 500*gb)) // the better one
	told.Fetches = []cluster.Fetch{{Name: "theirs", Digest: wrong, Size: 40 * gb}}
	begun := []placement.Action{{Kind: placement.Fetch, Node: "b", Name: "theirs", Digest: wrong, Size: 40 * gb}}
	for name, in := range map[string]placement.Input{
		"it is told":        {View: cluster.NewView("a", now, []*cluster.Node{node("a", disk(85*gb)), told})},
		"it has just begun": {View: cluster.NewView("a", now, []*cluster.Node{node("a", disk(85*gb)), node("b", disk(90*gb), memory(512*gb, 500*gb))}), Running: begun},
	} {
		got, err := placement.Choose(placement.Config{}, in, want(1), 40*gb, nil)
		if diff := cmp.Diff([]cluster.NodeID{"a"}, got); diff != "" || err != nil {
			t.Errorf("%s: chosen (-want +got):\n%s%v", name, diff, err)
		}
	}
}

func TestWhatHasComeIntoTheSpoolNeedsNoRoom(t *testing.T) {
	came := func(have int64) change {
		return func(n *cluster.Node) {
			n.Blobs = append(n.Blobs, cluster.Blob{Digest: strings.Repeat("c", 64), Size: 40 * gb, State: cluster.BlobPartial, Have: have})
		}
	}
	models := func(free int64) change { return func(n *cluster.Node) { n.ModelsDiskFree = free } }
	theirs := func(n *cluster.Node) { n.Fetches = []cluster.Fetch{{Name: "theirs", Digest: wrong, Size: 30 * gb}} }
	left := func(spool, engine int64) change {
		return func(n *cluster.Node) {
			n.Fetches = []cluster.Fetch{{Name: "theirs", Digest: wrong, Size: 30 * gb, Left: &cluster.Left{Spool: spool, Engine: engine}}}
		}
	}
	for name, c := range map[string]struct {
		node *cluster.Node
		why  string
	}{
		"another's is whole in the spool":    {node("a", disk(111*gb), left(0, 30*gb)), ""},
		"another's is on its way to both":    {node("a", disk(111*gb), left(1*gb, 30*gb)), "a: needs 81.0 GB of disk with the reserve, has 80.0 GB free"},
		"another's tells what has come":      {node("a", disk(112*gb), left(1*gb, 30*gb), came(29*gb)), ""},
		"nothing has come":                   {node("a", disk(60*gb)), "a: needs 81.0 GB of disk with the reserve, has 60.0 GB free"},
		"most has come":                      {node("a", disk(60*gb), came(30*gb)), ""},
		"too little has come":                {node("a", disk(60*gb), came(20*gb)), "a: needs 61.0 GB of disk with the reserve, has 60.0 GB free"},
		"more than the model's has come":     {node("a", disk(40*gb), came(40*gb), came(40*gb)), "a: needs 41.0 GB of disk with the reserve, has 40.0 GB free"},
		"what has come is another's":         {node("a", disk(110*gb), came(29*gb), theirs), "a: needs 81.0 GB of disk with the reserve, has 79.0 GB free"},
		"some of what has come is another's": {node("a", disk(110*gb), came(32*gb), theirs), ""},
		"the copy has a disk of its own":     {node("a", disk(60*gb), models(60*gb)), ""},
		"the copy's disk is full":            {node("a", models(30*gb), came(40*gb)), "a: needs 41.0 GB with the reserve on the disk of the engine's models, has 30.0 GB free"},
		"the copy's disk is for another's":   {node("a", models(60*gb), theirs), "a: needs 41.0 GB with the reserve on the disk of the engine's models, has 30.0 GB free"},
		"a size beyond all bounds has come":  {node("a", disk(60*gb), came(math.MaxInt64), came(math.MaxInt64)), ""},
	} {
		_, err := placement.Choose(placement.Config{Reserve: gb}, placement.Input{View: cluster.NewView("a", now, []*cluster.Node{c.node})}, want(1), 40*gb, nil)
		if c.why == "" && err != nil || c.why != "" && (err == nil || !strings.HasSuffix(err.Error(), ": "+c.why)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatIsLoadedAtTheSameTimeFitsTogether(t *testing.T) {
	in := many(2, 1, node("a", memory(64*gb, 8*gb)))
	for key, w := range in.State.Models {
		w.Preload = true
		in.State.Models[key] = w
	}
	expect(t, in, "load a m00:latest")
}

func TestTheModelWithTheFewestReplicasComesFirst(t *testing.T) {
	in := many(3, 3, node("a"), node("b"), node("c"))
	b := in.View.Node("b")
	named("m00:latest", fmt.Sprintf("%064d", 0), gb)(b)
	in.View = cluster.NewView("a", now, in.View.Nodes)
	expect(t, in, "fetch b m01:latest from [a]", "fetch c m01:latest from [a]", "fetch b m02:latest from [a]", "fetch c m02:latest from [a]")
}

func TestTheNearestAndReadiestSourceComesFirst(t *testing.T) {
	in := input(want(6),
		node("t", label("zone", "1"), label("rack", "1")),
		node("a", with(right)),
		node("b", with(right), label("zone", "1"), label("rack", "1"), slots(2, 4)),
		node("c", with(right), label("zone", "1"), label("rack", "1")),
		node("d", with(right), label("zone", "1"), label("rack", "2")),
		node("e", with(right), label("zone", "1"), label("rack", "1"), engine(cluster.EngineStarting)))
	expect(t, in, "fetch t M from [c b d a e]")
}

func TestAnEmptyViewAndZeroValuesPlanNothingAndDoNotPanic(t *testing.T) {
	if plan := placement.Plan(placement.Config{}, placement.Input{}); plan != nil {
		t.Errorf("plan of nothing: %v", plan)
	}
	expect(t, input(want(3)))
	if got, err := placement.Choose(placement.Config{}, placement.Input{}, cluster.Wanted{}, 0, nil); len(got) != 0 || err == nil {
		t.Errorf("chosen %v, error %v", got, err)
	}
	if got, err := placement.Choose(placement.Config{}, placement.Input{View: &cluster.View{}}, want(cluster.EveryNode), 0, nil); len(got) != 0 || err == nil || strings.HasSuffix(err.Error(), ":") {
		t.Errorf("chosen %v, error %v", got, err)
	}
	expect(t, input(want(1), &cluster.Node{}, &cluster.Node{ID: "b", Engine: &cluster.Engine{}}))
	in := input(cluster.Wanted{Name: "M"}, node("a"), node("b", with("")))
	expect(t, in)
}

func TestSizesBeyondAllBoundsFitNowhere(t *testing.T) {
	huge := func(n *cluster.Node) {
		n.Models = append(n.Models, cluster.Model{Name: "m", Digest: right, Size: math.MaxInt64, Footprint: &cluster.Footprint{Weights: math.MaxInt64 / 2}})
	}
	expect(t, input(want(2, preloaded), node("a", huge), node("b"), node("c", memory(0, 0))))
	negative := func(n *cluster.Node) {
		n.Models = append(n.Models, cluster.Model{Name: "m", Digest: right, Size: -1})
		n.Slots.Total, n.Memory.Free, n.DiskFree = -1, -1, -1
	}
	expect(t, input(want(2), node("a", negative), node("b", negative), node("c", negative)), "remove c m")
}
