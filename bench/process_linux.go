package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// stopTime is how long a process may take to end when it is asked to.
const stopTime = 5 * time.Second

// process is a program that the benchmark started, in a process group of its own.
type process struct {
	name   string
	cmd    *exec.Cmd
	output tail
	exited chan struct{}
	err    error // valid once exited is closed
}

// start runs a program with a HOME of its own.
func start(name, home, program string, args ...string) (*process, error) {
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("start %s: %w; `make bench` makes what is missing", name, err)
	}
	p := &process{name: name, cmd: exec.Command(program, args...), exited: make(chan struct{})}
	p.cmd.Dir = home
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	// A child that outlives the process would keep the pipe of its output open.
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.exited) }()
	return p, nil
}

// ended returns an error with the output if the process has ended.
func (p *process) ended() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s ended: %w; it wrote:\n%s", p.name, cause(p.err), p.output.String())
	default:
		return nil
	}
}

func cause(err error) error {
	if err == nil {
		return errors.New("with status 0")
	}
	return err
}

// stop ends the process and its whole group.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.exited:
	case <-time.After(stopTime):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // usually nobody is left
	<-p.exited
}

// group returns the ids of the processes in p's group: of nginx its worker too.
func (p *process) group() ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil { // ended meanwhile
			continue
		}
		// PID (NAME) STATE PARENT GROUP …, and the name may hold anything.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) < 3 || fields[0] == "Z" || fields[2] != strconv.Itoa(p.cmd.Process.Pid) {
			continue
		}
		id, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("find the processes of %s: none is left", p.name)
	}
	return ids, nil
}

// cpuTime returns the CPU time, in user and kernel mode, that the processes have used, those of
// their threads that have ended included. It reads their clocks, which count nanoseconds, where
// /proc/PID/stat counts hundredths of a second.
func cpuTime(ids []int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED in clock_getcpuclockid(3)
	var sum time.Duration
	for _, id := range ids {
		var ts syscall.Timespec
		clock := int32(^id)<<3 | scheduled
		if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
			return 0, fmt.Errorf("read the CPU time of process %d: %w", id, errno)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// memory returns the processes' memory in bytes: PSS, in which a page that several share counts once.
func memory(ids []int) (float64, error) {
	var sum float64
	for _, id := range ids {
		file := fmt.Sprintf("/proc/%d/smaps_rollup", id)
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, fmt.Errorf("read memory: %w", err)
		}
		kb, err := keyedNumber(string(text), "Pss:")
		if err != nil {
			return 0, fmt.Errorf("read memory in %s: %w", file, err)
		}
		sum += kb * 1024
	}
	return sum, nil
}

// keyedNumber returns the number in the line of text that begins with key.
func keyedNumber(text, key string) (float64, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				return strconv.ParseFloat(fields[0], 64)
			}
		}
	}
	return 0, fmt.Errorf("there is no %s", key)
}

// tail keeps the last of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

// tailSize is how much.
const tailSize = 8 << 10

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if n := len(t.text) - tailSize; n > 0 {
		t.text = append(t.text[:0], t.text[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
