// Command fakeengine is package enginetest as a process: a fake Ollama, llama-server or OpenAI server
// on a port, and a stand-in for the ollama binary under a supervisor. It keeps nothing on disk but in -folder.
//
//	fakeengine -listen 127.0.0.1:0 -model llama3 -model embed,embedding -slots 4 -token-gap 10ms
//	fakeengine -folder models pulls, pushes and keeps models there as Ollama does
//	fakeengine -kind llama-server -model qwen,thinking,tools
//	fakeengine serve          as `ollama serve`: address from OLLAMA_HOST, settings from OLLAMA_*,
//	                          flags from FAKEENGINE_ARGS, models from FAKEENGINE_MODELS
//	fakeengine --version      as `ollama --version`
//
// Its first line on standard output is "listening on HOST:PORT". SIGTERM and SIGINT end it with
// status 0. With FAKEENGINE_CHILD=1 it starts a child, as Ollama starts its runner, and says
// "runner PID" on the second line; like Ollama it ends the child when it is told to end, and
// leaves it behind when it is killed.
//
// Start reading at run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
)

// runnerCommand is what the child is called with.
const runnerCommand = "runner"

func main() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fakeengine:", err)
		var usage *usageError
		if errors.As(err, &usage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// usageError is a wrong command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }

// run serves until ctx or a signal ends it.
func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case runnerCommand:
			for { // a signal's default action ends it
				time.Sleep(time.Hour)
			}
		case "--version", "-v", "-version":
			showVersion(ctx, getenv, stdout)
			return nil
		}
	}
	opts, err := parse(args, getenv)
	if err != nil {
		return &usageError{err}
	}
	s := enginetest.New(opts.config)

	l, err := net.Listen("tcp", opts.listen)
	if err != nil {
		return err
	}
	defer l.Close()
	if opts.control != "" {
		c, err := net.Listen("tcp", opts.control)
		if err != nil {
			return err
		}
		control := &http.Server{Handler: s}
		go func() { _ = control.Serve(c) }() // ends with an error when it is closed
		defer control.Close()
		l = s.Listener(l)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)

	fmt.Fprintf(stdout, "listening on %s\n", l.Addr())
	if getenv("FAKEENGINE_CHILD") == "1" {
		child, err := startRunner()
		if err != nil {
			return err
		}
		defer func() {
			_ = child.Process.Kill() // it may have ended already
			_ = child.Wait()         // says "killed"
		}()
		fmt.Fprintf(stdout, "runner %d\n", child.Process.Pid)
	}
	srv := &http.Server{Handler: s}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	for {
		select {
		case err := <-served:
			return err
		case <-signals:
			if opts.ignoreTerm {
				continue
			}
		case <-ctx.Done():
		}
		err := srv.Close()
		<-served
		return err
	}
}

// startRunner starts this program again, as a child that does nothing.
func startRunner() (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	child := exec.Command(self, runnerCommand)
	child.Stderr = os.Stderr
	return child, child.Start()
}

// showVersion prints what `ollama --version` prints: the running server's version, and the
// client's if it is another one or there is no server.
func showVersion(ctx context.Context, getenv func(string) string, stdout io.Writer) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := enginetest.New(enginetest.Config{}).Config().Version
	server, err := serverVersion(ctx, "http://"+ollamaHost(getenv("OLLAMA_HOST"))+"/api/version")
	if err != nil {
		fmt.Fprintln(stdout, "Warning: could not connect to a running Ollama instance")
	}
	if server != "" {
		fmt.Fprintf(stdout, "ollama version is %s\n", server)
	}
	if server != client {
		fmt.Fprintf(stdout, "Warning: client version is %s\n", client)
	}
}

// ollamaHost reads OLLAMA_HOST as Ollama does: scheme and path are dropped, host and port have
// defaults.
func ollamaHost(s string) string {
	s = strings.TrimSpace(s)
	port := "11434"
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		s = rest
		switch scheme {
		case "http":
			port = "80"
		case "https":
			port = "443"
		}
	}
	s, _, _ = strings.Cut(s, "/")
	if host, p, err := net.SplitHostPort(s); err == nil {
		return net.JoinHostPort(host, p)
	}
	if s == "" {
		s = "127.0.0.1"
	}
	return net.JoinHostPort(strings.Trim(s, "[]"), port)
}

func parse(args []string, getenv func(string) string) (*options, error) {
	o := &options{listen: "127.0.0.1:0"}
	if len(args) > 0 && args[0] == "serve" {
		args = args[1:]
		if err := o.fromOllama(getenv); err != nil {
			return nil, err
		}
	}
	for _, spec := range strings.Fields(getenv("FAKEENGINE_MODELS")) {
		if err := o.addModel(spec); err != nil {
			return nil, err
		}
	}
	fs := flag.NewFlagSet("fakeengine", flag.ContinueOnError)
	o.flags(fs)
	if err := fs.Parse(append(strings.Fields(getenv("FAKEENGINE_ARGS")), args...)); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return o, nil
}
