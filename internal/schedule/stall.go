package schedule

import (
	"fmt"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// Stall bounds how long an engine may be silent before it is taken for frozen. The bounds in between
// are learned, a model on a node each.
type Stall struct {
	// Floor is the least silence between two pieces that counts. Default 1.5s. Needs a restart, as all
	// below.
	Floor time.Duration `yaml:"floor"`
	// Ceiling is the silence that always counts, also while a model's usual one is unknown; but for one in
	// which an Ollama that answers otherwise may write a tool's call, which it shows when it is whole. Default 30s.
	Ceiling time.Duration `yaml:"ceiling"`
	// FirstFloor is the least time that a first piece is given beyond what loading and reading the
	// prompt are expected to take. Default 10s.
	FirstFloor time.Duration `yaml:"first_floor"`
	// FirstCeiling is the most time that a first piece is given, also for a model whose loading time is
	// unknown. Default 10m.
	FirstCeiling time.Duration `yaml:"first_ceiling"`
}

// DefaultStall returns the defaults.
func DefaultStall() Stall {
	return Stall{Floor: 1500 * time.Millisecond, Ceiling: 30 * time.Second, FirstFloor: 10 * time.Second, FirstCeiling: 10 * time.Minute}
}

// Validate returns what is wrong with the bounds, for an operator.
func (s Stall) Validate() error {
	switch {
	case s.Floor <= 0 || s.Ceiling < s.Floor:
		return fmt.Errorf("gateway.stall.floor is %v and ceiling %v: give durations above 0, the ceiling the longer one", s.Floor, s.Ceiling)
	case s.FirstFloor <= 0 || s.FirstCeiling < s.FirstFloor:
		return fmt.Errorf("gateway.stall.first_floor is %v and first_ceiling %v: give durations above 0, the ceiling the longer one", s.FirstFloor, s.FirstCeiling)
	}
	return nil
}

// bounds returns how long the candidate's engine may be silent. A token waits for the prompts that its
// engine reads meanwhile for others, so the longest gap seen lately counts as well as the mean one. A
// load that was never seen has only the ceiling.
func (s *Scheduler) bounds(c *candidate, r *cluster.Request) cluster.Stall {
	k := c.pair.known.Load()
	b := cluster.Stall{First: s.stall.FirstCeiling, Whole: s.stall.FirstCeiling, Floor: s.stall.Floor, Ceiling: s.stall.Ceiling}
	if k.gap > 0 {
		b.Next = min(max(s.stall.Floor, 16*k.gap, 3*k.maxGap), s.stall.Ceiling)
	}
	load := k.loadTime(c, r)
	if k.took == 0 || load > 0 && k.load == 0 {
		return b
	}
	expected := load + k.prefillTime(k.promptTokens(r)) + k.waits(time.Now(), c.busy)
	if c.busy > 0 && !c.room {
		expected += k.service()
	}
	b.First = min(s.stall.FirstFloor+4*expected, s.stall.FirstCeiling)
	switch {
	case k.gap > 0:
		most := max(8*k.output, 4096)
		if r.MaxTokens > 0 {
			most = min(most, float64(r.MaxTokens))
		}
		b.Whole = b.First + time.Duration(8*most*float64(k.gap))
	case r.Reads && k.prefill > 0:
		b.Whole = b.First
	}
	return b
}
