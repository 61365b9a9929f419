package exchange

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// ErrNobody says that for Config.Patience no source has sent anything.
var ErrNobody = errors.New("no node sends it")

const (
	tick      = 100 * time.Millisecond // how often sources are looked at
	firstWait = 100 * time.Millisecond // before a source that failed is tried again; doubles
	lastWait  = 10 * time.Second
	busyWait  = time.Second // the longest before one that is busy is
)

// Want is what a Transfer is to get.
type Want struct {
	Digest blob.Digest
	Root   blob.Root // agreed by the cluster

	// Sources names the nodes to ask now. It is called often, and may name nodes that cannot be
	// reached or have nothing. A node that it no longer names is let go.
	Sources func() []cluster.NodeID
}

// Transfer gets one blob into a spool.
type Transfer struct {
	x     *Exchange
	want  Want
	spool *blob.Spool
	wake  chan struct{} // a source has ended

	mu       sync.Mutex
	partial  *blob.Partial // nil until there is a list
	picker   *picker
	sources  map[cluster.NodeID]*source
	nodes    map[cluster.NodeID]*record
	received int64
	meter    meter
	heard    time.Time // when any bytes came, or might have if we had taken them
	full     time.Time // since when all named nodes are busy with other transfers of ours; the zero time: they are not
	refused  time.Time // when a node first said that it serves others, since bytes came last; the zero time: none did
	done     chan struct{}
	failed   error // ours: a full disk
}

// record is what is remembered of a node between its connections.
type record struct {
	bytes   int64
	meter   meter
	banned  bool
	failure error
	retry   time.Time
	wait    time.Duration // before the last retry; 0 again once it has brought a piece
}

// Transfer makes a Transfer.
func (x *Exchange) Transfer(w Want, s *blob.Spool) *Transfer {
	return &Transfer{x: x, want: w, spool: s, wake: make(chan struct{}, 1),
		sources: make(map[cluster.NodeID]*source), nodes: make(map[cluster.NodeID]*record)}
}

// Run gets the blob, once: when it returns nil, every piece is in the spool and has the hash of the agreed list. It
// goes on where an earlier Transfer was, of this process or another. Its errors are ErrNobody, blob.ErrFull, blob.ErrWrong
// (the agreed list is another blob's), the context's, or a broken disk's. What has come is kept in any case.
//
// The digest of the whole is not computed again: see blob.Partial.Finish for who needs that.
func (t *Transfer) Run(ctx context.Context) error {
	t.mu.Lock()
	t.heard = time.Now()
	t.mu.Unlock()
	p, err := t.open(ctx)
	if err == nil {
		t.mu.Lock()
		t.partial, t.heard, t.refused = p, time.Now(), time.Time{}
		t.mu.Unlock()
		err = t.fetch(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("fetch %s: %w", t.want.Digest, err)
	}
	return nil
}

// open finds the Partial in the spool, or asks sources for the list until one has the right one.
func (t *Transfer) open(ctx context.Context) (*blob.Partial, error) {
	p, err := t.spool.Get(ctx, t.want.Digest)
	if err == nil && p.List().Root() == t.want.Root {
		return p, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, blob.ErrWrong) {
		return nil, err
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		for _, id := range t.candidates(time.Now()) {
			l, err := t.x.fetchList(ctx, id, t.want)
			if err == nil && l.Digest() != t.want.Digest {
				return nil, fmt.Errorf("the agreed list is one of %s: %w", l.Digest(), blob.ErrWrong)
			}
			if err == nil {
				return t.spool.Open(ctx, l)
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			t.ended(id, err)
		}
		if err := t.impatient(time.Now()); err != nil {
			return nil, err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// fetch gets the pieces that are missing.
func (t *Transfer) fetch(ctx context.Context, p *blob.Partial) error {
	ctx, cancel := context.WithCancel(ctx)
	t.mu.Lock()
	t.picker = newPicker(p.List(), p.Have(), t.x.config.Depth, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	t.done = make(chan struct{})
	if t.picker.missing == 0 {
		close(t.done)
	}
	t.mu.Unlock()

	k := &keeper{t: t, partial: p, pieces: make(chan arrival)}
	var keeping, asking sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0)+2, 4) { // more than there are processors: they wait for the disk too
		keeping.Go(k.run)
	}
	defer func() {
		cancel()
		asking.Wait()
		close(k.pieces)
		keeping.Wait()
	}()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		now := time.Now()
		select {
		case <-t.done:
			t.mu.Lock()
			defer t.mu.Unlock()
			return t.failed
		default:
		}
		t.connect(ctx, now, k, &asking)
		t.look(now)
		if err := t.impatient(now); err != nil {
			return err
		}
		select {
		case <-t.done:
		case <-t.wake:
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// candidates are the named nodes that may be connected to now, in no order.
func (t *Transfer) candidates(now time.Time) (ids []cluster.NodeID) {
	named := t.want.Sources()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range named {
		r := t.nodes[id]
		if t.sources[id] == nil && (r == nil || !r.banned && !now.Before(r.retry)) && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for id, s := range t.sources {
		if !slices.Contains(named, id) {
			s.cancel()
		}
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return ids
}

// connect begins with sources that may be connected to now.
func (t *Transfer) connect(ctx context.Context, now time.Time, k *keeper, work *sync.WaitGroup) {
	ids := t.candidates(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	full := false
	for _, id := range ids {
		if len(t.sources) >= t.x.config.Sources {
			break
		}
		if !t.x.begin(id) {
			full = true
			continue
		}
		own, cancel := context.WithCancel(ctx)
		s := &source{t: t, id: id, keeper: k, wake: make(chan struct{}, 1), view: &view{}, cancel: cancel}
		t.sources[id] = s
		t.node(id)
		work.Go(func() {
			defer cancel()
			defer t.x.end(id)
			t.left(s, s.run(own), ctx.Err() != nil)
		})
	}
	if !full || len(t.sources) > 0 {
		t.full = time.Time{}
		return
	}
	if t.full.IsZero() {
		t.full = now
	}
	t.wait(t.full, now)
}

// wait notes that the transfer waits for others: it is patient then, but no longer than these may take for a piece. The caller
// holds the lock.
func (t *Transfer) wait(since, now time.Time) {
	if now.Sub(since) <= t.x.config.Slow {
		t.heard = now
	}
}

// node is what is remembered of a node. The caller holds the lock.
func (t *Transfer) node(id cluster.NodeID) *record {
	r := t.nodes[id]
	if r == nil {
		r = &record{}
		t.nodes[id] = r
	}
	return r
}

// left notes that a source's connection has ended, and why.
func (t *Transfer) left(s *source, err error, over bool) {
	t.mu.Lock()
	t.picker.leave(s.view)
	delete(t.sources, s.id)
	t.mu.Unlock()
	if !over {
		t.ended(s.id, err)
	}
	t.wakeAll()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// ended decides when a node is tried again: never, if it did what it must not.
func (t *Transfer) ended(id cluster.NodeID, err error) {
	now := time.Now()
	wrong := errors.Is(err, errNonsense) || errors.Is(err, blob.ErrWrong)
	t.mu.Lock()
	r := t.node(id)
	was := r.banned
	r.banned = was || wrong || errors.Is(err, errSlow)
	if !was {
		r.failure = err
	}
	longest := lastWait
	if errors.Is(err, errBusy) { // our turn comes
		longest = busyWait
		if t.refused.IsZero() {
			t.refused = now
		}
		t.wait(t.refused, now)
	}
	r.wait = min(max(2*r.wait, firstWait), longest)
	r.retry = now.Add(r.wait/2 + rand.N(r.wait/2))
	t.mu.Unlock()
	if wrong && !was {
		t.x.deps.Blame(id, t.want.Digest, err)
	}
}

// look ends sources that owe a piece and send nothing, and has the others see whom they can overtake. One that we
// keep waiting, for the rate, for room or for the disk, is not one that sends nothing.
func (t *Transfer) look(now time.Time) {
	t.mu.Lock()
	for _, s := range t.sources {
		if s.waiting {
			t.wait(s.view.heard, now)
		}
		if len(s.view.asks) > 0 && !s.waiting && !s.view.asks[0].came && now.Sub(s.view.heard) > t.x.config.Stall {
			s.stalled = true
			s.cancel()
		}
	}
	t.mu.Unlock()
	t.wakeAll()
}

// wakeAll has the sources ask for what the picker wants of them now.
func (t *Transfer) wakeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sources {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// impatient is ErrNobody, with what the nodes said, if nothing came for too long.
func (t *Transfer) impatient(now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.heard) <= t.x.config.Patience {
		return nil
	}
	var said []string
	for id, r := range t.nodes {
		if r.failure != nil && len(said) < 8 {
			said = append(said, fmt.Sprintf("%s: %v", id, r.failure))
		}
	}
	slices.Sort(said)
	if len(said) == 0 {
		return fmt.Errorf("%w for %v: no node was named or could be reached", ErrNobody, t.x.config.Patience)
	}
	return fmt.Errorf("%w for %v: %s", ErrNobody, t.x.config.Patience, strings.Join(said, "; "))
}

// fail ends the transfer for a reason of our own.
func (t *Transfer) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed == nil {
		t.failed = err
		t.finish()
	}
}

// finish ends fetch. The caller holds the lock.
func (t *Transfer) finish() {
	select {
	case <-t.done:
	default:
		close(t.done)
	}
}
