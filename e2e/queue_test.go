package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/api"
)

// oneSlot is a node whose engine serves one request at a time, a token each gap.
func oneSlot(t *testing.T, config, gap string) *member {
	t.Helper()
	m := tuned(t, "a", "engine: {slots: 1}\n"+config, "-model", "m", "-slots", "1", "-token-gap", gap)
	form(t, m).warm(t, "m", m)
	return m
}

// patient is a request that a client waits for.
type patient struct {
	id    string
	leave context.CancelFunc
	done  chan struct{} // closed when all below is valid
	took  time.Duration
	code  int
	head  http.Header
	text  string
	err   error
}

// asking sends a request to generate so many tokens.
func asking(t *testing.T, m *member, id string, tokens int, header ...string) *patient {
	t.Helper()
	return askingAt(t, m, "/api/generate", fmt.Sprintf(`{"model":"m","prompt":%q,"stream":false,"options":{"num_predict":%d}}`, id, tokens), id, header...)
}

func askingAt(t *testing.T, m *member, path, body, id string, header ...string) *patient {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	p := &patient{id: id, leave: leave, done: make(chan struct{})}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Request-Id", id)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	began := time.Now()
	go func() {
		defer close(p.done)
		defer leave()
		resp, err := loadClient.Do(r)
		if err != nil {
			p.err = err
			return
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		p.took, p.code, p.head, p.text, p.err = time.Since(began), resp.StatusCode, resp.Header, string(text), err
	}()
	return p
}

// queue puts so many requests into a node's queue, one after the other, and waits until they are there.
func queue(t *testing.T, m *member, n, tokens int, header ...string) (all []*patient) {
	t.Helper()
	before := len(serving(t, m))
	for i := range n {
		id := fmt.Sprintf("queued-%d-%d", before, i)
		all = append(all, asking(t, m, id, tokens, header...))
		eventually(t, 20*time.Second, id+" is in the queue", func() bool {
			r := find(serving(t, m), id)
			return r.Place > 0 || r.Node != "" || all[i].ended()
		})
	}
	return all
}

// ended tells whether all of p is valid.
func (p *patient) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *patient) wait(t *testing.T) *patient {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(60 * time.Second):
		t.Fatalf("request %s has not ended", p.id)
	}
	return p
}

func find(list []api.Request, id string) api.Request {
	i := slices.IndexFunc(list, func(r api.Request) bool { return r.ID == id })
	if i < 0 {
		return api.Request{}
	}
	return list[i]
}

func TestOneClientBesideFiftyOfAnotherCallerHardlyWaits(t *testing.T) {
	t.Parallel()
	const tokens = 20
	m := tuned(t, "a", "engine: {slots: 2}\n", "-model", "m", "-slots", "2", "-token-gap", "10ms")
	form(t, m).warm(t, "m", m)
	one := func(caller string) time.Duration {
		p := asking(t, m, "the-one", tokens, "Authorization", "Bearer "+caller).wait(t)
		if p.code != 200 || p.err != nil {
			t.Fatalf("%d %v %s", p.code, p.err, p.text)
		}
		return p.took
	}
	var alone []time.Duration
	for range 5 {
		alone = append(alone, one("few"))
	}
	slices.Sort(alone)
	usual := alone[len(alone)/2]

	stop := make(chan struct{})
	var crowd sync.WaitGroup
	for i := range 50 {
		crowd.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				p := asking(t, m, fmt.Sprint("crowd-", i), tokens, "Authorization", "Bearer many")
				select {
				case <-p.done:
				case <-stop:
					p.leave()
					<-p.done
				}
			}
		})
	}
	defer func() { close(stop); crowd.Wait() }()
	eventually(t, 20*time.Second, "the crowd waits", func() bool { return len(serving(t, m)) >= 50 })
	var beside []time.Duration
	for range 8 {
		beside = append(beside, one("few"))
	}
	control := one("many") // one more of the crowd
	slices.Sort(beside)
	middle := beside[len(beside)/2]
	limit := 3 * usual // twice its time alone, and one generation, which is that too
	t.Logf("alone %v, beside 50 clients of another caller median %v, slowest %v (it may wait for %v), as one of them %v",
		usual.Round(time.Millisecond), middle.Round(time.Millisecond), beside[len(beside)-1].Round(time.Millisecond),
		limit.Round(time.Millisecond), control.Round(time.Millisecond))
	if waited := middle - usual; waited > limit {
		t.Errorf("waited %v, alone it takes %v", waited, usual)
	}
	if slowest := beside[len(beside)-1] - usual; slowest > 4*limit { // a machine may stand still for a moment
		t.Errorf("one waited %v: the others share fairly, and it starves", slowest)
	}
	if control-usual < 2*limit {
		t.Errorf("one of the crowd took only %v: this measures nothing", control)
	}
}

func TestAFullQueueRefusesAtOnceInTheClientsDialect(t *testing.T) {
	t.Parallel()
	m := oneSlot(t, "gateway: {queue: {max: 20}}\n", "100ms")
	short := queue(t, m, 3, 16) // 1.6 s each, which makes the pace known
	all := queue(t, m, 18, 1000)
	for _, p := range short {
		p.wait(t)
	}
	all = append(all, queue(t, m, 3, 1000)...) // one runs, twenty wait
	var slowest time.Duration
	var after []int
	for path, begins := range dialects {
		p := askingAt(t, m, path, `{"model":"m","prompt":"x","input":"x","max_tokens":9,"messages":[{"role":"user","content":"x"}]}`, "refused").wait(t)
		if p.code != 503 || !strings.HasPrefix(p.text, begins) || !strings.Contains(p.text, "requests wait already") {
			t.Fatalf("%s: %d %v %s", path, p.code, p.err, p.text)
		}
		seconds, err := strconv.Atoi(p.head.Get("Retry-After"))
		if err != nil || seconds < 2 || seconds > 4 { // a place is free every 1.6 s
			t.Errorf("%s: Retry-After %q", path, p.head.Get("Retry-After"))
		}
		slowest, after = max(slowest, p.took), append(after, seconds)
	}
	t.Logf("refused within %v at most, Retry-After %v for a queue that moves every 1.6 s", slowest.Round(100*time.Microsecond), after)
	if limit := 50 * time.Millisecond; raceFlag == nil && slowest > limit {
		t.Errorf("refused after %v", slowest)
	}

	// Who leaves frees its place at once, and its place alone.
	all[len(all)-1].leave()
	eventually(t, 5*time.Second, "the place is free", func() bool { return len(serving(t, m)) == 20 })
	last := asking(t, m, "the-last", 1000)
	eventually(t, 10*time.Second, "the next one waits there", func() bool { return find(serving(t, m), "the-last").State == "waiting" })
	for _, p := range append(all, last) {
		p.leave()
	}
	eventually(t, 10*time.Second, "nothing is left at the engine", func() bool {
		s := counts(t, m)
		return s.InFlight+s.Waiting == 0 && len(serving(t, m)) == 0
	})
}

func TestAHopelessDeadlineIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	m := oneSlot(t, "", "100ms")
	const tokens = 10 // 1 s each
	all := queue(t, m, 1, tokens)
	all = append(all, queue(t, m, 12, tokens)...)
	all[1].wait(t)
	all[2].wait(t)
	var took []time.Duration
	for range 10 {
		p := asking(t, m, "hopeless", tokens, "X-Deadline", "3s").wait(t)
		if p.code != 503 || !strings.Contains(p.text, "deadline") {
			t.Fatalf("%d %v %s", p.code, p.err, p.text)
		}
		seconds, err := strconv.Atoi(p.head.Get("Retry-After"))
		if err != nil || seconds < 4 || seconds > 30 { // ten go before it, a second each and more, and 3 s are left
			t.Errorf("Retry-After %q", p.head.Get("Retry-After"))
		}
		took = append(took, p.took)
	}
	t.Logf("refused within %v at most", slices.Max(took).Round(100*time.Microsecond))
	if limit := 50 * time.Millisecond; raceFlag == nil && slices.Max(took) > limit {
		t.Errorf("refused after %v", slices.Max(took))
	}
	// The control: with time enough it waits. A high priority has less before it.
	hopeful := asking(t, m, "hopeful", tokens, "X-Deadline", "90s")
	urgent := asking(t, m, "urgent", tokens, "X-Deadline", "6s", "X-Priority", "high")
	var r api.Request
	eventually(t, 10*time.Second, "both wait", func() bool {
		list := serving(t, m)
		r = find(list, "hopeful")
		return r.Place > 0 && (find(list, "urgent").State != "" || urgent.ended())
	})
	if r.Place < 5 || r.Deadline == nil || time.Until(*r.Deadline) > 90*time.Second || time.Until(*r.Deadline) < 60*time.Second {
		t.Errorf("listed as %+v", r)
	}
	text, code := run(t, "requests", "--api", m.url)
	place := r.Place // it may have come nearer meanwhile
	for place > 0 && !strings.Contains(text, fmt.Sprintf("waiting, place %d", place)) {
		place--
	}
	if code != 0 || place == 0 || !strings.Contains(text, "DEADLINE") || !strings.Contains(text, "hopeful") {
		t.Errorf("requests: %d\n%s", code, text)
	}
	if urgent.wait(t); urgent.code != 200 {
		t.Errorf("the urgent one: %d %s", urgent.code, urgent.text)
	}
	// A deadline that passes while the request is served ends it, and its work.
	for _, p := range append(all, hopeful) {
		p.leave()
	}
	eventually(t, 10*time.Second, "the queue is empty", func() bool { return len(serving(t, m)) == 0 })
	late := asking(t, m, "late", 100, "X-Deadline", "500ms").wait(t)
	if late.code != 504 {
		t.Errorf("a deadline that passed: %d %s", late.code, late.text)
	}
	eventually(t, 5*time.Second, "the engine has stopped", func() bool { return counts(t, m).InFlight == 0 })
}

func TestAnOperatorEndsAWaitingAndARunningRequest(t *testing.T) {
	t.Parallel()
	m := oneSlot(t, "", "50ms")
	running := askingAt(t, m, "/v1/chat/completions", `{"model":"m","max_tokens":1000,"messages":[{"role":"user","content":"x"}]}`, "runs")
	eventually(t, 10*time.Second, "it runs", func() bool { return counts(t, m).InFlight == 1 })
	waiting := asking(t, m, "waits", 10)
	behind := asking(t, m, "behind", 10)
	eventually(t, 10*time.Second, "two wait", func() bool {
		list := serving(t, m)
		return find(list, "waits").Place == 1 && find(list, "behind").Place == 2 || find(list, "waits").Place == 2 && find(list, "behind").Place == 1
	})
	if r := find(serving(t, m), "runs"); r.State != "running" || r.Node != "a" || r.Path != "/v1/chat/completions" || r.Model != "m" {
		t.Errorf("listed as %+v", r)
	}
	end := func(id string) {
		t.Helper()
		if code, text := ask(t, "DELETE", m.url+"/api/v1/requests/"+id, ""); code != 204 {
			t.Fatalf("end %s: %d %s", id, code, text)
		}
	}
	end("waits")
	if waiting.wait(t); waiting.code != 503 || !strings.Contains(waiting.text, "cancelled by an operator") {
		t.Errorf("the waiting one: %d %v %s", waiting.code, waiting.err, waiting.text)
	}
	if place := find(serving(t, m), "behind").Place; place != 1 {
		t.Errorf("the one behind it has place %d", place)
	}
	before := counts(t, m)
	end("runs")
	if running.wait(t); running.code != 503 || !strings.HasPrefix(running.text, dialects["/v1/chat/completions"]) {
		t.Errorf("the running one: %d %v %s", running.code, running.err, running.text)
	}
	if behind.wait(t); behind.code != 200 {
		t.Errorf("the one behind: %d %s", behind.code, behind.text)
	}
	if after := counts(t, m); after.Cancelled != before.Cancelled+1 || after.InFlight != 0 {
		t.Errorf("the engine went on: %+v", after)
	}
	if code, text := ask(t, "DELETE", m.url+"/api/v1/requests/waits", ""); code != 404 || !strings.Contains(text, "ollamamax requests") {
		t.Errorf("end one that is not there: %d %s", code, text)
	}
}

func TestAHighPriorityOvertakesNormalOvertakesLow(t *testing.T) {
	t.Parallel()
	m := oneSlot(t, "", "20ms")
	first := queue(t, m, 1, 100_000) // until all others wait
	var all []*patient
	priorities := map[string]string{}
	for i, priority := range []string{"low", "low", "low", "", "", "", "high", "high", "high"} {
		p := asking(t, m, fmt.Sprint("p", i), 5, "X-Priority", priority)
		all, priorities[p.id] = append(all, p), priority
		eventually(t, 10*time.Second, p.id+" waits", func() bool { return find(serving(t, m), p.id).Place > 0 })
	}
	if r := find(serving(t, m), "p8"); r.Priority != "high" || r.Place > 3 {
		t.Errorf("listed as %+v", r)
	}
	first[0].leave()
	for _, p := range all {
		if p.wait(t); p.code != 200 {
			t.Fatalf("%s: %d %s", p.id, p.code, p.text)
		}
	}
	served := func(p *patient) time.Time { return gjson.Get(p.text, "created_at").Time() } // the engine has one slot
	slices.SortFunc(all, func(a, b *patient) int { return served(a).Compare(served(b)) })
	var order []string
	for _, p := range all {
		order = append(order, priorities[p.id])
	}
	if want := []string{"high", "high", "high", "", "", "", "low", "low", "low"}; !slices.Equal(order, want) {
		t.Errorf("served in the order %q", order)
	}
	if code, text := ask(t, "POST", m.url+"/api/generate", `{"model":"m"}`, "X-Priority", "highest"); code != 400 || !strings.Contains(text, "X-Priority") {
		t.Errorf("an unknown priority: %d %s", code, text)
	}
}
