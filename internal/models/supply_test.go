package models

import (
	"errors"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

// supplied waits for a blob in the spool.
func (n *member) supplied(b manifest.Blob, from string) error {
	s, release := n.acquire(b, origin{name: mustName(n.g.t, from)})
	defer release()
	<-s.done
	return s.err
}

func TestAWrongPieceOfTheRegistryCostsThePieceAndNotTheOthers(t *testing.T) {
	for name, row := range map[string]struct {
		lies int
		sent int64
	}{
		"wrong once":               {1, 4<<20 + 9<<20},
		"wrong twice: the list is": {2, 8<<20 + 13<<20},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t, "a")
			data := some(13<<20, 1)
			m := g.publish("m", data, some(300, 2))
			n := g.start()[0]
			n.spooled(data, 1)
			g.registry.Set(registrytest.Faults{Lie: true, Times: row.lies})
			if err := n.supplied(m.Blobs[0], "m"); err != nil {
				t.Fatal(err)
			}
			if sent := g.registry.Sent(m.Blobs[0].Digest); sent != row.sent {
				t.Errorf("the registry sent %d bytes, not %d", sent, row.sent)
			}
		})
	}
}

func TestABlobThatTheRegistryHasWrongIsNotDownloadedAgainAndAgain(t *testing.T) {
	g := newGroup(t, "a")
	m := g.publish("m", some(5<<20, 1), some(300, 2))
	n := g.start()[0]
	g.registry.Set(registrytest.Faults{Lie: true})
	for range 2 {
		if err := n.supplied(m.Blobs[0], "m"); !errors.Is(err, blob.ErrWrong) {
			t.Fatal(err)
		}
	}
	if sent := g.registry.Sent(m.Blobs[0].Digest); sent != m.Blobs[0].Size {
		t.Errorf("the registry sent %d bytes", sent)
	}
	g.registry.Set(registrytest.Faults{})
	if err := n.supplied(m.Blobs[0], "other"); err != nil {
		t.Errorf("another place has it right: %v", err)
	}
	if err := n.spool.Remove(digest(m.Blobs[0].Digest)); err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.wrong[wrongBlob{m.Blobs[0].Digest, mustName(t, "m")}] = n.deps.Now().Add(-wrongFor - time.Second)
	n.mu.Unlock()
	if err := n.supplied(m.Blobs[0], "m"); err != nil {
		t.Errorf("an hour later: %v", err)
	}
}
