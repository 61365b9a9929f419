// Package availability tells whether the owner of a machine lets the cluster have its engine now: not
// in given hours, not on battery, not while something else has the GPU.
//
// It asks the machine when it is told to look, and decides nothing else: the node tells the others,
// and schedule leaves it out. What a machine does not tell does not keep its node out.
//
// Start reading at Watch.Look.
package availability

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"time"
)

// Config says when the engine is not there for the cluster. The default is never. Needs a restart.
type Config struct {
	// NotDuring are hours of the machine's own clock, such as "09:00-17:30" or "Mon-Fri 22:00-06:00";
	// the days are those on which the hours begin.
	NotDuring []string `yaml:"not_during"`
	// NotOnBattery keeps the node out while its machine runs on battery.
	NotOnBattery bool `yaml:"not_on_battery"`
	// NotAboveGPUPercent keeps the node out while a GPU is used that much although the node's engine has
	// nothing to do: somebody plays, or renders. 0: the GPU is not looked at.
	NotAboveGPUPercent int `yaml:"not_above_gpu_percent"`
}

// Set tells whether there is anything to look at.
func (c Config) Set() bool {
	return len(c.NotDuring) > 0 || c.NotOnBattery || c.NotAboveGPUPercent > 0
}

// Validate returns what is wrong with the configuration, for an operator.
func (c Config) Validate() error {
	for _, text := range c.NotDuring {
		if _, err := parseHours(text); err != nil {
			return fmt.Errorf("schedule.availability.not_during has %q: %w: write it like %q or %q", text, err, "09:00-17:30", "Mon-Fri 22:00-06:00")
		}
	}
	if p := c.NotAboveGPUPercent; p < 0 || p > 100 {
		return fmt.Errorf("schedule.availability.not_above_gpu_percent is %d: give a share of 1 to 100, or 0 to not look at the GPU", p)
	}
	return nil
}

// Machine is where to look.
type Machine struct {
	// Sys is Linux's /sys.
	Sys fs.FS
	// Output runs a program and returns what it writes.
	Output func(ctx context.Context, name string, args ...string) ([]byte, error)
}

// ThisMachine is the machine that the program runs on.
func ThisMachine() Machine {
	return Machine{Sys: os.DirFS("/sys"), Output: func(ctx context.Context, name string, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.WaitDelay = time.Second // also when a child of it holds its output open
		return cmd.Output()
	}}
}

// Watch looks at a machine. Not for use by several goroutines at once.
type Watch struct {
	cfg     Config
	machine Machine
	hours   []hours
	busy    int // looks in a row at which the GPU was busy, negative: at which it was not
	gpu     bool
}

// New returns a Watch; cfg must be valid.
func New(cfg Config, m Machine) *Watch {
	w := &Watch{cfg: cfg, machine: m}
	for _, text := range cfg.NotDuring {
		if h, err := parseHours(text); err == nil {
			w.hours = append(w.hours, h)
		}
	}
	return w
}

// gpuLooks is how many looks in a row decide about the GPU, which is busy for a moment all the time.
const gpuLooks = 2

// Look returns why the cluster may not have the engine now, "" if it may. engineBusy tells whether the
// node's own engine has something to do, whose use of the GPU does not count.
func (w *Watch) Look(ctx context.Context, now time.Time, engineBusy bool) string {
	for _, h := range w.hours {
		if h.contains(now) {
			return "not during " + h.text
		}
	}
	if w.cfg.NotOnBattery && w.onBattery(ctx) {
		return "on battery"
	}
	if w.cfg.NotAboveGPUPercent == 0 {
		return ""
	}
	percent, known := w.gpuPercent(ctx)
	switch {
	case !known:
		w.busy, w.gpu = 0, false
	case percent >= w.cfg.NotAboveGPUPercent && !engineBusy:
		w.busy = max(w.busy, 0) + 1
	case percent < w.cfg.NotAboveGPUPercent:
		w.busy = min(w.busy, 0) - 1
	}
	if w.busy >= gpuLooks {
		w.gpu = true
	} else if w.busy <= -gpuLooks {
		w.gpu = false
	}
	if w.gpu {
		return "GPU is busy with something else"
	}
	return ""
}

// onBattery tells whether the machine runs on battery: on Linux when a battery is being discharged and
// no mains supply is there, on macOS as pmset says.
func (w *Watch) onBattery(ctx context.Context) bool {
	supplies, err := fs.ReadDir(w.machine.Sys, "class/power_supply")
	if err != nil {
		text, err := w.machine.Output(ctx, "pmset", "-g", "batt")
		return err == nil && strings.Contains(string(text), "'Battery Power'")
	}
	discharging := false
	for _, s := range supplies {
		read := func(name string) string {
			text, err := fs.ReadFile(w.machine.Sys, path.Join("class/power_supply", s.Name(), name))
			if err != nil {
				return ""
			}
			return strings.TrimSpace(string(text))
		}
		switch read("type") {
		case "Mains", "USB":
			if read("online") == "1" {
				return false
			}
		case "Battery":
			if read("scope") != "Device" { // not that of a mouse
				discharging = discharging || read("status") == "Discharging"
			}
		}
	}
	return discharging
}

// gpuPercent returns how much the busiest GPU is used: as AMD's driver says, else NVIDIA's tool.
func (w *Watch) gpuPercent(ctx context.Context) (percent int, known bool) {
	var texts []string
	cards, _ := fs.Glob(w.machine.Sys, "class/drm/card*/device/gpu_busy_percent") // its pattern is well-formed
	for _, card := range cards {
		if text, err := fs.ReadFile(w.machine.Sys, card); err == nil {
			texts = append(texts, string(text))
		}
	}
	if len(texts) == 0 {
		text, err := w.machine.Output(ctx, "nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")
		if err != nil {
			return 0, false
		}
		texts = strings.Split(string(text), "\n")
	}
	for _, text := range texts {
		if n, err := strconv.Atoi(strings.TrimSpace(text)); err == nil {
			percent, known = max(percent, n), true
		}
	}
	return percent, known
}

// hours are a part of each day, or of some days of the week.
type hours struct {
	text     string
	days     [7]bool
	from, to int // minutes since midnight; to below from: into the next day
}

var weekdays = [7]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func parseHours(text string) (h hours, err error) {
	h.text = strings.TrimSpace(text)
	clock := h.text
	first, last := 0, 6
	if days, rest, ok := strings.Cut(h.text, " "); ok {
		clock = strings.TrimSpace(rest)
		a, b, ranged := strings.Cut(strings.ToLower(days), "-")
		if !ranged {
			b = a
		}
		if first, err = weekday(a); err != nil {
			return h, err
		}
		if last, err = weekday(b); err != nil {
			return h, err
		}
	}
	for d := first; ; d = (d + 1) % 7 {
		h.days[d] = true
		if d == last {
			break
		}
	}
	a, b, ok := strings.Cut(clock, "-")
	from, errFrom := time.Parse("15:04", strings.TrimSpace(a))
	to, errTo := time.Parse("15:04", strings.TrimSpace(b))
	if !ok || errFrom != nil || errTo != nil || from.Equal(to) {
		return h, fmt.Errorf("%q is no range of hours", clock)
	}
	h.from, h.to = from.Hour()*60+from.Minute(), to.Hour()*60+to.Minute()
	return h, nil
}

func weekday(text string) (int, error) {
	for d, name := range weekdays {
		if len(text) >= 3 && strings.HasPrefix(text, name) {
			return d, nil
		}
	}
	return 0, fmt.Errorf("%q is no day of the week", text)
}

func (h hours) contains(now time.Time) bool {
	minute, day := now.Hour()*60+now.Minute(), int(now.Weekday())
	switch {
	case h.from < h.to:
		return h.days[day] && minute >= h.from && minute < h.to
	case minute >= h.from:
		return h.days[day]
	}
	return minute < h.to && h.days[(day+6)%7]
}
