package models

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/exchange"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/upstream"
)

// lookForSources is how often a blob that nobody gives yet is looked for.
const lookForSources = 250 * time.Millisecond

// origin is where a blob comes from when no member has it: the model's name at a registry.
type origin struct {
	name     manifest.Name
	insecure bool
}

// supply is a blob on its way into the spool, for all who wait for it.
type supply struct {
	digest string
	size   int64
	cancel context.CancelCauseFunc
	since  time.Time

	listed chan struct{} // closed when partial is set
	done   chan struct{} // closed when it has ended
	before *supply       // one of the same blob that was given up and has not ended yet

	liars map[cluster.NodeID]bool // nodes that sent wrong bytes, were too slow, or had no true list agreed; of its goroutine alone

	// Under the lock of Models.
	users    int
	origin   origin
	partial  *blob.Partial
	transfer *exchange.Transfer
	upstream bool  // this node asks the registry
	got      int64 // bytes of it
	err      error
}

// acquire joins the blob's supply, or begins it. The caller gives it back.
func (m *Models) acquire(b manifest.Blob, from origin) (*supply, func()) {
	m.mu.Lock()
	s := m.supplies[b.Digest]
	if s == nil || s.users == 0 || s.ended() {
		s = &supply{digest: b.Digest, size: b.Size, since: m.deps.Now(), listed: make(chan struct{}), done: make(chan struct{}),
			before: s, liars: map[cluster.NodeID]bool{}, origin: from}
		m.supplies[b.Digest] = s
		m.begin(s)
	}
	s.users++
	m.mu.Unlock()
	return s, func() {
		m.mu.Lock()
		last := false
		if s.users--; s.users == 0 {
			s.cancel(errUnwanted)
			m.used[s.digest] = m.deps.Now()
			last = m.forget(s)
		}
		m.mu.Unlock()
		if last {
			m.dropHeld(s.digest)
		}
	}
}

// forget drops a supply that nobody waits for and that has ended: until then its blob is not free. The caller holds the lock.
func (m *Models) forget(s *supply) bool {
	if s.users > 0 || !s.ended() || m.supplies[s.digest] != s {
		return false
	}
	delete(m.supplies, s.digest)
	return true
}

// errUnwanted ends a supply that nobody waits for any more.
var errUnwanted = errors.New("nobody wants it any more")

func (s *supply) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// begin runs the supply. The caller holds the lock.
func (m *Models) begin(s *supply) {
	if m.run == nil || m.run.Err() != nil {
		s.cancel, s.err = func(error) {}, errStopping
		close(s.done)
		return
	}
	ctx, cancel := context.WithCancelCause(m.run)
	run := m.run
	s.cancel = cancel
	m.work.Go(func() {
		defer cancel(nil)
		if s.before != nil {
			<-s.before.done // it has the files, and was told to end
			s.before = nil
		}
		err := m.supply(ctx, s)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		m.mu.Lock()
		s.err, s.upstream = err, false
		close(s.done)
		last := m.forget(s)
		m.mu.Unlock()
		if last {
			m.dropHeld(s.digest)
		}
		m.tell(run)
	})
}

const (
	giveUpAfter = 5 * time.Minute  // a blob is looked for while all that is tried fails
	standBy     = 30 * time.Second // holders have so long to have a false list replaced
)

// supply gets a blob into the spool: from members, or from the registry if none of them has it and the leader lets
// this node ask there.
func (m *Models) supply(ctx context.Context, s *supply) error {
	asked := map[cluster.NodeID]time.Time{} // holders that were asked to offer it
	var last error
	var failing time.Time // since then
	stuck := false        // those who have some of it gave nothing
	another := ""         // the root of a list that was found to be another blob's
	for {
		if p, err := m.spool.Get(ctx, digest(s.digest)); err == nil && m.fits(s, p) == nil && p.Missing() == 0 {
			m.list(s, p)
			return m.keepList(p.List())
		}
		holders := m.holders(s.digest, s.liars)
		root, agreed := m.deps.State().Roots[s.digest]
		wrong := agreed && (root.Size != s.size || root.Hash == another)
		var err error
		switch {
		case agreed && !wrong && len(holders.give) > 0 && !stuck:
			var came int64
			came, err = m.fromMembers(ctx, s, root)
			stuck = errors.Is(err, exchange.ErrNobody)
			if ctx.Err() != nil || errors.Is(err, blob.ErrFull) {
				return err
			}
			if errors.Is(err, blob.ErrWrong) {
				another = root.Hash
			} else if came > 0 {
				failing = time.Time{}
			}
		case len(holders.whole)+len(holders.locked) > 0: // also when it is agreed: who has it may have no list
			stuck = false
			err = m.askToOffer(ctx, s.digest, holders, asked)
			if wrong { // who has the blob has the true list agreed; if nobody does, they all lie
				if err == nil {
					err = fmt.Errorf("its agreed list is another blob's: %w", blob.ErrWrong)
				}
				if !failing.IsZero() && m.deps.Now().Sub(failing) > standBy {
					for _, id := range slices.Concat(holders.whole, holders.locked) {
						s.liars[id] = true
					}
				}
			}
		default:
			stuck = false
			if err := m.cameWrong(s); err != nil {
				return err
			}
			var granted bool
			if granted, err = m.askForLease(ctx, s.digest, leaseRequest{Without: slices.Collect(maps.Keys(s.liars))}); granted {
				err = m.fromUpstream(ctx, s, last)
				if errors.Is(err, errLeaseLost) {
					err = nil
				} else if !errors.Is(err, upstream.ErrNoModel) || m.deps.Now().Sub(s.since) >= untilTold {
					return err
				}
				// It may be on a member that has not told of it yet.
			}
			if err == nil { // somebody else is at it
				failing = time.Time{}
			}
		}
		if err != nil {
			last = err
			m.deps.Log.Debug("blob is not here yet", "blob", short(s.digest), "err", err)
			if failing.IsZero() {
				failing = m.deps.Now()
			}
			if m.deps.Now().Sub(failing) > giveUpAfter {
				return fmt.Errorf("blob %s: %w", short(s.digest), err)
			}
		}
		if !sleep(ctx, lookForSources) {
			return context.Cause(ctx)
		}
	}
}

// list tells who waits that the pieces are known.
func (m *Models) list(s *supply, p *blob.Partial) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := s.partial == nil
	s.partial = p // another one, when the first was closed: its list is no more the agreed one
	if first {
		close(s.listed)
	}
}

// pieces is what has come of the blob.
func (m *Models) pieces(s *supply) *blob.Partial {
	m.mu.Lock()
	defer m.mu.Unlock()
	return s.partial
}

// keepList keeps the list of a blob beyond its way through the spool.
func (m *Models) keepList(l *blob.List) error {
	if had, err := m.lists.Get(l.Digest()); err == nil && had.Root() == l.Root() {
		return nil
	}
	return m.lists.Put(l)
}

// holders are the members that have a blob, which are not this one, live and have not lied.
type holders struct {
	give   []cluster.NodeID // all of it or some: they may be asked for pieces
	whole  []cluster.NodeID
	locked []cluster.NodeID
}

func (m *Models) holders(digest string, liars map[cluster.NodeID]bool) (h holders) {
	for _, n := range m.deps.View().Nodes {
		if n.ID == m.deps.Self || n.Condition == cluster.Dead || liars[n.ID] {
			continue
		}
		for _, b := range n.Blobs {
			if b.Digest != digest {
				continue
			}
			switch b.State {
			case cluster.BlobWhole:
				h.give, h.whole = append(h.give, n.ID), append(h.whole, n.ID)
			case cluster.BlobPartial:
				h.give = append(h.give, n.ID)
			case cluster.BlobLocked:
				h.locked = append(h.locked, n.ID)
			}
		}
	}
	return h
}

// fromMembers gets the pieces from all members that have some, and returns how many bytes came.
func (m *Models) fromMembers(ctx context.Context, s *supply, root cluster.Root) (came int64, err error) {
	hash, err := blob.ParseRoot(root.Hash)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	liars := maps.Clone(s.liars)
	t := m.exchange.Transfer(exchange.Want{
		Digest: digest(s.digest), Root: hash,
		Sources: func() []cluster.NodeID { return m.holders(s.digest, liars).give },
	}, m.spool)
	m.mu.Lock()
	s.transfer = t
	m.mu.Unlock()
	running := make(chan error, 1)
	go func() { running <- t.Run(ctx) }()
	ticker := time.NewTicker(lookForSources)
	defer ticker.Stop()
	listed := false
	for {
		select {
		case err := <-running:
			if cause := context.Cause(ctx); err != nil && cause != nil {
				err = cause
			}
			if err == nil {
				var p *blob.Partial
				if p, err = m.spool.Get(ctx, digest(s.digest)); err == nil {
					err = m.fits(s, p)
				}
				if err == nil {
					m.list(s, p)
					err = m.keepList(p.List())
				}
			}
			return t.Progress().Received, err
		case <-ticker.C:
			for _, from := range t.Progress().Sources {
				if from.Banned && !s.liars[from.Node] {
					s.liars[from.Node] = true
					cancelled := fmt.Errorf("node %s: %s: %w", m.nameOf(from.Node), from.Failure, exchange.ErrNobody)
					if len(m.holders(s.digest, s.liars).give) == 0 { // it is not waited for
						cancel(cancelled)
					}
				}
			}
			if listed {
				continue
			}
			if p, err := m.spool.Get(ctx, digest(s.digest)); err == nil && p.List().Root() == hash {
				listed = true
				if err := m.fits(s, p); err != nil {
					cancel(err)
					continue
				}
				m.list(s, p)
				m.tell(ctx) // it can be given to others already
			}
		}
	}
}

// fits drops what has come by a list that cannot be the blob's, and is blob.ErrWrong then.
func (m *Models) fits(s *supply, p *blob.Partial) error {
	if size := p.List().Size(); size != s.size {
		return errors.Join(fmt.Errorf("its agreed list is one of %d bytes, it has %d: %w", size, s.size, blob.ErrWrong), m.spool.Remove(digest(s.digest)))
	}
	return nil
}

// fromUpstream gets the blob, or what is missing of it, from the registry that the model's name means. Why members
// did not give it may be said.
func (m *Models) fromUpstream(ctx context.Context, s *supply, members error) (err error) {
	asking, cancel := context.WithCancelCause(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { m.renewLease(asking, s.digest, cancel) })
	defer func() {
		cancel(nil)
		renewing.Wait()
		m.mu.Lock()
		s.upstream = false
		m.mu.Unlock()
		if err != nil { // else it lapses: until all have heard who has the blob, nobody is to ask for it again
			m.giveLeaseBack(ctx, s.digest)
		}
	}()
	m.mu.Lock()
	s.upstream, s.got = true, 0
	m.mu.Unlock()
	m.tell(ctx)
	remote := m.upstream.Remote(s.origin.name, s.origin.insecure)
	p, err := m.spool.Get(ctx, digest(s.digest))
	if err == nil {
		if err = m.fill(asking, s, remote, p); errors.Is(err, blob.ErrWrong) { // the list is not this blob's
			err = errors.Join(m.spool.Remove(digest(s.digest)), fs.ErrNotExist)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		if p, err = m.takeIn(asking, s, remote); errors.Is(err, blob.ErrWrong) {
			m.mu.Lock()
			m.wrong[wrongBlob{s.digest, s.origin.name}] = m.deps.Now()
			m.mu.Unlock()
		}
	}
	if err != nil {
		if asking.Err() != nil {
			err = context.Cause(asking)
		}
		if members != nil {
			return fmt.Errorf("no member gives blob %s (%w): %w", short(s.digest), members, err)
		}
		return fmt.Errorf("no member has blob %s: %w", short(s.digest), err)
	}
	m.list(s, p)
	if err := m.keepList(p.List()); err != nil {
		return err
	}
	m.tell(ctx)
	return m.agreeOnRoot(ctx, p.List())
}

// wrongBlob is a blob of which a registry has other bytes.
type wrongBlob struct {
	digest string
	from   manifest.Name
}

// cameWrong is an error for a blob all of which came from its registry with other bytes than its digest's: it would again.
func (m *Models) cameWrong(s *supply) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.wrong, func(_ wrongBlob, at time.Time) bool { return m.deps.Now().Sub(at) > wrongFor })
	at, came := m.wrong[wrongBlob{s.digest, s.origin.name}]
	if !came {
		return nil
	}
	return fmt.Errorf("blob %s came from the registry at %s with other bytes than its digest's: it is not asked for again before %s: %w",
		short(s.digest), at.Format(time.TimeOnly), at.Add(wrongFor).Format(time.TimeOnly), blob.ErrWrong)
}

// wrongFor is how long the registry is not asked again for a blob that it has wrong.
const wrongFor = time.Hour

// takeIn gets a whole blob, of which no list is here.
func (m *Models) takeIn(ctx context.Context, s *supply, from *upstream.Remote) (*blob.Partial, error) {
	in, err := m.spool.Intake(ctx, digest(s.digest), s.size)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	m.count(s, in.Offset())
	if in.Offset() < s.size {
		err := m.copy(ctx, s, from, in.Offset(), s.size-in.Offset(), in)
		if err != nil {
			return nil, err
		}
	}
	if _, err := in.Finish(); err != nil {
		return nil, err
	}
	return m.spool.Get(ctx, digest(s.digest))
}

// fill gets the pieces that are missing.
func (m *Models) fill(ctx context.Context, s *supply, from *upstream.Remote, p *blob.Partial) error {
	m.list(s, p)
	l, have := p.List(), p.Have()
	for i := range l.Len() {
		offset, n := l.Span(i)
		if have.Has(i) {
			m.count(s, int64(n))
			continue
		}
		if err := m.fillPiece(ctx, s, from, p, i, offset, n); err != nil {
			return err
		}
	}
	return p.Finish(ctx)
}

// fillPiece gets a piece, twice if it is wrong: only the same wrong bytes again speak against the list, and are blob.ErrWrong.
func (m *Models) fillPiece(ctx context.Context, s *supply, from *upstream.Remote, p *blob.Partial, i int, offset int64, n int) error {
	var last []byte
	for range maxPieceTries {
		var piece bytes.Buffer
		piece.Grow(n)
		if err := m.copy(ctx, s, from, offset, int64(n), &piece); err != nil {
			return err
		}
		err := p.WritePiece(i, piece.Bytes())
		if !errors.Is(err, blob.ErrWrong) || bytes.Equal(piece.Bytes(), last) {
			return err
		}
		m.count(s, int64(-n))
		last = piece.Bytes()
	}
	return fmt.Errorf("registry sends other bytes each time of piece %d of blob %s, and never the right ones", i, short(s.digest))
}

const maxPieceTries = 3

// copy reads a part of a blob from a registry.
func (m *Models) copy(ctx context.Context, s *supply, from *upstream.Remote, offset, length int64, to io.Writer) error {
	body, err := from.Open(ctx, s.digest, offset, length)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.CopyBuffer(writerFunc(func(b []byte) (int, error) {
		n, err := to.Write(b)
		m.count(s, int64(n))
		return n, err
	}), body, make([]byte, 256<<10))
	return err
}

func (m *Models) count(s *supply, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.got += n
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// agreeOnRoot has the cluster agree on a list that this node made of verified bytes.
func (m *Models) agreeOnRoot(ctx context.Context, l *blob.List) error {
	key := l.Digest().Hex()
	root := cluster.Root{Hash: l.Root().String(), Size: l.Size()}
	for {
		agreed := m.deps.State().Roots[key]
		if agreed == root {
			return nil
		}
		err := m.deps.Apply(ctx, cluster.Command{At: m.deps.Now(), SetRoot: &cluster.SetRoot{Blob: key, Root: root, Instead: agreed.Hash}})
		if err == nil || ctx.Err() != nil {
			return err
		}
		m.deps.Log.Debug("cannot agree on the root of a blob yet", "blob", short(key), "err", err)
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}
