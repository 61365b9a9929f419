package models

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/placement"
	"github.com/ollamamax/ollamamax/internal/models/upstream"
)

// newerTimeout is how long the registry may take to say whether it has a newer model than the cluster holds.
const newerTimeout = 3 * time.Second

// errNowhere is returned for a name that means nothing: neither its registry nor a member knows it.
var errNowhere = errors.New("pull model manifest: file does not exist")

// Request is what somebody wants of a model; nil leaves what was wanted, or the configuration's.
type Request struct {
	Name     string
	Insecure bool
	Replicas *cluster.Replicas
	Nodes    *[]cluster.NodeID
	Labels   *map[string]string
}

// Wish is what a node asks the leader to have agreed.
type Wish struct {
	Place     cluster.Place      `json:"place"`
	Size      int64              `json:"size"` // bytes of the model
	Footprint *cluster.Footprint `json:"footprint,omitempty"`
	// Strict: it is an error if fewer nodes than are wanted can hold it.
	Strict bool `json:"strict,omitempty"`
	// Manifest is the node that has it.
	Manifest cluster.NodeID `json:"manifest,omitempty"`
}

// choice is what the leader makes of a Wish.
type choice struct {
	nodes   []cluster.NodeID // that are to hold the model
	version uint64           // of what is wanted of it
}

// Pull finds what a name means, has it agreed, and returns when the model is where it is to be. Progress is given records
// of the form that Ollama's pull has; without one Pull returns when all is agreed.
//
// What the name means is what its registry says, or, if that knows none or cannot be reached, what the cluster
// holds under it.
func (m *Models) Pull(ctx context.Context, req Request, to func(record []byte) error) error {
	said := newProgress()
	_, placed := m.deps.State().WantedModel(req.Name)
	wish, chosen, err := m.agree(ctx, req, said, to)
	if err != nil || to == nil {
		return err
	}
	chosen, err = m.follow(ctx, wish, chosen, said, to)
	var failed *failure
	if errors.As(err, &failed) && failed.lost == 0 && ctx.Err() == nil && !placed && !m.isComing(wish, chosen) {
		// It cannot be had. What nobody wanted before is not tried for ever.
		forget := m.deps.Apply(ctx, cluster.Command{At: m.deps.Now(), Forget: &cluster.Forget{Model: req.Name, Kept: true, Seen: chosen.version}})
		if !errors.Is(forget, cluster.ErrChanged) { // else somebody wants it in another way
			err = errors.Join(err, forget)
		}
	}
	return err
}

// isComing tells whether anybody has the model, or another node than the chosen ones gets it.
func (m *Models) isComing(wish Wish, chosen choice) bool {
	view, key := m.deps.View(), cluster.CanonicalModel(wish.Place.Model)
	return len(view.Replicas(key)) > 0 || slices.ContainsFunc(view.Nodes, func(n *cluster.Node) bool {
		return n.Condition != cluster.Dead && !slices.Contains(chosen.nodes, n.ID) &&
			slices.ContainsFunc(n.Fetches, func(f cluster.Fetch) bool { return cluster.CanonicalModel(f.Name) == key })
	})
}

// agree has a pull agreed.
func (m *Models) agree(ctx context.Context, req Request, said *progress, to func([]byte) error) (wish Wish, chosen choice, err error) {
	name, err := manifest.ParseName(req.Name)
	if err != nil {
		return Wish{}, choice{}, err
	}
	if name.IsPassing() {
		return Wish{}, choice{}, fmt.Errorf("pull %s: this name is for models that pass", name)
	}
	name.Plain = name.Plain || req.Insecure
	if to != nil {
		record := status("pulling manifest")
		said.say(record)
		if err := to(record); err != nil {
			return Wish{}, choice{}, err
		}
	}
	k, err := m.resolve(ctx, name)
	if err != nil {
		return Wish{}, choice{}, err
	}
	text := name.String()
	if name.Plain {
		text = "http://" + text
	}
	wish = Wish{Place: cluster.Place{Model: text, Digest: &k.Model, Replicas: req.Replicas, Nodes: req.Nodes, Labels: req.Labels},
		Size: k.Size(), Footprint: m.footprintOf(k.Model), Strict: req.Replicas != nil || req.Nodes != nil, Manifest: m.deps.Self}
	if _, placed := m.deps.State().WantedModel(req.Name); !placed && req.Replicas == nil {
		replicas := m.cfg.Replicas
		if req.Nodes != nil && len(*req.Nodes) > 0 {
			replicas = cluster.Replicas(len(*req.Nodes))
		}
		wish.Place.Replicas = &replicas
	}
	chosen, err = m.askToPlace(ctx, wish)
	return wish, chosen, err
}

// resolve finds the model that a name means.
func (m *Models) resolve(ctx context.Context, name manifest.Name) (known, error) {
	held := ""
	if w, ok := m.deps.State().WantedModel(name.String()); ok {
		held = w.Digest
	} else if chosen, ok := m.deps.View().Chosen(name.String(), "/api/tags"); ok {
		held = chosen.Digest
	}
	asking := ctx
	if held != "" {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, newerTimeout)
		defer cancel()
	}
	data, err := m.upstream.Remote(name, name.Plain).Manifest(asking)
	if err == nil {
		return m.learn(manifest.DigestOf(data), data)
	}
	if ctx.Err() != nil {
		return known{}, context.Cause(ctx)
	}
	if held == "" && errors.Is(err, upstream.ErrNoModel) {
		return known{}, errNowhere // as an Ollama says it
	}
	if held == "" {
		return known{}, err
	}
	if !errors.Is(err, upstream.ErrNoModel) {
		m.deps.Log.Info("the registry does not say whether it has a newer model; what the cluster holds is taken", "model", name, "err", err)
	}
	return m.manifestFromAnywhere(ctx, name, FetchRequest{Digest: held})
}

// askToPlace asks the leader to have a wish agreed, and returns what came of it. A wish
// whose answer was lost is told again: it changes nothing the second time.
func (m *Models) askToPlace(ctx context.Context, wish Wish) (choice, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for {
		chosen, err := m.askOnceToPlace(ctx, wish)
		if !unheard(err) || errors.Is(err, cluster.ErrNoQuorum) && !m.deps.View().Quorum {
			return chosen, err
		}
		if !sleep(ctx, lookForSources) {
			return choice{}, err
		}
	}
}

// unheard tells of an error that says only that the leader was not reached.
func unheard(err error) bool {
	return errors.Is(err, errNoAnswer) || errors.Is(err, cluster.ErrNotLeader) || errors.Is(err, cluster.ErrNoQuorum)
}

func (m *Models) askOnceToPlace(ctx context.Context, wish Wish) (choice, error) {
	leader := m.deps.View().Leader
	switch leader {
	case "":
		return choice{}, fmt.Errorf("place model %s: nothing can be agreed now: %w", wish.Place.Model, cluster.ErrNoQuorum)
	case m.deps.Self:
		return m.place(ctx, wish)
	}
	var r reply
	if err := m.ask(ctx, leader, "POST", placePath, wish, &r); err != nil {
		return choice{}, err
	}
	m.hear(ctx, r.Version)
	return choice{r.Nodes, r.Version}, r.err()
}

// hear waits until this node's own State is that of a version, so that whoever asked it sees what he did. One that hears
// nothing for long does not hold up what was agreed.
func (m *Models) hear(ctx context.Context, version uint64) {
	for range hearWithin / hearEvery {
		if m.deps.State().Version >= version || !sleep(ctx, hearEvery) {
			return
		}
	}
}

const (
	hearEvery  = 10 * time.Millisecond
	hearWithin = 2 * time.Second
)

// place has a wish agreed, chooses the nodes, and begins.
func (m *Models) place(ctx context.Context, wish Wish) (choice, error) {
	view, state := m.deps.View(), m.deps.State()
	if view.Leader != m.deps.Self {
		return choice{}, cluster.ErrNotLeader
	}
	command := cluster.Command{At: m.deps.Now(), Place: &wish.Place}
	next, err := state.Apply(command)
	if err != nil {
		return choice{}, err
	}
	wanted, ok := next.WantedModel(wish.Place.Model)
	if !ok {
		return choice{}, fmt.Errorf("place model %s: %w", wish.Place.Model, cluster.ErrUnknownModel)
	}
	nodes, err := placement.Choose(m.placing(), placement.Input{View: view, Running: m.underWay()}, wanted, wish.Size, wish.Footprint)
	if err != nil && (wish.Strict || len(nodes) == 0) {
		return choice{}, err
	}
	if err := m.deps.Apply(ctx, command); err != nil {
		return choice{}, err
	}
	agreed, ok := m.deps.State().WantedModel(wish.Place.Model)
	if !ok {
		return choice{}, fmt.Errorf("place model %s: %w", wish.Place.Model, errDeleted)
	}
	for _, id := range nodes {
		if m.holds(id, FetchRequest{Name: wanted.Name, Digest: wanted.Digest}) {
			continue
		}
		m.act(placement.Action{Kind: placement.Fetch, Node: id, Name: wanted.Name, Digest: wanted.Digest, Size: wish.Size, Why: "it is wanted there"}, wish.Manifest)
	}
	return choice{nodes, agreed.Version}, nil
}

func (m *Models) placing() placement.Config {
	return placement.Config{Reserve: m.cfg.DiskReserveBytes}
}

// failure is why a pull has not brought a model to its nodes.
type failure struct {
	model string
	texts []string // of each node
	lost  int      // of so many only the way to them is broken: they may get the model still
}

func (f *failure) Error() string { return "pull " + f.model + ": " + strings.Join(f.texts, "; ") }

// follow passes on the progress of the nodes that a model goes to, as that of one pull, and returns which they were at last.
func (m *Models) follow(ctx context.Context, wish Wish, chosen choice, said *progress, to func([]byte) error) (last choice, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		last, err = m.settle(ctx, wish, chosen, said)
	}()
	if gone := said.follow(ctx, done, to); gone != nil {
		cancel(gone)
		<-done
		return last, gone
	}
	if err != nil {
		return last, err
	}
	return last, to(status("success"))
}

// lostFor is how long a pull whose nodes cannot be reached looks for them, or for those chosen in their stead.
const lostFor = time.Minute

// settle waits until the model is where it is to be. When a node or the way to it is lost, it turns to those that the
// leader has chosen by then: what is agreed is brought about whether somebody waits for it or not.
func (m *Models) settle(ctx context.Context, wish Wish, chosen choice, said *progress) (choice, error) {
	again := wish // wants nothing new, and is an error when something else is wanted
	again.Place = cluster.Place{Model: wish.Place.Model, Digest: wish.Place.Digest, Seen: chosen.version}
	var lost time.Time // when the first loss in a row was
	for last := said.last(); ; {
		begun := m.deps.Now()
		failed := m.settleOnce(ctx, wish, chosen, said)
		if failed == nil {
			return chosen, nil
		}
		if failed.lost == 0 || wish.Strict && failed.lost < len(failed.texts) || ctx.Err() != nil {
			return chosen, failed
		}
		now, heard := m.deps.Now(), said.last()
		if lost.IsZero() || heard > last || now.Sub(begun) > lostFor { // a node that waits for its turn says nothing
			lost, last = now, heard
		} else if now.Sub(lost) > lostFor {
			return chosen, failed
		}
		timer := time.NewTimer(planEvery) // as often as the leader looks
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return chosen, context.Cause(ctx)
		}
		next, err := m.askToPlace(ctx, again)
		if err == nil {
			chosen = next
		} else if !unheard(err) {
			return chosen, err
		}
	}
}

// settleOnce waits for the chosen nodes.
func (m *Models) settleOnce(ctx context.Context, wish Wish, chosen choice, said *progress) *failure {
	fetch := FetchRequest{Name: wish.Place.Model, Digest: *wish.Place.Digest, From: wish.Manifest, Version: chosen.version}
	merged := newMerged(said)
	errs := make([]error, len(chosen.nodes))
	var running sync.WaitGroup
	for i, id := range chosen.nodes {
		running.Go(func() {
			if !m.holds(id, fetch) {
				errs[i] = m.fetchOn(ctx, id, fetch, func(record []byte) error { merged.say(id, record); return nil })
			}
		})
	}
	running.Wait()
	failed := &failure{model: fetch.Name}
	for i, err := range errs {
		if id := chosen.nodes[i]; err != nil {
			failed.texts = append(failed.texts, fmt.Sprintf("node %s: %v", m.nameOf(id), err))
			if id != m.deps.Self && errors.Is(err, errNoAnswer) {
				failed.lost++
			}
		}
	}
	if len(failed.texts) == 0 || !wish.Strict && len(failed.texts) < len(errs) {
		return nil
	}
	return failed
}

// holds tells whether a node has the model under the name already.
func (m *Models) holds(id cluster.NodeID, fetch FetchRequest) bool {
	n := m.deps.View().Node(id)
	if n == nil {
		return false
	}
	has, ok := n.Model(cluster.CanonicalModel(fetch.Name))
	return ok && has.Of() == fetch.Digest
}

// Delete has a model deleted wherever it is, and the deletion remembered: a node that is away deletes it when it
// comes back.
func (m *Models) Delete(ctx context.Context, name string) error {
	if err := m.Forget(ctx, name); err != nil {
		return err
	}
	var mu sync.Mutex
	var failed, done []string
	var running sync.WaitGroup
	for _, n := range m.deps.View().Nodes {
		if n.Condition == cluster.Dead {
			continue // it hears of it when it comes back
		}
		_, held := n.Model(cluster.CanonicalModel(name))
		running.Go(func() {
			err := m.removeOn(ctx, n.ID, name, "")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, errNoAnswer):
				m.deps.Log.Info("a node deletes the model when it can be reached", "model", name, "node", n.Name, "err", err)
			case err != nil:
				failed = append(failed, n.Name+": "+err.Error())
			case held:
				done = append(done, n.Name)
			}
		})
	}
	running.Wait()
	if len(failed) == 0 {
		return nil
	}
	slices.Sort(failed)
	slices.Sort(done)
	text := "failed on " + strings.Join(failed, "; ")
	if len(done) > 0 {
		text += "; done on " + strings.Join(done, ", ")
	}
	return errors.New(text + "; it is tried again until it is done")
}

// Forget has it agreed that a model is deleted. ErrUnknownModel: nobody wants it, or holds it in an engine from which it can be
// deleted.
func (m *Models) Forget(ctx context.Context, name string) error {
	_, wanted := m.deps.State().WantedModel(name)
	held := slices.ContainsFunc(m.deps.View().Replicas(name), func(r cluster.Replica) bool { return r.Node.Engine.Has("/api/delete") || r.Model.Weights != "" })
	if !wanted && !held {
		return fmt.Errorf("delete model %s: %w", name, cluster.ErrUnknownModel)
	}
	return m.deps.Apply(ctx, cluster.Command{At: m.deps.Now(), Forget: &cluster.Forget{Model: name}})
}

// Made has it agreed that a model that was just made or copied on a node is wanted as it is there, and has it spread. It
// returns before that is done.
func (m *Models) Made(ctx context.Context, on cluster.NodeID, name, digest string, size int64) error {
	wish := Wish{Place: cluster.Place{Model: name, Digest: &digest}, Size: size, Manifest: on}
	if _, placed := m.deps.State().WantedModel(name); !placed {
		wish.Place.Replicas = &m.cfg.Replicas
	}
	if on == m.deps.Self { // the others are to find it
		m.take(ctx)
		m.tell(ctx)
		m.deps.Refresh(ctx)
	}
	_, err := m.askToPlace(ctx, wish)
	return err
}

// Place has it agreed what is wanted of a model. One that somebody holds and nobody placed is placed as it is.
func (m *Models) Place(ctx context.Context, p cluster.Place) error {
	var size int64
	if _, placed := m.deps.State().WantedModel(p.Model); !placed {
		held, ok := m.deps.View().Chosen(p.Model, "/api/tags")
		if !ok || held.Digest == "" {
			return fmt.Errorf("place model %s: %w; pull it first", p.Model, cluster.ErrUnknownModel)
		}
		p.Digest, size = &held.Digest, held.Size
		if p.Replicas == nil {
			n := cluster.Replicas(len(m.deps.View().Replicas(p.Model)))
			p.Replicas = &n
		}
	}
	strict := p.Replicas != nil || p.Nodes != nil || p.Labels != nil
	_, err := m.askToPlace(ctx, Wish{Place: p, Size: size, Strict: strict})
	return err
}

// ErrNoTransfer is returned for a transfer that is not there.
var ErrNoTransfer = errors.New("no such transfer")

// ErrRepair is returned for a transfer that cannot be cancelled: until it has ended the model is nowhere but in the spool.
var ErrRepair = errors.New("it brings back a model that was deleted since a file of it was damaged")

// TransfersOf lists the models that are on their way to a node.
func (m *Models) TransfersOf(ctx context.Context, id cluster.NodeID) (all []Transfer, err error) {
	if id == m.deps.Self {
		return m.Transfers(), nil
	}
	err = m.ask(ctx, id, http.MethodGet, transfersPath, nil, &all)
	return all, err
}

// CancelOn ends a transfer to a node. What is wanted of the model is from then on what is held: the leader would begin it
// again.
func (m *Models) CancelOn(ctx context.Context, id cluster.NodeID, transfer string) error {
	var all []Transfer
	all, err := m.TransfersOf(ctx, id)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(t Transfer) bool { return t.ID == transfer })
	if i < 0 {
		return ErrNoTransfer
	}
	name := all[i].Model
	if all[i].Repair {
		return fmt.Errorf("cancel transfer of %s: %w", name, ErrRepair)
	}
	if w, ok := m.deps.State().WantedModel(name); ok && w.Digest == all[i].Digest {
		command := asHeld(m.deps.View(), w)
		command.At = m.deps.Now()
		if err := m.deps.Apply(ctx, command); err != nil {
			return err
		}
	}
	if id == m.deps.Self {
		m.Cancel(transfer)
		return nil
	}
	var was FetchRequest
	return m.ask(ctx, id, http.MethodDelete, transfersPath+"/"+transfer, nil, &was)
}

// asHeld has of a model wanted what is held of it where it may be held: of the wanted digest, or, if none of that has come yet, of the
// one that most hold.
func asHeld(view *cluster.View, w cluster.Wanted) cluster.Command {
	held := map[string]int{}
	for _, r := range view.Replicas(w.Name) {
		if r.Model.Of() != "" && r.Node.Condition != cluster.Dead && (len(w.Nodes) == 0 || slices.Contains(w.Nodes, r.Node.ID)) {
			held[r.Model.Of()]++
		}
	}
	if len(held) == 0 {
		return cluster.Command{Forget: &cluster.Forget{Model: w.Name, Kept: true, Seen: w.Version}}
	}
	digest := w.Digest
	if held[digest] == 0 {
		digest = slices.MaxFunc(slices.Sorted(maps.Keys(held)), func(a, b string) int { return cmp.Compare(held[a], held[b]) })
	}
	n := cluster.Replicas(held[digest])
	if w.Replicas != cluster.EveryNode {
		n = min(n, w.Replicas)
	}
	return cluster.Command{Place: &cluster.Place{Model: w.Name, Digest: &digest, Replicas: &n, Seen: w.Version}}
}
