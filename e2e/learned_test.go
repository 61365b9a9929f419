package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestHowManyRequestsAnEngineTakesIsFoundOut(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ kind, path, body, end string }{
		{"ollama", "/api/generate", `{"model":"m","prompt":"x","stream":%v,"options":{"num_predict":20}}`, `"done":true`},
		{"openai", "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}],"stream":%v,"max_tokens":20}`, `"finish_reason":"length"`},
		{"llama-server", "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}],"stream":%v,"max_tokens":20}`, `"finish_reason":"length"`},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			const slots, clients = 3, 20
			const one = 20 * 10 * time.Millisecond
			m := kindMember(t, "a", tc.kind, "-model", "m", "-slots", fmt.Sprint(slots), "-first-token", "10ms", "-token-gap", "10ms")
			c := form(t, m)
			if tc.kind == "ollama" {
				c.warm(t, "m", m)
			}
			stop := make(chan struct{})
			var done atomic.Int64
			var running sync.WaitGroup
			body := func(stream bool) string { return fmt.Sprintf(tc.body, stream) }
			for i := range clients {
				running.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						if code, text := ask(t, "POST", m.url+tc.path, body(i%2 == 0)); code != 200 || !strings.Contains(text, tc.end) {
							t.Errorf("%d %s", code, text)
							return
						}
						done.Add(1)
					}
				})
			}
			since := time.Now() // it begins with few, tries more, and passes the right number on its way
			eventually(t, 60*time.Second, "it is found out for three seconds", func() bool {
				if n := candidateOn(t, explainedOn(t, m, tc.path, body(true)), "a").Slots; n < slots-1 || n > slots+1 {
					since = time.Now()
				}
				return time.Since(since) > 3*time.Second
			})
			began, before := time.Now(), done.Load()
			var looks, busy, inside, limits int
			for time.Since(began) < 3*time.Second {
				s := counts(t, m)
				looks, busy, inside = looks+1, busy+s.InFlight, inside+s.Waiting
				limits += candidateOn(t, explainedOn(t, m, tc.path, body(true)), "a").Slots
				time.Sleep(50 * time.Millisecond)
			}
			rate := float64(done.Load()-before) / time.Since(began).Seconds()
			close(stop)
			running.Wait()
			capacity := slots / one.Seconds()
			mean := func(sum int) float64 { return float64(sum) / float64(looks) }
			t.Logf("%s: an engine of %d under %d clients: %.1f in flight, %.2f wait inside it, explain says %.1f slots; %.1f answers a second of at most %.1f",
				tc.kind, slots, clients, mean(busy), mean(inside), mean(limits), rate, capacity)
			if mean(busy)+mean(inside) > slots+1.5 || mean(limits) < slots-1 || mean(limits) > slots+1.5 {
				t.Errorf("it is thought to take %.1f, and was given %.1f", mean(limits), mean(busy)+mean(inside))
			}
			if raceFlag == nil && rate < 0.8*capacity {
				t.Errorf("only %.1f answers a second of %.1f", rate, capacity)
			}
			if raceFlag != nil && mean(busy) < 0.8*slots { // its answers take longer, but it has work
				t.Errorf("only %.1f in flight of %d", mean(busy), slots)
			}
		})
	}
}

// kindMember is a node beside a fake engine of a kind, with the flags given.
func kindMember(t *testing.T, name, kind string, flags ...string) *member {
	t.Helper()
	if kind == "ollama" {
		return tuned(t, name, "", flags...)
	}
	m := &member{name: name, dataDir: filepath.Join(t.TempDir(), name)}
	addr := freeAddr(t)
	m.fake, m.engine = start(t, nil, fakeBinary, append([]string{"-kind", kind, "-listen", addr}, flags...)...), "http://"+addr
	eventually(t, 20*time.Second, "the fake engine answers", func() bool { return answers(m.engine + "/v1/models") })
	m.args = []string{"--engine", kind, "--engine-url", m.engine}
	return m
}

func TestASlowFirstTokenIsHedged(t *testing.T) {
	t.Parallel()
	const hedge = 200 * time.Millisecond
	config := "schedule: {policy: weighted, weights: {quick: 0.001}}\n" // the slow one first, nearly always
	body := `{"model":"m","prompt":"x","stream":false,"options":{"num_predict":4}}`
	slow := tuned(t, "slow", config+"gateway: {retry: {hedge: 200ms}}\n", "-model", "m", "-slots", "8")
	quick := tuned(t, "quick", "", "-model", "m", "-slots", "8")
	c := form(t, slow, quick)
	c.warm(t, "m", c...)
	fault(t, slow, `{"kind":"slow","delay":"30s"}`) // whoever waits for it is seen to
	for i := range 3 {
		began := time.Now()
		code, header, text := askHeader(t, "POST", slow.url+"/api/generate", body)
		took := time.Since(began)
		if node := header.Get("X-Ollamamax-Node"); code != 200 || node != "quick" {
			t.Fatalf("%d: %d from %q: %s", i, code, node, text)
		}
		if took < hedge || took > 10*time.Second {
			t.Errorf("%d: answered after %v", i, took)
		}
		t.Logf("hedged after %v: answered after %v", hedge, took.Round(time.Millisecond))
	}
	eventually(t, 5*time.Second, "the slow one's work is stopped", func() bool {
		s := counts(t, slow)
		return s.InFlight == 0 && s.Cancelled == 3
	})
	// The control: a long prompt is not asked twice for.
	fault(t, slow, `{"kind":"slow","delay":"2s"}`)
	began := time.Now()
	code, header, text := askHeader(t, "POST", slow.url+"/api/generate", fmt.Sprintf(`{"model":"m","prompt":"%05000d","stream":false,"options":{"num_predict":1}}`, 0))
	if took := time.Since(began); code != 200 || header.Get("X-Ollamamax-Node") != "slow" || took < 2*time.Second {
		t.Errorf("a long prompt: %d from %q after %v: %s", code, header.Get("X-Ollamamax-Node"), took, text)
	}
}
