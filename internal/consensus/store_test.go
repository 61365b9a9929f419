package consensus

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestRecoverLetsASurvivorWriteAlone(t *testing.T) {
	dirs := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		tc.dirs = dirs
		nodes := tc.grow("a", "b", "c", "d") // d observes
		tc.kill("a")
		tc.kill("b")
		want := nodes[3].State()
		if err := Recover(dirs+"/d", "d", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "another ollamamax") {
			t.Errorf("recovering under a running node: %v", err)
		}
		tc.kill("d")
		if err := Recover(dirs+"/d", "x", slog.New(slog.DiscardHandler)); err == nil {
			t.Error("recovered for a node that is no member")
		}
		if err := Recover(dirs+"/d", "d", slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		d := tc.open("d")
		if got := d.State(); got.Version != want.Version || len(got.Members) != 4 {
			t.Fatalf("version %d with %d members, want %d with 4", got.Version, len(got.Members), want.Version)
		}
		tc.leader(d)
		if err := tc.drain(d, "d", true); err != nil {
			t.Fatal(err)
		}
		// c, which was a voter and lives on, is taken up again.
		tc.eventually("c follows d", func() bool { return nodes[2].State().Members["d"].Draining })
		for _, gone := range []cluster.NodeID{"a", "b"} {
			if err := d.Apply(t.Context(), cluster.Command{At: time.Now(), Remove: &cluster.Remove{ID: gone, Why: "lost"}}); err != nil {
				t.Fatal(err)
			}
		}
		tc.eventually("one of two votes", func() bool { return voters(d) == "d" && len(d.Status().Observers) == 1 })
	})
}

func TestRecoverNeedsState(t *testing.T) {
	if err := Recover(t.TempDir(), "a", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "there is none") {
		t.Errorf("got %v", err)
	}
}

func TestHasState(t *testing.T) {
	dirs := t.TempDir()
	if has, err := HasState(filepath.Join(dirs, "nowhere")); has || err != nil {
		t.Errorf("a folder that is not there: %v, %v", has, err)
	}
	synctest.Test(t, func(t *testing.T) {
		tc := newTestCluster(t, Config{})
		tc.dirs = dirs
		tc.open("b")
		tc.kill("b")
		if has, err := HasState(dirs + "/b"); has || err != nil {
			t.Errorf("a node that has not joined: %v, %v", has, err)
		}
		tc.found("a")
		if _, err := HasState(dirs + "/a"); err == nil {
			t.Error("the store is in use")
		}
		tc.kill("a")
		if has, err := HasState(dirs + "/a"); !has || err != nil {
			t.Errorf("a founder: %v, %v", has, err)
		}
	})
}

func TestOpenSaysWhatIsWrongWithTheDirectory(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { // something to damage
		tc := newTestCluster(t, Config{})
		tc.dirs = dir
		n := tc.found("a")
		for i := range 200 {
			if err := tc.drain(n, "a", i%2 == 0); err != nil {
				t.Fatal(err)
			}
		}
	})
	dir += "/a"
	path := filepath.Join(dir, "raft.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	open := func(dir string) error {
		c, err := openAlone(t, dir, "a")
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := open(dir); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 { // whatever the damage, looking for it must end well
		b := append([]byte(nil), whole...)
		for range 1 + rng.IntN(8) {
			b[rng.IntN(len(b))] = byte(rng.Uint32())
		}
		_ = findDamageIn(b[:1+rng.IntN(len(b))])
		_ = findDamageIn(b)
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"cut short":       func(b []byte) []byte { return b[:len(b)/3] },
		"cut to a page":   func(b []byte) []byte { return b[:4096] },
		"zeroed headers":  func(b []byte) []byte { clear(b[:8192]); return b },
		"zeroed contents": func(b []byte) []byte { clear(b[8192:]); return b },
		"another file":    func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 1000)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "raft.db"), spoil(append([]byte(nil), whole...)), 0o600); err != nil {
				t.Fatal(err)
			}
			err := open(dir)
			if err == nil {
				t.Fatal("opened a damaged store")
			}
			if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "restore a backup") {
				t.Errorf("says too little: %v", err)
			}
			t.Log(err)
		})
	}
}

func TestOpenChecksItsArguments(t *testing.T) {
	if _, err := Open(Config{}, Deps{}); err == nil {
		t.Error("opened without dependencies")
	}
	for name, cfg := range map[string]Config{
		"voters":   {Voters: -1},
		"lease":    {Lease: time.Second},
		"election": {Election: 10 * time.Millisecond},
	} {
		if err := cfg.Validate(); err == nil {
			t.Errorf("%s out of range is accepted", name)
		}
	}
}

func openAlone(t *testing.T, dir string, id cluster.NodeID) (*Consensus, error) {
	t.Helper()
	net1 := newNetwork()
	return Open(Config{Dir: dir}, Deps{
		Self: id, Listener: net1.listen(id), Dial: net1.dialer(id),
		Forward: func(context.Context, cluster.NodeID, cluster.Command) (uint64, error) {
			return 0, errors.New("nobody there")
		},
		Healthy: func(cluster.NodeID) bool { return false },
		Log:     slog.New(slog.DiscardHandler),
	})
}
