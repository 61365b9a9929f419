package gateway

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// crowd is a gateway that runs, with requests that stay until they are let go: of the model m at a node, of n in
// the queue.
type crowd struct {
	*Gateway
	clients, peers *http.ServeMux
	there          sync.WaitGroup
	letGo          []context.CancelFunc
}

// full has no room for the model n.
type full struct{ inOrder }

func (f full) Acquire(ctx context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	if r.Model == "n" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return f.inOrder.Acquire(ctx, r, tried)
}

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	nodes := testNodes("a", "b")
	c := &crowd{clients: http.NewServeMux(), peers: http.NewServeMux()}
	c.Gateway = newGateway(t, full{inOrder(nodes)}, nodes, func(_ string, r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	c.Register(c.clients)
	c.RegisterLocal(c.peers)
	c.there.Go(func() { c.Run(ctx) })
	t.Cleanup(func() {
		c.leave(len(c.letGo))
		cancel()
		c.there.Wait()
	})
	return c
}

// come sends so many requests that stay.
func (c *crowd) come(to http.Handler, path, body string, n int) {
	for range n {
		ctx, cancel := context.WithCancel(context.Background())
		c.letGo = append(c.letGo, cancel)
		c.there.Go(func() {
			to.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, path, strings.NewReader(body)))
		})
	}
	synctest.Wait()
}

// leave lets the first so many go.
func (c *crowd) leave(n int) {
	for _, cancel := range c.letGo[:n] {
		cancel()
	}
	c.letGo = c.letGo[n:]
	synctest.Wait()
}

func TestDemandIsTheMeanOfTheRequestsThatAreThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t)
		demanded := func(want ...cluster.Demand) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(append([]cluster.Demand{}, want...), append([]cluster.Demand{}, c.Demand()...)); diff != "" {
				t.Errorf("demand (-want +got):\n%s", diff)
			}
		}
		c.come(c.clients, "/api/generate", `{"model":"M","prompt":"x"}`, 2)
		c.come(c.clients, "/v1/chat/completions", `{"model":"library/m:latest","messages":[{"role":"user","content":"x"}]}`, 1)
		c.come(c.clients, "/api/chat", `{"model":"n","messages":[{"role":"user","content":"x"}]}`, 8)
		// None of these counts: what needs no loaded model, a name that nobody holds, and another gateway's request.
		c.come(c.clients, "/api/show", `{"model":"m"}`, 1)
		c.come(c.clients, "/api/generate", `{"model":"nowhere","prompt":"x"}`, 4)
		c.come(c.clients, "/api/generate", `{"model":"`+strings.Repeat("m", 1<<20)+`","prompt":"x"}`, 1)
		c.come(c.peers, "/api/generate", `{"model":"m","prompt":"x"}`, 4)
		demanded()
		time.Sleep(demandOver + demandTold) // 0.69 of 3 and of 8
		demanded(cluster.Demand{Name: "m:latest", Busy: 2}, cluster.Demand{Name: "n:latest", Busy: 6})
		time.Sleep(2 * demandOver)
		demanded(cluster.Demand{Name: "m:latest", Busy: 3}, cluster.Demand{Name: "n:latest", Busy: 8})
		c.leave(3)
		time.Sleep(demandOver)
		if got := c.Demand(); len(got) != 2 || got[0].Busy > 1.5 || got[0].Busy < 1 {
			t.Errorf("a time constant after they went: %v", got)
		}
		time.Sleep(3 * demandOver)
		demanded(cluster.Demand{Name: "n:latest", Busy: 8})
		c.leave(8)
		time.Sleep(10 * demandOver)
		demanded()
		synctest.Wait()
		if len(c.demand.means) != 0 {
			t.Errorf("remembered when all are gone: %v", c.demand.means)
		}
	})
}

func TestShortRequestsAreDemandAsLongOnesAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t)
		for range 700 { // 70 of each 170 ms
			c.come(c.clients, "/api/generate", `{"model":"m","prompt":"x"}`, 1)
			time.Sleep(70 * time.Millisecond)
			c.leave(1)
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if got := c.demand.means["m:latest"]; got == nil || math.Abs(got.busy-70.0/170) > 0.1 {
			t.Errorf("mean %+v", got)
		}
	})
}

func TestWhatIsToldOfDemandIsRoundedAndSeldomNews(t *testing.T) {
	for _, tt := range []struct {
		busy float64
		last float64 // told
		want float64
	}{
		{0, 0, 0}, {0.3, 0, 0}, {0.4, 0, 0.5}, {0.2, 0.5, 0.5}, {0.14, 0.5, 0}, {1.1, 0, 1}, {1.3, 1, 1}, {1.4, 1, 1.5}, {3.8, 3, 4},
		{4, 0, 4}, {5, 0, 6}, {5, 4, 4}, {5.2, 4, 6}, {7.9, 6, 8}, {11, 0, 11}, {100, 0, 91}, {110, 91, 91}, {1e6, 0, 1048576},
	} {
		last := 0
		for ofStep(last) < tt.last {
			last++
		}
		if got := ofStep(step(tt.busy, last)); got != tt.want {
			t.Errorf("%v after %v is told as %v, not %v", tt.busy, tt.last, got, tt.want)
		}
	}

	// One that is there half of the time, and the more of them the less does it matter.
	d, start, news := demand{means: map[string]*mean{}, looked: time.Unix(0, 0)}, time.Unix(0, 0), 0
	for i := range 4 * 3600 {
		last := d.told.Load()
		d.look(start.Add(time.Duration(i)*250*time.Millisecond), map[string]int{"m": 5 + 2*(i/8%2)})
		if d.told.Load() != last {
			news++
		}
	}
	if news > 8 {
		t.Errorf("news %d times in an hour", news)
	}
}

func TestDemandIsBounded(t *testing.T) {
	d, start := demand{means: map[string]*mean{}, looked: time.Unix(0, 0)}, time.Unix(0, 0)
	for i := range 20 { // at most 1000 at a time, and one that is always there
		busy := map[string]int{"steady": 3}
		for j := range maxDemanded {
			busy[fmt.Sprint(i, "-", j)] = 1
		}
		d.look(start.Add(time.Duration(i+1)*10*time.Second), busy)
		if told := *d.told.Load(); len(d.means) > maxDemanded || len(told) > maxDemanded {
			t.Fatalf("%d models remembered, %d told", len(d.means), len(told))
		}
	}
	told := *d.told.Load()
	if !slices.ContainsFunc(told, func(d cluster.Demand) bool { return d.Name == "steady" }) {
		t.Error("what is asked most was forgotten")
	}
	if !slices.IsSortedFunc(told, func(a, b cluster.Demand) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("not sorted by name")
	}
}

func BenchmarkDemandOfAThousandRequests(b *testing.B) {
	nodes := testNodes("a")
	g := newGateway(b, inOrder(nodes), nodes, nil)
	for i := range 1000 {
		x := &exchange{route: routes()[5], began: time.Unix(0, int64(i)<<8)}
		x.called([]string{"m", "n"}[i%2])
		g.requests.add(x)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		g.measureDemand(time.Unix(int64(i), 0))
	}
}
