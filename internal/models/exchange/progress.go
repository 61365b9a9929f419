package exchange

import (
	"slices"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// Progress is how far a Transfer is.
type Progress struct {
	Digest blob.Digest
	Size   int64 // bytes of the blob; 0 until its list is here
	Have   int64 // bytes that are there, those of earlier runs too

	// Received is the bytes of pieces that have come in this run, also of those that were wrong or came twice.
	Received int64

	Rate float64       // bytes a second, over the last seconds
	ETA  time.Duration // at that rate; 0: not known

	Sources []SourceProgress // by node
}

// SourceProgress is what came of one node in this run.
type SourceProgress struct {
	Node      cluster.NodeID
	Connected bool
	Bytes     int64
	Rate      float64
	Failure   string // why it is not connected, "" if it is, or was not tried
	Banned    bool   // it sent what it should not have, or too slowly
}

// Progress may be called at any time.
func (t *Transfer) Progress() Progress {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	p := Progress{Digest: t.want.Digest, Received: t.received, Rate: t.meter.rate(now)}
	if t.partial != nil {
		l, have := t.partial.List(), t.partial.Have()
		p.Size = l.Size()
		p.Have = int64(have.Count()) * int64(l.PieceSize())
		if last := l.Len() - 1; last >= 0 && have.Has(last) {
			_, n := l.Span(last)
			p.Have += int64(n - l.PieceSize())
		}
		if p.Rate > 0 {
			p.ETA = time.Duration(float64(p.Size-p.Have) / p.Rate * float64(time.Second))
		}
	}
	for id, r := range t.nodes {
		s := SourceProgress{Node: id, Bytes: r.bytes, Rate: r.meter.rate(now), Banned: r.banned}
		s.Connected = t.sources[id] != nil
		if r.failure != nil && (r.banned || !s.Connected) {
			s.Failure = r.failure.Error()
		}
		p.Sources = append(p.Sources, s)
	}
	slices.SortFunc(p.Sources, func(a, b SourceProgress) int { return strings.Compare(string(a.Node), string(b.Node)) })
	return p
}

// meterSeconds is how far a meter looks back.
const meterSeconds = 5

// meter counts bytes a second.
type meter struct {
	began time.Time
	last  int64 // second since then
	ring  [meterSeconds + 1]int64
}

func (m *meter) add(now time.Time, n int) {
	m.turn(now)
	m.ring[m.last%int64(len(m.ring))] += int64(n)
}

// turn empties the seconds that nothing was counted in.
func (m *meter) turn(now time.Time) {
	if m.began.IsZero() {
		m.began = now
	}
	second := int64(now.Sub(m.began) / time.Second)
	for s := max(m.last+1, second-int64(len(m.ring))+1); s <= second; s++ {
		m.ring[s%int64(len(m.ring))] = 0
	}
	m.last = max(m.last, second)
}

func (m *meter) rate(now time.Time) float64 {
	if m.began.IsZero() {
		return 0
	}
	m.turn(now)
	var sum int64
	for _, n := range m.ring {
		sum += n
	}
	span := min(now.Sub(m.began), now.Sub(m.began)%time.Second+meterSeconds*time.Second)
	return float64(sum) / max(span, 100*time.Millisecond).Seconds()
}
