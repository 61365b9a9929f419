//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/bench/load"
)

// metric is one figure of a measurement.
type metric int

const (
	throughput  metric = iota // whole answers a second
	firstMedian               // seconds to the body's first byte
	firstP99
	cpuTimeEach  // seconds of the gateway's CPU time a request
	memoryEach   // bytes of the gateway's memory a stream
	coresAtOnce  // cores that the gateway keeps busy
	metricsCount // how many there are
)

// figures are those of one measurement; NaN what it does not have.
type figures [metricsCount]float64

func noFigures() (f figures) {
	for i := range f {
		f[i] = math.NaN()
	}
	return f
}

// failure is a measurement whose figures do not count, because requests failed.
type failure struct {
	workload, contender string
	round               int
	err                 error
}

// requestsFailed is the error of a contender that ran and did not answer as it should.
type requestsFailed struct{ error }

// bench measures, and holds what it has found.
type bench struct {
	root       string
	rounds     int
	contenders []string
	progress   io.Writer
	found      map[string]map[string][]figures // by workload and contender, a round each
	failures   []failure
}

// in returns the contenders that take part in w.
func (b *bench) in(w workload) []string {
	return slices.DeleteFunc(slices.Clone(b.contenders), func(c string) bool {
		return w.remote && c != direct && c != ollamamax || w.kind == hold && c == direct
	})
}

// measure measures w with every contender in every round.
func (b *bench) measure(ctx context.Context, w workload) error {
	in := b.in(w)
	if len(in) == 0 || len(in) == 1 && in[0] == direct {
		return nil
	}
	b.found[w.name] = map[string][]figures{}
	one := b.alone
	if w.kind != hold {
		s, err := open(b.root, w.fakeArgs()...)
		if err != nil {
			return err
		}
		defer s.close()
		fake, err := s.fake(ctx, model)
		if err != nil {
			return err
		}
		ready := map[string]*prepared{}
		for _, name := range in {
			if ready[name], err = prepare(ctx, s, w, name, fake); err != nil {
				return err
			}
			defer ready[name].pool.Close()
		}
		one = func(ctx context.Context, w workload, name string) (figures, error) { return ready[name].loop(ctx, w) }
	}
	// Round 0 does not count: it opens the connections and fills the caches.
	for round := range b.rounds + 1 {
		if round == 0 && w.kind == hold {
			continue
		}
		var line []string
		for i := range in {
			name := in[(i+round)%len(in)]
			f, err := one(ctx, w, name)
			if failed, is := errors.AsType[requestsFailed](err); is && ctx.Err() == nil {
				f = noFigures()
				b.failures = append(b.failures, failure{w.name, name, round, failed})
				fmt.Fprintf(b.progress, "%s, round %d: %s: %v\n", w.name, round, name, failed)
			} else if err != nil {
				return fmt.Errorf("measure %s with %s: %w", name, w.name, err)
			}
			if round > 0 {
				b.found[w.name][name] = append(b.found[w.name][name], f)
			}
			line = append(line, name+" "+f.brief(w))
		}
		fmt.Fprintf(b.progress, "%s, round %d of %d: %s\n", w.name, round, b.rounds, strings.Join(line, ", "))
	}
	return nil
}

// brief is what a progress line says.
func (f figures) brief(w workload) string {
	switch w.kind {
	case rate:
		if math.IsNaN(f[cpuTimeEach]) {
			return fmt.Sprintf("%s µs", number(f[firstMedian]*1e6))
		}
		return fmt.Sprintf("%s µs, CPU %s µs", number(f[firstMedian]*1e6), number(f[cpuTimeEach]*1e6))
	case hold:
		return fmt.Sprintf("%s KB, %s cores", number(f[memoryEach]/1024), number(f[coresAtOnce]))
	default:
		return fmt.Sprintf("%s/s", number(f[throughput]))
	}
}

// prepared is a contender that has given the right answer.
type prepared struct {
	*contender
	pool *load.Pool
	ids  []int // of its processes
}

// prepare starts a contender and waits until it answers as the fake does.
func prepare(ctx context.Context, s *stage, w workload, name, fake string) (*prepared, error) {
	begin := s.start
	if w.remote && name == ollamamax {
		begin = func(ctx context.Context, _, fake string) (*contender, error) { return s.cluster(ctx, fake) }
	}
	c, err := begin(ctx, name, fake)
	if err != nil {
		return nil, err
	}
	p := &prepared{contender: c, pool: load.NewPool(w.target(c.addr))}
	if name == direct {
		return p, nil
	}
	want, err := answer(ctx, w.probe(fake))
	if err != nil {
		return nil, fmt.Errorf("ask the fake engine: %w", err)
	}
	err = until(ctx, "an answer", c.processes[0], func(ctx context.Context) error {
		got, err := answer(ctx, w.probe(c.addr))
		if err == nil && got != want {
			err = fmt.Errorf("it answered %q, and the engine %q", got, want)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, proc := range c.processes {
		ids, err := proc.group()
		if err != nil {
			return nil, err
		}
		p.ids = append(p.ids, ids...)
	}
	return p, nil
}

// answer returns the text of a whole answer, streamed or not.
func answer(ctx context.Context, t load.Target) (string, error) {
	body, err := t.Ask(ctx)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for d := json.NewDecoder(bytes.NewReader(body)); ; {
		var record struct {
			Response string
			Done     bool
		}
		if err := d.Decode(&record); err != nil {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		text.WriteString(record.Response)
		if record.Done {
			return text.String(), nil
		}
	}
}

// meter measures the CPU time of processes in a window.
type meter struct {
	ids  []int
	used time.Duration
	err  error
}

func (m *meter) mark(end bool) {
	now, err := cpuTime(m.ids)
	m.err = errors.Join(m.err, err)
	if !end {
		now = -now
	}
	m.used += now
}

// loop measures with a closed or an open loop.
func (p *prepared) loop(ctx context.Context, w workload) (figures, error) {
	f := noFigures()
	m := meter{ids: p.ids}
	ph := w.phases()
	ph.Mark = m.mark
	run := p.pool.Closed
	if w.kind == rate {
		run = p.pool.Rate
	}
	r := run(ctx, w.n, ph)
	if err := errors.Join(ctx.Err(), m.err); err != nil {
		return f, err
	}
	if err := r.Err(); err != nil {
		return f, requestsFailed{err}
	}
	f[throughput] = r.PerSecond()
	f[firstMedian] = load.Quantile(r.First, 0.5) / 1e9
	f[firstP99] = load.Quantile(r.First, 0.99) / 1e9
	if len(p.ids) > 0 {
		f[cpuTimeEach] = m.used.Seconds() / float64(r.Done)
	}
	return f, nil
}

// The course of a measurement of memory.
const (
	holdWarm   = 300 * time.Millisecond // of short requests, so that what every process needs once is there
	holdRamp   = time.Second
	holdLimit  = 10 * time.Second
	holdWindow = 2 * time.Second // whole seconds: the streams' tokens may come all at once
)

// alone starts the contender anew, since a process keeps the memory that it once had, and measures
// it with streams held open.
func (b *bench) alone(ctx context.Context, w workload, name string) (figures, error) {
	f := noFigures()
	s, err := open(b.root, w.fakeArgs()...)
	if err != nil {
		return f, err
	}
	defer s.close()
	fake, err := s.fake(ctx, model)
	if err != nil {
		return f, err
	}
	p, err := prepare(ctx, s, w, name, fake)
	if err != nil {
		return f, err
	}
	warm := load.NewPool(w.probe(p.addr))
	defer warm.Close()
	if r := warm.Closed(ctx, 32, load.Phases{Window: holdWarm}); r.Err() != nil {
		return f, requestsFailed{r.Err()}
	}
	before, err := memory(p.ids)
	if err != nil {
		return f, err
	}
	h, err := p.pool.Hold(ctx, w.n, holdRamp, holdLimit)
	if err != nil {
		return f, requestsFailed{err}
	}
	defer h.Close()

	m := meter{ids: p.ids}
	began, lines := time.Now(), h.Lines()
	m.mark(false)
	select {
	case <-time.After(holdWindow):
	case <-ctx.Done():
	}
	m.mark(true)
	took, came := time.Since(began).Seconds(), h.Lines()-lines
	after, err := memory(p.ids)
	if err := errors.Join(ctx.Err(), err, m.err); err != nil {
		return f, err
	}
	if err := h.Err(); err != nil {
		return f, requestsFailed{err}
	}
	if want := float64(w.n) * took; float64(came) < 0.75*want { // late ones are in the next second
		return f, requestsFailed{fmt.Errorf("%d tokens came in %.1f s, of %.0f", came, took, want)}
	}
	f[memoryEach] = (after - before) / float64(w.n)
	f[coresAtOnce] = m.used.Seconds() / took
	return f, nil
}

// output runs a command and returns what it printed.
func output(ctx context.Context, program string, args ...string) (string, error) {
	text, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, text)
	}
	return string(text), nil
}
