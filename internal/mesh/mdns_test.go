package mesh

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// TestMDNSFindsANeighbour needs multicast, which a sandbox may lack: then it is skipped.
func TestMDNSFindsANeighbour(t *testing.T) {
	type sighting struct {
		id    cluster.NodeID
		addrs []string
	}
	found := make(chan sighting, 100)
	run := func(deps Deps) *Host {
		h, err := Open(Config{Listen: []string{"/ip4/0.0.0.0/tcp/0"}, MDNS: true}, newKey(t), nil, deps)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			h.Close()
		})
		return h
	}
	run(Deps{Found: func(id cluster.NodeID, addrs []string) {
		select {
		case found <- sighting{id, addrs}:
		default:
		}
	}})
	b := run(Deps{Found: func(cluster.NodeID, []string) {}})
	timeout := time.After(5 * time.Second)
	for {
		select {
		case s := <-found:
			if s.id == b.ID() {
				if !slices.ContainsFunc(s.addrs, func(a string) bool { return len(a) > 0 }) {
					t.Errorf("found %+v", s)
				}
				return
			}
		case <-timeout:
			t.Skip("no multicast here")
		}
	}
}
