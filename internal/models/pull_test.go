package models

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestWhatIsCancelledIsWantedAsItIsHeld(t *testing.T) {
	place := func(digest string, n cluster.Replicas) cluster.Command {
		return cluster.Command{Place: &cluster.Place{Model: "m", Digest: &digest, Replicas: &n, Seen: 7}}
	}
	forget := cluster.Command{Forget: &cluster.Forget{Model: "m", Kept: true, Seen: 7}}
	for name, c := range map[string]struct {
		held   map[cluster.NodeID]string
		wanted cluster.Wanted
		want   cluster.Command
	}{
		"nowhere yet":                   {nil, cluster.Wanted{Replicas: 2}, forget},
		"on one of two":                 {map[cluster.NodeID]string{"a": "new"}, cluster.Wanted{Replicas: 2}, place("new", 1)},
		"an update of which none came":  {map[cluster.NodeID]string{"a": "old", "b": "old", "c": "older"}, cluster.Wanted{Replicas: 3}, place("old", 2)},
		"an update of which some came":  {map[cluster.NodeID]string{"a": "old", "b": "new"}, cluster.Wanted{Replicas: 2}, place("new", 1)},
		"one that moves":                {map[cluster.NodeID]string{"a": "new", "b": "new"}, cluster.Wanted{Replicas: 1}, place("new", 1)},
		"on every node":                 {map[cluster.NodeID]string{"a": "new", "b": "new"}, cluster.Wanted{Replicas: cluster.EveryNode}, place("new", 2)},
		"not where it is to be":         {map[cluster.NodeID]string{"a": "new"}, cluster.Wanted{Replicas: 1, Nodes: []cluster.NodeID{"b"}}, forget},
		"on a dead node":                {map[cluster.NodeID]string{"dead": "new"}, cluster.Wanted{Replicas: 1}, forget},
		"by an engine without a digest": {map[cluster.NodeID]string{"a": ""}, cluster.Wanted{Replicas: 1}, forget},
	} {
		var nodes []*cluster.Node
		for id, digest := range c.held {
			n := &cluster.Node{ID: id, Condition: cluster.Alive, State: cluster.Active, Models: []cluster.Model{{Name: "M:latest", Digest: digest}},
				Engine: &cluster.Engine{Kind: cluster.Ollama, Condition: cluster.EngineReady}}
			if id == "dead" {
				n.Condition = cluster.Dead
			}
			nodes = append(nodes, n)
		}
		c.wanted.Name, c.wanted.Digest, c.wanted.Version = "m", "new", 7
		if diff := cmp.Diff(c.want, asHeld(cluster.NewView("a", time.Now(), nodes), c.wanted)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestAPullThatWaitedInSilenceLooksAMinuteForALostNode(t *testing.T) {
	for name, c := range map[string]struct {
		comesBack time.Duration
		lost      bool
	}{
		"that is back soon":  {lostFor - 5*time.Second, false},
		"that does not come": {2 * lostFor, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const silence = 3 * lostFor // it waits for its turn
				begun, asked := time.Now(), 0
				view := cluster.NewView("a", time.Now(), []*cluster.Node{{ID: "b", Name: "b"}})
				m := &Models{deps: Deps{Log: slog.New(slog.DiscardHandler), Self: "a", Now: time.Now, View: func() *cluster.View { return view },
					Seen: func(context.Context, cluster.NodeID) {}, Peers: roundTrip(func(*http.Request) (*http.Response, error) {
						if asked++; asked == 1 {
							time.Sleep(silence)
							return nil, errors.New("it broke off")
						}
						if time.Since(begun) < silence+c.comesBack {
							return nil, errors.New("it cannot be reached")
						}
						return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(`{"ended":{}}`))}, nil
					})}}
				digest := "1"
				_, err := m.settle(t.Context(), Wish{Place: cluster.Place{Model: "m", Digest: &digest}}, choice{nodes: []cluster.NodeID{"b"}}, newProgress())
				if (err != nil) != c.lost {
					t.Error(err)
				}
			})
		})
	}
}
