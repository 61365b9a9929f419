package schedule

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Queue bounds who waits for a slot.
type Queue struct {
	// Max is how many requests may wait at a gateway; more are refused. Default 1000. Needs a restart,
	// as all below.
	Max int `yaml:"max"`
	// Wait is how long a request may wait that has no deadline of its own. Default 10m.
	Wait time.Duration `yaml:"wait"`
}

// DefaultQueue returns the defaults.
func DefaultQueue() Queue { return Queue{Max: 1000, Wait: 10 * time.Minute} }

// Validate returns what is wrong with the bounds, for an operator.
func (q Queue) Validate() error {
	if q.Max < 0 || q.Wait <= 0 {
		return fmt.Errorf("gateway.queue.max is %d and wait %v: give a number of requests, 0 for none, and a duration above 0", q.Max, q.Wait)
	}
	return nil
}

// queue is who waits, fair between callers by start-time fair queueing (Goyal, Vin and Cheng, 1996)
// over tokens: a request's tag is what its caller has been served when it begins, and the lowest tag
// goes first. A request costs the tokens that it asks for, corrected by those that it used, divided by
// the weight of its priority; a low priority moves the tag back besides, a high one forward. Who
// has been idle gains nothing by it. So whoever asks for little waits for at most one request of each
// other caller, and a low priority for a bounded number of higher ones.
//
// There is a list for each kind of request that the same nodes can serve, so that one model's
// waiters do not stand in another's way.
type queue struct {
	cfg     Queue
	waiting atomic.Int64

	mu       sync.Mutex
	lists    map[string][]*waiter // by kind, sorted
	paces    map[string]*pace     // of the kinds that have lists
	accounts map[account]*served
	many     int     // accounts at which those are looked for that can be forgotten
	virtual  float64 // what somebody would have been served who had always waited
	order    uint64
}

// account is who is served: the requests of one caller with one priority.
type account struct {
	caller   string
	priority cluster.Priority
}

// served is what an account has been promised.
type served struct {
	until   float64 // the virtual time up to which its requests are paid for
	waiting int
}

// waiter is a request that waits.
type waiter struct {
	r       *cluster.Request
	tried   []cluster.NodeID
	kind    string
	tag     float64
	order   uint64 // of arrival, among equal tags
	since   time.Time
	granted chan *cluster.Lease // holds one; nil in it: nobody is left, or refused says why there is none
	refused error
}

func newQueue(cfg Queue) queue {
	return queue{cfg: cfg, lists: map[string][]*waiter{}, paces: map[string]*pace{}, accounts: map[account]*served{}}
}

func (q *queue) empty() bool { return q.waiting.Load() == 0 }

// wait has the request wait its turn.
func (s *Scheduler) wait(ctx context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	q := &s.queue
	w := &waiter{r: r, tried: tried, kind: kind(r), since: time.Now(), granted: make(chan *cluster.Lease, 1)}
	if s.Length() >= q.cfg.Max && !q.waits(w.kind) { // those who wait may wait for other nodes
		lease, verdict := s.place(r, tried, 0)
		switch {
		case lease != nil:
			return lease, nil
		case verdict == nobody: // it makes nobody go
			return nil, cluster.ErrNobody
		}
	}
	if err := q.enter(w, s.guess(r)); err != nil {
		return nil, err
	}
	s.dispatch() // a slot may have been given back since we looked
	limit := time.NewTimer(q.cfg.Wait)
	defer limit.Stop()
	var err error
	select {
	case lease := <-w.granted:
		switch {
		case lease != nil:
			return lease, nil
		case w.refused != nil:
			return nil, w.refused
		}
		return nil, cluster.ErrNobody
	case <-ctx.Done():
		err = ctx.Err()
	case <-limit.C:
		err = &cluster.NoRoomError{Why: fmt.Sprintf("no node had room within %v", q.cfg.Wait), RetryAfter: q.next(w.kind)}
	}
	if !q.leave(w) { // it was granted meanwhile
		if lease := <-w.granted; lease != nil {
			lease.Done(cluster.Outcome{})
		}
	}
	return nil, err
}

// guess is the time between two that leave a list, as far as requests have taken so long before.
func (s *Scheduler) guess(r *cluster.Request) time.Duration {
	perSecond := 0.0
	for _, replica := range s.deps.View().Replicas(r.Key()) {
		c := candidate{node: replica.Node, state: s.node(replica.Node.ID)}
		c.pair = c.state.pair(r.Key())
		perSecond += float64(max(limitOf(&c), 1)) / c.pair.known.Load().service().Seconds()
	}
	if perSecond == 0 {
		return time.Second
	}
	return time.Duration(float64(time.Second) / perSecond)
}

// enter puts a request into the queue, unless it is full or the request's deadline is hopeless.
func (q *queue) enter(w *waiter, guess time.Duration) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	now, p := w.since, q.paces[w.kind]
	if p == nil {
		p = &pace{last: now, guess: guess}
	}
	key := account{w.r.Caller, w.r.Priority}
	a := q.accounts[key]
	var last *waiter // who goes for it, if the queue is full
	var full *cluster.NoRoomError
	if n := int(q.waiting.Load()); n >= q.cfg.Max && !w.r.Again {
		full = &cluster.NoRoomError{Why: fmt.Sprintf("all nodes that could serve this are busy, and %d requests wait already", n), RetryAfter: p.after(1, now)}
		if last = q.last(a, key.priority); last == nil {
			return full
		}
	}
	if a == nil {
		q.forget()
		a = &served{}
	}
	start := max(q.virtual, a.until)
	cost, share := estimate(w.r), weight(w.r.Priority)
	w.tag, w.order = start+cost/share-cost, q.order
	if w.r.Again {
		w.tag = -1 // before all others
	}
	if deadline := w.r.Deadline; !deadline.IsZero() {
		left, takes := deadline.Sub(now), p.after(q.ahead(w)+1, now)
		if p.known() && takes > left {
			return &cluster.NoRoomError{RetryAfter: max(takes-left, time.Second),
				Why: fmt.Sprintf("the request's deadline is in %v, and the queue before it takes %v", left.Round(time.Millisecond), takes.Round(time.Millisecond))}
		}
	}
	if last != nil {
		last.refused = full
		q.drop(last)
		last.granted <- nil
	}
	q.order++
	q.paces[w.kind] = p
	if !w.r.Again {
		a.until = start + cost/share
	}
	a.waiting++
	q.accounts[key] = a
	i, _ := slices.BinarySearchFunc(q.lists[w.kind], w, compare)
	q.lists[w.kind] = slices.Insert(q.lists[w.kind], i, w)
	q.waiting.Add(1)
	return nil
}

// last returns the last request of the account of which most wait, if those are more than the newcomer's
// would be with one more, and not more urgent: who fills the queue makes room for who does not. Without one it returns nil.
func (q *queue) last(newcomer *served, priority cluster.Priority) (last *waiter) {
	least := 1
	if newcomer != nil {
		least += newcomer.waiting
	}
	most, found := account{}, false
	for key, a := range q.accounts {
		if a.waiting > least && key.priority <= priority {
			most, least, found = key, a.waiting, true
		}
	}
	if !found {
		return nil
	}
	for _, list := range q.lists {
		for _, w := range list {
			if w.r.Caller == most.caller && w.r.Priority == most.priority && !w.r.Again && (last == nil || compare(w, last) > 0) {
				last = w
			}
		}
	}
	return last
}

// waits tells whether somebody waits with a request of a kind.
func (q *queue) waits(kind string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.lists[kind]) > 0
}

func compare(a, b *waiter) int {
	return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.order, b.order))
}

// ahead is how many of its kind go before a request.
func (q *queue) ahead(w *waiter) int {
	i, _ := slices.BinarySearchFunc(q.lists[w.kind], w, compare)
	return i
}

// forget drops accounts that the present has caught up with, once there are many.
func (q *queue) forget() {
	if len(q.accounts) < max(q.many, q.cfg.Max) {
		return
	}
	maps.DeleteFunc(q.accounts, func(_ account, a *served) bool { return a.waiting == 0 && a.until <= q.virtual })
	q.many = 2 * len(q.accounts)
}

// leave takes a request out of the queue whose client has gone; false when it was granted already.
func (q *queue) leave(w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.drop(w)
}

// drop takes a request out of the queue that is not served; false when it is not there.
func (q *queue) drop(w *waiter) bool {
	i, found := slices.BinarySearchFunc(q.lists[w.kind], w, compare)
	if !found {
		return false
	}
	q.remove(w, i)
	// What it asked for it has not used: its caller's later requests stand where they would have.
	if a := q.accounts[account{w.r.Caller, w.r.Priority}]; a != nil && !w.r.Again {
		a.until = max(q.virtual, a.until-estimate(w.r)/weight(w.r.Priority))
	}
	return true
}

func (q *queue) remove(w *waiter, i int) {
	if list := slices.Delete(q.lists[w.kind], i, i+1); len(list) > 0 {
		q.lists[w.kind] = list
	} else {
		delete(q.lists, w.kind)
		delete(q.paces, w.kind)
	}
	if a := q.accounts[account{w.r.Caller, w.r.Priority}]; a != nil {
		a.waiting--
	}
	if q.waiting.Add(-1) == 0 {
		clear(q.accounts) // nobody waits: nobody is ahead of anybody
	}
}

// settle corrects what a caller was charged by what its request really used.
func (q *queue) settle(r *cluster.Request, o cluster.Outcome) {
	if q.empty() || o.OutputTokens == 0 && o.Result == cluster.Answered { // an answer that does not tell
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if a := q.accounts[account{r.Caller, r.Priority}]; a != nil {
		used := float64(o.PromptTokens + o.OutputTokens)
		a.until = max(q.virtual, a.until+(used-estimate(r))/weight(r.Priority))
	}
}

// estimate is how many tokens a request asks for.
func estimate(r *cluster.Request) float64 {
	output := guessOutput
	if r.MaxTokens > 0 {
		output = float64(min(r.MaxTokens, mostEstimated))
	}
	return float64(r.PromptBytes)/guessBytes + output
}

// mostEstimated is the most tokens that an answer is thought to have whose limit is higher: limits are
// often set far too high.
const mostEstimated = 2048

// weight is a priority's share: a high one counts four times a normal one, which counts four times
// a low one.
func weight(p cluster.Priority) float64 {
	switch {
	case p > cluster.Normal:
		return 4
	case p < cluster.Normal:
		return 0.25
	}
	return 1
}

// kind is what requests have in common that the same nodes can serve.
func kind(r *cluster.Request) string {
	k := r.Key() + " " + r.Path + " " + r.Digest
	if len(r.Labels) > 0 {
		k += fmt.Sprint(" ", r.Labels)
	}
	return k
}

// dispatch lends what slots there are to those who wait, the lowest tag first.
func (s *Scheduler) dispatch() {
	q := &s.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	passes := map[string]pass{} // by kind
	for {
		var next *waiter
		for kind, list := range q.lists {
			p := passes[kind]
			for p.again == lookedAt && p.at < len(list) && len(list[p.at].tried) > 0 {
				p.at++
			}
			passes[kind] = p
			if p.at < len(list) && p.looked < lookedAt && (next == nil || compare(list[p.at], next) < 0) {
				next = list[p.at]
			}
		}
		if next == nil {
			return
		}
		at := passes[next.kind]
		lease, verdict := s.place(next.r, next.tried, at.at)
		if verdict == full { // the one behind it may like another node better
			if at.at++; len(next.tried) > 0 {
				at.again++
			} else {
				at.looked++
			}
			passes[next.kind] = at
			continue
		}
		p, active, first := q.paces[next.kind], q.active(), q.lists[next.kind][0].tag
		q.remove(next, at.at)
		if lease != nil {
			// Whoever comes now has been served, in this reckoning, as much as those who wait have on the mean
			// since: else a flow of new callers would hold up for ever those who were served once.
			q.virtual = max(q.virtual, first) + estimate(next.r)/float64(active+1)
			if now := time.Now(); now.Sub(next.since) >= time.Millisecond { // it has really waited
				p.granted(now)
			}
		}
		next.granted <- lease
	}
}

// release gives a slot back while somebody waits: not in the middle of a pass, whose first would else
// be told that there is no room, and a later one that there is.
func (q *queue) release(give func()) {
	if q.empty() {
		give()
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	give()
}

// active is how many accounts have requests that wait.
func (q *queue) active() (n int) {
	if len(q.accounts) > manyAccounts { // then it matters little how many more
		return manyAccounts
	}
	for _, a := range q.accounts {
		if a.waiting > 0 {
			n++
		}
	}
	return n
}

const manyAccounts = 64

// pass is how far one kind's list was looked at. Those who may not have every node any more stand before all
// others, and count apart: what they wait for is not what the others wait for.
type pass struct{ at, looked, again int }

// lookedAt is how many of one kind are looked at, whose best nodes have no room, before the rest of
// their list is left for the next time.
const lookedAt = 8

// pace is how fast one kind's list drains: the time between two that leave it after they have waited.
type pace struct {
	interval time.Duration // 0: unknown
	guess    time.Duration // until it is known
	last     time.Time
}

func (p *pace) granted(now time.Time) {
	since := max(now.Sub(p.last), time.Microsecond)
	p.last = now
	if p.interval == 0 {
		p.interval = since
	}
	p.interval += (since - p.interval) / 8
}

func (p *pace) known() bool { return p.interval > 0 }

// after is the time in which so many leave the list.
func (p *pace) after(requests int, now time.Time) time.Duration {
	if !p.known() {
		return time.Duration(requests) * p.guess
	}
	return time.Duration(requests) * max(p.interval, now.Sub(p.last)/2)
}

func (q *queue) next(kind string) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p := q.paces[kind]; p != nil {
		return p.after(1, time.Now())
	}
	return time.Second
}

// Waiting returns the place of every request that waits, 1 for the next, by its id.
func (s *Scheduler) Waiting() map[string]int {
	q := &s.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	var all []*waiter
	for _, list := range q.lists {
		all = append(all, list...)
	}
	slices.SortFunc(all, compare)
	places := make(map[string]int, len(all))
	for i, w := range all {
		places[w.r.ID] = i + 1
	}
	return places
}

// Length is how many requests wait.
func (s *Scheduler) Length() int { return int(s.queue.waiting.Load()) }
