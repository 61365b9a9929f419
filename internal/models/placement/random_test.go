package placement_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/placement"
)

const (
	lag     = 3 // seconds until all see what a node holds
	reserve = 5 * gb
)

// job is an action that is carried out.
type job struct {
	placement.Action
	ends int
}

// world is a cluster for which plans are made and carried out, a step a second.
type world struct {
	t       *testing.T
	r       *rand.Rand
	step    int
	nodes   []*cluster.Node
	seen    [][]*cluster.Node // the nodes as they were, the oldest first
	state   *cluster.State
	since   int
	running []job
	done    map[int][]placement.Action // to be shown as running until then
	failed  map[int][]placement.Action
	calm    bool
	count   map[string]int // of each action, since it is calm
	demand  []float64
}

func digestOf(model, version int) string { return fmt.Sprintf("%032d%032d", model, version) }
func nameOf(model int) string            { return fmt.Sprintf("m%d:latest", model) }

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, r: rand.New(rand.NewPCG(seed, 1)), state: cluster.NewState(), done: map[int][]placement.Action{}, failed: map[int][]placement.Action{}, count: map[string]int{}}
	models := 1 + w.r.IntN(6)
	w.demand = make([]float64, models)
	for i := range 1 + w.r.IntN(9) {
		total := int64(8<<w.r.IntN(4)) * gb
		n := node(fmt.Sprint("n", i), memory(total, total*9/10), disk(int64(w.r.IntN(300))*gb), slots(max(0, w.r.IntN(6)-3), w.r.IntN(5)))
		for _, k := range []string{"zone", "rack", "host", "gpu"} {
			if w.r.IntN(2) == 0 {
				n.Labels[k] = fmt.Sprint(w.r.IntN(3))
			}
		}
		switch w.r.IntN(12) {
		case 0:
			n.Engine = nil
		case 1:
			n.Engine.Kind = cluster.LlamaServer
		case 2, 3:
			ours(n)
		}
		for m := range models {
			if ollama(n) && w.r.IntN(3) == 0 {
				w.give(n, m, digestOf(m, w.r.IntN(2)))
			}
			if w.r.IntN(12) == 0 {
				n.Preload = append(n.Preload, nameOf(m))
			}
		}
		w.nodes = append(w.nodes, n)
	}
	for m := range models {
		w.place(m)
	}
	return w
}

func ollama(n *cluster.Node) bool { return n.Engine != nil && n.Engine.Kind == cluster.Ollama }
func ready(n *cluster.Node) bool {
	return (ollama(n) || n.Engine != nil && n.Engine.Folder) && n.Condition == cluster.Alive && n.Engine.Condition == cluster.EngineReady
}

// takes tells whether the node can be given a model: also a llama-server that waits for its first.
func takes(n *cluster.Node) bool {
	return ready(n) || n.Engine != nil && n.Engine.Folder && n.Condition == cluster.Alive && n.Engine.Condition == cluster.EngineStarting && len(n.Models) == 0
}

func sizeOf(model int) int64 { return int64(1+model*5) * gb }

func (w *world) give(n *cluster.Node, model int, digest string) {
	w.take(n, nameOf(model))
	named(nameOf(model), digest, sizeOf(model))(n)
	if got := &n.Models[len(n.Models)-1]; !ollama(n) {
		got.Digest, got.Weights, got.Footprint = "", digest, nil
	}
	n.Models[len(n.Models)-1].ModifiedAt = now.Add(time.Duration(w.step) * time.Second)
	n.DiskFree = max(1, n.DiskFree-sizeOf(model))
}

func (w *world) take(n *cluster.Node, name string) {
	for i, m := range n.Models {
		if m.Name == name {
			n.DiskFree += m.Size
			n.Models = slices.Delete(n.Models, i, i+1)
			w.unload(n, name)
			return
		}
	}
}

func (w *world) load(n *cluster.Node, name, digest string, size int64) {
	w.unload(n, name)
	n.Loaded = append(n.Loaded, cluster.Loaded{Name: name, Digest: digest, VRAM: size, ExpiresAt: now.Add(1000 * time.Hour)})
	n.Memory.Free -= size
}

func (w *world) unload(n *cluster.Node, name string) {
	for i, l := range n.Loaded {
		if l.Name == name {
			n.Memory.Free += l.VRAM
			n.Loaded = slices.Delete(n.Loaded, i, i+1)
			return
		}
	}
}

func (w *world) place(m int) {
	v := cluster.Wanted{Name: nameOf(m), Digest: digestOf(m, w.r.IntN(2)), Replicas: cluster.Replicas(1 + w.r.IntN(4)), Pin: w.r.IntN(6) == 0, Preload: w.r.IntN(4) == 0}
	switch w.r.IntN(8) {
	case 0:
		v.Replicas = cluster.EveryNode
	case 1:
		v.Labels = map[string]string{"gpu": "1"}
	case 2:
		for _, n := range w.nodes {
			if w.r.IntN(2) == 0 {
				v.Nodes = append(v.Nodes, n.ID)
			}
		}
		v.Replicas = max(1, min(v.Replicas, cluster.Replicas(len(v.Nodes))))
	case 3:
		at := now.Add(time.Duration(w.step) * time.Second)
		v = cluster.Wanted{Name: v.Name, Replicas: 1, Deleted: &at}
	case 4:
		delete(w.state.Models, nameOf(m))
		return
	}
	w.state.Models[nameOf(m)] = v
}

// trouble changes something at random.
func (w *world) trouble() {
	n := w.nodes[w.r.IntN(len(w.nodes))]
	switch w.r.IntN(15) {
	case 0, 1:
		n.Condition = cluster.Dead
	case 2:
		n.Condition = cluster.Suspect
	case 3, 4, 5:
		n.Condition = cluster.Alive
	case 6:
		n.State = []cluster.ServiceState{cluster.Active, cluster.Active, cluster.Draining, cluster.Drained}[w.r.IntN(4)]
	case 7:
		if n.Engine != nil {
			n.Engine.Condition = []cluster.EngineCondition{cluster.EngineReady, cluster.EngineDown, cluster.EngineStarting}[w.r.IntN(3)]
		}
	case 8:
		n.Unavailable = []string{"", "night"}[w.r.IntN(2)]
	case 9:
		w.place(w.r.IntN(len(w.demand)))
	case 12, 13: // clients have the node load what it holds
		for _, m := range n.Models {
			if _, is := n.LoadedModel(m.Name); !is && ready(n) && m.Size < n.Memory.Free {
				w.load(n, m.Name, m.Digest, m.Size)
			}
		}
	case 10:
		w.demand[w.r.IntN(len(w.demand))] = float64(max(0, w.r.IntN(5)-2)) * 2.5
	case 14:
		n.Slots.Busy = max(0, w.r.IntN(6)-3)
	case 11: // another leader: it knows nothing of what ran, which ends soon
		for i := range w.running {
			w.running[i].ends = min(w.running[i].ends, w.step+1)
		}
		for w.advance(); len(w.running) > 0; w.advance() {
		}
		w.since, w.done, w.failed = w.step, map[int][]placement.Action{}, map[int][]placement.Action{}
	}
}

// advance ends a second.
func (w *world) advance() {
	w.step++
	var snapshot []*cluster.Node
	for _, n := range w.nodes {
		c := *n
		c.Models, c.Loaded, c.Fetches = slices.Clone(n.Models), slices.Clone(n.Loaded), nil
		for _, j := range w.running {
			if j.Kind == placement.Fetch && j.Node == n.ID {
				c.Fetches = append(c.Fetches, cluster.Fetch{Name: j.Name, Digest: j.Digest})
			}
		}
		snapshot = append(snapshot, &c)
	}
	w.seen = append(w.seen, snapshot)
	w.running = slices.DeleteFunc(w.running, func(j job) bool {
		if j.ends > w.step {
			return false
		}
		n := w.nodes[slices.IndexFunc(w.nodes, func(n *cluster.Node) bool { return n.ID == j.Node })]
		if !ready(n) && !(j.Kind == placement.Fetch && takes(n)) || !w.calm && w.r.IntN(8) == 0 {
			w.failed[w.step+5] = append(w.failed[w.step+5], j.Action)
			return true
		}
		var model int
		fmt.Sscanf(j.Name, "m%d", &model)
		switch j.Kind {
		case placement.Fetch:
			w.give(n, model, j.Digest)
		case placement.Remove:
			w.take(n, j.Name)
		case placement.Load:
			w.load(n, j.Name, j.Digest, sizeOf(model))
		case placement.Unload:
			w.unload(n, j.Name)
		}
		w.done[w.step+lag] = append(w.done[w.step+lag], j.Action)
		return true
	})
}

// view is what the leader sees: conditions at once, the rest late.
func (w *world) view() *cluster.View {
	late := 0
	if !w.calm {
		late = w.r.IntN(lag)
	}
	var nodes []*cluster.Node
	for i, n := range w.nodes {
		c := *n
		if at := len(w.seen) - 1 - late; at >= 0 {
			c = *w.seen[at][i]
			c.Condition, c.State, c.Unavailable, c.Engine = n.Condition, n.State, n.Unavailable, n.Engine
		}
		nodes = append(nodes, &c)
	}
	nodes[0].Demand = nil
	for m, busy := range w.demand {
		nodes[0].Demand = append(nodes[0].Demand, cluster.Demand{Name: nameOf(m), Busy: busy})
	}
	return cluster.NewView("n0", now, nodes)
}

func (w *world) tick() []placement.Action {
	w.advance()
	in := placement.Input{View: w.view(), State: w.state, Now: now.Add(time.Duration(w.step) * time.Second), Since: now.Add(time.Duration(w.since) * time.Second)}
	for _, j := range w.running {
		in.Running = append(in.Running, j.Action)
	}
	for until, actions := range w.done {
		if until > w.step {
			in.Running = append(in.Running, actions...)
		}
	}
	for until, actions := range w.failed {
		if until > w.step {
			in.Failed = append(in.Failed, actions...)
		}
	}
	plan := placement.Plan(placement.Config{Reserve: reserve}, in)
	for i, a := range plan {
		w.check(in, a, plan[:i])
		takes := 1 + w.r.IntN(3)
		if a.Kind == placement.Fetch {
			takes = 1 + w.r.IntN(20)
		}
		w.running = append(w.running, job{Action: a, ends: w.step + takes})
	}
	return plan
}

// check holds an action against the promises, by the truth and not by what is seen.
func (w *world) check(in placement.Input, a placement.Action, before []placement.Action) {
	w.t.Helper()
	n, wanted := in.View.Node(a.Node), w.state.Models[a.Name]
	fail := func(why string) {
		w.t.Fatalf("step %d: %s: %v (wanted %+v)", w.step, why, brief([]placement.Action{a}), wanted)
	}
	others := append(slices.Clone(in.Running), before...)
	for _, o := range others {
		if o.Node == a.Node && o.Name == a.Name {
			fail("something is under way there: " + brief([]placement.Action{o})[0])
		}
	}
	if !ready(n) && !(a.Kind == placement.Fetch && takes(n)) {
		fail("its engine cannot do it")
	}
	if w.calm {
		id := brief([]placement.Action{{Kind: a.Kind, Node: a.Node, Name: a.Name}})[0]
		if w.count[id]++; w.count[id] > 1 {
			fail("planned again")
		}
		opposite := map[placement.Kind]placement.Kind{placement.Fetch: placement.Remove, placement.Load: placement.Unload, placement.Unload: placement.Load}
		if o, ok := opposite[a.Kind]; ok && w.count[brief([]placement.Action{{Kind: o, Node: a.Node, Name: a.Name}})[0]] > 0 {
			fail("planned after its opposite")
		}
	}
	if wanted.Digest == "" {
		if wanted.Deleted != nil && a.Kind != placement.Remove || wanted.Deleted == nil && a.Kind != placement.Load {
			fail("it is not wanted")
		}
		return
	}
	switch a.Kind {
	case placement.Fetch:
		w.checkFetch(in, a, others, fail)
	case placement.Remove:
		left, whole, names := 0, 0, 0
		for _, other := range w.nodes {
			going := slices.ContainsFunc(append(others, a), func(o placement.Action) bool {
				return o.Kind == placement.Remove && o.Node == other.ID && o.Name == a.Name
			})
			if m, ok := other.Model(a.Name); ok && !going && ready(other) && other.State == cluster.Active {
				names++
				if m.Of() == wanted.Digest {
					left++
				}
				if m.Digest == wanted.Digest {
					whole++
				}
			}
		}
		if left < max(1, int(wanted.Replicas)) || names == 0 {
			fail(fmt.Sprintf("%d replicas would be left", left))
		}
		if ollama(n) && whole == 0 {
			fail("only weights would be left")
		}
		if wanted.Pin || n.State != cluster.Active {
			fail("it is pinned, or its node drained")
		}
	case placement.Unload:
		if wanted.Preload || slices.Contains(n.Preload, a.Name) {
			fail("it is to be kept loaded")
		}
		if n.Slots.Busy > 0 {
			fail("it may be serving")
		}
	}
}

func (w *world) checkFetch(in placement.Input, a placement.Action, others []placement.Action, fail func(string)) {
	n, wanted := in.View.Node(a.Node), w.state.Models[a.Name]
	under := map[string]bool{}
	for _, f := range n.Fetches {
		under[f.Name] = true
	}
	for _, o := range others {
		if o.Kind == placement.Fetch && o.Node == a.Node {
			under[o.Name] = true
		}
	}
	var model int
	fmt.Sscanf(a.Name, "m%d", &model)
	size := int64(0) // as long as somebody tells it
	for _, r := range in.View.Replicas(a.Name) {
		if r.Model.Digest == a.Digest {
			size = sizeOf(model)
		}
	}
	switch {
	case a.Digest != wanted.Digest || n.State != cluster.Active || n.Unavailable != "":
		fail("another digest, or no node for it")
	case len(under) >= 2:
		fail("two are under way there")
	case len(wanted.Nodes) > 0 && !slices.Contains(wanted.Nodes, n.ID):
		fail("the node is not named")
	case !ollama(n) && !slices.Contains(wanted.Nodes, n.ID):
		fail("a llama-server that is not named")
	case wanted.Labels["gpu"] != "" && wanted.Labels["gpu"] != n.Labels["gpu"]:
		fail("the node has not the label")
	case size > n.Memory.Total:
		fail("no memory")
	case n.DiskFree < 2*size+reserve && n.DiskFree > 0:
		fail("no disk")
	}
	for _, id := range a.From {
		if s := in.View.Node(id); s == nil || s.Condition != cluster.Alive || !slices.ContainsFunc(s.Models, func(m cluster.Model) bool { return m.Digest == a.Digest }) {
			fail("no source")
		}
	}
}

// settled checks what must be true when nothing is planned any more.
func (w *world) settled() {
	view := w.view()
	for _, key := range slices.Sorted(maps.Keys(w.state.Models)) {
		wanted := w.state.Models[key]
		if wanted.Deleted != nil {
			for _, n := range w.nodes {
				if m, ok := n.Model(key); ok && ready(n) && m.ModifiedAt.Before(*wanted.Deleted) {
					w.t.Errorf("%s is deleted, and %s holds it", key, n.ID)
				}
			}
			continue
		}
		chosen, err := placement.Choose(placement.Config{Reserve: reserve}, placement.Input{View: view}, wanted, 0, nil)
		whole, sources, model := true, false, false
		for _, r := range view.Replicas(key) {
			sources = sources || r.Node.Condition != cluster.Dead && r.Model.Digest == wanted.Digest
		}
		for _, id := range chosen {
			n := view.Node(id)
			m, ok := n.Model(key)
			whole, model = whole && ok && m.Of() == wanted.Digest && ready(n), model || ollama(n)
			if n.Condition == cluster.Alive && (!ok || m.Of() != wanted.Digest) && (sources || err == nil && len(chosen) == 1) {
				if s, suspect := holders(view, key, wanted.Digest); s == 0 && suspect > 0 {
					continue // it waits for the suspect one
				}
				w.t.Errorf("%s is wanted on %s, which has %q", key, id, m.Of())
			}
		}
		if !whole || err != nil || wanted.Pin || wanted.Replicas == cluster.EveryNode {
			continue
		}
		for _, r := range view.Replicas(key) {
			if ready(r.Node) && r.Node.State == cluster.Active && !slices.Contains(chosen, r.Node.ID) {
				if ollama(r.Node) && !model {
					continue // only weights would be left
				}
				w.t.Errorf("%s is wanted %s times on %v, and %s holds it too", key, wanted.Replicas, chosen, r.Node.ID)
			}
		}
	}
}

func holders(view *cluster.View, key, digest string) (alive, suspect int) {
	for _, r := range view.Replicas(key) {
		switch {
		case r.Model.Digest != digest || !ollama(r.Node):
		case r.Node.Condition == cluster.Alive:
			alive++
		case r.Node.Condition == cluster.Suspect:
			suspect++
		}
	}
	return alive, suspect
}

func TestRandomClustersLoseNothingAndComeToRest(t *testing.T) {
	worlds, actions := 400, map[placement.Kind]int{}
	if testing.Short() {
		worlds = 50
	}
	for seed := range uint64(worlds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(t, seed)
			for range 150 {
				if w.r.IntN(4) == 0 {
					w.trouble()
				}
				for _, a := range w.tick() {
					actions[a.Kind]++
				}
			}
			// Nothing happens any more: what was under way ends, then all comes to rest.
			for len(w.running) > 0 {
				w.advance()
			}
			w.failed = map[int][]placement.Action{}
			for range 2 * lag {
				w.advance()
			}
			w.calm = true
			for quiet := 0; quiet < 30; quiet++ {
				if plan := w.tick(); len(plan) > 0 || len(w.running) > 0 {
					quiet = 0
				}
				if w.step > 2000 {
					t.Fatal("it does not come to rest")
				}
			}
			w.settled()
		})
	}
	for _, kind := range []placement.Kind{placement.Fetch, placement.Remove, placement.Load, placement.Unload} {
		if actions[kind] < worlds/10 {
			t.Errorf("%d times %s: the worlds are too peaceful to show anything", actions[kind], kind)
		}
	}
	t.Log(actions)
}

func TestEqualInputsGiveEqualPlans(t *testing.T) {
	for seed := range uint64(50) {
		w := newWorld(t, seed)
		w.advance()
		in := placement.Input{View: w.view(), State: w.state, Now: now}
		first := placement.Plan(placement.Config{}, in)
		for range 5 {
			nodes := slices.Clone(in.View.Nodes)
			w.r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
			in.View = cluster.NewView(in.View.Self, now, nodes)
			if diff := slices.CompareFunc(first, placement.Plan(placement.Config{}, in), func(a, b placement.Action) int {
				return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b))
			}); diff != 0 {
				t.Fatalf("seed %d: plans differ", seed)
			}
		}
	}
}
