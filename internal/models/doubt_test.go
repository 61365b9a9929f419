package models

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// spoolFalse puts other bytes than a blob's into the spool, by a list that says they are the blob's.
func (n *member) spoolFalse(of manifest.Blob, other []byte) blob.Root {
	n.g.t.Helper()
	l, root := falseList(n.g.t, of, other)
	p, err := n.spool.Open(n.g.t.Context(), l)
	if err != nil {
		n.g.t.Fatal(err)
	}
	for i := range l.Len() {
		at, size := l.Span(i)
		if err := p.WritePiece(i, other[at:int(at)+size]); err != nil {
			n.g.t.Fatal(err)
		}
	}
	n.tell(n.g.t.Context())
	return root
}

// agree has a root agreed, by whoever lies.
func (g *group) agree(of manifest.Blob, hash blob.Root, size int64) {
	g.t.Helper()
	set := cluster.Command{At: time.Now(), SetRoot: &cluster.SetRoot{Blob: of.Digest, Root: cluster.Root{Hash: hash.String(), Size: size}}}
	if err := g.apply(g.t.Context(), set); err != nil {
		g.t.Fatal(err)
	}
}

func TestAFalseListThatWasAgreedOnIsReplacedByTheTrueOne(t *testing.T) {
	for name, lie := range map[string]func(g *group, c *member, of manifest.Blob) blob.Root{
		"of other bytes": func(g *group, c *member, of manifest.Blob) blob.Root {
			root := c.spoolFalse(of, some(5<<20, 23))
			g.agree(of, root, of.Size)
			return root
		},
		"of another size": func(g *group, _ *member, of manifest.Blob) blob.Root {
			_, root := falseList(t, manifest.Blob{Digest: of.Digest, Size: 300}, some(300, 23))
			g.agree(of, root, 300)
			return root
		},
		"of another size than is agreed": func(g *group, c *member, of manifest.Blob) blob.Root {
			root := c.spoolFalse(manifest.Blob{Digest: of.Digest, Size: 300}, some(300, 23))
			g.agree(of, root, of.Size)
			return root
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t, "a", "b", "c")
			data := [][]byte{some(5<<20, 21), some(300, 22)}
			var m manifest.Manifest
			nodes := g.start(func(n *member) {
				if n.id == "b" {
					m = n.file("m", data...)
				}
			})
			until(t, "the model of b", func() bool { return len(nodes[1].Told().Blobs) == 2 })
			// c was the first to have a list agreed.
			root := lie(g, nodes[2], m.Blobs[0])
			if err := nodes[0].Fetch(t.Context(), FetchRequest{Name: "m", Digest: m.Model}, nil); err != nil {
				t.Fatal(err)
			}
			nodes[0].hasSoon("m", m)
			if agreed := g.agreed().Roots[m.Blobs[0].Digest]; agreed.Hash == root.String() {
				t.Error("the false list is agreed still")
			}
			if l, err := nodes[0].lists.Get(digest(m.Blobs[0].Digest)); err != nil || l.Root() == root {
				t.Errorf("the false list is kept: %v", err)
			}
		})
	}
}

func TestAFalseListDoesNotKeepAModelFromALlamaServerNorFromItsRepair(t *testing.T) {
	g := newGroup(t, "a", "b", "c")
	data := [][]byte{some(5<<20, 21), some(300, 22)}
	var m manifest.Manifest
	nodes := g.start(func(n *member) {
		switch n.id {
		case "a":
			dir := t.TempDir()
			n.files = &Files{Dir: dir, Ended: func() string { return "" }, Reload: func(context.Context, bool) error { return nil }, Lists: func() (all []cluster.Model) {
				files, _ := filepath.Glob(filepath.Join(dir, "*"+modelFile))
				for _, file := range files {
					all = append(all, cluster.Model{Name: strings.TrimSuffix(filepath.Base(file), modelFile)})
				}
				return all
			}}
		case "b":
			m = n.file("m", data...)
		}
	})
	until(t, "the model of b", func() bool { return len(nodes[1].Told().Blobs) == 2 })
	g.agree(m.Blobs[0], nodes[2].spoolFalse(m.Blobs[0], some(5<<20, 23)), m.Blobs[0].Size)
	if err := nodes[0].Fetch(t.Context(), FetchRequest{Name: "m", Digest: m.Model}, nil); err != nil {
		t.Error(err)
	}
	g.agree(m.Blobs[1], nodes[2].spoolFalse(m.Blobs[1], some(300, 24)), m.Blobs[1].Size)
	r := repair{names: []FetchRequest{{Name: "m", Digest: m.Model}}, bad: m.Blobs[1:]}
	if err := nodes[0].spoolAll(t.Context(), r); !errors.Is(err, blob.ErrWrong) {
		t.Errorf("false bytes are taken for good ones: %v", err)
	}
	if err := nodes[0].spoolAll(t.Context(), r); err != nil {
		t.Errorf("the false list is in the way still: %v", err)
	}
}
