package exchange

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/blob"
)

func newTestPicker(t *testing.T, pieces, depth int) *picker {
	th := newThing(t, pieces*piece, piece)
	return newPicker(th.list, blob.NewMap(pieces), depth, rand.New(rand.NewPCG(1, 2)))
}

// with is a map that has these pieces.
func with(pieces int, has ...int) blob.Map {
	m := blob.NewMap(pieces)
	for _, i := range has {
		m.Set(i)
	}
	return m
}

func all(p *picker, v *view, now time.Time) (got []int) {
	for {
		i, ok := p.next(v, now)
		if !ok {
			return got
		}
		got = append(got, i)
	}
}

// comes has a source bring all of a piece, which is kept.
func comes(p *picker, v *view, i int, now time.Time) { p.came(v, i, now); p.kept(v, i, true) }

func TestTheRarestPieceComesFirst(t *testing.T) {
	p := newTestPicker(t, 6, 6)
	a, b, c := &view{}, &view{}, &view{}
	p.join(a, blob.FullMap(6))
	p.join(b, with(6, 0, 1, 2, 3))
	p.join(c, with(6, 0, 1, 2))
	got := all(p, a, time.Time{})
	if len(got) != 6 || got[0] < 4 || got[1] < 4 || got[2] != 3 {
		t.Errorf("asked for %v", got)
	}
}

func TestRarityFollowsWhatSourcesGetAndWhoLeaves(t *testing.T) {
	p := newTestPicker(t, 3, 1)
	a, b := &view{}, &view{}
	p.join(a, blob.FullMap(3))
	p.join(b, with(3))
	p.got(b, 0)
	p.got(b, 0)
	p.got(b, 2)
	if i, _ := p.next(a, time.Time{}); i != 1 {
		t.Errorf("asked for %d", i)
	}
	p.leave(b)
	p.leave(b)
	for i, n := range p.rarity {
		if n != 1 {
			t.Errorf("piece %d: %d sources", i, n)
		}
	}
	p.leave(a)
	if p.live[1] != 0 || p.rarity[1] != 0 {
		t.Error("what a source owed when it left is still waited for")
	}
}

func TestEqualPiecesAreDrawnByLot(t *testing.T) {
	first := map[int]bool{}
	for seed := range uint64(50) {
		p := newTestPicker(t, 8, 1)
		p.random = rand.New(rand.NewPCG(seed, seed))
		v := &view{}
		p.join(v, blob.FullMap(8))
		i, _ := p.next(v, time.Time{})
		first[i] = true
	}
	if len(first) < 6 {
		t.Errorf("50 nodes begin with %v", first)
	}
}

func TestASourceIsAskedNoFurtherAheadThanDepth(t *testing.T) {
	p := newTestPicker(t, 10, 3)
	v := &view{}
	p.join(v, blob.FullMap(10))
	got := all(p, v, time.Time{})
	if len(got) != 3 {
		t.Fatalf("asked for %v", got)
	}
	p.came(v, got[0], time.Time{})
	if more := all(p, v, time.Time{}); len(more) != 1 {
		t.Errorf("asked for %v while what came is written", more)
	}
	p.kept(v, got[0], true)
	if more := all(p, v, time.Time{}); len(more) != 0 {
		t.Errorf("asked for %v", more)
	}
}

func TestOvertakingTakesWhatWasNotBegun(t *testing.T) {
	p := newTestPicker(t, 4, 3)
	now := time.Now()
	slow, fast := &view{}, &view{}
	p.join(slow, blob.FullMap(4))
	owed := all(p, slow, now)
	p.join(fast, blob.FullMap(4))
	got := all(p, fast, now)
	if len(got) != 1 {
		t.Fatalf("asked for %v", got)
	}
	now = now.Add(time.Second)
	comes(p, fast, got[0], now) // one piece a second
	if got := all(p, fast, now); len(got) != 0 {
		t.Fatalf("overtakes after one second: %v", got)
	}
	now = now.Add(2 * time.Second) // the slow one has brought nothing for three
	slow.heard = now
	got = all(p, fast, now)
	if len(got) != 1 || got[0] == owed[0] || len(slow.cancels) != 1 || slow.cancels[0] != got[0] {
		t.Fatalf("owed %v, overtakes %v, cancels %v", owed, got, slow.cancels)
	}
	if !p.lacks(slow, got[0]) || !slow.have.Has(got[0]) {
		t.Error("a source that was told to stop is thought to lack the piece")
	}
}

func TestTheFirstToBringAPieceStopsTheOthers(t *testing.T) {
	p := newTestPicker(t, 1, 3)
	now := time.Now()
	a, b := &view{}, &view{}
	p.join(a, blob.FullMap(1))
	all(p, a, now)
	p.join(b, blob.FullMap(1))
	now = now.Add(10 * time.Second)
	if got := all(p, b, now); len(got) != 1 {
		t.Fatalf("asked for %v", got)
	}
	if len(a.cancels) != 0 {
		t.Error("the one that may be sending was told to stop too early")
	}
	p.came(b, 0, now)
	if !p.kept(b, 0, true) || len(a.cancels) != 1 {
		t.Errorf("cancels %v", a.cancels)
	}
	// It was faster than the message: its answer is the piece.
	if !p.came(a, 0, now) || !p.kept(a, 0, true) || p.live[0] != 0 || len(a.asks) != 0 {
		t.Error("an answer that crossed the cancel")
	}
}

func TestASourceThatLacksAPieceIsNotAskedAgainUntilItHasIt(t *testing.T) {
	p := newTestPicker(t, 1, 3)
	v := &view{}
	p.join(v, blob.FullMap(1))
	all(p, v, time.Time{})
	if !p.lacks(v, 0) || p.lacks(v, 0) {
		t.Error("one ask has one answer")
	}
	if got := all(p, v, time.Time{}); len(got) != 0 {
		t.Errorf("asked for %v", got)
	}
	p.got(v, 0)
	if got := all(p, v, time.Time{}); len(got) != 1 {
		t.Errorf("asked for %v", got)
	}
}

func TestAPieceThatIsBeingWrittenIsNotAskedOfAnother(t *testing.T) {
	p := newTestPicker(t, 1, 3)
	now := time.Now()
	a, b := &view{}, &view{}
	p.join(a, blob.FullMap(1))
	p.join(b, blob.FullMap(1))
	all(p, a, now)
	p.came(a, 0, now)
	p.leave(a)
	if got := all(p, b, now.Add(time.Hour)); len(got) != 0 {
		t.Errorf("asked for %v", got)
	}
	p.kept(a, 0, false) // it was wrong
	if got := all(p, b, now.Add(time.Hour)); len(got) != 1 {
		t.Errorf("asked for %v", got)
	}
}

// TestPickersBooksBalance plays a random transfer of five sources that come, go, lack and are slow.
func TestPickersBooksBalance(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		const n = 40
		p := newTestPicker(t, n, 1+r.IntN(4))
		p.random = r
		now := time.Now()
		var views []*view
		for step := 0; p.missing > 0; step++ {
			if step > 100_000 {
				t.Fatalf("seed %d: does not end, %d missing", seed, p.missing)
			}
			now = now.Add(time.Duration(r.IntN(300)) * time.Millisecond)
			if len(views) == 0 || len(views) < 5 && r.IntN(20) == 0 {
				v := &view{}
				p.join(v, with(n, r.Perm(n)[:r.IntN(n)]...))
				views = append(views, v)
			}
			k := r.IntN(len(views))
			v := views[k]
			all(p, v, now)
			switch r.IntN(10) {
			case 0:
				p.leave(v)
				for len(v.asks) > 0 {
					p.kept(v, v.asks[0].piece, true)
				}
				views = append(views[:k], views[k+1:]...)
			case 1:
				p.got(v, r.IntN(n))
			case 2:
				if len(v.asks) > 0 && !v.asks[0].came {
					p.lacks(v, v.asks[0].piece)
				}
			default:
				if len(v.asks) == 0 {
					break
				}
				if a := v.asks[0]; !a.came {
					p.came(v, a.piece, now)
				} else {
					p.kept(v, a.piece, r.IntN(20) > 0)
				}
			}
			var live, rarity [n]int
			for _, v := range views {
				for i := range n {
					if v.have.Has(i) {
						rarity[i]++
					}
				}
				for _, a := range v.asks {
					if !a.cancelled {
						live[a.piece]++
					}
				}
			}
			for i := range n {
				if int(p.live[i]) != live[i] || int(p.rarity[i]) != rarity[i] || live[i] > 2 {
					t.Fatalf("seed %d, step %d, piece %d: live %d, is %d; rarity %d, is %d", seed, step, i, p.live[i], live[i], p.rarity[i], rarity[i])
				}
			}
		}
	}
}
