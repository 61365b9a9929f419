//go:build linux

package main

import (
	"context"
	"errors"
	"math"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestCPUTimeIsWhatTheKernelCounts(t *testing.T) {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	got, err := cpuTime([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if after := used(); got < before-time.Millisecond || got > after+time.Millisecond {
		t.Errorf("%v, and getrusage says from %v to %v", got, before, after)
	}
	if _, err := cpuTime([]int{math.MaxInt32 / 16}); err == nil {
		t.Error("a process that is not there has used time")
	}
}

func TestMemoryIsThatOfTheProcess(t *testing.T) {
	ids := []int{os.Getpid()}
	before, err := memory(ids)
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	held, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < size; i += 1024 {
		held[i] = 1
	}
	after, err := memory(ids)
	if err != nil {
		t.Fatal(err)
	}
	if grown := after - before; grown < size*0.9 || grown > size*1.3 {
		t.Errorf("grew by %.0f bytes for %d", grown, size)
	}
	if err := syscall.Munmap(held); err != nil {
		t.Error(err)
	}
}

func TestStopEndsTheWholeGroup(t *testing.T) {
	p, err := start("a shell", t.TempDir(), "/bin/sh", "-c", "sleep 1000 & echo up; wait")
	if err != nil {
		t.Fatal(err)
	}
	for p.output.String() != "up\n" && p.ended() == nil {
		runtime.Gosched()
	}
	ids, err := p.group()
	if err != nil || len(ids) != 2 {
		t.Fatalf("group %v, %v", ids, err)
	}
	if err := syscall.Kill(p.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.stop()
	if ids, err := p.group(); err == nil {
		t.Errorf("%v outlive it", ids)
	}
}

func TestAProgramThatEndsIsQuoted(t *testing.T) {
	p, err := start("a shell", t.TempDir(), "/bin/sh", "-c", "echo no such option >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	err = until(t.Context(), "anything", p, func(context.Context) error { return errors.New("nothing yet") })
	if err == nil || !strings.Contains(err.Error(), "no such option") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v", err)
	}
}

func TestWorkloadsAreChosenByPattern(t *testing.T) {
	for patterns, want := range map[string]string{
		"":                    names(plan()),
		"unary-32":            "unary-32",
		"*-2000,memory":       "unary-2000 stream-2000 remote-unary-2000 remote-stream-2000 memory",
		"stream-1,unary-1":    "unary-1 stream-1",
		"unary-rate,unary-r*": "unary-rate",
	} {
		got, err := choose(plan(), patterns)
		if err != nil || names(got) != want {
			t.Errorf("%q: %s, %v; want %s", patterns, names(got), err, want)
		}
	}
	for _, patterns := range []string{"unary-33", "unary-1,x", "["} {
		if got, err := choose(plan(), patterns); err == nil {
			t.Errorf("%q gives %s", patterns, names(got))
		}
	}
}

func TestNoGatewayAlwaysTakesPart(t *testing.T) {
	if got, err := taking("nginx,ollamamax,NGINX"); err != nil || strings.Join(got, " ") != "no gateway nginx OllamaMax" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := taking("apache"); err == nil {
		t.Error("an unknown contender was accepted")
	}
}

func TestNumbersAreWrittenWithThreeFigures(t *testing.T) {
	for x, want := range map[float64]string{0: "0.00", 0.256: "0.26", 9.999: "10.0", -12.34: "-12.3", 99.96: "100", 999.6: "1,000", 1234567: "1,234,567", -1000: "-1,000"} {
		if got := number(x); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
	if got := number(math.NaN()); got != "–" {
		t.Errorf("no number: %s", got)
	}
}

// measured are rounds in which only the given metric counts.
func measured(m metric, values ...float64) []figures {
	var rounds []figures
	for _, v := range values {
		f := noFigures()
		f[m] = v
		rounds = append(rounds, f)
	}
	return rounds
}

func TestRatiosAndDifferencesAreTakenWithinARound(t *testing.T) {
	b := &bench{rounds: 3, contenders: []string{direct, ollamamax, nginx}, found: map[string]map[string][]figures{
		"unary-32": {ollamamax: measured(throughput, 100, 20, 30), nginx: measured(throughput, 50, 40, 10)},
		"unary-1": {
			direct:    measured(firstMedian, 10e-6, 20e-6, 30e-6),
			ollamamax: measured(firstMedian, 30e-6, 50e-6, 70e-6),
			nginx:     measured(firstMedian, 20e-6, 20e-6, 50e-6), // nothing added in the second round
		},
		"unary-rate": {ollamamax: measured(cpuTimeEach, 30e-6, math.NaN(), 90e-6), nginx: measured(cpuTimeEach, 30e-6, 30e-6, 30e-6)},
	}, failures: []failure{
		{"unary-rate", ollamamax, 2, errors.New("status 502\nno node")},
		{"unary-rate", ollamamax, 3, errors.New("status 503")},
	}}
	text := report(b, machine{cores: 2, kernel: "6.1", versions: []string{"Go 1"}})
	for _, want := range []string{
		"| throughput: unary, 32 clients                   | 2.00 (0.50 – 3.00) |\n",
		"| CPU time a request: unary, 2,000 a second       | 2.00 (1.00 – 3.00) |\n",
		"| added median to the first byte: unary, 1 client | 2.00 (2.00 – 2.00) |\n",
		"- OllamaMax, unary-rate, round 2, 3: status 502 no node\n",
		"20.0 (10.0 – 30.0)", // no gateway, as it is
		"30.0 (20.0 – 40.0)", // what ours adds to it
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the report", want)
		}
	}
	if strings.Contains(text, "## Streams held open") {
		t.Error("a table without figures is in the report")
	}
	if t.Failed() {
		t.Log(text)
	}
}
