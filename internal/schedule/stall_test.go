package schedule

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestEveryAnswerHasAnEnd(t *testing.T) {
	embedding := cluster.Outcome{Result: cluster.Answered, First: 100 * time.Millisecond, PromptTokens: 250}
	written := embedding
	written.OutputTokens = 10
	for name, tc := range map[string]struct {
		shown  *cluster.Outcome // by an answer before
		prompt int
		reads  bool
		whole  time.Duration
	}{
		"of a model that is new":      {whole: DefaultStall().FirstCeiling, prompt: 1000},
		"that is not generated":       {shown: &embedding, prompt: 1000, reads: true, whole: DefaultStall().FirstFloor + 400*time.Millisecond},
		"of a model that only read":   {shown: &embedding, prompt: 1000, whole: DefaultStall().FirstCeiling},
		"of a recording":              {shown: &embedding, whole: DefaultStall().FirstCeiling},
		"of a model of unknown speed": {shown: &written, prompt: 1000, whole: DefaultStall().FirstCeiling},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := scheduler(t, Default(), loaded(ready("a", "m"), "m", 0))
				if tc.shown != nil {
					lease := s.Try(prompt(1000), nil)
					time.Sleep(tc.shown.First)
					lease.Done(*tc.shown)
				}
				r := prompt(tc.prompt)
				r.Reads = tc.reads
				lease := s.Try(r, nil)
				defer lease.Done(cluster.Outcome{})
				if got := lease.Stall.Whole; got != tc.whole {
					t.Errorf("it may take %v, want %v", got, tc.whole)
				}
			})
		})
	}
}
