//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/bench/load"
)

// report returns docs/benchmarks.md, with the tables for which there are figures.
func report(b *bench, m machine) string {
	var s strings.Builder
	began := m.date.Format(time.DateOnly)
	cpu := ""
	if m.cpu != "" {
		cpu = " (" + m.cpu + ")"
	}
	fmt.Fprintf(&s, `# Benchmarks

    make bench                                   # writes this file
    make bench BENCH='-rounds 1 -only unary-32'  # a quick look; -help names the workloads

Made on %s in %s. %d cores%s, %.1f GB of memory, Linux %s; load averages before it began: %s.
%s.

`, began, m.took.Round(time.Second), m.cores, cpu, m.memory/1e9, m.kernel, m.busy, strings.Join(m.versions, ", "))
	fmt.Fprintf(&s, `Every gateway stands alone on loopback before a fake engine (internal/engine/enginetest) that answers at once:
%d tokens in one answer, or %d tokens, a record each, as a stream. The load generator, the engine and the
gateway share the machine's cores, so throughput and times say more about the machine than about a gateway, and the load
generator's and the engine's part, which is the same for all, draws the ratios of throughput towards 1. **The ratios
are the figures that matter.** nginx has one worker and HAProxy one thread, both keep connections to
the engine, nothing is buffered or logged (bench/configs.go); OllamaMax has its default configuration.

Each figure is the median of %s, with the least and the greatest in brackets. Every round measures
every gateway, in an order that rotates; ratios and differences are taken within a round.

`, unaryTokens, streamTokens, count(b.rounds, "round"))
	for _, t := range b.tables() {
		s.WriteString(t.String())
	}
	s.WriteString(b.failed())
	return strings.TrimRight(s.String(), "\n") + "\n"
}

func count(n int, what string) string {
	if n == 1 {
		return "one " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// table is one of the report.
type table struct {
	title, text string
	head        []string
	rows        [][]string
}

// String returns the table, or "" if it has no rows.
func (t table) String() string {
	if len(t.rows) == 0 {
		return ""
	}
	lines := append([][]string{t.head, make([]string, len(t.head))}, t.rows...)
	widths := make([]int, len(t.head))
	for _, row := range lines {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var s strings.Builder
	fmt.Fprintf(&s, "## %s\n\n%s\n\n", t.title, t.text)
	for n, row := range lines {
		for i, cell := range row {
			fill := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			switch {
			case n == 1 && i == 0:
				cell = strings.Repeat("-", widths[i])
			case n == 1:
				cell = strings.Repeat("-", widths[i]-1) + ":"
			case i == 0:
				cell += fill
			default:
				cell = fill + cell
			}
			s.WriteString("| " + cell + " ")
		}
		s.WriteString("|\n")
	}
	s.WriteString("\n")
	return s.String()
}

func (b *bench) tables() []table {
	return []table{b.ratios(), b.throughputs(), b.cpuTimes(), b.added(), b.remote(), b.memories()}
}

// series returns a metric's rounds; nil if w was not measured with the contender.
func (b *bench) series(w, contender string, m metric) []float64 {
	var values []float64
	for _, f := range b.found[w][contender] {
		values = append(values, f[m])
	}
	return values
}

// addedSeries returns by how much a metric exceeds what there is without a gateway.
func (b *bench) addedSeries(w, contender string, m metric) []float64 {
	return pairs(b.series(w, contender, m), b.series(w, direct, m), func(with, without float64) float64 { return with - without })
}

// ratio is ours to theirs. Where theirs is not above zero, noise has swallowed it, and there is none.
func ratio(ours, theirs float64) float64 {
	if theirs <= 0 {
		return math.NaN()
	}
	return ours / theirs
}

// pairs joins two series round by round.
func pairs(a, b []float64, f func(a, b float64) float64) []float64 {
	var values []float64
	for i := range min(len(a), len(b)) {
		values = append(values, f(a[i], b[i]))
	}
	return values
}

// cell is a figure's median and range, in a unit.
func cell(values []float64, perUnit float64) string {
	sum := load.Summarize(values)
	if sum.N == 0 {
		return "–"
	}
	if sum.N == 1 {
		return number(sum.Median * perUnit)
	}
	return fmt.Sprintf("%s (%s – %s)", number(sum.Median*perUnit), number(sum.Min*perUnit), number(sum.Max*perUnit))
}

// number writes a number with three figures or more.
func number(x float64) string {
	size := math.Abs(x)
	switch {
	case math.IsNaN(x):
		return "–"
	case size < 9.995:
		return strconv.FormatFloat(x, 'f', 2, 64)
	case size < 99.95:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return whole(int(math.Round(x)))
}

// whole writes a whole number, its thousands with commas.
func whole(n int) string {
	if n < 0 {
		return "-" + whole(-n)
	}
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", whole(n/1000), n%1000)
}

// others are the contenders that ours is compared with.
func (b *bench) others() []string {
	return slices.DeleteFunc(slices.Clone(b.contenders), func(c string) bool { return c == direct || c == ollamamax })
}

// workloads returns those that were measured, of a kind, before a local engine or a remote node.
func (b *bench) workloads(k kind, remote bool) []workload {
	return slices.DeleteFunc(plan(), func(w workload) bool {
		return w.kind != k || w.remote != remote || b.found[w.name] == nil
	})
}

// title names a workload in a row.
func (w workload) title() string {
	sort := "unary"
	if w.stream {
		sort = "streaming"
	}
	switch w.kind {
	case rate:
		return fmt.Sprintf("%s, %s a second", sort, whole(w.n))
	default:
		if w.n == 1 {
			return sort + ", 1 client"
		}
		return fmt.Sprintf("%s, %s clients", sort, whole(w.n))
	}
}

func (b *bench) ratios() table {
	t := table{title: "OllamaMax in relation to the others",
		text: "Of throughput more is better, of all else less.", head: []string{""}}
	for _, c := range b.others() {
		t.head = append(t.head, "to "+c)
	}
	row := func(title, w string, of func(w, contender string) []float64) {
		cells := []string{title}
		for _, c := range b.others() {
			cells = append(cells, cell(pairs(of(w, ollamamax), of(w, c), ratio), 1))
		}
		if slices.ContainsFunc(cells[1:], func(c string) bool { return c != "–" }) {
			t.rows = append(t.rows, cells)
		}
	}
	plain := func(m metric) func(string, string) []float64 {
		return func(w, c string) []float64 { return b.series(w, c, m) }
	}
	added := func(m metric) func(string, string) []float64 {
		return func(w, c string) []float64 { return b.addedSeries(w, c, m) }
	}
	for _, w := range b.workloads(rate, false) {
		row("CPU time a request: "+w.title(), w.name, plain(cpuTimeEach))
	}
	for _, w := range b.workloads(closed, false) {
		row("throughput: "+w.title(), w.name, plain(throughput))
	}
	for _, w := range b.workloads(closed, false) {
		if w.n == 1 {
			row("added median to the first byte: "+w.title(), w.name, added(firstMedian))
		}
	}
	for _, w := range b.workloads(hold, false) {
		row("memory a stream: "+w.title(), w.name, plain(memoryEach))
		row("cores in use: "+w.title(), w.name, plain(coresAtOnce))
	}
	return t
}

// compare is a table with a row a workload and a column a contender.
func (b *bench) compare(t table, columns []string, of []workload, value func(w, contender string) []float64, perUnit float64) table {
	t.head = append([]string{""}, columns...)
	for _, w := range of {
		cells := []string{w.title()}
		for _, c := range columns {
			cells = append(cells, cell(value(w.name, c), perUnit))
		}
		t.rows = append(t.rows, cells)
	}
	return t
}

func (b *bench) throughputs() table {
	return b.compare(table{title: "Throughput", text: "Whole answers a second, each client its next request after the last answer."},
		b.contenders, b.workloads(closed, false),
		func(w, c string) []float64 { return b.series(w, c, throughput) }, 1)
}

func (b *bench) cpuTimes() table {
	t := b.compare(table{title: "CPU time a request at a fixed rate", text: "Microseconds of the gateway's processes, in user and kernel mode."},
		b.contenders[1:], b.workloads(rate, false),
		func(w, c string) []float64 { return b.series(w, c, cpuTimeEach) }, 1e6)
	for _, w := range b.workloads(rate, false) {
		for _, c := range b.contenders {
			if got := load.Summarize(b.series(w.name, c, throughput)).Median; got < 0.95*float64(w.n) {
				t.text += fmt.Sprintf("\n%s, %s: only %s answers a second came, so these figures are of an overloaded machine.", c, w.title(), number(got))
			}
		}
	}
	return t
}

// added are the times to the first byte.
func (b *bench) added() table {
	t := table{title: "Time to the first byte",
		text: "Microseconds until the body's first byte: without a gateway as they are, for the gateways what each adds to that. With\n" +
			"a fixed rate they count from the moment at which a request was to be sent. With more clients than cores\n" +
			"most of it is waiting for a core, and follows from throughput.",
		head: []string{""}}
	t.head = append(t.head, b.contenders...)
	for _, w := range append(b.workloads(closed, false), b.workloads(rate, false)...) {
		for _, m := range []metric{firstMedian, firstP99} {
			cells := []string{w.title() + ", " + metricName(m), cell(b.series(w.name, direct, m), 1e6)}
			for _, c := range b.contenders[1:] {
				cells = append(cells, cell(b.addedSeries(w.name, c, m), 1e6))
			}
			t.rows = append(t.rows, cells)
		}
	}
	return t
}

func metricName(m metric) string {
	if m == firstP99 {
		return "p99"
	}
	return "median"
}

func (b *bench) remote() table {
	t := table{title: "Through a second node",
		text: "The node that is asked has no engine with the model; a second node on the same machine has. The CPU time is both nodes' together.\n" +
			"Times in microseconds; added: to the first byte, against no gateway.",
		head: []string{"", "a second, no gateway", "a second, OllamaMax", "added median", "added p99", "CPU time a request"}}
	for _, w := range append(b.workloads(closed, true), b.workloads(rate, true)...) {
		t.rows = append(t.rows, []string{w.title(),
			cell(b.series(w.name, direct, throughput), 1), cell(b.series(w.name, ollamamax, throughput), 1),
			cell(b.addedSeries(w.name, ollamamax, firstMedian), 1e6), cell(b.addedSeries(w.name, ollamamax, firstP99), 1e6),
			cell(b.series(w.name, ollamamax, cpuTimeEach), 1e6)})
	}
	return t
}

func (b *bench) memories() table {
	t := table{title: "Streams held open", text: fmt.Sprintf("%s streams at one token a second: by how much the memory (PSS) of the gateway's processes has grown, for each stream, in KB;\n"+
		"and how many cores they keep busy. The kernel's part, the sockets' buffers, is not in it.", whole(held)),
		head: []string{"", "KB a stream", "cores"}}
	for _, w := range b.workloads(hold, false) {
		for _, c := range b.in(w) {
			t.rows = append(t.rows, []string{c, cell(b.series(w.name, c, memoryEach), 1.0/1024), cell(b.series(w.name, c, coresAtOnce), 1)})
		}
	}
	return t
}

// failed tells of the measurements whose figures do not count.
func (b *bench) failed() string {
	if len(b.failures) == 0 {
		return ""
	}
	var s strings.Builder
	s.WriteString("## Failed\n\nMeasurements in which more than one request in a thousand failed. Their figures do not count. Round 0 warms up.\n\n")
	for i, f := range b.failures {
		same := func(other failure) bool { return other.workload == f.workload && other.contender == f.contender }
		if slices.IndexFunc(b.failures, same) < i {
			continue // told with the first
		}
		var rounds []string
		for _, other := range b.failures {
			if same(other) {
				rounds = append(rounds, strconv.Itoa(other.round))
			}
		}
		fmt.Fprintf(&s, "- %s, %s, round %s: %s\n", f.contender, f.workload, strings.Join(rounds, ", "), strings.Join(strings.Fields(f.err.Error()), " "))
	}
	return s.String()
}
