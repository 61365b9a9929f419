package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
)

// redraw is how often a line on a terminal changes at most.
const redraw = 500 * time.Millisecond

// progress shows the records of a download: on a terminal a line for each step, which is drawn anew as it
// goes on; elsewhere a line when a step begins.
type progress struct {
	out      io.Writer
	terminal bool
	now      func() time.Time
	success  bool // the last record was seen

	seen  map[string]bool // steps that have begun
	line  string          // the step whose line the cursor is on; "": none
	drawn time.Time       // when
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, now: time.Now, seen: map[string]bool{}}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// record shows one record.
func (p *progress) record(data []byte) error {
	var r api.Progress
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("read progress: %w: is it an OllamaMax node?", err)
	}
	p.success = r.Status == api.Success
	step := r.Status + " " + r.Digest
	begins := !p.seen[step]
	p.seen[step] = true
	if !p.terminal {
		if begins {
			fmt.Fprintln(p.out, r.Status)
		}
		return nil
	}
	whole := r.Total > 0 && r.Completed >= r.Total && step == p.line
	if !begins && !whole && p.now().Sub(p.drawn) < redraw {
		return nil
	}
	if p.line != step {
		p.end()
	}
	text := r.Status
	if r.Total > 0 {
		text += "  " + share(r.Completed, r.Total)
	}
	fmt.Fprint(p.out, "\r", text, "\x1b[K") // the rest of what stood there is erased
	p.line, p.drawn = step, p.now()
	return nil
}

// end leaves the line that the cursor is on.
func (p *progress) end() {
	if p.line != "" {
		fmt.Fprintln(p.out)
		p.line = ""
	}
}
