package gateway

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

const (
	demandOver  = 30 * time.Second // the time constant of the mean
	demandTold  = 5 * time.Second  // the least time between two changes of what is told
	maxDemanded = 1000             // models, those that are asked most
	maxName     = 600              // bytes; a longer name is no model's
	asked       = 0.001            // what is asked less is forgotten; who is seen once is asked more
)

// demand is how many requests of clients are served or wait at a time for each model: the mean of what is seen
// whenever somebody looks, weighed exponentially by its age. Requests themselves do nothing for it.
type demand struct {
	means  map[string]*mean // by canonical name; of the one who looks
	looked time.Time
	toldAt time.Time
	told   atomic.Pointer[[]cluster.Demand]
}

type mean struct {
	busy float64
	step int // as it is told
}

// Demand is what clients ask of models at this gateway, whichever node serves them, sorted by name. It is never
// changed; what nobody asks is not in it.
func (g *Gateway) Demand() []cluster.Demand {
	if told := g.demand.told.Load(); told != nil {
		return *told
	}
	return nil
}

// measureDemand looks once at the requests that are there. A model that no node holds is in no demand: nobody could
// load it.
func (g *Gateway) measureDemand(now time.Time) {
	named := map[string]int{}
	g.requests.each(func(x *exchange) {
		if model := x.progress.model.Load(); model != nil && x.route.infers && len(*model) <= maxName {
			named[*model]++
		}
	})
	busy, view := map[string]int{}, g.deps.View()
	for name, requests := range named {
		if canonical := cluster.CanonicalModel(name); len(view.Replicas(canonical)) > 0 {
			busy[canonical] += requests
		}
	}
	g.demand.look(now, busy)
}

// look takes how many requests there are now for each model, as those that there have been since the last look.
func (d *demand) look(now time.Time, busy map[string]int) {
	weight := 1 - math.Exp(-max(0, now.Sub(d.looked)).Seconds()/demandOver.Seconds())
	d.looked = now
	for name := range busy {
		if d.means[name] == nil {
			d.means[name] = &mean{}
		}
	}
	for name, m := range d.means {
		m.busy += weight * (float64(busy[name]) - m.busy)
	}
	if len(d.means) > maxDemanded {
		d.forget()
	}
	if now.Sub(d.toldAt) >= demandTold {
		d.tell(now)
	}
}

// forget keeps the models that are asked most.
func (d *demand) forget() {
	names := slices.SortedFunc(maps.Keys(d.means), func(a, b string) int {
		return cmp.Or(cmp.Compare(d.means[b].busy, d.means[a].busy), strings.Compare(a, b))
	})
	for _, name := range names[maxDemanded:] {
		delete(d.means, name)
	}
}

// tell publishes the means, if what is told of them has changed.
func (d *demand) tell(now time.Time) {
	var told []cluster.Demand
	for name, m := range d.means {
		m.step = step(m.busy, m.step)
		if m.step > 0 {
			told = append(told, cluster.Demand{Name: name, Busy: ofStep(m.step)})
		} else if m.busy < asked {
			delete(d.means, name)
		}
	}
	slices.SortFunc(told, func(a, b cluster.Demand) int { return strings.Compare(a.Name, b.Name) })
	if last := d.told.Load(); last == nil && told != nil || last != nil && !slices.Equal(*last, told) {
		d.told.Store(&told)
		d.toldAt = now
	}
}

// step rounds a mean: to halves below 4, to powers of the square root of two from there on. The last step stays for as
// long as the mean is not well beyond it, so that one between two steps is no news all the time.
func step(busy float64, last int) int {
	exact := 2 * busy
	if busy > 4 {
		exact = 8 + 2*math.Log2(busy/4)
	}
	if math.Abs(exact-float64(last)) <= stays {
		return last
	}
	return int(math.Round(exact))
}

// stays is how far a mean may be from what is told of it, in steps.
const stays = 0.7

// ofStep is what is told of a step: half of it below 4, else a whole number.
func ofStep(step int) float64 {
	if step <= 8 {
		return float64(step) / 2
	}
	return math.Round(4 * math.Exp2(float64(step-8)/2))
}
