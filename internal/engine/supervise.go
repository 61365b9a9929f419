package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

const (
	minBackoff  = 500 * time.Millisecond
	maxBackoff  = 30 * time.Second
	steadyAfter = time.Minute     // an engine that lived this long starts with the least back-off again
	stopGrace   = 5 * time.Second // from asking the engine to stop to ending it
)

// errNoModels: a llama-server cannot begin yet.
var errNoModels = errors.New("no *" + modelSuffix)

// record is how a node that was killed finds the engine that it left behind.
type record struct {
	PID     int   `json:"pid"`
	Started int64 `json:"started_ms"` // the process's start, milliseconds since the epoch
}

func recordPath(dataDir string) string { return filepath.Join(dataDir, "engine.json") }

// supervise keeps the engine running until ctx ends: in a process group of its own, so that its
// runners end with it, and restarted with back-off when it dies.
func (e *Engine) supervise(ctx context.Context) error {
	if err := EndOrphan(e.deps.DataDir, e.deps.Log); err != nil {
		return err
	}
	backoff := minBackoff
	for {
		began := time.Now()
		err := e.runOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errReload) {
			e.ended.Store(nil)
			backoff = minBackoff
			continue
		}
		if time.Since(began) > steadyAfter || errors.Is(err, errNoModels) { // who puts one there is not to wait
			backoff = minBackoff
		}
		ended := err.Error()
		if before := e.ended.Swap(&ended); !errors.Is(err, errNoModels) || before == nil || *before != ended {
			e.deps.Log.Warn("engine ended; restarting it", "command", e.cfg.Command, "err", err, "in", backoff)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.again:
			e.ended.Store(nil)
			backoff = minBackoff
			continue
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// runOnce starts the engine and returns when it and its whole process group have ended.
func (e *Engine) runOnce(ctx context.Context) error {
	select {
	case <-e.again: // this is anew
	default:
	}
	addr, err := freeLoopbackAddr()
	if err != nil {
		return err
	}
	models := e.ModelsDir()
	if err := os.MkdirAll(models, 0o755); err != nil {
		return fmt.Errorf("make model folder: %w", err)
	}
	args, env, err := e.commandLine(addr, models)
	e.runs.Add(1)
	if err != nil {
		return err
	}
	e.router.Store(e.cfg.Kind == cluster.LlamaServer && slices.Contains(args, "--models-dir"))
	cmd := exec.Command(e.cfg.Command, args...)
	cmd.Env = append(append([]string{}, e.deps.Environ...), env...)
	for k, v := range e.cfg.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	ownGroup(cmd)
	// A pipe of our own: with cmd.StdoutPipe, Wait would wait for runners that outlive the engine.
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("open pipe: %w", err)
	}
	defer reader.Close()
	cmd.Stdout, cmd.Stderr = writer, writer
	err = cmd.Start()
	writer.Close()
	if err != nil {
		return fmt.Errorf("start engine: %w", err)
	}
	logged := make(chan struct{})
	go func() { defer close(logged); passOn(ctx, e.deps.Log, reader) }()
	if err := e.writeRecord(cmd.Process.Pid); err != nil {
		e.deps.Log.Warn("cannot record the engine's process; a crash of this node would leave it running", "err", err)
	}
	e.base.Store(&url.URL{Scheme: "http", Host: addr})
	e.deps.Log.Info("engine started", "command", e.cfg.Command, "pid", cmd.Process.Pid, "addr", addr)

	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err = <-exited:
		if err == nil {
			err = fmt.Errorf("%s ended by itself", filepath.Base(e.cfg.Command))
		}
	case <-e.again:
		err = errReload
		endGroup(cmd.Process.Pid, exited)
	case <-ctx.Done():
		err = ctx.Err()
		endGroup(cmd.Process.Pid, exited)
	}
	e.base.Store(nil)
	e.transport.CloseIdleConnections()
	killGroup(cmd.Process.Pid) // runners that outlived it
	select {
	case <-logged:
	case <-time.After(stopGrace): // somebody outside the group holds the pipe
		_ = reader.Close() // ends the reading
		<-logged
	}
	_ = os.Remove(recordPath(e.deps.DataDir)) // a record of a process that is gone is harmless
	return err
}

// endGroup asks the engine to stop, and ends it if it does not.
func endGroup(pid int, exited <-chan error) {
	terminateGroup(pid)
	select {
	case <-exited:
	case <-time.After(stopGrace):
		killGroup(pid)
		<-exited
	}
}

// commandLine returns how the engine is told its address and its models.
func (e *Engine) commandLine(addr, models string) (args, env []string, err error) {
	if e.cfg.Kind == cluster.Ollama {
		return []string{"serve"}, []string{"OLLAMA_HOST=" + addr, "OLLAMA_MODELS=" + models}, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, nil, err
	}
	args = []string{"--host", host, "--port", port}
	if e.cfg.APIKey != "" {
		env = []string{"LLAMA_API_KEY=" + string(e.cfg.APIKey)}
	}
	files, err := modelFiles(models)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("list models: %w", err)
	case len(files) == 0:
		return nil, nil, fmt.Errorf("%w in %s: put a model there, or name its folder in engine.models_dir", errNoModels, models)
	case len(files) == 1:
		name := strings.TrimSuffix(files[0], modelSuffix) // else it would be called by its whole path
		return append(args, "--model", filepath.Join(models, files[0]), "--alias", name), env, nil
	}
	return append(args, "--models-dir", models), env, nil
}

func (e *Engine) writeRecord(pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return err
	}
	data, err := json.Marshal(record{PID: pid, Started: started})
	if err != nil {
		return err
	}
	return os.WriteFile(recordPath(e.deps.DataDir), data, 0o600)
}

// EndOrphan ends the engine that a killed node has left behind, with all its runners: its port and
// its memory would be taken twice otherwise. A process that only has the same number is spared.
func EndOrphan(dataDir string, log *slog.Logger) error {
	path := recordPath(dataDir)
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read engine record: %w", err)
	}
	var r record
	if json.Unmarshal(data, &r) != nil || r.PID <= 1 {
		return os.Remove(path) // half a record, written while the machine went down
	}
	started, err := startTime(r.PID)
	leaderIsOurs := err == nil && started-r.Started < 1000 && r.Started-started < 1000
	leaderIsGone := err != nil
	if leaderIsOurs || leaderIsGone && orphansOf(r.PID, r.Started) {
		log.Warn("ending the engine that an earlier run of this node left behind", "pid", r.PID)
		killGroup(r.PID)
	}
	return os.Remove(path)
}

// orphansOf tells whether runners of a dead engine live on: members of its process group, younger
// than it. A number is not given anew while a group bears it.
func orphansOf(group int, started int64) bool {
	pids, err := process.Pids()
	if err != nil {
		return false
	}
	for _, pid := range pids {
		if born, err := startTime(int(pid)); err == nil && born >= started-1000 && groupOf(int(pid)) == group {
			return true
		}
	}
	return false
}

func startTime(pid int) (int64, error) {
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		return 0, err
	}
	return p.CreateTime()
}

// freeLoopbackAddr returns an address that was free a moment ago; if another takes it first, the
// engine ends and is started again with the next.
func freeLoopbackAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port for the engine: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// passOn logs the engine's lines: warnings and errors as such, the rest for debugging.
func passOn(ctx context.Context, log *slog.Logger, r io.Reader) {
	lines := bufio.NewReaderSize(r, 16<<10)
	for {
		line, isPrefix, err := lines.ReadLine()
		if err != nil {
			return // the engine and all its runners have closed it
		}
		text := string(line)
		level := slog.LevelDebug
		switch {
		case strings.Contains(text, "level=ERROR"), strings.HasPrefix(text, "Error:"), strings.HasPrefix(text, "panic:"):
			level = slog.LevelError
		case llamaError(text):
			level = slog.LevelError
		case strings.Contains(text, "level=WARN"):
			level = slog.LevelWarn
		}
		log.Log(ctx, level, "engine says", "line", text, "cut", isPrefix)
	}
}

// llamaError tells whether a line of llama-server's is an error: its second word is the level.
func llamaError(line string) bool {
	_, rest, _ := strings.Cut(line, " ")
	return strings.HasPrefix(rest, "E ")
}
