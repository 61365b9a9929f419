//go:build linux

// Command bench measures this gateway beside nginx, HAProxy and Caddy, in front of fake engines, and
// writes docs/benchmarks.md. `make bench` builds what it needs and runs it.
//
// Every process runs on loopback and is ended with the benchmark. Within a workload every round
// measures every contender, in an order that rotates, so that what else happens on the machine
// hits all of them; ratios are taken round by round.
//
// Start reading at run, then plan and bench.measure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// fullRounds is how many rounds the file is made of.
const fullRounds = 7

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted, nothing was written")
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(1)
}

// run measures, prints the tables, and writes the file if all was measured.
func run(ctx context.Context, args []string) error {
	all := plan()
	fs := flag.NewFlagSet("make bench BENCH=…", flag.ContinueOnError)
	rounds := fs.Int("rounds", fullRounds, "`ROUNDS` to measure")
	only := fs.String("only", "", "workloads, as `PATTERNS` separated by commas (default all): "+names(all))
	who := fs.String("contenders", "", "`NAMES` separated by commas beside \"no gateway\" (default all): "+strings.Join(contenders[1:], " "))
	printOnly := fs.Bool("print", false, "do not write docs/benchmarks.md; only a run of everything does, with 7 rounds or more")
	if err := fs.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(all, *only)
	if err != nil {
		return err
	}
	in, err := taking(*who)
	if err != nil {
		return err
	}
	if *rounds < 1 {
		return fmt.Errorf("-rounds is %d: give at least 1", *rounds)
	}
	if err := raiseFileLimit(); err != nil {
		return err
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	b := &bench{root: root, rounds: *rounds, contenders: in, progress: os.Stderr, found: map[string]map[string][]figures{}}
	m, err := describe(ctx, root, in)
	if err != nil {
		return err
	}
	began := time.Now()
	for _, w := range chosen {
		if err := b.measure(ctx, w); err != nil {
			return err
		}
	}
	m.took = time.Since(began)

	text := report(b, m)
	fmt.Print(text)
	if !*printOnly && *only == "" && *who == "" && *rounds >= fullRounds {
		if err := write(text); err != nil {
			return err
		}
	}
	if n := len(b.failures); n > 0 {
		return fmt.Errorf("requests failed in %s: they are listed under Failed", count(n, "measurement"))
	}
	return nil
}

func write(text string) error {
	file := filepath.Join("docs", "benchmarks.md")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// taking returns the contenders with the names, and "no gateway", which the others are compared with.
func taking(who string) ([]string, error) {
	if who == "" {
		return contenders[:], nil
	}
	in := []string{direct}
	for name := range strings.SplitSeq(who, ",") {
		i := slices.IndexFunc(contenders[:], func(c string) bool { return strings.EqualFold(c, name) })
		if i < 0 {
			return nil, fmt.Errorf("-contenders %s: choose from %s", name, strings.Join(contenders[1:], " "))
		}
		if !slices.Contains(in, contenders[i]) {
			in = append(in, contenders[i])
		}
	}
	return in, nil
}

// filesNeeded are those of a proxy with 2,000 clients, and of HAProxy, which reserves for more.
const filesNeeded = 9000

// raiseFileLimit raises the limit of open files, which the children inherit, as far as it goes.
func raiseFileLimit() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if l.Max < filesNeeded {
		return fmt.Errorf("only %d files may be open, and 2,000 clients need %d: raise the hard limit (ulimit -Hn)", l.Max, filesNeeded)
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	return nil
}
