package models

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// falseList is a list of other bytes' pieces that says it is a blob's.
func falseList(t *testing.T, of manifest.Blob, other []byte) (*blob.List, blob.Root) {
	t.Helper()
	encoded := binary.BigEndian.AppendUint32(nil, blob.PieceSize)
	encoded = binary.BigEndian.AppendUint64(encoded, uint64(of.Size))
	sum := digest(of.Digest).Sum()
	encoded = append(encoded, sum[:]...)
	for at := 0; at < len(other); at += blob.PieceSize {
		piece := sha256.Sum256(other[at:min(at+blob.PieceSize, len(other))])
		encoded = append(encoded, piece[:]...)
	}
	root := blob.Root(sha256.Sum256(append([]byte("ollamamax blob list 1\x00"), encoded...)))
	l, err := blob.Decode(encoded, root)
	if err != nil {
		t.Fatal(err)
	}
	return l, root
}

func TestAFalseListThatWasAgreedOnIsReplacedByTheTrueOne(t *testing.T) {
	g := newGroup(t, "a", "b", "c")
	data := [][]byte{some(5<<20, 21), some(300, 22)}
	var m manifest.Manifest
	nodes := g.start(func(n *member) {
		if n.id == "b" {
			m = n.file("m", data...)
		}
	})
	until(t, "the model of b", func() bool { return len(nodes[1].Told().Blobs) == 2 })
	// c says that it has the blob as well, and was the first to have a list agreed.
	other := some(5<<20, 23)
	l, root := falseList(t, m.Blobs[0], other)
	p, err := nodes[2].spool.Open(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	for i := range l.Len() {
		at, n := l.Span(i)
		if err := p.WritePiece(i, other[at:int(at)+n]); err != nil {
			t.Fatal(err)
		}
	}
	nodes[2].tell(t.Context())
	set := cluster.Command{At: nodes[0].deps.Now(), SetRoot: &cluster.SetRoot{Blob: m.Blobs[0].Digest, Root: cluster.Root{Hash: root.String(), Size: l.Size()}}}
	if err := g.apply(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Fetch(t.Context(), FetchRequest{Name: "m", Digest: m.Model}, nil); err != nil {
		t.Fatal(err)
	}
	nodes[0].hasSoon("m", m)
	if agreed := g.agreed().Roots[m.Blobs[0].Digest]; agreed.Hash == root.String() {
		t.Error("the false list is agreed still")
	}
}
