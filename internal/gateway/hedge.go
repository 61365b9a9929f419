package gateway

import (
	"context"
	"net/http"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// hedgedPrompt is the longest prompt, in bytes, that two nodes are asked for: a long one costs both
// too much.
const hedgedPrompt = 4 << 10

// hedged is attempt, of which a second one begins at another node when the first has shown nothing
// for gateway.retry.hedge. The first to begin a good answer is passed on, the other's work is stopped.
func (g *Gateway) hedged(x *exchange, req *request, lease *cluster.Lease, tried *[]cluster.NodeID) (*answer, error) {
	if g.cfg.Retry.Hedge == 0 || !req.Infers || req.PromptBytes > hedgedPrompt {
		return g.attempt(x.ctx, x, req, lease)
	}
	results := make(chan result, 2)
	var aside result                 // of the first to end, if it is not good
	var cancels []context.CancelFunc // what is not called ends with the request
	run := func(lease *cluster.Lease) {
		ctx, cancel := context.WithCancel(x.ctx)
		of := len(cancels)
		cancels = append(cancels, cancel)
		x.running.Go(func() {
			a, err := g.attempt(ctx, x, req, lease)
			results <- result{a, err, of}
		})
	}
	run(lease)
	timer := time.NewTimer(g.cfg.Retry.Hedge)
	defer timer.Stop()
	for ended := 0; ; {
		select {
		case r := <-results:
			ended++
			others := len(cancels) - ended
			if others > 0 && !r.good() { // the other one may still do
				aside = r
				continue
			}
			if r.a == nil && aside.a != nil { // it says at least why
				r, aside = aside, r
			}
			aside.a.close()
			for i, cancel := range cancels {
				if r.err != nil || i != r.of {
					cancel()
				}
			}
			if others > 0 {
				x.running.Go(func() { (<-results).a.close() })
			}
			return r.a, r.err
		case <-timer.C:
			second := g.deps.Try(&req.Request, *tried)
			if second == nil {
				continue
			}
			if !g.budget.spend() {
				second.Done(cluster.Outcome{})
				continue
			}
			*tried = append(*tried, second.Node.ID)
			x.attempts++
			run(second)
		}
	}
}

// result is how one of two attempts ended.
type result struct {
	a   *answer
	err error
	of  int // which attempt
}

// good tells whether the answer is worth more than what another attempt may still say.
func (r result) good() bool {
	return r.err == nil && !overloaded(r.a) && r.a.resp.StatusCode != http.StatusNotFound && r.a.resp.StatusCode != http.StatusTooManyRequests
}
