package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// storm is an overload of three nodes, and what comes after it.
type storm struct {
	name, retry string // gateway.retry
	open        bool   // schedule.ceiling: false
	flags       []string
	over, calm  time.Duration
	capacity    float64 // requests a second that the engines serve
	believed    string  // engine.slots
	bound       string  // gateway.stall.first_ceiling
	drizzle     float64 // share of the capacity that is asked for in the calm
	enough      float64 // share answered in three seconds of the calm, at which it is over; 0: it lasts
}

// weather is what became of it.
type weather struct {
	sent, seen int           // by clients, by engines
	whole      []float64     // share of the requests sent in each second that were answered whole
	good       []int         // answers in each second
	recovered  time.Duration // from the end of the overload on; -1: never
	calmed     bool          // enough was answered in three seconds of the calm in a row
	lasted     time.Duration // until the last answer
	amplified  float64
	statuses   map[int]int
}

func (s storm) run(t *testing.T) (w weather) {
	t.Helper()
	config := fmt.Sprintf("schedule: {ceiling: %v}\n", !s.open) + "engine: {slots: " + s.believed + "}\ngateway: {retry: " + s.retry + ", stall: {first_floor: " + s.bound + ", first_ceiling: " + s.bound + "}}\n"
	var members []*member
	for _, name := range []string{"a", "b", "c"} {
		members = append(members, tuned(t, name, config, append([]string{"-model", "m"}, s.flags...)...))
	}
	c := form(t, members...)
	c.warm(t, "m", c...)
	before := 0
	for _, m := range c {
		before += int(counts(t, m).Requests)
	}
	seconds := int((s.over + s.calm) / time.Second)
	sent, whole, good := make([]atomic.Int64, seconds+1), make([]atomic.Int64, seconds+1), make([]atomic.Int64, seconds+60)
	var mu sync.Mutex
	w.statuses = map[int]int{}
	var running sync.WaitGroup
	began := time.Now()
	var due float64
	for i, last := 0, began; ; i++ {
		time.Sleep(5 * time.Millisecond)
		now := time.Now()
		elapsed := now.Sub(began)
		w.calmed = w.calmed || s.enough > 0 && s.calmed(sent, whole, elapsed)
		if elapsed >= s.over+s.calm || w.calmed {
			break
		}
		rate := 3 * s.capacity
		if elapsed > s.over {
			rate = s.drizzle * s.capacity
		}
		due += now.Sub(last).Seconds() * rate
		last = now
		for ; due >= 1; due-- {
			w.sent++
			second := int(elapsed / time.Second)
			sent[second].Add(1)
			url := c[w.sent%3].url
			n := w.sent
			running.Go(func() {
				status := impatient(t.Context(), url, n)
				mu.Lock()
				w.statuses[status]++
				mu.Unlock()
				if status == http.StatusOK {
					whole[second].Add(1)
					good[int(time.Since(began)/time.Second)].Add(1)
				}
			})
		}
	}
	seconds = min(seconds, int(time.Since(began)/time.Second))
	running.Wait()
	w.lasted = time.Since(began)
	for _, m := range c {
		w.seen += int(counts(t, m).Requests)
	}
	w.seen -= before
	w.amplified = float64(w.seen) / float64(w.sent)
	over := int(s.over / time.Second)
	w.recovered = -1
	for i := range seconds {
		w.whole = append(w.whole, float64(whole[i].Load())/float64(max(1, sent[i].Load())))
		w.good = append(w.good, int(good[i].Load()))
	}
	for i := seconds - 1; i >= over && w.whole[i] >= 0.95; i-- {
		w.recovered = time.Duration(i-over) * time.Second
	}
	var shares []string
	for _, share := range w.whole {
		shares = append(shares, fmt.Sprintf("%.0f", 100*share))
	}
	t.Logf("%s: %d sent, %d seen by engines (%.2f), statuses %v; whole of those sent in each second, %%: %s; answers a second %v; recovered %v after the overload",
		s.name, w.sent, w.seen, w.amplified, w.statuses, strings.Join(shares, " "), w.good, w.recovered)
	return w
}

// calmed tells whether three seconds of the calm in a row, of those that are over, were answered enough of.
func (s storm) calmed(sent, whole []atomic.Int64, elapsed time.Duration) bool {
	row := 0
	for i := int(s.over / time.Second); i < int(elapsed/time.Second) && row < 3; i++ {
		row++
		if float64(whole[i].Load()) < s.enough*float64(sent[i].Load()) {
			row = 0
		}
	}
	return row == 3
}

// impatient sends a request to generate, which its client gives up after a while, and returns the
// status; 0 if it gave up or the answer was not whole.
func impatient(ctx context.Context, url string, i int) int {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	body := fmt.Sprintf(`{"model":"m","prompt":"request %d","stream":true,"options":{"num_predict":10}}`, i)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/api/generate", strings.NewReader(body))
	if err != nil {
		return 0
	}
	resp, err := loadClient.Do(r)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode == http.StatusOK && !strings.Contains(string(text), `"done":true`) {
		return 0
	}
	return resp.StatusCode
}

// stormy is 0.4 s a request, so many at once on each of three nodes; flags say what an engine does with
// more. The nodes believe that it takes four times as many, and give up on one that has not begun after 0.7 s.
func stormy(name, retry string, slots int, flags ...string) storm {
	return storm{name: name, retry: retry, over: 10 * time.Second, calm: 12 * time.Second, drizzle: 0.65, capacity: float64(3*slots) / 0.4, believed: fmt.Sprint(4 * slots), bound: "700ms",
		flags: append([]string{"-slots", fmt.Sprint(slots), "-first-token", "320ms", "-token-gap", "9ms"}, flags...)}
}

const noBudget = "{budget: 1, floor: 1000}"

func TestFiguresOfARetryStorm(t *testing.T) {
	figures(t)
	// Engines that refuse what they cannot do lose nothing: without a budget they are only asked more.
	// Of those that let it wait, the nodes give up on much that has cost work, and the second attempt
	// costs as much again: 0.65 of the capacity, twice, is more than there is.
	refuse, wait := []string{"-queue", "2"}, []string{"-queue", "32", "-unaware"}
	storms := []storm{stormy("refuse", "{}", 8, refuse...), stormy("refuse, no budget", noBudget, 8, refuse...),
		stormy("wait", "{}", 8, wait...), stormy("wait, no budget, no ceiling", noBudget, 8, wait...)}
	storms[3].open = true // whoever is given no more than it can do in time has no storm, with or without a budget
	ours, control := blow(t, storms[0], storms[1])
	if control.amplified < ours.amplified*1.1 {
		t.Errorf("without a budget amplified only %.2f: this measures nothing", control.amplified)
	}
	check := func(ours weather) bool {
		return ours.recovered >= 0 && ours.recovered <= 10*time.Second && ours.amplified <= 1.3
	}
	if !check(ours) {
		t.Errorf("recovered after %v, amplified %.2f", ours.recovered, ours.amplified)
	}
	ours, control = blow(t, storms[2], storms[3])
	if !check(ours) {
		t.Errorf("recovered after %v, amplified %.2f", ours.recovered, ours.amplified)
	}
	if ours, control := ours.calm(storms[2]), control.calm(storms[3]); control > ours/2 {
		t.Errorf("without budget and ceiling %.2f of the calm's requests were answered, with them %.2f: this measures nothing", control, ours)
	}
}

// blow lets two storms blow at the same time.
func blow(t *testing.T, a, b storm) (x, y weather) {
	t.Helper()
	t.Run("at once", func(t *testing.T) {
		t.Run(a.name, func(t *testing.T) { t.Parallel(); x = a.run(t) })
		t.Run(b.name, func(t *testing.T) { t.Parallel(); y = b.run(t) })
	})
	return x, y
}

// calm is the share of the requests that were answered in the ten seconds after the overload.
func (w weather) calm(s storm) (sum float64) {
	over := int(s.over / time.Second)
	for _, share := range w.whole[over : over+10] {
		sum += share / 10
	}
	return sum
}

func TestAnOverloadIsNotMadeWorseByRetries(t *testing.T) {
	t.Parallel()
	s := stormy("refuse", "{}", 2, "-queue", "2")
	s.over, s.calm, s.enough = 3*time.Second, 20*time.Second, 0.75 // the figures ask for more, on a machine that does nothing else
	if raceFlag != nil {
		s.drizzle = 0.4
	}
	w := s.run(t)
	// Each of three gateways has a reserve of 10, and earns a fifth of a retry a request, and one a second.
	if most := float64(w.sent)*1.2 + 3*10 + 3*w.lasted.Seconds(); float64(w.seen) > most {
		t.Errorf("%d requests became %d on the engines, at most %.0f may", w.sent, w.seen, most)
	}
	if w.seen <= w.sent || w.statuses[503] == 0 {
		t.Errorf("%d requests became %d, statuses %v: there was no overload", w.sent, w.seen, w.statuses)
	}
	if !w.calmed {
		t.Errorf("of three seconds of the calm in a row less than %.0f %% were answered, in %v", 100*s.enough, s.calm)
	}
}
