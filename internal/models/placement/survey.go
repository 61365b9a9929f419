package placement

import (
	"fmt"
	"math"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// survey is one look at the cluster, indexed, and the plan that grows from it. What is planned counts at once as
// under way.
type survey struct {
	cfg    Config
	in     Input
	facts  map[string]*fact // by digest
	demand map[string]float64

	busy     map[pair]bool // something is under way: nothing else is planned there
	removing map[pair]bool
	failed   map[attempt]bool
	running  map[work]int // actions under way, of a model
	fetching map[pair]string
	fetches  map[cluster.NodeID]int             // to a node
	alone    map[cluster.NodeID]map[string]bool // digests on their way that only this node holds
	left     map[attempt]cluster.Left           // what fetches tell that is still to come
	coming   map[cluster.NodeID]toCome          // of the models that are on their way to a node
	came     map[cluster.NodeID]int64           // bytes that lie in its spool of blobs that are not whole, but for those of told fetches
	memory   map[cluster.NodeID]int64           // bytes that models being loaded will take

	plan []Action
}

type pair struct {
	node cluster.NodeID
	key  string // a model, canonical
}

type attempt struct {
	pair
	kind   Kind
	digest string
}

type work struct {
	kind Kind
	key  string
}

// toCome is bytes of models that are on their way to a node.
type toCome struct {
	spool, engine int64
	untold        int64 // of spool: of these fetches it is not told how much has come
}

// fact is what the nodes tell of a digest, whatever its name.
type fact struct {
	size      int64
	footprint *cluster.Footprint
	taken     int64           // the most memory that an engine reported, less what a longer context took of it
	holders   []*cluster.Node // not dead, their files not damaged
}

func look(cfg Config, in Input) *survey {
	if cfg.Context == 0 {
		cfg.Context = defaultRoom
	}
	s := &survey{cfg: cfg, in: in,
		facts: map[string]*fact{}, demand: map[string]float64{},
		busy: map[pair]bool{}, removing: map[pair]bool{}, failed: map[attempt]bool{}, running: map[work]int{},
		fetching: map[pair]string{}, fetches: map[cluster.NodeID]int{}, alone: map[cluster.NodeID]map[string]bool{},
		left: map[attempt]cluster.Left{}, coming: map[cluster.NodeID]toCome{}, came: map[cluster.NodeID]int64{}, memory: map[cluster.NodeID]int64{}}
	for _, n := range in.View.Nodes {
		s.learn(n)
	}
	for _, n := range in.View.Nodes {
		for _, l := range n.Loaded {
			s.correct(l)
		}
	}
	for _, a := range in.Running {
		if a.Size > 0 {
			of := s.fact(a.Digest)
			of.size = max(of.size, a.Size)
		}
		s.note(a)
	}
	for _, n := range in.View.Nodes {
		if n.Condition == cluster.Dead {
			continue
		}
		for _, f := range n.Fetches {
			s.note(Action{Kind: Fetch, Node: n.ID, Name: f.Name, Digest: f.Digest})
		}
		for _, d := range n.Demand {
			if d.Busy > 0 {
				s.demand[cluster.CanonicalModel(d.Name)] += d.Busy
			}
		}
	}
	for _, a := range in.Failed {
		s.failed[attempt{pair{a.Node, cluster.CanonicalModel(a.Name)}, a.Kind, a.Digest}] = true
	}
	return s
}

func (s *survey) learn(n *cluster.Node) {
	seen := map[string]bool{}
	for _, m := range n.Models {
		if m.Digest == "" {
			continue
		}
		f := s.fact(m.Digest)
		f.size = max(f.size, m.Size)
		if m.Footprint != nil && m.Footprint.Memory(s.cfg.Context) > f.footprint.Memory(s.cfg.Context) {
			f.footprint = m.Footprint
		}
		if n.Condition != cluster.Dead && ollama(n) && !m.Damaged && !seen[m.Digest] {
			f.holders = append(f.holders, n)
			seen[m.Digest] = true
		}
	}
	for _, f := range n.Fetches { // perhaps nobody holds it yet
		of := s.fact(f.Digest)
		of.size = max(of.size, f.Size)
		if f.Left != nil {
			s.left[attempt{pair{n.ID, cluster.CanonicalModel(f.Name)}, Fetch, f.Digest}] = *f.Left
		}
	}
	for _, b := range n.Blobs {
		if b.State == cluster.BlobPartial {
			s.came[n.ID] = add(s.came[n.ID], min(b.Have, b.Size))
		}
	}
}

func (s *survey) fact(digest string) *fact {
	f := s.facts[digest]
	if f == nil {
		f = &fact{}
		s.facts[digest] = f
	}
	return f
}

func (s *survey) correct(l cluster.Loaded) {
	f := s.facts[l.Digest]
	if f == nil {
		return
	}
	taken := l.VRAM
	if longer := int64(l.ContextLength - s.cfg.Context); longer > 0 && f.footprint != nil {
		taken -= longer * f.footprint.PerToken
	}
	f.taken = max(f.taken, taken)
}

// note counts an action as under way, once however often it is told.
func (s *survey) note(a Action) {
	p := pair{a.Node, cluster.CanonicalModel(a.Name)}
	s.busy[p] = true
	switch a.Kind {
	case Remove:
		s.removing[p] = true
	case Load:
		s.memory[a.Node] = add(s.memory[a.Node], s.toLoad(a.Digest))
	case Fetch:
		if s.fetching[p] == a.Digest {
			return
		}
		s.fetching[p] = a.Digest
		s.fetches[a.Node]++
		s.expect(p, a.Digest)
		if sources, _ := s.sources(a.Digest); len(sources) == 1 {
			if s.alone[sources[0].ID] == nil {
				s.alone[sources[0].ID] = map[string]bool{}
			}
			s.alone[sources[0].ID][a.Digest] = true
		}
	}
	s.running[work{a.Kind, p.key}]++
}

// expect counts the bytes of a fetch that are still to come.
func (s *survey) expect(p pair, digest string) {
	size, c := s.bytes(digest), s.coming[p.node]
	if left, told := s.left[attempt{p, Fetch, digest}]; told {
		spool := min(max(left.Spool, 0), size)
		c.spool, c.engine = add(c.spool, spool), add(c.engine, min(max(left.Engine, 0), size))
		s.came[p.node] = max(s.came[p.node]-(size-spool), 0)
	} else {
		c.spool, c.engine, c.untold = add(c.spool, size), add(c.engine, size), add(c.untold, size)
	}
	s.coming[p.node] = c
}

// act plans an action, unless something is under way there or it failed lately.
func (s *survey) act(a Action) bool {
	p := pair{a.Node, cluster.CanonicalModel(a.Name)}
	if s.busy[p] || s.failed[attempt{p, a.Kind, a.Digest}] {
		return false
	}
	s.note(a)
	s.plan = append(s.plan, a)
	return true
}

// need is the memory that a digest takes when loaded, of one whose footprint nobody has read at least its bytes; 0 when unknown.
func (s *survey) need(digest string) int64 {
	f := s.facts[digest]
	if f == nil {
		return 0
	}
	need := f.footprint.Memory(s.cfg.Context)
	if need == 0 {
		need = f.size
	}
	return max(need, f.taken)
}

// toLoad is need, and at least the model's size: of what would push others out, doubt counts against it.
func (s *survey) toLoad(digest string) int64 {
	if f := s.facts[digest]; f != nil {
		return max(s.need(digest), f.size)
	}
	return 0
}

// room is the bytes of disk that must be free for a fetch of which nothing has come.
func (s *survey) room(digest string) int64 {
	return add(times(s.bytes(digest), spoolFactor), s.cfg.Reserve)
}

func (s *survey) bytes(digest string) int64 {
	if f := s.facts[digest]; f != nil {
		return max(f.size, 0)
	}
	return 0
}

// crowded says why a node's disks have too little room for a fetch, beside what is on its way there: the spool's, and the engine's,
// which gets a copy. Which blobs are a model's is not told: what has come is taken to be of the models on their way that do not
// tell how much has, and then of this one. The node itself looks at it more closely.
func (s *survey) crowded(n *cluster.Node, digest string) string {
	bytes, coming, came := s.bytes(digest), s.coming[n.ID], s.came[n.ID]
	theirs := min(came, coming.untold)
	ours := min(came-theirs, bytes)
	need, taken := bytes, coming.spool
	if n.ModelsDiskFree == 0 { // else the copy needs no room of the spool's
		need, taken = times(bytes, spoolFactor), add(coming.spool, coming.engine)
	}
	need, free := add(need-ours, s.cfg.Reserve), n.DiskFree-(taken-theirs)
	if n.DiskFree > 0 && free < need {
		return fmt.Sprintf("needs %s of disk with the reserve, has %s free", size(need), size(max(free, 0)))
	}
	need, free = add(bytes, s.cfg.Reserve), n.ModelsDiskFree-coming.engine
	if n.ModelsDiskFree > 0 && free < need {
		return fmt.Sprintf("needs %s with the reserve on the disk of the engine's models, has %s free", size(need), size(max(free, 0)))
	}
	return ""
}

// sources returns the alive nodes that hold a digest, and whether one that is suspect does: it may be back at once.
func (s *survey) sources(digest string) (alive []*cluster.Node, suspect bool) {
	if f := s.facts[digest]; f != nil {
		for _, n := range f.holders {
			if n.Condition == cluster.Alive {
				alive = append(alive, n)
			} else {
				suspect = true
			}
		}
	}
	return alive, suspect
}

// lost tells whether the node's engine has not been ready for so long that its replicas count no more.
func (s *survey) lost(n *cluster.Node) bool {
	since, down := s.in.Down[n.ID]
	return down && n.Engine.Condition != cluster.EngineReady && s.in.Now.Sub(since) >= patience
}

// settled tells whether the leader has been one for long enough to take things away.
func (s *survey) settled() bool {
	return s.in.Since.IsZero() || s.in.Now.Sub(s.in.Since) >= settle
}

func ollama(n *cluster.Node) bool { return n.Engine != nil && n.Engine.Kind == cluster.Ollama }

// filed tells whether the node can put a model's weights into the folder of a llama-server of its own.
func filed(n *cluster.Node) bool { return n.Engine != nil && n.Engine.Folder }

// waits tells whether the node's llama-server is not running since it has no model yet.
func waits(n *cluster.Node) bool {
	return filed(n) && n.Engine.Condition == cluster.EngineStarting && len(n.Models) == 0
}

// managed tells whether a replica is one that came by a plan, or may go by one.
func managed(r cluster.Replica) bool { return ollama(r.Node) || filed(r.Node) && r.Model.Weights != "" }

// active tells whether no operator is taking the node out.
func active(n *cluster.Node) bool {
	return n.State != cluster.Draining && n.State != cluster.Drained && n.State != cluster.Removed
}

// sound tells whether the node has an engine that does as it is told.
func sound(n *cluster.Node) bool {
	return n.Condition == cluster.Alive && (ollama(n) || filed(n)) && n.Engine.Condition == cluster.EngineReady
}

// add and times stay at the greatest number instead of passing it: sizes come from other nodes.
func add(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func times(a, n int64) int64 {
	if a > math.MaxInt64/n {
		return math.MaxInt64
	}
	return a * n
}
