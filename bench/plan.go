//go:build linux

package main

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/bench/load"
)

// kind is how a workload asks.
type kind int

const (
	closed kind = iota // so many clients, each its next request after the last answer
	rate               // so many requests a second
	hold               // so many streams open at once
)

// workload is what every contender is measured with.
type workload struct {
	name   string
	kind   kind
	n      int  // clients, requests a second or streams
	stream bool // or one answer
	remote bool // the node that is asked has no engine with the model
}

const (
	unaryTokens  = 16
	streamTokens = 64
	holdTokens   = 3600 // more than a measurement lasts, at one a second
)

// rates are the fixed rates of requests a second: about a quarter of what two cores can do.
const (
	unaryRate  = 2000
	streamRate = 100
)

// held is how many streams are open at once where memory is measured.
const held = 2000

// clientCounts are the numbers of clients of the closed loops.
var clientCounts = [...]int{1, 32, 256, 2000}

// plan returns all workloads in the order of the tables.
func plan() []workload {
	var all []workload
	for _, remote := range []bool{false, true} {
		prefix := ""
		if remote {
			prefix = "remote-"
		}
		for _, stream := range []bool{false, true} {
			sort, perSecond := "unary", unaryRate
			if stream {
				sort, perSecond = "stream", streamRate
			}
			for _, n := range clientCounts {
				all = append(all, workload{name: fmt.Sprintf("%s%s-%d", prefix, sort, n), n: n, stream: stream, remote: remote})
			}
			all = append(all, workload{name: prefix + sort + "-rate", kind: rate, n: perSecond, stream: stream, remote: remote})
		}
	}
	return append(all, workload{name: "memory", kind: hold, n: held, stream: true})
}

// phases returns how long w is measured each time. 2,000 clients need a while to get going.
func (w workload) phases() load.Phases {
	switch {
	case w.kind == rate:
		return load.Phases{Warm: 200 * time.Millisecond, Window: 1300 * time.Millisecond}
	case w.n > 1000 && w.stream:
		return load.Phases{Warm: 700 * time.Millisecond, Window: 1200 * time.Millisecond}
	case w.n > 1000:
		return load.Phases{Warm: 500 * time.Millisecond, Window: time.Second}
	default:
		return load.Phases{Warm: 100 * time.Millisecond, Window: 700 * time.Millisecond}
	}
}

// fakeArgs returns the fakes' settings for w. A fake without delays is fastest with few slots, in
// which its cores can work at once, and a queue before them.
func (w workload) fakeArgs() []string {
	if w.kind == hold {
		return []string{"-slots", "4096", "-token-gap", "1s"}
	}
	return []string{"-slots", "32", "-queue", "8192"}
}

// target returns what w asks of the server at addr.
func (w workload) target(addr string) load.Target {
	switch {
	case w.kind == hold:
		return target(addr, true, holdTokens)
	case w.stream:
		return target(addr, true, streamTokens)
	default:
		return target(addr, false, unaryTokens)
	}
}

// probe returns a request that is answered at once, whatever the fake's delays.
func (w workload) probe(addr string) load.Target {
	if w.kind == hold {
		return target(addr, false, 1)
	}
	return w.target(addr)
}

func target(addr string, stream bool, tokens int) load.Target {
	body := fmt.Sprintf(`{"model":"%s","prompt":"Why is the sky blue?","stream":%v,"options":{"num_predict":%d,"temperature":0}}`, model, stream, tokens)
	lines := 0 // of one answer: none, or one at its end
	if stream {
		lines = tokens + 1 // a record a token, and the last
	}
	return load.Target{Addr: addr, Request: load.NewRequest(addr, "/api/generate", []byte(body)), Lines: lines}
}

// choose returns the workloads whose names match one of the patterns, separated by commas, as a
// shell matches them; all for none.
func choose(all []workload, patterns string) ([]workload, error) {
	if patterns == "" {
		return all, nil
	}
	var chosen []workload
	used := map[string]bool{}
	for _, w := range all {
		for p := range strings.SplitSeq(patterns, ",") {
			ok, err := path.Match(p, w.name)
			if err != nil {
				return nil, fmt.Errorf("-only %s: %w", p, err)
			}
			if ok && !slices.ContainsFunc(chosen, func(c workload) bool { return c.name == w.name }) {
				chosen = append(chosen, w)
			}
			used[p] = used[p] || ok
		}
	}
	for p, ok := range used {
		if !ok {
			return nil, fmt.Errorf("-only %s matches none of the workloads: %s", p, names(all))
		}
	}
	return chosen, nil
}

func names(all []workload) string {
	var s []string
	for _, w := range all {
		s = append(s, w.name)
	}
	return strings.Join(s, " ")
}
