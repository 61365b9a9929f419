package control

import (
	"cmp"
	"slices"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

// models lists every model of the cluster with its replicas, by name.
func models(v *cluster.View) []api.Model {
	byName := map[string]*api.Model{}
	for _, n := range v.Nodes {
		for _, m := range n.Models {
			name := cluster.CanonicalModel(m.Name)
			if byName[name] == nil {
				byName[name] = &api.Model{Name: name}
			}
			_, loaded := n.LoadedModel(name)
			byName[name].Replicas = append(byName[name].Replicas, api.Replica{Node: n.Name, Digest: m.Digest, Size: m.Size, Loaded: loaded})
		}
	}
	list := make([]api.Model, 0, len(byName))
	for _, m := range byName {
		m.Conflict = slices.ContainsFunc(m.Replicas, func(r api.Replica) bool { return r.Digest != m.Replicas[0].Digest })
		list = append(list, *m)
	}
	slices.SortFunc(list, func(a, b api.Model) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
