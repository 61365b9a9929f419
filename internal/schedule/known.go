package schedule

import (
	"cmp"
	"math"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// known is what answers have taught of a model on a node. It is immutable. Zero is unknown, for
// which there are cautious guesses.
type known struct {
	load    time.Duration // to load the model
	prefill float64       // prompt tokens read a second
	gap     time.Duration // between two tokens, on the mean
	maxGap  time.Duration // the longest one lately
	output  float64       // tokens of an answer
	bytes   float64       // of a prompt's text a token
	took    time.Duration // a request, from its sending to its end
	queued  time.Duration // waited inside the engine, as of at
	crowd   float64       // requests that the engine had then
	at      time.Time     // of the last answer
	// What the last request asked of the runner, as far as this gateway sent it.
	asked  bool
	runner uint64
	numCtx int

	memory [remembered][]cluster.Prefix // the prompts read last, the latest first
}

// remembered is how many prompts an engine is thought to have cached.
const remembered = 8

// The guesses, of a small model on a modest machine.
const (
	guessPrefill   = 500.0 // tokens a second
	guessGap       = 40 * time.Millisecond
	guessOutput    = 256.0
	guessBytes     = 4.0
	guessLoad      = time.Second
	guessLoadBytes = 500 << 20 // a second, from disk
)

// learn takes an answer in. Older answers count for less, by a fifth each time, and the less the longer ago
// they were. inside is how long it waited in the engine, concurrent how many requests that had when this
// one was sent.
func (k *known) learn(now time.Time, r *cluster.Request, o cluster.Outcome, inside time.Duration, concurrent int, cold bool, took time.Duration) {
	share := 1 - 0.8*k.sure(now)
	mix := func(old *time.Duration, new time.Duration) {
		if *old == 0 {
			*old = new
		}
		*old += time.Duration(float64(new-*old) * share)
	}
	mixf := func(old *float64, new float64) {
		if *old == 0 {
			*old = new
		}
		*old += (new - *old) * share
	}
	if o.PromptTokens > 0 && r.PromptBytes > 0 {
		mixf(&k.bytes, float64(r.PromptBytes)/float64(o.PromptTokens))
	}
	switch {
	case o.Load > 0 && cold:
		mix(&k.load, o.Load)
	case cold && o.Total == 0: // an engine that tells no times
		mix(&k.load, o.First)
	}
	// Counts include what was cached, times do not: only a prompt that is new shows the speed.
	if fresh := o.PromptTokens - k.cached(r, true); o.PromptTokens > 0 && fresh == o.PromptTokens && fresh >= 16 {
		switch {
		case o.Prefill > 0:
			mixf(&k.prefill, float64(fresh)/o.Prefill.Seconds())
		case o.Total == 0 && !cold && o.First > inside && (o.MeanGap > 0 || o.OutputTokens == 0): // of what comes whole the first piece is the last
			mixf(&k.prefill, float64(fresh)/(o.First-inside).Seconds())
		}
	}
	if o.OutputTokens > 0 {
		mixf(&k.output, float64(o.OutputTokens))
	}
	switch {
	case o.Eval > 0 && o.OutputTokens > 1:
		mix(&k.gap, o.Eval/time.Duration(o.OutputTokens))
	case o.MeanGap > 0:
		mix(&k.gap, o.MeanGap)
	}
	if k.maxGap -= k.maxGap / 20; o.MaxGap > k.maxGap {
		k.maxGap = o.MaxGap
	}
	if !cold {
		mix(&k.took, took)
		k.queued = k.waits(now, concurrent-1)
		k.queued += (inside - k.queued) / 5
		k.crowd, k.at = float64(concurrent), now
	}
	k.asked, k.runner, k.numCtx = true, r.Runner, r.NumCtx
	if len(r.Prefix) > 0 {
		k.remember(r.Prefix)
	}
}

// remember puts a prompt before the others, in the place of the one that it goes on from.
func (k *known) remember(prompt []cluster.Prefix) {
	drop := len(k.memory) - 1
	for i, old := range k.memory {
		if len(old) > 0 && common(prompt, old) == len(old) {
			drop = i
			break
		}
	}
	copy(k.memory[1:drop+1], k.memory[:drop])
	k.memory[0] = prompt
}

// cached returns how many tokens of the prompt the engine has read already, as far as is known.
func (k *known) cached(r *cluster.Request, affinity bool) int {
	if !affinity || len(r.Prefix) == 0 {
		return 0
	}
	bytes := 0
	for _, old := range k.memory {
		if n := common(r.Prefix, old); n > 0 {
			bytes = max(bytes, r.Prefix[n-1].Bytes)
		}
	}
	return int(float64(bytes) / k.bytesPerToken())
}

// common returns how many pieces two prompts have in common at their beginning.
func common(a, b []cluster.Prefix) int {
	n := 0
	for n < len(a) && n < len(b) && a[n].Digest == b[n].Digest {
		n++
	}
	return n
}

func (k *known) bytesPerToken() float64 {
	if k.bytes > 0 {
		return k.bytes
	}
	return guessBytes
}

func (k *known) promptTokens(r *cluster.Request) int {
	return int(float64(r.PromptBytes) / k.bytesPerToken())
}

func (k *known) prefillTime(tokens int) time.Duration {
	speed := guessPrefill
	if k.prefill > 0 {
		speed = k.prefill
	}
	return time.Duration(float64(max(tokens, 0)) / speed * float64(time.Second))
}

// sure is how far what is known may still hold: 1 while it is fresh, then half as much in each doubtHalf.
func (k *known) sure(now time.Time) float64 {
	age := now.Sub(k.at)
	if k.at.IsZero() || age <= freshFor {
		return 1
	}
	return math.Exp2(-float64(age-freshFor) / float64(doubtHalf))
}

const (
	freshFor  = 30 * time.Second
	doubtHalf = 2 * time.Minute
)

// waits is how long a request is expected to wait inside the engine when that has so many others. What
// was seen of it goes with the requests that were there then, or, if they were others' of whom nobody
// tells, in time.
func (k *known) waits(now time.Time, busy int) time.Duration {
	if k.queued == 0 {
		return 0
	}
	crowd := min(1, float64(busy+1)/max(k.crowd, 1))
	return time.Duration(float64(k.queued) * crowd * math.Exp2(-float64(now.Sub(k.at))/float64(waitsHalf)))
}

// waitsHalf is in what time half of a wait inside an engine is forgotten.
const waitsHalf = 10 * time.Second

// service is how long a request occupies a slot.
func (k *known) service() time.Duration {
	if k.took > 0 {
		return k.took
	}
	return time.Duration(guessOutput) * guessGap
}

// loadTime is how long the engine has to load before it can read the prompt: nothing when the model
// is loaded with the options that the request needs.
func (k *known) loadTime(c *candidate, r *cluster.Request) time.Duration {
	need := k.load
	if need == 0 {
		need = guessLoad + time.Duration(float64(c.replica.Model.Size)/guessLoadBytes*float64(time.Second))
	}
	if c.replica.Loaded != nil {
		if k.sameRunner(c.replica.Loaded, r, int(c.pair.context.Load())) {
			return 0
		}
		return need
	}
	if since := c.pair.loading.Load(); since > 0 { // another request has it loaded just now
		return max(need/10, need-time.Since(time.Unix(0, since)))
	}
	return need + k.eviction(c)
}

// eviction is what others lose if the engine must let go of a model to load this one: about the time
// to load that again.
func (k *known) eviction(c *candidate) time.Duration {
	free, size := c.node.Memory.Free, c.replica.Model.Size
	if free == 0 || size == 0 || size <= free || len(c.node.Loaded) == 0 {
		return 0
	}
	var again time.Duration
	for _, l := range c.node.Loaded {
		again = max(again, guessLoad)
		if other, ok := c.node.Model(cluster.CanonicalModel(l.Name)); ok {
			again = max(again, time.Duration(float64(other.Size)/guessLoadBytes*float64(time.Second)))
		}
	}
	return again
}

// sameRunner tells whether a loaded model serves the request without being loaded anew: an Ollama
// loads it anew for another context length, and for any other option of its runner.
func (k *known) sameRunner(loaded *cluster.Loaded, r *cluster.Request, usual int) bool {
	switch {
	case k.asked && k.runner != r.Runner:
		return false
	case r.NumCtx > 0:
		return loaded.ContextLength == 0 || r.NumCtx == loaded.ContextLength
	}
	return !k.asked || k.numCtx == 0 || loaded.ContextLength == usual
}

// context is the context that is loaded for the request, or would be; 0 if that is not known. usual is the
// one that the engine gives to a request that asks for none, 0 if that is not known.
func (k *known) context(loaded *cluster.Loaded, r *cluster.Request, usual int) int {
	context := r.NumCtx
	if context == 0 && loaded != nil && k.sameRunner(loaded, r, usual) {
		context = loaded.ContextLength
	}
	return cmp.Or(context, usual)
}

// fits tells whether prompt and answer have room in the context that is loaded or would be.
func (k *known) fits(loaded *cluster.Loaded, r *cluster.Request, usual int) bool {
	context := k.context(loaded, r, usual)
	// A cautious guess of the prompt, so that a node is put behind the others only when it surely does
	// not fit; of an answer's limit, which is often set far too high, at most half of the context.
	tokens := r.PromptBytes / mostBytesPerToken
	if k.bytes > 0 {
		tokens = int(float64(r.PromptBytes) / k.bytes)
	}
	return context == 0 || tokens+min(r.MaxTokens, context/2) <= context
}

// mostBytesPerToken is more than most texts have.
const mostBytesPerToken = 8
