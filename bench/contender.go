//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ollamamax/ollamamax/bench/load"
)

// The contenders, by the names that -contenders takes and the tables show.
const (
	direct    = "no gateway"
	ollamamax = "OllamaMax"
	nginx     = "nginx"
	haproxy   = "HAProxy"
	caddy     = "Caddy"
)

// contenders are all, in the order of the tables.
var contenders = [...]string{direct, ollamamax, nginx, haproxy, caddy}

// model is what the fakes hold.
const model = "m"

// startTime is how long a contender may take until it answers.
const startTime = 30 * time.Second

// contender is something under test that runs.
type contender struct {
	name      string
	addr      string
	processes []*process // whose CPU time and memory count
}

// stage is the set of processes of one workload: the fakes, and the contenders before them.
type stage struct {
	dir     string // bin/, .cache/bench/bin/ and a folder to write to
	bins    string
	own     string
	fakes   []string // arguments of the fakes
	running []*process
}

// open returns a stage with nothing on it. root is the checkout; fake are the fakes' settings.
func open(root string, fake ...string) (*stage, error) {
	dir, err := os.MkdirTemp("", "ollamamax-bench-")
	if err != nil {
		return nil, err
	}
	return &stage{dir: dir, bins: filepath.Join(root, ".cache/bench/bin"), own: filepath.Join(root, "bin/ollamamax"), fakes: fake}, nil
}

// close ends all that was started, the last first.
func (s *stage) close() {
	for i := len(s.running) - 1; i >= 0; i-- {
		s.running[i].stop()
	}
	_ = os.RemoveAll(s.dir) // a folder in the machine's temporary one
}

// run starts a program of the stage in a new folder, and returns it with the folder. prepare writes
// its files there.
func (s *stage) run(name, program string, prepare func(folder string) (args []string, err error)) (*process, error) {
	folder, err := os.MkdirTemp(s.dir, "")
	if err != nil {
		return nil, err
	}
	args, err := prepare(folder)
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", name, err)
	}
	p, err := start(name, folder, program, args...)
	if err != nil {
		return nil, err
	}
	s.running = append(s.running, p)
	return p, nil
}

// configured is run with one file, which holds text.
func (s *stage) configured(name, program, file, text string, args ...string) (*process, error) {
	return s.run(name, program, func(folder string) ([]string, error) {
		return args, os.WriteFile(filepath.Join(folder, file), []byte(text), 0o600)
	})
}

// fake starts a fake engine and returns its address.
func (s *stage) fake(ctx context.Context, model string) (string, error) {
	addr, err := freeAddr()
	if err != nil {
		return "", err
	}
	p, err := s.run("the fake engine", filepath.Join(s.bins, "fakeengine"), func(string) ([]string, error) {
		return append([]string{"-listen", addr, "-model", model}, s.fakes...), nil
	})
	if err != nil {
		return "", err
	}
	return addr, listens(ctx, addr, p)
}

// start starts a contender before the fake at the address.
func (s *stage) start(ctx context.Context, name, fake string) (*contender, error) {
	if name == direct {
		return &contender{name: name, addr: fake}, nil
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	var p *process
	switch name {
	case ollamamax:
		p, err = s.node("node", addr, fake)
	case nginx:
		p, err = s.configured(name, filepath.Join(s.bins, "nginx"), "nginx.conf", nginxConfig(addr, fake), "-p", ".", "-c", "nginx.conf", "-e", "stderr")
	case haproxy:
		p, err = s.configured(name, filepath.Join(s.bins, "haproxy"), "haproxy.cfg", haproxyConfig(addr, fake), "-db", "-f", "haproxy.cfg")
	case caddy:
		p, err = s.configured(name, filepath.Join(s.bins, "caddy"), "Caddyfile", caddyConfig(addr, fake), "run", "--config", "Caddyfile", "--adapter", "caddyfile")
	}
	if err != nil {
		return nil, err
	}
	return &contender{name: name, addr: addr, processes: []*process{p}}, listens(ctx, addr, p)
}

// cluster starts two of our nodes: the one that is asked, whose engine lacks the model, and the one
// whose engine, the fake at the address, has it.
func (s *stage) cluster(ctx context.Context, fake string) (*contender, error) {
	other, err := s.fake(ctx, "other")
	if err != nil {
		return nil, err
	}
	var addrs [2]string
	for i := range addrs {
		if addrs[i], err = freeAddr(); err != nil {
			return nil, err
		}
	}
	asked, err := s.node("asked", addrs[0], other)
	if err != nil {
		return nil, err
	}
	if err := listens(ctx, addrs[0], asked); err != nil {
		return nil, err
	}
	var token string
	err = until(ctx, "a token of the first node", asked, func(ctx context.Context) (err error) {
		token, err = output(ctx, s.own, "token", "create", "--api", "http://"+addrs[0])
		return err
	})
	if err != nil {
		return nil, err
	}
	holder, err := s.node("holder", addrs[1], fake, "--join", strings.TrimSpace(token))
	if err != nil {
		return nil, err
	}
	return &contender{name: ollamamax, addr: addrs[0], processes: []*process{asked, holder}}, listens(ctx, addrs[1], holder)
}

// nodeConfig is our default configuration, but for the slots: a fake takes what comes, and says
// nothing of it.
const nodeConfig = "p2p: {mdns: false}\nengine: {slots: 4096}\n"

// node starts a node of ours before the fake at the address.
func (s *stage) node(name, addr, fake string, args ...string) (*process, error) {
	args = append([]string{"serve", "--config", "config.yaml", "--listen", addr, "--engine-url", "http://" + fake,
		"--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--data-dir", "data", "--name", name}, args...)
	return s.configured("OllamaMax ("+name+")", s.own, "config.yaml", nodeConfig, args...)
}

// freeAddr returns a loopback address that was free a moment ago.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// listens waits until a connection to addr, which p is to listen on, succeeds.
func listens(ctx context.Context, addr string, p *process) error {
	return until(ctx, "a connection to "+addr, p, func(ctx context.Context) error {
		c, err := load.Dial(ctx, addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// until tries until it succeeds, and fails when startTime is over or p has ended, with its output.
func until(ctx context.Context, what string, p *process, try func(context.Context) error) error {
	within, stop := context.WithTimeout(ctx, startTime)
	defer stop()
	for {
		err := try(within)
		if err == nil {
			return nil
		}
		if ended := p.ended(); ended != nil {
			return ended
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-within.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%s does not give %s within %v: %w; it wrote:\n%s", p.name, what, startTime, err, p.output.String())
		}
	}
}
