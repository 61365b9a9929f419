package node

import (
	"encoding/json"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models"
)

// engineFiles is the own engine, if it is a llama-server into whose folder models can be put.
func (n *Node) engineFiles() *models.Files {
	dir := n.engine.Folder()
	if dir == "" {
		return nil
	}
	return &models.Files{
		Dir: dir, Reload: n.engine.Reload, Ended: n.engine.Ended,
		Lists: func() []cluster.Model {
			s := n.engine.Status()
			if s.Engine.Condition != cluster.EngineReady {
				return nil
			}
			return s.Models
		},
	}
}

// nameFiles gives the models that the engine calls by the names of files, which this node put there, the names that they have in
// the cluster. One that has none is on its way, and not told.
func nameFiles(self *cluster.Node, files map[string]cluster.Model) {
	var held []cluster.Model
	for _, m := range self.Models {
		of, ours := files[m.Name]
		switch {
		case ours && of.Name == "":
			continue
		case ours:
			of.Called, of.V1 = m.Name, withID(m.V1, of.Name)
			m = of
		}
		held = append(held, m)
	}
	var loaded []cluster.Loaded
	for _, l := range self.Loaded {
		of, ours := files[l.Name]
		switch {
		case ours && of.Name == "":
			continue
		case ours:
			l.Name = of.Name
		}
		loaded = append(loaded, l)
	}
	self.Models, self.Loaded = slices.Clip(held), slices.Clip(loaded)
}

// withID is an element of /v1/models with another id.
func withID(element json.RawMessage, id string) json.RawMessage {
	had := gjson.GetBytes(element, "id")
	name, err := json.Marshal(id)
	if err != nil || had.Index == 0 {
		return element
	}
	return slices.Concat(element[:had.Index], name, element[had.Index+len(had.Raw):])
}
