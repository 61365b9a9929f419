package models

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// doubt verifies blobs, of a model that the engine refused, say. Pieces are what the agreed list says, and a member that lied when
// the list was agreed on fills the spool with other bytes than the digest's. Such a blob is dropped, and whoever has the true one
// is asked to make the true list; each node that makes a list has the agreed one replaced if it is another. It tells whether
// there was such a blob, so that it is worth to try again.
func (m *Models) doubt(ctx context.Context, blobs ...manifest.Blob) (found bool) {
	for _, b := range blobs {
		d := digest(b.Digest)
		p, err := m.spool.Get(ctx, d)
		if err != nil || p.Missing() > 0 || !errors.Is(p.Finish(ctx), blob.ErrWrong) {
			continue
		}
		found = true
		m.deps.Log.Error("the agreed list of a blob's pieces is false: who has the blob makes a true one", "blob", short(b.Digest))
		err = m.spool.Remove(d)
		if l, kept := m.lists.Get(d); kept == nil && l.Root() == p.List().Root() {
			err = errors.Join(err, m.lists.Remove(d))
		}
		if err != nil {
			m.deps.Log.Warn("cannot drop a blob from the spool", "blob", short(b.Digest), "err", err)
		}
		holders := m.holders(b.Digest, nil)
		asked := map[cluster.NodeID]time.Time{}
		for _, id := range slices.Concat(holders.whole, holders.locked) { // one of them at least lies
			holders.whole = []cluster.NodeID{id}
			if err := m.askToOffer(ctx, b.Digest, holders, asked); err != nil {
				m.deps.Log.Debug("a node cannot make the list of a blob", "blob", short(b.Digest), "err", err)
			}
		}
	}
	return found
}
