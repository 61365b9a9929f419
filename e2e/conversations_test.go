package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// talks are conversations that go on at the same time, each with a history that grows.
type talks struct {
	talks, turns int
	rounds       int           // one after the other in each of the places, so that nodes see some that have ended
	answer       int           // tokens
	pause        time.Duration // at most, before a turn
}

// talked is what the engines did for conversations.
type talked struct {
	tokens int // of all texts, each counted once
	again  int // prefilled beyond that
	prompt int // of all prompts
	first  time.Duration
}

// run has the conversations through one gateway of a cluster and returns what the engines counted.
func (k talks) run(t *testing.T, c testCluster, gateway *member, seed uint64) (sum talked) {
	t.Helper()
	before, prompts := prefilled(t, c)
	var mu sync.Mutex
	var talking sync.WaitGroup
	for place := range k.talks {
		talking.Go(func() {
			for round := range k.rounds {
				tokens, first, err := k.one(gateway.url, seed+uint64(place*1000+round))
				mu.Lock()
				sum.tokens += tokens
				sum.first += first
				mu.Unlock()
				if err != nil {
					t.Errorf("conversation %d.%d: %v", place, round, err)
				}
			}
		})
	}
	talking.Wait()
	sum.again, sum.prompt = prefilled(t, c)
	sum.again = max(0, sum.again-before-sum.tokens) // a few tokens of the template are everyone's
	sum.prompt -= prompts
	sum.first /= time.Duration(k.talks * k.rounds * k.turns)
	return sum
}

// prefilled counts the tokens that the engines have read, and those that were in all prompts.
func prefilled(t *testing.T, c testCluster) (fresh, all int) {
	t.Helper()
	for _, m := range c {
		s := counts(t, m)
		fresh, all = fresh+int(s.PrefilledTokens), all+int(s.PromptTokens)
	}
	return fresh, all
}

// one has a conversation and returns how many tokens an engine must read that forgets nothing, and
// how long the answers' beginnings took together.
func (k talks) one(url string, seed uint64) (tokens int, first time.Duration, err error) {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	random := rand.New(rand.NewPCG(seed, 1))
	var history []message
	written := 0
	for turn := range k.turns {
		time.Sleep(time.Duration(random.Int64N(int64(k.pause) + 1)))
		words := []string{fmt.Sprintf("conversation %d turn %d", seed, turn)}
		for range 96 {
			words = append(words, fmt.Sprintf("w%d", random.IntN(5000)))
		}
		history = append(history, message{"user", strings.Join(words, " ")})
		body, err := json.Marshal(map[string]any{"model": "m", "messages": history, "stream": true,
			"options": map[string]any{"num_predict": k.answer, "temperature": 0}})
		if err != nil {
			return 0, 0, err
		}
		began := time.Now()
		resp, err := loadClient.Post(url+"/api/chat", "application/json", strings.NewReader(string(body)))
		if err != nil {
			return 0, 0, err
		}
		var answer strings.Builder
		for records := json.NewDecoder(resp.Body); ; {
			var r struct {
				Message         message
				Done            bool
				Error           string
				PromptEvalCount int `json:"prompt_eval_count"`
				EvalCount       int `json:"eval_count"`
			}
			if err = records.Decode(&r); err != nil || r.Error != "" {
				_ = resp.Body.Close()
				return 0, 0, fmt.Errorf("status %d: %v %s", resp.StatusCode, err, r.Error)
			}
			if answer.Len() == 0 {
				first += time.Since(began)
			}
			answer.WriteString(r.Message.Content)
			if r.Done {
				tokens = r.PromptEvalCount - written // all prompts are the beginning of the last
				written += r.EvalCount
				break
			}
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
			return 0, 0, fmt.Errorf("status %d: %v", resp.StatusCode, err)
		}
		history = append(history, message{"assistant", answer.String()})
	}
	return tokens, first, nil
}

// compare has them through a gateway that goes by the time to the first token, then, others, through one
// that goes by load alone, to the same three nodes.
func (k talks) compare(t *testing.T, most float64) {
	t.Helper()
	flags := []string{"-model", "m", "-slots", "4", "-prefill", "2000", "-token-gap", "5ms", "-context", "16384"}
	ours, control := tuned(t, "a", "", flags...), tuned(t, "b", "schedule: {policy: least-loaded}\n", flags...)
	c := form(t, ours, control, tuned(t, "c", "", flags...))
	c.warm(t, "m", c...)
	var shares []float64
	for seed := range uint64(2) { // once more with other conversations, if chance was against it
		a, b := k.run(t, c, ours, 2*seed<<20), k.run(t, c, control, (2*seed+1)<<20)
		for _, r := range []struct {
			policy string
			talked
		}{{"ttft", a}, {"least-loaded", b}} {
			t.Logf("%-12s %d conversations of %d turns, %d at once: %d tokens of text, %d in all prompts, %d prefilled again; %v on the mean to the first token",
				r.policy, k.talks*k.rounds, k.turns, k.talks, r.tokens, r.prompt, r.again, r.first.Round(100*time.Microsecond))
		}
		share := float64(a.again) / float64(b.again)
		t.Logf("prefilled again by ttft: %.1f %% of what least-loaded does", 100*share)
		if b.again < b.tokens/2 {
			t.Errorf("least-loaded prefilled only %d tokens again: this measures nothing", b.again)
		}
		if share <= most {
			return
		}
		shares = append(shares, share)
	}
	t.Errorf("%.2f of the control, want at most %.2f", shares, most)
}

func TestFollowUpTurnsReturnToTheirCache(t *testing.T) {
	t.Parallel()
	talks{talks: 6, turns: 5, rounds: 1, answer: 8, pause: 100 * time.Millisecond}.compare(t, 0.5)
}

func TestFiguresOfConversations(t *testing.T) {
	figures(t)
	for n, rounds := range map[int]int{9: 1, 12: 2} { // of twelve caches
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			talks{talks: n, turns: 8, rounds: rounds, answer: 32, pause: 200 * time.Millisecond}.compare(t, 0.5)
		})
	}
}
