package exchange

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// picker decides what is asked of whom. It has no clock, no lock and no connections.
//
//  1. A source is asked for at most depth pieces ahead. Those that have come and are being written do not count: it would wait
//     for our disk.
//  2. Of the pieces that nobody is asked for, the one that the fewest sources have comes first, by lot
//     among equals: so nodes that fetch together get different pieces, and each piece leaves the first node early.
//  3. A source for which nothing is left overtakes: it is asked for a piece that another source owes and is
//     expected to bring much later, or is silent about. What the other has not begun is taken from it.
//  4. Whoever brings a piece first, all others that owe it are told to stop.
type picker struct {
	depth   int
	piece   int64 // bytes
	random  *rand.Rand
	have    blob.Map
	pieces  int
	missing int
	rarity  []uint16 // sources that have the piece
	live    []uint8  // asks for it that were not cancelled
	sources []*view
}

// view is what the picker knows of a source.
type view struct {
	have    blob.Map
	asks    []ask     // in the order of asking, which is the order of the answers
	cancels []int     // to be told to the source
	rate    float64   // bytes a second; 0: not known
	last    time.Time // when it brought the last piece
	heard   time.Time // when the last bytes of any piece came, or were asked for if none was owed
}

// ask is a piece that a source owes.
type ask struct {
	piece     int
	at        time.Time
	cancelled bool // it may be answered by lack, and nobody waits for it
	came      bool // whole, and is being verified and written
}

func newPicker(l *blob.List, have blob.Map, depth int, random *rand.Rand) *picker {
	return &picker{
		depth: depth, piece: int64(l.PieceSize()), random: random,
		have: have, pieces: l.Len(), missing: l.Len() - have.Count(),
		rarity: make([]uint16, l.Len()), live: make([]uint8, l.Len()),
	}
}

// join adds a source, which has these pieces.
func (p *picker) join(v *view, have blob.Map) {
	v.have = blob.NewMap(p.pieces)
	p.sources = append(p.sources, v)
	for i := range p.pieces {
		if have.Has(i) {
			p.got(v, i)
		}
	}
}

// got notes that a source has a piece more.
func (p *picker) got(v *view, i int) {
	if !v.have.Has(i) {
		v.have.Set(i)
		p.rarity[i]++
	}
}

// leave removes a source. What came of it and is not written yet still counts as asked for.
func (p *picker) leave(v *view) {
	k := slices.Index(p.sources, v)
	if k < 0 {
		return
	}
	p.sources = slices.Delete(p.sources, k, k+1)
	for i := range p.pieces {
		if v.have.Has(i) {
			p.rarity[i]--
		}
	}
	kept := v.asks[:0]
	for _, a := range v.asks {
		if a.came {
			kept = append(kept, a)
		} else if !a.cancelled {
			p.live[a.piece]--
		}
	}
	v.asks = kept
}

// next chooses the piece that a source is asked for now.
func (p *picker) next(v *view, now time.Time) (piece int, ok bool) {
	if v.owed() >= p.depth || p.missing == 0 {
		return 0, false
	}
	if piece, ok = p.rarest(v); !ok && len(v.asks) == 0 {
		piece, ok = p.overtake(v, now)
	}
	if !ok {
		return 0, false
	}
	if len(v.asks) == 0 {
		v.heard = now
	}
	v.asks = append(v.asks, ask{piece: piece, at: now})
	p.live[piece]++
	return piece, true
}

func (p *picker) rarest(v *view) (best int, ok bool) {
	equal := 0
	for i, n := range p.rarity {
		if p.live[i] > 0 || ok && n > p.rarity[best] || p.have.Has(i) || !v.have.Has(i) || v.owes(i) {
			continue
		}
		if !ok || n < p.rarity[best] {
			best, ok, equal = i, true, 1
		} else if equal++; p.random.IntN(equal) == 0 {
			best = i
		}
	}
	return best, ok
}

// owed is how many pieces the source has not brought yet.
func (v *view) owed() (n int) {
	for _, a := range v.asks {
		if !a.came {
			n++
		}
	}
	return n
}

func (v *view) owes(i int) bool {
	return slices.ContainsFunc(v.asks, func(a ask) bool { return a.piece == i })
}

const (
	farLater  = 3 // times as long as the other would take: then a piece may cross twice
	leastWait = 100 * time.Millisecond
	patience  = time.Second // with a source of which nothing is known
)

// overtake chooses the piece that will be waited for longest.
func (p *picker) overtake(v *view, now time.Time) (piece int, ok bool) {
	mine := patience / farLater
	if v.rate > 0 {
		mine = p.takes(1, v.rate)
	}
	var longest time.Duration
	var from *view
	var which int
	for _, h := range p.sources {
		for k, a := range h.asks {
			if h == v || a.cancelled || a.came || p.live[a.piece] != 1 || !v.have.Has(a.piece) || p.have.Has(a.piece) {
				continue
			}
			wait := p.remaining(h, k, now)
			enough := max(farLater*mine, leastWait)
			if k > 0 { // not begun: nothing crosses twice
				enough = mine
			}
			if wait > enough && wait >= longest { // of one source the last, which it begins latest
				longest, from, which = wait, h, k
			}
		}
	}
	if from == nil {
		return 0, false
	}
	piece = from.asks[which].piece
	if which > 0 {
		p.cancel(from, which)
	}
	return piece, true
}

// remaining is how long the source's k-th ask is expected to take from now.
func (p *picker) remaining(h *view, k int, now time.Time) time.Duration {
	silent := now.Sub(h.heard)
	if h.rate == 0 {
		return max(silent, now.Sub(h.asks[k].at)) // as long again as it has taken
	}
	since := h.last
	if h.asks[0].at.After(since) {
		since = h.asks[0].at
	}
	return max(silent, p.takes(k+1, h.rate)-now.Sub(since))
}

func (p *picker) takes(pieces int, rate float64) time.Duration {
	return time.Duration(float64(int64(pieces)*p.piece) / rate * float64(time.Second))
}

// cancel notes that a source need not bring what it owes.
func (p *picker) cancel(h *view, k int) {
	h.asks[k].cancelled = true
	h.cancels = append(h.cancels, h.asks[k].piece)
	p.live[h.asks[k].piece]--
}

// came notes that all bytes of a piece have come. It is false if the source owed none.
func (p *picker) came(v *view, i int, now time.Time) bool {
	k := slices.IndexFunc(v.asks, func(a ask) bool { return a.piece == i && !a.came })
	if k < 0 {
		return false
	}
	a := &v.asks[k]
	a.came = true
	since := v.last
	if a.at.After(since) {
		since = a.at
	}
	if took := now.Sub(since); took > 0 {
		rate := float64(p.piece) / took.Seconds()
		if v.rate > 0 {
			rate = 0.7*v.rate + 0.3*rate
		}
		v.rate = rate
	}
	v.last = now
	return true
}

// kept notes that a piece that came is written, or with !ok that it was not. It tells whether nothing is missing now.
func (p *picker) kept(v *view, i int, ok bool) (done bool) {
	p.answered(v, i, true)
	if ok && !p.have.Has(i) {
		p.have.Set(i)
		p.missing--
		for _, h := range p.sources {
			for k, a := range h.asks {
				if a.piece == i && !a.cancelled && !a.came {
					p.cancel(h, k)
				}
			}
		}
	}
	return p.missing == 0
}

// lacks notes that a source does not bring a piece, either because it was told to stop or because it no longer has it.
// It is false if the source owed none.
func (p *picker) lacks(v *view, i int) bool {
	a, ok := p.answered(v, i, false)
	if ok && !a.cancelled && v.have.Has(i) {
		v.have[i/8] &^= 1 << (i % 8)
		p.rarity[i]--
	}
	return ok
}

func (p *picker) answered(v *view, i int, came bool) (ask, bool) {
	k := slices.IndexFunc(v.asks, func(a ask) bool { return a.piece == i && a.came == came })
	if k < 0 {
		return ask{}, false
	}
	a := v.asks[k]
	v.asks = slices.Delete(v.asks, k, k+1)
	if !a.cancelled {
		p.live[i]--
	}
	return a, true
}
