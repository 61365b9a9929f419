//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// machine is what the figures were found on and with.
type machine struct {
	cores    int
	cpu      string // its model's name
	memory   float64
	kernel   string
	busy     string // the load averages before it began
	versions []string
	date     time.Time
	took     time.Duration
}

func describe(ctx context.Context, root string, in []string) (machine, error) {
	m := machine{cores: runtime.NumCPU(), date: time.Now(), versions: []string{"Go " + strings.TrimPrefix(runtime.Version(), "go")}}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil { // not every kernel names the model
		if found := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(text); found != nil {
			m.cpu = string(found[1])
		}
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	kb, err := keyedNumber(string(text), "MemTotal:")
	if err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	m.memory = kb * 1024
	if text, err = os.ReadFile("/proc/sys/kernel/osrelease"); err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	m.kernel = strings.TrimSpace(string(text))
	if text, err = os.ReadFile("/proc/loadavg"); err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	m.busy = strings.Join(strings.Fields(string(text))[:3], ", ")

	bins := filepath.Join(root, ".cache/bench/bin")
	number := regexp.MustCompile(`v?\d+\.\d+\S*|[0-9a-f]{7,}\S*`)
	for _, name := range in {
		program, arg := filepath.Join(bins, strings.ToLower(name)), "-v"
		switch name {
		case direct:
			continue
		case ollamamax:
			program, arg = filepath.Join(root, "bin/ollamamax"), "version"
		case caddy:
			arg = "version"
		}
		said, err := output(ctx, program, arg)
		if err != nil {
			return m, fmt.Errorf("ask %s for its version: %w; `make bench` makes what is missing", name, err)
		}
		m.versions = append(m.versions, name+" "+strings.TrimPrefix(number.FindString(said), "v"))
	}
	return m, nil
}
