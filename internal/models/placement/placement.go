// Package placement plans where replicas of models are to be: which node fetches one, which one gives it up, where a
// model is loaded. It decides and does nothing: no goroutine, no clock, no I/O. The leader calls Plan about once
// a second, carries the actions out, and calls again.
//
// Everything is derived from what is agreed and told, so that a new leader plans on where the last one was lost.
// Kept, whatever the nodes tell:
//
//   - Nothing is removed while fewer replicas than wanted would be left, or one of those left is on a node that is
//     not alive; the last replica never. Only a model that somebody deleted goes altogether.
//   - A llama-server of a node's own gets a model's weights only where the node is named. That counts there as a replica, but no
//     Ollama's is removed unless another Ollama's is left: the model cannot be had back from its weights.
//   - A replica is believed to run where it lies (its engine may have a memory that nobody tells of): needs of memory
//     and disk decide who gets one, not who keeps one.
//   - A node that is drained, or that its owner keeps, gets nothing new and loses nothing.
//   - Models that nobody placed are left alone, but for loading a hot one on one more of its nodes.
//   - Equal inputs give equal plans, and a plan that is carried out leads to one that is empty.
//
// Start reading at Plan, then survey.choose.
package placement

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Kind is what an action does.
type Kind string

// The kinds of action.
const (
	Fetch  Kind = "fetch"  // bring the digest onto the node under that name, also where it holds another one of the name
	Remove Kind = "remove" // delete the name from the node's engine
	Load   Kind = "load"   // have the node's engine load it
	Unload Kind = "unload" // have the node's engine let it go
)

// Action is one step on one node.
type Action struct {
	Kind Kind           `json:"kind"`
	Node cluster.NodeID `json:"node"`
	// Name is the model's: of a Fetch as it is wanted, else as the node's engine lists it.
	Name string `json:"name"`
	// Digest is the one to fetch, to load or to unload; of a Remove the one that the node was seen with.
	Digest string `json:"digest"`
	// Size is the model's bytes, of a Fetch that is begun before any node tells them; else 0.
	Size int64 `json:"size,omitempty"`
	// From are the alive nodes that hold the digest, under whatever name, the best first: the node itself, ready ones,
	// near ones, idle ones. Only of a Fetch; none: only the upstream registry may have it.
	From []cluster.NodeID `json:"from,omitempty"`
	Why  string           `json:"why"` // for a person
}

// Config is how much room is left.
type Config struct {
	Reserve int64 // bytes of disk that stay free
	Context int   // tokens of context for which there is to be memory; 0: 4096
}

// Input is what a plan is made from.
type Input struct {
	View  *cluster.View
	State *cluster.State
	Now   time.Time
	// Since is when this node became the leader; zero: long ago. What the last leader did may not be seen yet: for the
	// first moments nothing is trimmed or unloaded.
	Since time.Time
	// Running are the actions that are under way, and those done whose effect View does not show yet: a Remove that is
	// dropped too early may be followed by one too many.
	Running []Action
	// Failed are the actions that failed lately and wait for their next try. They are not planned now; a Fetch is
	// planned for another node in their stead.
	Failed []Action
	// Down is since when the caller sees the engines of nodes not ready; a node that is not in it: just now. Their
	// replicas count for a while, and then as those of a dead node do.
	Down map[cluster.NodeID]time.Time
}

const (
	settle       = 10 * time.Second // of a new leader
	patience     = 5 * time.Minute  // with an engine that is not ready
	fetchesAt    = 2                // fetches to one node at a time
	modelsFrom   = 4                // models at a time from a node that is the only one to hold them
	hot          = 0.8              // of the slots where a model is loaded: busier is hot
	lettingGo    = time.Minute      // what the engine lets go by itself before this is left to it
	defaultRoom  = 4096             // tokens
	spoolFactor  = 2                // a fetch needs room for the model this many times
	memoryMargin = 10               // one part in so many stays free of a model that is new to the node
)

// Plan returns what is to be done now, the most urgent first. It is empty when everything is as it is wanted, or
// nothing can be done about it; why a model finds no room, Choose says.
func Plan(cfg Config, in Input) []Action {
	if in.View == nil || in.State == nil {
		return nil
	}
	s := look(cfg, in)
	var keys []string
	copies := make(map[string]int)
	for _, key := range slices.Sorted(maps.Keys(in.State.Models)) {
		switch w := in.State.Models[key]; {
		case w.Deleted != nil:
			s.bury(key, *w.Deleted)
		case w.Digest != "":
			keys = append(keys, key)
			if f := s.facts[w.Digest]; f != nil {
				copies[key] = len(f.holders)
			}
		}
	}
	slices.SortStableFunc(keys, func(a, b string) int { return cmp.Compare(copies[a], copies[b]) })
	for _, key := range keys {
		s.replicate(key, in.State.Models[key])
	}
	for _, key := range keys {
		s.balance(key, in.State.Models[key])
	}
	s.spread()
	return s.plan
}
