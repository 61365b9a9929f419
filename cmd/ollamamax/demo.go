package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/tidwall/gjson"
	"golang.org/x/sync/errgroup"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/node"
)

const (
	demoFirstPort  = 11435 // the API of the first node; its peers' port is the next; the next node ten further
	demoEngine     = ".cache/engine/bin/ollama"
	demoModels     = ".cache/engine/*.gguf"
	demoStartLimit = 2 * time.Minute  // for an engine to start, or a model to be made
	demoStopGrace  = 45 * time.Second // a node gives its answers 30 s
	demoMaxNodes   = 32
)

// demo runs whole nodes, each a process with an Ollama of its own, on this machine.
type demo struct {
	nodes   int
	engine  string
	models  []string
	keep    bool
	dir     string
	pids    []int // of the nodes
	out     io.Writer
	program string
}

func demoCommand() *cobra.Command {
	d := demo{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run nodes with real Ollamas on this machine, and say how to ask them",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			return d.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.IntVar(&d.nodes, "nodes", 3, "how many `N`odes")
	f.StringVar(&d.engine, "engine-command", "", "`PATH` of the ollama to run (default: the one on the PATH, else "+demoEngine+")")
	f.StringArrayVar(&d.models, "model", nil, "`FILE.gguf` to offer as a model; may be given again (default: "+demoModels+")")
	f.BoolVar(&d.keep, "keep", false, "keep the nodes' folder, and print it")
	return cmd
}

// run starts the nodes, gives each the models, says how to ask them, and waits for the end.
func (d *demo) run(ctx context.Context) (err error) {
	if d.nodes < 1 || d.nodes > demoMaxNodes {
		return usageError{fmt.Errorf("--nodes is %d: give 1 to %d", d.nodes, demoMaxNodes)}
	}
	if err := d.find(); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "ollamamax-demo-"); err != nil {
		return fmt.Errorf("make a folder for the nodes: %w", err)
	}
	defer func() {
		for i := range d.nodes { // a node that was killed has left its engine
			err = errors.Join(err, node.EndOrphan(d.dataDir(i), slog.New(slog.DiscardHandler)))
		}
		if d.keep {
			fmt.Fprintln(d.out, "kept", d.dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(d.dir))
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel(nil)
	var ready atomic.Bool // from then on, a node may be killed to see what happens
	var token string
	for i := range d.nodes {
		cmd, err := d.start(i, token)
		if err != nil {
			return err
		}
		d.pids = append(d.pids, cmd.Process.Pid)
		running.Go(func() {
			err := runUntil(ctx, cmd)
			switch {
			case ctx.Err() != nil:
			case ready.Load():
				fmt.Fprintf(d.out, "%s ended: %v\n", nodeName(i), err)
			default:
				cancel(fmt.Errorf("%s ended: %v", nodeName(i), err))
			}
		})
		if i == 0 && d.nodes > 1 {
			if token, err = d.invitation(ctx); err != nil {
				return errors.Join(stopped(ctx), err)
			}
		}
	}
	if err := d.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return stopped(ctx)
		}
		return err
	}
	ready.Store(true)
	d.invite()
	<-ctx.Done()
	fmt.Fprintln(d.out, "stopping")
	return stopped(ctx)
}

// stopped is why the demo ends: nil when its user wished it.
func stopped(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// find looks for the engine and the models.
func (d *demo) find() error {
	var err error
	if d.program, err = os.Executable(); err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	if d.engine == "" {
		if d.engine, err = exec.LookPath("ollama"); err != nil || !newEnough(d.engine) {
			d.engine = demoEngine
		}
	}
	if d.engine, err = exec.LookPath(d.engine); err != nil {
		return fmt.Errorf("no ollama on the PATH and none at %s: run `make engine`, or name one with --engine-command", demoEngine)
	}
	if d.engine, err = filepath.Abs(d.engine); err != nil {
		return fmt.Errorf("find engine: %w", err)
	}
	if len(d.models) == 0 {
		if d.models, err = filepath.Glob(demoModels); err != nil || len(d.models) == 0 {
			return fmt.Errorf("no model at %s: run `make engine`, or name one with --model FILE.gguf", demoModels)
		}
	}
	for _, file := range d.models {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("find model: %w", err)
		}
	}
	// A person reads the answer of the first: sentences before noise.
	slices.SortStableFunc(d.models, func(a, b string) int { return strings.Compare(modelName(b), modelName(a)) })
	return nil
}

// newEnough tells whether an ollama is of version 0.30 or later, which runs llama-server as its child.
func newEnough(ollama string) bool {
	text, err := exec.Command(ollama, "--version").CombinedOutput()
	if err != nil {
		return false
	}
	found := regexp.MustCompile(`version is (\d+)\.(\d+)`).FindAllSubmatch(text, -1)
	if len(found) == 0 {
		return false
	}
	last := found[len(found)-1] // of the command, not of the server that may be running
	major, _ := strconv.Atoi(string(last[1]))
	minor, _ := strconv.Atoi(string(last[2]))
	return major > 0 || minor >= 30
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i+1) }

func modelName(file string) string {
	return strings.ToLower(strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)))
}

func (d *demo) url(i int) string { return fmt.Sprintf("http://127.0.0.1:%d", demoFirstPort+10*i) }

func (d *demo) dataDir(i int) string { return filepath.Join(d.dir, nodeName(i), "data") }

// start starts node i, with a HOME, a model folder and a data directory of its own.
func (d *demo) start(i int, token string) (*exec.Cmd, error) {
	dir := filepath.Join(d.dir, nodeName(i))
	home := filepath.Join(dir, "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of %s: %w", nodeName(i), err)
	}
	cmd := exec.Command(d.program, "serve", "--name", nodeName(i), "--data-dir", d.dataDir(i),
		"--listen", strings.TrimPrefix(d.url(i), "http://"), "--engine-command", d.engine, "--log-level", "error",
		"--p2p-listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", demoFirstPort+10*i+1))
	if token != "" {
		cmd.Args = append(cmd.Args, "--join", token)
	}
	cmd.Env = append(os.Environ(), "HOME="+home, "OLLAMA_NO_CLOUD=1")
	detach(cmd)
	cmd.Stderr = &prefixed{out: d.out, prefix: nodeName(i) + ": "}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", nodeName(i), err)
	}
	return cmd, nil
}

// prefixed passes whole lines on, each with the name of who wrote it.
type prefixed struct {
	out    io.Writer
	prefix string
	rest   []byte // of a line that has not ended
}

func (p *prefixed) Write(text []byte) (int, error) {
	p.rest = append(p.rest, text...)
	for {
		line, rest, whole := bytes.Cut(p.rest, []byte("\n"))
		if !whole {
			return len(text), nil
		}
		if _, err := fmt.Fprintf(p.out, "%s%s\n", p.prefix, line); err != nil {
			return 0, err
		}
		p.rest = rest
	}
}

// invitation waits for the first node and has it make a token for the others.
func (d *demo) invitation(ctx context.Context) (string, error) {
	if err := waitFor(ctx, d.url(0)+"/healthz"); err != nil {
		return "", fmt.Errorf("%s: %w", nodeName(0), err)
	}
	c, err := api.NewClient(d.url(0), "", clientTimeout)
	if err != nil {
		return "", err
	}
	body, err := c.Do(ctx, http.MethodPost, "/api/v1/tokens", api.TokenRequest{})
	return gjson.GetBytes(body, "token").String(), err
}

// runUntil waits for the process; when ctx ends, it asks it to stop and, after a grace, ends it.
func runUntil(ctx context.Context, cmd *exec.Cmd) error {
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err := <-exited:
		return err
	case <-ctx.Done():
		_ = cmd.Process.Signal(os.Interrupt) // gone already
	}
	select {
	case err := <-exited:
		return err
	case <-time.After(demoStopGrace):
		return errors.Join(cmd.Process.Kill(), <-exited)
	}
}

// prepare waits for the nodes, makes the models on each, and has one prompt answered.
func (d *demo) prepare(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range d.nodes {
		group.Go(func() error {
			if err := waitForEngine(groupCtx, d.url(i)); err != nil {
				return fmt.Errorf("%s: %w", nodeName(i), err)
			}
			for _, file := range d.models {
				if err := createModel(groupCtx, d.url(i), modelName(file), file); err != nil {
					return fmt.Errorf("%s: %w", nodeName(i), err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	body := fmt.Sprintf(`{"model":%q,"prompt":"Hello","options":{"num_predict":1}}`, modelName(d.models[0]))
	return post(ctx, d.url(0)+"/api/generate", strings.NewReader(body))
}

// waitFor waits until a URL answers 200.
func waitFor(ctx context.Context, url string) error {
	return waitUntil(ctx, url, func([]byte) bool { return true })
}

// waitForEngine waits until a node's own engine answers: a node is ready with a peer's engine too,
// and models would be made there.
func waitForEngine(ctx context.Context, url string) error {
	return waitUntil(ctx, url+"/api/v1/health", func(body []byte) bool { return gjson.GetBytes(body, "services.engine").String() == api.OK })
}

// waitUntil waits until a URL answers 200 with a body that will do.
func waitUntil(ctx context.Context, url string, ok func([]byte) bool) error {
	ctx, cancel := context.WithTimeout(ctx, demoStartLimit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(r); err == nil {
			body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			resp.Body.Close()
			if err == nil && resp.StatusCode == http.StatusOK && ok(body) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", url, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// createModel makes a model of a file through Ollama's own routes, as `ollama create` does.
func createModel(ctx context.Context, url, name, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read model: %w", err)
	}
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if err := post(ctx, url+"/api/blobs/"+digest, bytes.NewReader(data)); err != nil {
		return fmt.Errorf("send model %s: %w", name, err)
	}
	body, err := json.Marshal(map[string]any{"model": name, "files": map[string]string{filepath.Base(file): digest}})
	if err != nil {
		return err
	}
	if err := post(ctx, url+"/api/create", bytes.NewReader(body)); err != nil {
		return fmt.Errorf("create model %s: %w", name, err)
	}
	return nil
}

// post sends a body and reads the whole answer, in which any line may be an error.
func post(ctx context.Context, url string, body io.Reader) error {
	ctx, cancel := context.WithTimeout(ctx, demoStartLimit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if message := gjson.GetBytes(lines.Bytes(), "error"); message.Exists() {
			return errors.New(message.String())
		}
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// invite says how to ask the nodes, and how to lose one.
func (d *demo) invite() {
	address := strings.TrimPrefix(d.url(0), "http://")
	fmt.Fprintf(d.out, `
OllamaMax is ready at %s

  curl %s/api/generate -d '{"model":"%s","prompt":"Hello","stream":false}'

Every client of Ollama, OpenAI or Anthropic works with it: OLLAMA_HOST=%s ollama list
`, d.url(0), d.url(0), modelName(d.models[0]), address)
	if d.nodes > 1 {
		last := d.nodes - 1
		fmt.Fprintf(d.out, "Any of the %d nodes answers any prompt, %s too. Lose one, and ask again: kill -9 %d   (%s)\n", d.nodes, d.url(last), d.pids[last], nodeName(last))
	}
	fmt.Fprintf(d.out, "See the cluster: %s status\nCtrl-C stops everything.\n", d.program)
}
