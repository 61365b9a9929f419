package control

import (
	"cmp"
	"net/http"
	"slices"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

// registerModels adds the routes about models.
func (c *Control) registerModels(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/models", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, api.Models{Models: models(c.deps.View(), c.deps.State())})
	})
	mux.HandleFunc("GET /api/v1/models/{model}", c.handle(func(r *http.Request) (int, any, error) {
		m, ok := c.find(r.PathValue("model"))
		if !ok {
			return 0, nil, &api.Error{Code: api.CodeNotFound, Message: "no node holds model " + r.PathValue("model"), Hint: "`ollamamax models` lists what there is"}
		}
		return http.StatusOK, m, nil
	}))
	mux.HandleFunc("POST /api/v1/models/{model}/download", c.download)
	mux.HandleFunc("PUT /api/v1/models/{model}/placement", c.handle(c.place))
	mux.HandleFunc("DELETE /api/v1/models/{model}", c.handle(func(r *http.Request) (int, any, error) {
		name, err := modelOf(r)
		if err != nil {
			return 0, nil, err
		}
		return http.StatusNoContent, nil, c.deps.Delete(r.Context(), name)
	}))
}

// modelOf is the name in the path as it was written: upper case may mean something to its registry.
func modelOf(r *http.Request) (string, error) {
	name := r.PathValue("model")
	if cluster.CanonicalModel(name) == "" {
		return "", &api.Error{Code: api.CodeBadRequest, Message: "the model has no name", Hint: "write it into the path, its slashes as %2F"}
	}
	return name, nil
}

func (c *Control) place(r *http.Request) (int, any, error) {
	name, err := modelOf(r)
	if err != nil {
		return 0, nil, err
	}
	var p api.Placement
	if err := decode(r, &p); err != nil {
		return 0, nil, err
	}
	if p.Nodes != nil {
		ids, err := c.ids(*p.Nodes)
		if err != nil {
			return 0, nil, err
		}
		p.Nodes = &ids
	}
	if err := c.deps.Place(r.Context(), name, p); err != nil {
		return 0, nil, err
	}
	m, _ := c.find(name)
	return http.StatusOK, m, nil
}

// ids turns names of nodes into ids.
func (c *Control) ids(nodes []string) ([]string, error) {
	ids := make([]string, 0, len(nodes))
	for _, n := range nodes {
		m, err := c.deps.State().Member(n)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ids, string(m.ID)) {
			ids = append(ids, string(m.ID))
		}
	}
	return ids, nil
}

// find returns a model of the cluster by its name in any spelling; false, and one without replicas, if there
// is none.
func (c *Control) find(name string) (api.Model, bool) {
	name = cluster.CanonicalModel(name)
	for _, m := range models(c.deps.View(), c.deps.State()) {
		if m.Name == name {
			return m, true
		}
	}
	return api.Model{Name: name, Replicas: []api.Replica{}}, false
}

// models lists every model of the cluster, held or wanted, by name.
func models(v *cluster.View, s *cluster.State) []api.Model {
	byName := map[string]*api.Model{}
	model := func(name string) *api.Model {
		if byName[name] == nil {
			byName[name] = &api.Model{Name: name, Replicas: []api.Replica{}}
		}
		return byName[name]
	}
	for _, n := range v.Nodes {
		for _, held := range n.Models {
			name := cluster.CanonicalModel(held.Name)
			if deleted := s.Models[name].Deleted; deleted != nil && !held.ModifiedAt.IsZero() && !held.ModifiedAt.After(*deleted) {
				continue // about to go; a model that was made since is another one
			}
			_, loaded := n.LoadedModel(name)
			m := model(name)
			m.Replicas = append(m.Replicas, api.Replica{Node: n.Name, Condition: n.Condition, Digest: held.Digest, Weights: held.Weights, Size: held.Size, Loaded: loaded, Damaged: held.Damaged})
		}
	}
	for name, w := range s.Models {
		if w.Deleted == nil {
			model(name).Wanted = wanted(w, s)
		}
	}
	list := make([]api.Model, 0, len(byName))
	for _, m := range byName {
		m.Conflict = slices.ContainsFunc(m.Replicas, func(r api.Replica) bool { return r.Of() != m.Replicas[0].Of() })
		list = append(list, *m)
	}
	slices.SortFunc(list, func(a, b api.Model) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// wanted is the wire form of what is wanted, with the names of the nodes.
func wanted(w cluster.Wanted, s *cluster.State) *api.Wanted {
	onWire := &api.Wanted{Digest: w.Digest, Replicas: w.Replicas, Nodes: []string{}, Labels: w.Labels, Pin: w.Pin, Preload: w.Preload, Version: w.Version}
	if onWire.Labels == nil {
		onWire.Labels = map[string]string{}
	}
	for _, id := range w.Nodes {
		onWire.Nodes = append(onWire.Nodes, cmp.Or(s.Members[id].Name, string(id)))
	}
	slices.Sort(onWire.Nodes)
	return onWire
}
