// Package kill_test kills processes that move blobs. It is a package of its own so that its program, which is
// started some 130 times, is small.
package kill_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	random "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/exchange"
)

const (
	roleVariable = "OLLAMAMAX_TEST_EXCHANGE_ROLE"
	rounds       = 17  // for each who is killed
	pieces       = 400 // 50 times those that are in flight at most: 3 that are owed, 5 that are being written
	pieceSize    = 16 << 10
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	goleak.VerifyTestMain(m)
}

// TestTransfersSurviveKillNine kills processes: the source, the target or both, when a random
// part of the blob has come. A proxy between them, which lives, counts what crosses.
func TestTransfersSurviveKillNine(t *testing.T) {
	for _, victims := range []string{"source", "target", "both"} {
		t.Run(victims, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			var more []float64
			for range rounds {
				more = append(more, 100*float64(s.round(victims != "target", victims != "source"))/float64(s.list.Size()))
			}
			slices.Sort(more)
			t.Logf("%d rounds; %.2f %% more than the blob crossed, the median, at most %.2f %%", rounds, more[rounds/2], more[rounds-1])
		})
	}
}

// stage is a blob, the process that has it, and the way to it.
type stage struct {
	t       *testing.T
	content []byte
	list    *blob.List
	models  string // Ollama's folder, with the list beside
	between *proxy
	source  *process
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, content: make([]byte, pieces*pieceSize-77), models: t.TempDir(), between: newProxy(t)}
	random.NewChaCha8([32]byte{1}).Read(s.content)
	var err error
	s.list, err = blob.Make(t.Context(), bytes.NewReader(s.content), blob.DigestOf(sha256.Sum256(s.content)), pieceSize)
	s.must(err)
	s.must(os.Mkdir(filepath.Join(s.models, "blobs"), 0o755))
	s.must(os.WriteFile(filepath.Join(s.models, "blobs", "sha256-"+s.list.Digest().Hex()), s.content, 0o600))
	lists, err := blob.OpenLists(s.models)
	s.must(err)
	s.must(lists.Put(s.list))
	s.startSource()
	return s
}

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) startSource() {
	s.source = start(s.t, "source", s.models, s.list.Digest(), s.list.Root(), "")
	line, err := bufio.NewReader(s.source.out).ReadString('\n')
	s.must(err)
	s.between.to.Store(&line)
}

func (s *stage) startTarget(dir string) *process {
	return start(s.t, "target", dir, s.list.Digest(), s.list.Root(), s.between.listener.Addr().String())
}

// round moves the blob into a new folder. It returns how many bytes more than the blob's crossed, with the
// list of pieces and the heads of frames.
func (s *stage) round(killSource, killTarget bool) int64 {
	dir := s.t.TempDir()
	s.between.crossed.Store(0)
	target := s.startTarget(dir)
	s.between.at(random.Int64N(s.list.Size()))
	if killSource {
		s.source.kill()
	}
	if killTarget {
		target.kill()
	}
	if killSource {
		s.startSource()
	}
	if killTarget {
		target = s.startTarget(dir)
	}
	s.must(target.wait())

	spool, err := blob.OpenSpool(dir)
	s.must(err)
	defer spool.Close()
	p, err := spool.Get(s.t.Context(), s.list.Digest())
	s.must(err)
	s.must(p.Finish(s.t.Context()))
	got, err := io.ReadAll(io.NewSectionReader(p, 0, s.list.Size()))
	if err != nil || !bytes.Equal(got, s.content) {
		s.t.Fatalf("the spool has other bytes: %v", err)
	}
	more := s.between.crossed.Load() - s.list.Size()
	if more > s.list.Size()*4/100 { // what is measured is below 2: a machine that is shared may be slow to kill
		s.t.Errorf("%d bytes more than the blob's %d crossed", more, s.list.Size())
	}
	return more
}

// process is this test's own program in a role.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Closer
	out io.Reader
}

func start(t *testing.T, args ...any) *process {
	t.Helper()
	var words []string
	for _, a := range args[1:] {
		words = append(words, fmt.Sprint(a))
	}
	c := exec.CommandContext(t.Context(), os.Args[0], words...)
	c.Env = append(os.Environ(), roleVariable+"="+args[0].(string),
		"GORACE=atexit_sleep_ms=0") // with the race detector each end would take a second
	c.Stderr = os.Stderr
	in, err := c.StdinPipe() // which ends when this process does
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t, c, in, out}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func (p *process) wait() error {
	io.Copy(io.Discard, p.out)
	return p.cmd.Wait()
}

// proxy leads the target to where the source is now.
type proxy struct {
	listener net.Listener
	to       atomic.Pointer[string]
	crossed  atomic.Int64 // bytes from the source
	moved    chan struct{}
}

func newProxy(t *testing.T) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, moved: make(chan struct{}, 1)}
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); work.Wait() })
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { p.join(ctx, c) })
		}
	})
	return p
}

func (p *proxy) join(ctx context.Context, near net.Conn) {
	defer near.Close()
	to := *p.to.Load()
	far, err := net.Dial("tcp", to[:len(to)-1])
	if err != nil {
		return
	}
	defer far.Close()
	defer context.AfterFunc(ctx, func() { near.Close(); far.Close() })()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { io.Copy(far, near); far.Close(); near.Close() })
	b := make([]byte, 4<<10)
	for {
		n, err := far.Read(b)
		if _, err := near.Write(b[:n]); err != nil {
			return
		}
		p.crossed.Add(int64(n))
		select {
		case p.moved <- struct{}{}:
		default:
		}
		if err != nil {
			near.Close()
			return
		}
	}
}

// at waits until so many bytes have crossed.
func (p *proxy) at(n int64) {
	for p.crossed.Load() < n {
		<-p.moved
	}
}

// play is a process's life: the source with the models folder, or the target with its spool.
func play(role string) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { io.Copy(io.Discard, os.Stdin); os.Exit(3) }()
	dir, digest := os.Args[1], blob.Digest(os.Args[2])
	root, err := blob.ParseRoot(os.Args[3])
	if err == nil && role == "source" {
		err = playSource(ctx, dir)
	} else if err == nil {
		err = playTarget(ctx, dir, exchange.Want{Digest: digest, Root: root,
			Sources: func() []cluster.NodeID { return []cluster.NodeID{cluster.NodeID(os.Args[4])} }})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role, err)
		return 1
	}
	return 0
}

func playSource(ctx context.Context, dir string) error {
	lists, err := blob.OpenLists(dir)
	if err != nil {
		return err
	}
	x := exchange.New(exchange.Config{Out: 20e6}, exchange.Deps{Transport: tcp{}, Hold: func(_ context.Context, d blob.Digest) (exchange.Holding, func(), error) {
		l, err := lists.Get(d)
		if err != nil {
			return nil, nil, err
		}
		src, err := blob.Folder(dir).Open(d)
		if err != nil {
			return nil, nil, err
		}
		w, err := blob.NewWhole(l, src)
		if err != nil {
			return nil, nil, err
		}
		return w, func() { w.Close() }, nil
	}})
	return x.Run(ctx)
}

func playTarget(ctx context.Context, dir string, w exchange.Want) error {
	spool, err := blob.OpenSpool(dir)
	if err != nil {
		return err
	}
	defer spool.Close()
	// No time is measured here: a machine that does something else for a while must not fail it.
	c := exchange.Config{Stall: time.Minute, Patience: 5 * time.Minute}
	return exchange.New(c, exchange.Deps{Transport: tcp{}}).Transfer(w, spool).Run(ctx)
}

// tcp is a Transport whose nodes' ids are addresses.
type tcp struct{}

func (tcp) Listen(string) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		fmt.Println(l.Addr())
	}
	return l, err
}

func (tcp) Dial(ctx context.Context, id cluster.NodeID, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", string(id))
}
