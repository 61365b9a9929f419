package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/control"
	"github.com/ollamamax/ollamamax/internal/models"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// passing tells whether a name is one under which a model only passes.
func passing(name string) bool {
	parsed, err := manifest.ParseName(name)
	return err == nil && parsed.IsPassing()
}

// openModels takes the spool and the port of the engine's registry.
func (n *Node) openModels() (err error) {
	n.toPeers = n.newPeerTransport()
	n.models, err = models.Open(n.cfg.Models, models.Deps{
		Log: n.log, DataDir: n.cfg.Node.DataDir, Self: n.id, View: n.View, State: n.state, Apply: n.apply,
		Engine: n.engine.Own(), ModelsDir: n.engine.ModelsDir(), OwnFolder: n.cfg.Engine.Command != "", Files: n.engineFiles(),
		EngineModels: func() ([]cluster.Model, bool) {
			s := n.engine.Status()
			return s.Models, s.Engine.Kind == cluster.Ollama && s.Engine.Condition == cluster.EngineReady
		},
		Refresh: func(ctx context.Context) { n.engine.Refresh(ctx); n.rebuild() },
		Seen: func(ctx context.Context, id cluster.NodeID) {
			if node := n.View().Node(id); node != nil {
				n.refreshNode(ctx, node)
			}
		},
		Changed: n.touch,
		Peers:   n.toPeers, Mesh: n.host,
		Busy:     func() bool { return n.engine.Busy() > 0 },
		Upstream: upstreamTransport(), Now: time.Now,
	})
	return err
}

// upstreamTransport carries requests to registries, through the proxy that the environment names.
func upstreamTransport() http.RoundTripper {
	return &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, MaxIdleConns: 16, IdleConnTimeout: 30 * time.Second}
}

func (n *Node) engineChanged() {
	n.touch()
	if n.models != nil {
		n.models.Look()
	}
}

// describeModels adds what this node tells of its models.
func (n *Node) describeModels(self *cluster.Node) {
	told := n.models.Told()
	self.Blobs, self.Fetches, self.Preload = told.Blobs, told.Fetches, n.models.Preload()
	if len(told.Files) > 0 {
		nameFiles(self, told.Files)
	}
	if len(told.Footprints)+len(told.Damaged) == 0 {
		return
	}
	self.Models = slices.Clone(self.Models)
	for i := range self.Models {
		self.Models[i].Footprint = told.Footprints[self.Models[i].Digest]
		self.Models[i].Damaged = told.Damaged[self.Models[i].Digest]
	}
}

// member is cluster.ErrNotMember on a node that belongs to no cluster.
func (n *Node) member() error {
	if n.consensus.Load() == nil || n.kept.read().Removed != "" {
		return fmt.Errorf("%w: this node belongs to no cluster any more", cluster.ErrNotMember)
	}
	return nil
}

// clientModels is what the gateway needs of models.
type clientModels struct{ n *Node }

// Valid tells whether a name is one that a model can be pulled by.
func (c clientModels) Valid(name string) bool {
	parsed, err := manifest.ParseName(name)
	return err == nil && !parsed.IsPassing()
}

// Pull brings a model into the cluster.
func (c clientModels) Pull(ctx context.Context, name string, insecure bool, progress func([]byte) error) error {
	if err := c.n.member(); err != nil {
		return err
	}
	return c.n.models.Pull(ctx, models.Request{Name: name, Insecure: insecure}, progress)
}

// Made has a model spread that was just made.
func (c clientModels) Made(ctx context.Context, on cluster.NodeID, name, digest string, size int64) error {
	if err := c.n.member(); err != nil {
		return err
	}
	return c.n.models.Made(ctx, on, name, digest, size)
}

// Delete has a model deleted wherever it is.
func (c clientModels) Delete(ctx context.Context, name string) error {
	return c.n.deleteModel(ctx, name)
}

// pullModel does what an operator wants of a model.
func (n *Node) pullModel(ctx context.Context, name string, wish api.Download, progress func([]byte) error) error {
	if err := n.member(); err != nil {
		return err
	}
	if !(clientModels{n}).Valid(name) {
		return &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("%q is no model's name", name), Hint: "write it like llama3.2:1b, USER/MODEL:TAG or HOST/USER/MODEL:TAG"}
	}
	req := models.Request{Name: name, Insecure: wish.Insecure, Replicas: wish.Replicas}
	if len(wish.Nodes) > 0 {
		nodes := nodeIDs(wish.Nodes)
		req.Nodes = &nodes
	}
	if len(wish.Labels) > 0 {
		req.Labels = &wish.Labels
	}
	return n.models.Pull(ctx, req, progress)
}

func nodeIDs(texts []string) []cluster.NodeID {
	ids := make([]cluster.NodeID, len(texts))
	for i, text := range texts {
		ids[i] = cluster.NodeID(text)
	}
	return ids
}

// placeModel has it agreed where a model is to be.
func (n *Node) placeModel(ctx context.Context, name string, p api.Placement) error {
	if err := n.member(); err != nil {
		return err
	}
	place := cluster.Place{Model: name, Replicas: p.Replicas, Labels: p.Labels, Pin: p.Pin, Preload: p.Preload, Seen: p.Seen}
	if p.Nodes != nil {
		nodes := nodeIDs(*p.Nodes)
		place.Nodes = &nodes
	}
	return n.models.Place(ctx, place)
}

func (n *Node) deleteModel(ctx context.Context, name string) error {
	if err := n.member(); err != nil {
		return err
	}
	return n.models.Delete(ctx, name)
}

// transfers lists the models that are on their way, and the nodes that did not answer.
func (n *Node) transfers(ctx context.Context) (all []api.Transfer, missing []string) {
	ctx, cancel := context.WithTimeout(ctx, transfersTimeout)
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, node := range n.View().Nodes {
		if node.Condition == cluster.Dead {
			continue
		}
		asking.Go(func() {
			list, err := n.models.TransfersOf(ctx, node.ID)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				n.log.Debug("cannot list a node's transfers", "peer", node.Name, "err", err)
				missing = append(missing, node.Name)
			}
			for _, t := range list {
				all = append(all, n.wireTransfer(node, t))
			}
		})
	}
	asking.Wait()
	slices.SortFunc(all, func(a, b api.Transfer) int { return strings.Compare(a.ID, b.ID) })
	slices.Sort(missing)
	return all, missing
}

const transfersTimeout = 3 * time.Second

// wireTransfer is a transfer as operators see it: its id names the node too.
func (n *Node) wireTransfer(node *cluster.Node, t models.Transfer) api.Transfer {
	wire := api.Transfer{
		ID: node.Name + "-" + t.ID, Node: node.Name, Model: t.Model, Digest: t.Digest, State: api.TransferRunning,
		Size: t.Size, Have: t.Have, Rate: int64(t.Rate), Upstream: t.Upstream, Since: t.Since, Sources: []api.TransferSource{},
	}
	if t.Waiting {
		wire.State = api.TransferWaiting
	}
	if t.ETA > 0 {
		wire.ETA = t.ETA.Round(100 * time.Millisecond).String()
	}
	for _, s := range t.Sources {
		name := string(s.Node)
		if from := n.View().Node(s.Node); from != nil {
			name = from.Name
		}
		wire.Sources = append(wire.Sources, api.TransferSource{Node: name, Bytes: s.Bytes, Rate: int64(s.Rate), Connected: s.Connected, Failure: s.Failure, Banned: s.Banned})
	}
	return wire
}

// cancelTransfer ends a transfer, and what is wanted of its model is what is held then.
func (n *Node) cancelTransfer(ctx context.Context, id string) error {
	for _, node := range n.View().Nodes {
		if local, ok := strings.CutPrefix(id, node.Name+"-"); ok {
			err := n.models.CancelOn(ctx, node.ID, local)
			if errors.Is(err, models.ErrNoTransfer) {
				continue // another node's name may begin the same
			}
			if errors.Is(err, models.ErrRepair) {
				return &api.Error{Code: api.CodeConflict, Message: err.Error(), Hint: "`ollamamax rm` deletes the model if it is not wanted any more"}
			}
			return err
		}
	}
	return control.ErrUnknownTransfer
}
