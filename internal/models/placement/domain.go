package placement

import (
	"cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// domain is where a node stands: its zone, its rack, its host, which fail as one; "" for one that has no such label.
type domain [3]string

func domainOf(n *cluster.Node) (d domain) {
	for i, label := range [...]string{"zone", "rack", "host"} {
		d[i] = n.Labels[label]
	}
	if d[1] != "" { // racks are numbered in each zone
		d[1] = d[0] + "\x00" + d[1]
	}
	return d
}

// near is how much of their domains two nodes share: 3 for one host, 0 for nothing.
func (d domain) near(o domain) int {
	for i := len(d) - 1; i >= 0; i-- {
		if d[i] != "" && d[i] == o[i] {
			return i + 1
		}
	}
	return 0
}

// domains counts the nodes chosen so far in each domain.
type domains [3]map[string]int

func (d *domains) add(at domain) {
	for i, name := range at {
		if d[i] == nil {
			d[i] = map[string]int{}
		}
		if name != "" {
			d[i][name]++
		}
	}
}

// compare orders candidates, the best next one first.
func (d *domains) compare(a, b *candidate) int {
	order := cmp.Or(cmp.Compare(a.tier, b.tier), cmp.Compare(b.steady, a.steady))
	if order != 0 {
		return order
	}
	for i := range d {
		if order := cmp.Compare(d[i][a.domain[i]], d[i][b.domain[i]]); order != 0 {
			return order
		}
	}
	for i := range a.merits {
		if order := cmp.Compare(b.merits[i], a.merits[i]); order != 0 {
			return order
		}
	}
	return cmp.Compare(a.node.ID, b.node.ID)
}
