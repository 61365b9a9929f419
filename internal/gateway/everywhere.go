package gateway

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// outcome is what one node of several answered.
type outcome struct {
	node *cluster.Node
	a    *answer // nil: none
	err  error
}

// failed tells why the node did not do what was asked, "" if it did.
func (o outcome) failed() string {
	switch {
	case o.err != nil:
		return o.err.Error()
	case o.a.resp.StatusCode >= 400:
		text := (*o.a.buf)[:o.a.n]
		return cmp.Or(gjson.GetBytes(text, "error").String(), fmt.Sprintf("status %d: %.200s", o.a.resp.StatusCode, text))
	}
	return ""
}

// everywhere has every node that the request concerns serve it, at the same time, and gives one
// answer for all: the own node's, or the first one's, if all did it, else one that names the nodes
// where it failed and where it was done. If it concerns nobody, one engine says what it has to say.
func (g *Gateway) everywhere(x *exchange, req *request, concerns func(*cluster.Node) bool) {
	var nodes []*cluster.Node
	v := g.deps.View()
	for _, n := range v.Nodes {
		if concerns(n) {
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		g.attempts(x, req)
		return
	}
	slices.SortStableFunc(nodes, func(a, b *cluster.Node) int { return ownRank(v, a) - ownRank(v, b) })

	req.stream = false // the answers are short; each is read whole
	outcomes := make([]outcome, len(nodes))
	var running sync.WaitGroup
	for i, n := range nodes {
		running.Go(func() { outcomes[i] = g.one(x, req, n) })
	}
	running.Wait()
	defer func() {
		for _, o := range outcomes {
			o.a.close()
		}
	}()

	var failed, done []string
	for _, o := range outcomes {
		if why := o.failed(); why != "" {
			failed = append(failed, o.node.Name+": "+why)
		} else {
			done = append(done, o.node.Name)
		}
	}
	if only := outcomes[0]; len(failed) > 0 && (len(outcomes) > 1 || only.err != nil) {
		message := "failed on " + strings.Join(failed, "; ")
		if len(done) > 0 {
			message += "; done on " + strings.Join(done, ", ")
		}
		g.fail(x, &refusal{status: http.StatusBadGateway, message: message})
		return
	}
	first := outcomes[0].a
	x.node, x.model = outcomes[0].node.Name, req.Model
	copyHeader(x.w.Header(), first.resp.Header)
	x.w.Header().Set("X-Ollamamax-Node", strings.Join(done, ","))
	x.start(first.resp.StatusCode)
	x.write((*first.buf)[:first.n])
}

// one has one of several nodes serve the request.
func (g *Gateway) one(x *exchange, req *request, n *cluster.Node) outcome {
	if n.Condition == cluster.Dead {
		return outcome{node: n, err: fmt.Errorf("the node is dead: %s", n.Why)}
	}
	a, err := g.attempt(x.ctx, x, req, &cluster.Lease{Node: n, Done: func(cluster.Outcome) {}, Stall: cluster.Stall{Whole: quickWithin}})
	if err != nil {
		return outcome{node: n, err: err}
	}
	for a.err == nil && err == nil { // it is short, also where it comes as a stream
		err = a.read()
	}
	if a.err != io.EOF {
		a.close()
		return outcome{node: n, err: fmt.Errorf("read answer: %w", cmp.Or(a.err, err))}
	}
	g.refresh(x.ctx, req, n)
	return outcome{node: n, a: a}
}

// ownRank sorts the asked node before the others.
func ownRank(v *cluster.View, n *cluster.Node) int {
	if n.ID == v.Self {
		return 0
	}
	return 1
}
