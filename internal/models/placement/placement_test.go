package placement_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/placement"
)

const gb = 1_000_000_000

var (
	now   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	right = strings.Repeat("a", 64) // the digest that is wanted
	wrong = strings.Repeat("b", 64)
)

// change is something that makes a node differ from others.
type change func(*cluster.Node)

// node is an alive one with a ready Ollama, 64 GB of memory and 500 GB of disk.
func node(id string, changes ...change) *cluster.Node {
	n := &cluster.Node{ID: cluster.NodeID(id), Name: id, Condition: cluster.Alive, State: cluster.Active, Labels: map[string]string{},
		Engine:  &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady},
		Machine: cluster.Machine{Memory: cluster.Memory{Total: 64 * gb, Free: 60 * gb}, DiskFree: 500 * gb}}
	for _, c := range changes {
		c(n)
	}
	return n
}

// with is a replica of m, of 4 GB, modified an hour ago.
func with(digest string) change { return named("m:latest", digest, 4*gb) }

func named(name, digest string, size int64) change {
	return func(n *cluster.Node) {
		n.Models = append(n.Models, cluster.Model{Name: name, Digest: digest, Size: size, ModifiedAt: now.Add(-time.Hour),
			Footprint: &cluster.Footprint{Weights: size, PerToken: 100_000, Context: 32768}})
	}
}

func loaded(expires time.Duration) change {
	return func(n *cluster.Node) {
		n.Loaded = append(n.Loaded, cluster.Loaded{Name: "m:latest", Digest: right, VRAM: 5 * gb, ContextLength: 4096, ExpiresAt: now.Add(expires)})
	}
}

func label(k, v string) change             { return func(n *cluster.Node) { n.Labels[k] = v } }
func condition(c cluster.Condition) change { return func(n *cluster.Node) { n.Condition = c } }
func state(s cluster.ServiceState) change  { return func(n *cluster.Node) { n.State = s } }
func memory(total, free int64) change {
	return func(n *cluster.Node) { n.Memory = cluster.Memory{Total: total, Free: free} }
}
func disk(free int64) change { return func(n *cluster.Node) { n.DiskFree = free } }
func engine(c cluster.EngineCondition) change {
	return func(n *cluster.Node) { n.Engine.Condition = c }
}
func slots(busy, total int) change {
	return func(n *cluster.Node) { n.Slots = cluster.Slots{Busy: busy, Total: total} }
}
func owner(n *cluster.Node) { n.Unavailable = "it runs on its battery" }
func damaged(n *cluster.Node) {
	for i := range n.Models {
		n.Models[i].Damaged = true
	}
}
func llama(n *cluster.Node)       { n.Engine.Kind = cluster.LlamaServer }
func ours(n *cluster.Node)        { n.Engine.Kind, n.Engine.Folder = cluster.LlamaServer, true }
func gatewayOnly(n *cluster.Node) { n.Engine = nil }

// filed is the weights of m, in the folder of a llama-server of the node's own.
func filed(digest string) change {
	return func(n *cluster.Node) {
		ours(n)
		n.Models = append(n.Models, cluster.Model{Name: "M:latest", Weights: digest, Called: "m_latest", Size: 4 * gb, ModifiedAt: now.Add(-time.Hour)})
	}
}

func demand(busy float64) change {
	return func(n *cluster.Node) { n.Demand = append(n.Demand, cluster.Demand{Name: "m:latest", Busy: busy}) }
}

func keeps(model string) change {
	return func(n *cluster.Node) { n.Preload = append(n.Preload, model) }
}

func fetching(name, digest string) change {
	return func(n *cluster.Node) { n.Fetches = append(n.Fetches, cluster.Fetch{Name: name, Digest: digest}) }
}

// want is m with the right digest on so many nodes.
func want(replicas cluster.Replicas, changes ...func(*cluster.Wanted)) cluster.Wanted {
	w := cluster.Wanted{Name: "M", Digest: right, Replicas: replicas}
	for _, c := range changes {
		c(&w)
	}
	return w
}

func pinned(w *cluster.Wanted)    { w.Pin = true }
func preloaded(w *cluster.Wanted) { w.Preload = true }
func deleted(w *cluster.Wanted)   { at := now.Add(-time.Minute); w.Deleted = &at }
func only(ids ...cluster.NodeID) func(*cluster.Wanted) {
	return func(w *cluster.Wanted) { w.Nodes = ids }
}
func labelled(k, v string) func(*cluster.Wanted) {
	return func(w *cluster.Wanted) { w.Labels = map[string]string{k: v} }
}

func input(w cluster.Wanted, nodes ...*cluster.Node) placement.Input {
	s := cluster.NewState()
	if w.Name != "" {
		s.Models[cluster.CanonicalModel(w.Name)] = w
	}
	return placement.Input{View: cluster.NewView("a", now, nodes), State: s, Now: now}
}

// brief is actions as words, without what is for a person.
func brief(actions []placement.Action) []string {
	lines := []string{}
	for _, a := range actions {
		line := fmt.Sprintf("%s %s %s", a.Kind, a.Node, a.Name)
		if a.Kind == placement.Fetch {
			line += fmt.Sprint(" from ", a.From)
		}
		lines = append(lines, line)
	}
	return lines
}

func TestPlanFollowsEachRule(t *testing.T) {
	tests := []struct {
		name  string
		want  cluster.Wanted
		nodes []*cluster.Node
		plan  []string
	}{
		{"what is as it is wanted is left alone", want(2), []*cluster.Node{node("a", with(right)), node("b", with(right)), node("c")}, nil},
		{"too few replicas: another node fetches", want(2), []*cluster.Node{node("a", with(right)), node("b")}, []string{"fetch b M from [a]"}},
		{"all fetch at once, and feed each other", want(4), []*cluster.Node{node("a", with(right)), node("b"), node("c"), node("d")},
			[]string{"fetch b M from [a]", "fetch c M from [a]", "fetch d M from [a]"}},
		{"every node that can", want(cluster.EveryNode), []*cluster.Node{node("a", with(right)), node("b"), node("c", gatewayOnly), node("d", state(cluster.Drained)), node("e", llama)},
			[]string{"fetch b M from [a]"}},
		{"nobody has it: one node asks upstream", want(3), []*cluster.Node{node("a"), node("b"), node("c")}, []string{"fetch a M from []"}},
		{"nobody has it and one node fetches: the others wait", want(3), []*cluster.Node{node("a"), node("b", fetching("m", right)), node("c")}, nil},
		{"somebody has it and one node fetches: the others too", want(3), []*cluster.Node{node("a", with(right)), node("b", fetching("m", right)), node("c")},
			[]string{"fetch c M from [a]"}},
		{"only a suspect node has it: nobody asks upstream", want(2), []*cluster.Node{node("a", with(right), condition(cluster.Suspect)), node("b")}, nil},
		{"a suspect node's replica counts", want(2), []*cluster.Node{node("a", with(right)), node("b", with(right), condition(cluster.Suspect)), node("c")}, nil},
		{"a dead node's replica does not", want(2), []*cluster.Node{node("a", with(right)), node("b", with(right), condition(cluster.Dead)), node("c")},
			[]string{"fetch c M from [a]"}},
		{"a dead node is asked for nothing, if it was the only one", want(1), []*cluster.Node{node("a", with(right), condition(cluster.Dead)), node("b")},
			[]string{"fetch b M from []"}},
		{"a suspect node is told nothing", want(2), []*cluster.Node{node("a", with(right)), node("b", condition(cluster.Suspect))}, nil},
		{"a draining node's replica moves, and stays there", want(1), []*cluster.Node{node("a", with(right), state(cluster.Draining)), node("b")},
			[]string{"fetch b M from [a]"}},
		{"a draining node keeps it when it has moved", want(1), []*cluster.Node{node("a", with(right), state(cluster.Drained)), node("b", with(right))}, nil},
		{"a node whose engine is down is no target, its replica counts", want(2), []*cluster.Node{node("a", with(right)), node("b", with(right), engine(cluster.EngineDown)), node("c"), node("d", engine(cluster.EngineDown))}, nil},
		{"a node that its owner keeps is no target, its replica counts", want(2), []*cluster.Node{node("a", with(right), owner), node("b", owner), node("c")}, []string{"fetch c M from [a]"}},
		{"a damaged replica is made anew where it is, from good ones", want(2), []*cluster.Node{node("a", with(right)), node("b", with(right), damaged), node("c")}, []string{"fetch b M from [a]"}},
		{"one that its node repairs is left to it", want(2), []*cluster.Node{node("a", with(right)), node("b", with(right), damaged, fetching("m", right)), node("c")}, nil},
		{"a damaged last replica stays, and is no source", want(1), []*cluster.Node{node("a", with(right), damaged), node("b")}, []string{"fetch a M from []"}},
		{"a damaged replica counts as none", want(2), []*cluster.Node{node("a", with(right)), node("b", with(right)), node("c", with(right), damaged)}, []string{"remove c m:latest"}},
		{"a damaged replica relieves no other", want(1), []*cluster.Node{node("a", with(right)), node("b", with(right), damaged)}, []string{"remove b m:latest"}},
		{"a damaged replica is not kept loaded", want(2, preloaded), []*cluster.Node{node("a", with(right), loaded(time.Hour)), node("b", with(right), damaged, fetching("m", right))}, nil},
		{"the digest under another name is at hand", want(2), []*cluster.Node{node("a", with(right)), node("b"), node("c", named("other", right, 4*gb), disk(1))},
			[]string{"fetch c M from [c a]"}},
		{"another digest is replaced on its node", want(2), []*cluster.Node{node("a", with(right)), node("b"), node("c", with(wrong))},
			[]string{"fetch c M from [a]"}},
		{"other digests are replaced one by one", want(3), []*cluster.Node{node("a", with(right)), node("b", with(wrong)), node("c", with(wrong))},
			[]string{"fetch b M from [a]"}},
		{"the next one waits for the first", want(3), []*cluster.Node{node("a", with(right)), node("b", with(wrong), fetching("M", right)), node("c", with(wrong))}, nil},
		{"another digest that is one too many goes", want(1), []*cluster.Node{node("a", with(right)), node("b", with(wrong))}, []string{"remove b m:latest"}},
		{"another digest that is pinned is replaced", want(1, pinned), []*cluster.Node{node("a", with(right)), node("b", with(wrong))}, []string{"fetch b M from [a]"}},
		{"another digest stays while nobody has the wanted one", want(1), []*cluster.Node{node("a", with(wrong)), node("b", with(wrong))}, []string{"fetch a M from []"}},
		{"a llama-server's model of that name is its own", want(1), []*cluster.Node{node("a", with(right)), node("b", llama, with(""))}, nil},

		{"a llama-server is given nothing that it is not named for", want(2), []*cluster.Node{node("a", with(right)), node("b", ours)}, nil},
		{"a llama-server gets what it is named for", want(2, only("a", "b")), []*cluster.Node{node("a", with(right)), node("b", ours)}, []string{"fetch b M from [a]"}},
		{"a llama-server that waits for its first model gets it", want(1, only("b")), []*cluster.Node{node("a", with(right)), node("b", ours, engine(cluster.EngineStarting))}, []string{"fetch b M from [a]"}},
		{"a llama-server that loads another model does not", want(1, only("b")), []*cluster.Node{node("a", with(right)), node("b", ours, named("x", "", gb), engine(cluster.EngineStarting))}, nil},
		{"a llama-server's counts where it is named", want(2, only("a", "b")), []*cluster.Node{node("a", with(right)), node("b", filed(right)), node("c")}, nil},
		{"a llama-server's of another digest is replaced", want(2, only("a", "b")), []*cluster.Node{node("a", with(right)), node("b", filed(wrong))}, []string{"fetch b M from [a]"}},
		{"a llama-server gives none away", want(2, only("b", "c")), []*cluster.Node{node("b", filed(right)), node("c")}, []string{"fetch c M from []"}},
		{"for a llama-server's no Ollama's goes", want(1, only("b")), []*cluster.Node{node("a", with(right)), node("b", filed(right))}, nil},
		{"where an Ollama's stays another goes", want(2, only("b", "c")), []*cluster.Node{node("a", with(right)), node("b", filed(right)), node("c", with(right))}, []string{"remove a m:latest"}},
		{"a llama-server's goes where it is not named any more", want(1, only("a")), []*cluster.Node{node("a", with(right)), node("b", filed(right))}, []string{"remove b M:latest"}},
		{"a llama-server's goes where nobody is", want(cluster.EveryNode), []*cluster.Node{node("a", with(right)), node("b", filed(right))}, []string{"remove b M:latest"}},
		{"deleted: a llama-server's goes, its own stays", want(1, deleted), []*cluster.Node{node("a", filed(right)), node("b", ours, named("m", "", gb))}, []string{"remove a M:latest"}},
		{"a llama-server loads by itself", want(2, only("a", "b"), preloaded), []*cluster.Node{node("a", with(right), loaded(0)), node("b", filed(right))}, nil},

		{"one too many goes", want(1), []*cluster.Node{node("a", with(right)), node("b", with(right), memory(32*gb, 30*gb))}, []string{"remove b m:latest"}},
		{"two too many go one by one", want(1), []*cluster.Node{node("a", with(right)), node("b", with(right)), node("c", with(right), memory(32*gb, 30*gb))}, []string{"remove c m:latest"}},
		{"none goes when it is pinned", want(1, pinned), []*cluster.Node{node("a", with(right)), node("b", with(right))}, nil},
		{"none goes while one that stays is suspect", want(2), []*cluster.Node{node("a", with(right)), node("b", with(right), condition(cluster.Suspect)), node("c", with(right), condition(cluster.Suspect)), node("d", with(wrong))}, nil},
		{"none goes while the engine of one that stays is down", want(2), []*cluster.Node{node("a", with(right)), node("b", with(right), engine(cluster.EngineDown)), node("c", with(wrong))}, nil},
		{"none goes while one is fetched", want(1), []*cluster.Node{node("a", with(right)), node("b", with(right)), node("c", fetching("m", right))}, nil},
		{"of one zone one goes first", want(2), []*cluster.Node{node("a", with(right), label("zone", "1")), node("b", with(right), label("zone", "1"), memory(32*gb, 0)), node("c", with(right), label("zone", "2"), memory(16*gb, 0))},
			[]string{"remove b m:latest"}},
		{"of one rack one goes first, of racks of equal numbers in two zones none", want(3), []*cluster.Node{
			node("a", with(right), label("zone", "1"), label("rack", "1")), node("b", with(right), label("zone", "2"), label("rack", "1"), memory(16*gb, 0)),
			node("c", with(right), label("zone", "1"), label("rack", "2"), memory(16*gb, 0)), node("d", with(right), label("zone", "1"), label("rack", "1"), memory(32*gb, 0))},
			[]string{"remove d m:latest"}},
		{"the fullest disk goes first", want(1), []*cluster.Node{node("a", with(right), disk(5*gb)), node("b", with(right))}, []string{"remove a m:latest"}},
		{"what is not loaded goes first", want(1), []*cluster.Node{node("a", with(right)), node("b", with(right), loaded(0))}, []string{"remove a m:latest"}},
		{"the fullest disk goes first, even loaded", want(1), []*cluster.Node{node("a", with(right), disk(5*gb), loaded(0)), node("b", with(right))}, []string{"remove a m:latest"}},
		{"a misplaced one goes first", want(1, only("b", "c")), []*cluster.Node{node("a", with(right)), node("b", with(right)), node("c", with(right), memory(8*gb, 0))}, []string{"remove a m:latest"}},
		{"of the nodes that are named none goes", want(2, only("a", "c")), []*cluster.Node{node("a", with(right)), node("b", with(right)), node("c", with(right), memory(8*gb, 0))}, []string{"remove b m:latest"}},
		{"a misplaced one moves: first it is fetched", want(1, only("b")), []*cluster.Node{node("a", with(right)), node("b")}, []string{"fetch b M from [a]"}},
		{"a misplaced one moves: then it goes", want(1, labelled("gpu", "big")), []*cluster.Node{node("a", with(right)), node("b", with(right), label("gpu", "big"))}, []string{"remove a m:latest"}},
		{"a misplaced one goes also when all nodes want it", want(cluster.EveryNode, labelled("gpu", "big")), []*cluster.Node{node("a", with(right)), node("b", with(right), label("gpu", "big"))}, []string{"remove a m:latest"}},
		{"a misplaced one stays where nothing else can", want(1, only("b")), []*cluster.Node{node("a", with(right)), node("b", llama)}, nil},
		{"where all nodes want it none is too many", want(cluster.EveryNode), []*cluster.Node{node("a", with(right), disk(1)), node("b", with(right), memory(gb, 0)), node("c", with(right), owner)}, nil},

		{"deleted: what is older goes everywhere, what is newer stays", want(1, deleted), []*cluster.Node{node("a", with(right)), node("b", with(wrong), state(cluster.Draining)),
			node("c", with(right), func(n *cluster.Node) { n.Models[0].ModifiedAt = now }), node("d", with(right), condition(cluster.Dead)),
			node("e", with(right), func(n *cluster.Node) { n.Models[0].ModifiedAt = time.Time{} })},
			[]string{"remove a m:latest", "remove b m:latest", "remove e m:latest"}},
		{"what nobody placed is left alone", cluster.Wanted{}, []*cluster.Node{node("a", with(right), loaded(time.Hour)), node("b", with(right), loaded(time.Hour)), node("c", with(wrong))}, nil},

		{"preload: loaded wherever it is held", want(2, preloaded), []*cluster.Node{node("a", with(right), loaded(0)), node("b", with(right))}, []string{"load b m:latest"}},
		{"preload: not where it does not fit beside what is loaded", want(2, preloaded), []*cluster.Node{node("a", with(right), memory(64*gb, 4*gb)), node("b", with(right), memory(64*gb, 5*gb))}, []string{"load b m:latest"}},
		{"preload: what nobody has measured takes at least its size", want(2, preloaded), []*cluster.Node{
			node("a", with(right), memory(64*gb, 3*gb), func(n *cluster.Node) { n.Models[0].Footprint = nil }),
			node("b", with(right), memory(64*gb, 5*gb), func(n *cluster.Node) { n.Models[0].Footprint = nil })}, []string{"load b m:latest"}},
		{"preload: not on a node that its owner keeps or that is drained", want(2, preloaded), []*cluster.Node{node("a", with(right), owner), node("b", with(right), loaded(0)), node("c", with(right), state(cluster.Drained))}, nil},
		{"hot: one more node loads it, the least busy", want(3), []*cluster.Node{node("a", with(right), loaded(time.Hour), slots(4, 4), demand(2)), node("b", with(right), slots(1, 4)), node("c", with(right), slots(1, 8), demand(2))},
			[]string{"load c m:latest"}},
		{"hot: whoever placed it", cluster.Wanted{}, []*cluster.Node{node("a", with(right), loaded(time.Hour), demand(2)), node("b", with(right))}, []string{"load b m:latest"}},
		{"hot: not what does not fit beside what is loaded", want(2), []*cluster.Node{node("a", with(right), loaded(time.Hour), demand(2)), node("b", with(right), memory(64*gb, 4*gb))}, nil},
		{"not hot: what has slots", want(2), []*cluster.Node{node("a", with(right), loaded(time.Hour), slots(3, 4), demand(3)), node("b", with(right))}, nil},
		{"not hot: what a dead node's clients asked", want(2), []*cluster.Node{node("a", with(right), loaded(time.Hour)), node("b", with(right)), node("c", condition(cluster.Dead), demand(3))}, nil},
		{"what is loaded nowhere is loaded by its first request", want(2), []*cluster.Node{node("a", with(right), demand(5)), node("b", with(right))}, nil},
		{"idle: all but one let it go, one by one", want(3), []*cluster.Node{node("a", with(right), loaded(time.Hour)), node("b", with(right), loaded(time.Hour), memory(64*gb, gb)), node("c", with(right), loaded(time.Hour))},
			[]string{"unload b m:latest"}},
		{"idle: one that is busy keeps it", want(2), []*cluster.Node{node("a", with(right), loaded(time.Hour)), node("b", with(right), loaded(time.Hour), memory(64*gb, gb), slots(1, 4))},
			[]string{"unload a m:latest"}},
		{"idle: one whose owner has it keep it loaded keeps it", want(2), []*cluster.Node{node("a", with(right), loaded(time.Hour), keeps("m:latest")), node("b", with(right), loaded(time.Hour), keeps("n:latest"))},
			[]string{"unload b m:latest"}},
		{"idle: owners have all keep it loaded", want(2), []*cluster.Node{node("a", with(right), loaded(time.Hour), keeps("m:latest")), node("b", with(right), loaded(time.Hour), keeps("m:latest"))}, nil},
		{"idle: the last one keeps it", want(2), []*cluster.Node{node("a", with(right), loaded(time.Hour)), node("b", with(right))}, nil},
		{"idle: what the engine lets go by itself is left to it", want(2), []*cluster.Node{node("a", with(right), loaded(time.Minute)), node("b", with(right), loaded(time.Second))}, nil},
		{"idle: what is to be preloaded stays", want(2, preloaded), []*cluster.Node{node("a", with(right), loaded(time.Hour)), node("b", with(right), loaded(time.Hour))}, nil},
		{"not idle: somebody asks", want(2), []*cluster.Node{node("a", with(right), loaded(time.Hour), demand(0.1)), node("b", with(right), loaded(time.Hour))}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := input(tt.want, tt.nodes...)
			plan := placement.Plan(placement.Config{Reserve: 10 * gb}, in)
			if diff := cmp.Diff(append([]string{}, tt.plan...), brief(plan)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			for _, a := range plan {
				if a.Why == "" || len(a.Digest) != 64 {
					t.Errorf("%+v: no reason, or no digest", a)
				}
			}
			in.Running = plan
			for _, a := range placement.Plan(placement.Config{Reserve: 10 * gb}, in) {
				if slices.ContainsFunc(plan, func(b placement.Action) bool { return b.Node == a.Node }) {
					t.Errorf("planned while %v are under way: %v", brief(plan), a)
				}
			}
		})
	}
}

func TestChoosePrefersTheBestNodes(t *testing.T) {
	tests := []struct {
		name  string
		want  cluster.Wanted
		nodes []*cluster.Node
		get   []cluster.NodeID
	}{
		{"those that hold it", want(2), []*cluster.Node{node("a"), node("b"), node("c", with(right), memory(8*gb, 1*gb), disk(1))}, []cluster.NodeID{"c", "a"}},
		{"then those that fetch it", want(2), []*cluster.Node{node("a"), node("b", fetching("m", right)), node("c", with(right))}, []cluster.NodeID{"c", "b"}},
		{"then those with another digest of it", want(2), []*cluster.Node{node("a"), node("b", with(wrong)), node("c", with(right))}, []cluster.NodeID{"c", "b"}},
		{"another zone", want(2), []*cluster.Node{node("a", label("zone", "1"), with(right)), node("b", label("zone", "1")), node("c", label("zone", "2"), memory(16*gb, 12*gb))}, []cluster.NodeID{"a", "c"}},
		{"another rack", want(2), []*cluster.Node{node("a", label("rack", "1"), with(right)), node("b", label("rack", "1")), node("c", label("rack", "2"), memory(16*gb, 12*gb))}, []cluster.NodeID{"a", "c"}},
		{"another rack, whose number may be another zone's", want(3), []*cluster.Node{node("a", label("zone", "1"), label("rack", "1"), with(right)), node("b", label("zone", "2"), label("rack", "2"), with(right)),
			node("c", label("zone", "1"), label("rack", "2")), node("d", label("zone", "2"), label("rack", "3"), memory(16*gb, 12*gb))}, []cluster.NodeID{"a", "b", "c"}},
		{"another host", want(2), []*cluster.Node{node("a", label("host", "1"), with(right)), node("b", label("host", "1")), node("c", memory(16*gb, 12*gb))}, []cluster.NodeID{"a", "c"}},
		{"more free memory", want(1), []*cluster.Node{node("a", memory(64*gb, 5*gb)), node("b", memory(64*gb, 30*gb))}, []cluster.NodeID{"b"}},
		{"more disk", want(1), []*cluster.Node{node("a", disk(30*gb)), node("b", disk(200*gb))}, []cluster.NodeID{"b"}},
		{"fewer fetches", want(1), []*cluster.Node{node("a", fetching("x", wrong)), node("b")}, []cluster.NodeID{"b"}},
		{"the less busy", want(1), []*cluster.Node{node("a", slots(3, 4)), node("b", slots(1, 2))}, []cluster.NodeID{"b"}},
		{"the lower id", want(1), []*cluster.Node{node("b"), node("a")}, []cluster.NodeID{"a"}},
		{"alive before suspect", want(1), []*cluster.Node{node("a", condition(cluster.Suspect)), node("b")}, []cluster.NodeID{"b"}},
		{"unknown memory and disk fit", want(1), []*cluster.Node{node("a", memory(0, 0), disk(0))}, []cluster.NodeID{"a"}},
		{"every node that can", want(cluster.EveryNode), []*cluster.Node{node("a"), node("b", disk(1)), node("c")}, []cluster.NodeID{"a", "c"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := placement.Choose(placement.Config{Reserve: gb}, placement.Input{View: cluster.NewView("a", now, tt.nodes)}, tt.want, 4*gb, &cluster.Footprint{Weights: 4 * gb})
			if diff := cmp.Diff(tt.get, got); diff != "" || err != nil {
				t.Errorf("chosen (-want +got):\n%s%v", diff, err)
			}
		})
	}
}

func TestAModelTooLargeForEveryNodeSaysSoAtOnceWithTheNumbers(t *testing.T) {
	footprint := &cluster.Footprint{Weights: 40 * gb, PerToken: 300_000, Context: 8192}
	nodes := []*cluster.Node{node("a", memory(16*gb, 0)), node("b", disk(20*gb)), node("c", state(cluster.Draining)), node("d", condition(cluster.Dead)),
		node("e", engine(cluster.EngineDown)), node("f", llama), node("g", gatewayOnly), node("h", owner), node("i", memory(44*gb, 0))}
	got, err := placement.Choose(placement.Config{Reserve: 3 * gb}, placement.Input{View: cluster.NewView("a", now, nodes)}, want(2), 40*gb, footprint)
	var e *placement.NoRoomError
	if len(got) != 0 || !errors.As(err, &e) {
		t.Fatalf("chosen %v, error %v", got, err)
	}
	text := "place model M: replicas wanted: 2, nodes that can hold one: 0: a: needs 41.2 GB of memory, has 16.0 GB; " +
		"b: needs 83.0 GB of disk with the reserve, has 20.0 GB free; c: is draining; d: is dead; e: its engine is down; " +
		"f: its engine is llama-server, which takes no models; g: has no engine; h: its owner keeps it: it runs on its battery; " +
		"i: needs 41.2 GB of memory, has 44.0 GB, of which 4.4 GB are kept free"
	if err.Error() != text {
		t.Errorf("error:\n%s\nwant:\n%s", err, text)
	}

	// With room on one node it is chosen, and the error stays.
	got, err = placement.Choose(placement.Config{}, placement.Input{View: cluster.NewView("a", now, append(nodes, node("z")))}, want(2), 40*gb, footprint)
	if !slices.Equal(got, []cluster.NodeID{"z"}) || !errors.As(err, &e) || e.Room != 1 {
		t.Errorf("chosen %v, error %v", got, err)
	}
	// What every node wants is content with one.
	if got, err = placement.Choose(placement.Config{}, placement.Input{View: cluster.NewView("a", now, append(nodes, node("z")))}, want(cluster.EveryNode), 40*gb, footprint); err != nil || len(got) != 1 {
		t.Errorf("chosen %v, error %v", got, err)
	}
	if _, err = placement.Choose(placement.Config{}, placement.Input{View: cluster.NewView("a", now, nodes[:2])}, want(cluster.EveryNode), 40*gb*10, footprint); err == nil || !strings.Contains(err.Error(), "no node can hold it: a: needs 41.2 GB") {
		t.Errorf("error %v", err)
	}
}

func TestOfAModelThatNobodyHasReadTheSizeMustFitIntoMemory(t *testing.T) {
	nodes := []*cluster.Node{node("a"), node("b", memory(512*gb, 500*gb)), node("c", memory(0, 0))}
	got, err := placement.Choose(placement.Config{}, placement.Input{View: cluster.NewView("a", now, nodes)}, want(cluster.EveryNode), 200*gb, nil)
	if diff := cmp.Diff([]cluster.NodeID{"b", "c"}, got); diff != "" || err != nil {
		t.Errorf("chosen (-want +got):\n%s%v", diff, err)
	}
	_, err = placement.Choose(placement.Config{}, placement.Input{View: cluster.NewView("a", now, nodes[:1])}, want(1), 200*gb, nil)
	if err == nil || !strings.Contains(err.Error(), "a: needs 200.0 GB of memory, has 64.0 GB") {
		t.Errorf("error %v", err)
	}
}

func TestAContradictoryPlacementNamesTheNodesThatItNames(t *testing.T) {
	view := cluster.NewView("a", now, []*cluster.Node{node("a", label("gpu", "small")), node("b"), node("c", label("gpu", "big"))})
	_, err := placement.Choose(placement.Config{}, placement.Input{View: view}, want(1, only("a", "b", "x"), labelled("gpu", "big")), gb, nil)
	const text = `place model M: replicas wanted: 1, nodes that can hold one: 0: a: its label gpu is "small", wanted is "big"; ` +
		`b: has no label gpu, wanted is "big"; x: nothing has been heard of it`
	if err == nil || err.Error() != text {
		t.Errorf("error:\n%v\nwant:\n%s", err, text)
	}
}

func TestALongListOfRefusalsIsCutInTheTextOnly(t *testing.T) {
	var nodes []*cluster.Node
	for i := range 50 {
		nodes = append(nodes, node(fmt.Sprint("n", i), gatewayOnly))
	}
	_, err := placement.Choose(placement.Config{}, placement.Input{View: cluster.NewView("a", now, nodes)}, want(1), gb, nil)
	var e *placement.NoRoomError
	if !errors.As(err, &e) || len(e.Refusals) != 50 || !strings.HasSuffix(err.Error(), "; and 30 more") {
		t.Errorf("error %v", err)
	}
}

func TestWhatEnginesReportCorrectsTheNeedOfMemoryUpward(t *testing.T) {
	taken := func(vram int64, context int) change {
		return func(n *cluster.Node) {
			n.Loaded = []cluster.Loaded{{Name: "m:latest", Digest: right, VRAM: vram, ContextLength: context}}
		}
	}
	for _, tt := range []struct {
		name    string
		vram    int64
		context int
		fits    bool
	}{
		{"nothing is reported", 0, 0, true},
		{"less", 2 * gb, 4096, true},
		{"more", 9 * gb, 4096, false},
		{"more, for a longer context", 9 * gb, 4096 + 50_000, true},
	} {
		view := cluster.NewView("a", now, []*cluster.Node{node("a", with(right), taken(tt.vram, tt.context)), node("b", memory(8*gb, 0))})
		if got, err := placement.Choose(placement.Config{}, placement.Input{View: view}, want(2), 0, nil); (err == nil) != tt.fits {
			t.Errorf("%s: chosen %v, error %v", tt.name, got, err)
		}
	}
}
