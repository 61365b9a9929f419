package enginetest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const oneToken = `{"model":"llama","prompt":%q,"raw":true,"stream":false,"options":{"num_predict":1}}`

func TestSlotsServeInOrderOfArrivalAndRefuseWhatTheQueueCannotHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := start(t, Config{Slots: 2, Queue: 3, FirstToken: time.Second})
		defer stop()
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				r.post("/api/generate", fmt.Sprintf(oneToken, fmt.Sprint("prompt ", i)))
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i/2)
			})
			synctest.Wait()
		}
		if st := r.Stats(); st.InFlight != 2 || st.Waiting != 3 {
			t.Errorf("%d in flight and %d waiting, want 2 and 3", st.InFlight, st.Waiting)
		}
		for path, want := range map[string]string{
			"/api/generate": `{"error":"server busy, please try again.  maximum pending requests exceeded"}`,
			"/v1/messages":  `{"type":"error","error":{"type":"overloaded_error"`,
		} {
			body := `{"model":"llama","prompt":"late","max_tokens":1,"messages":[{"role":"user","content":"x"}]}`
			if status, b := r.do("POST", path, body); status != 503 || !strings.HasPrefix(b, want) {
				t.Errorf("%s with a full queue: %d %s", path, status, b)
			}
		}
		if d := took(wg.Wait); d != 3*time.Second {
			t.Errorf("five requests on two slots took %v, want 3s", d)
		}
		if !slices.IsSorted(order) {
			t.Errorf("served in rounds %v", order)
		}
		if st := r.Stats(); st.Peak != 2 || st.Rejected != 2 || st.Completed != 5 || st.Requests != 7 || st.InFlight != 0 {
			t.Errorf("stats %+v", st)
		}
	})
}

func TestAClientThatLeavesGivesUpItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := start(t, Config{TokenGap: time.Second})
		defer stop()
		var wg sync.WaitGroup
		var leave [2]context.CancelFunc
		for i := range leave { // the first generates, the second waits
			var ctx context.Context
			ctx, leave[i] = context.WithCancel(t.Context())
			wg.Go(func() {
				resp, err := r.send(ctx, "POST", "/api/generate", `{"model":"llama","prompt":"long"}`)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if err == nil {
					t.Error("the cancelled request ended well")
				}
			})
			synctest.Wait()
		}
		time.Sleep(2500 * time.Millisecond)
		for _, waits := range []int{1, 0} {
			leave[waits]()
			synctest.Wait()
		}
		wg.Wait()
		if st := r.Stats(); st.InFlight != 0 || st.Waiting != 0 || st.Cancelled != 2 || st.GeneratedTokens != 3 {
			t.Errorf("stats %+v", st)
		}
		r.post("/api/generate", fmt.Sprintf(oneToken, "next"))
	})
}

func TestTimesAreThoseOfTheConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := start(t, Config{LoadTime: 10 * time.Second, Prefill: 5, FirstToken: 300 * time.Millisecond, TokenGap: 20 * time.Millisecond})
		defer stop()
		five := `{"model":"llama","prompt":"a b c d e f g h i j","raw":true,"options":{"num_predict":5}}`
		speak := 300*time.Millisecond + 4*20*time.Millisecond
		if d := took(func() { r.post("/api/generate", five) }); d != 12*time.Second+speak {
			t.Errorf("cold took %v, want %v", d, 12*time.Second+speak)
		}
		if d := took(func() { r.post("/api/generate", five) }); d != 200*time.Millisecond+speak {
			t.Errorf("cached took %v, want %v (one token of prefill)", d, 200*time.Millisecond+speak)
		}
		r.SetFault(Fault{Kind: FaultSlow, Factor: 3, Delay: time.Millisecond})
		if d := took(func() { r.post("/api/generate", five) }); d != 3*(200*time.Millisecond+speak)+5*time.Millisecond {
			t.Errorf("slow by 3 took %v", d)
		}
	})
}

func TestAWaitForASlotIsPartOfTheWholeTimeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := start(t, Config{FirstToken: time.Second})
		defer stop()
		one := fmt.Sprintf(oneToken, "x")
		first := make(chan struct{})
		go func() {
			defer close(first)
			r.post("/api/generate", one)
		}()
		synctest.Wait()
		second := parse[struct {
			Load  time.Duration `json:"load_duration"`
			Eval  time.Duration `json:"eval_duration"`
			Total time.Duration `json:"total_duration"`
		}](t, r.post("/api/generate", one))
		<-first
		if second.Total != 2*time.Second || second.Load != 0 || second.Eval != time.Second {
			t.Errorf("a request that waited a second: %+v", second)
		}
	})
}

func TestPromptCachePrefillsOnlyWhatNoSlotHolds(t *testing.T) {
	r, stop := start(t, Config{Slots: 2})
	defer stop()
	prefilled := func(prompt string) int64 {
		before := r.Stats().PrefilledTokens
		r.post("/api/generate", fmt.Sprintf(oneToken, prompt))
		return r.Stats().PrefilledTokens - before
	}
	for _, row := range []struct {
		name, prompt string
		want         int64
	}{
		{"nothing is held", "one two three four", 4},
		{"all but the last token is", "one two three four", 1},
		{"a longer prompt", "one two three four five six", 2},
		{"another prompt goes to the other slot", "eins zwei drei", 3},
		{"the first slot still holds its own", "one two three four five seven", 1},
		{"a prefix that ends inside a token", "one two thr", 1},
		{"so does the second", "eins zwei vier", 1},
	} {
		if got := prefilled(row.prompt); got != row.want {
			t.Errorf("%s: %d tokens prefilled, want %d", row.name, got, row.want)
		}
	}
	answer := parse[record](t, r.post("/api/generate", fmt.Sprintf(oneToken, "eins zwei"))).Response
	if got := prefilled("eins zwei" + answer + " mehr"); got != 1 {
		t.Errorf("the answer was not kept: %d tokens prefilled, want 1", got)
	}
	if st := r.Stats(); st.PromptTokens <= st.PrefilledTokens {
		t.Errorf("stats %+v", st)
	}
}
