package models

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

// disk is a store of one blob whose reads can fail.
type disk struct {
	data   []byte
	open   error
	broken int64 // from here on it cannot be read; 0: nowhere
}

func (d *disk) Open(blob.Digest) (blob.Source, error) {
	if d.open != nil {
		return nil, d.open
	}
	return d, nil
}

func (d *disk) ReadAt(b []byte, offset int64) (int, error) {
	if d.broken > 0 && offset+int64(len(b)) > d.broken {
		return 0, errors.New("input/output error")
	}
	if offset >= int64(len(d.data)) {
		return 0, io.EOF
	}
	n := copy(b, d.data[offset:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (d *disk) Close() error { return nil }
func (d *disk) Size() int64  { return int64(len(d.data)) }

func TestACheckReadsNoFasterThanConfiguredAndLessWhileTheEngineIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := false
		began := time.Now()
		read := func() time.Duration {
			began = time.Now()
			f := &slowFile{ctx: t.Context(), open: (&disk{data: make([]byte, 10<<20)}).Open, rate: 2 << 20, busy: func() bool { return busy }}
			if n, err := io.Copy(io.Discard, struct{ io.Reader }{f}); err != nil || n != 10<<20 {
				t.Fatal(n, err)
			}
			return time.Since(began)
		}
		if took := read(); took != 5*time.Second {
			t.Errorf("10 MiB at 2 MiB/s took %v", took)
		}
		busy = true
		if took := read(); took != 20*time.Second {
			t.Errorf("10 MiB at 2 MiB/s beside prompts took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		f := &slowFile{ctx: ctx, open: (&disk{data: make([]byte, 10)}).Open, rate: 1, busy: func() bool { return false }}
		time.AfterFunc(time.Second, cancel)
		if _, err := io.ReadAll(f); !errors.Is(err, context.Canceled) {
			t.Errorf("a check that is broken off ends with %v", err)
		}
	})
}

func TestChecksBeginMinutesAfterTheStartAndComeAgainAfterADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, dir := newStores(t), newShelf(t), t.TempDir()
		weights := random(1, 3<<20)
		s.put("m", weights, []byte("{}"))
		hex := manifest.DigestOf(weights)
		n := w.node("a", s, dir, nil)
		time.Sleep(checkAfter - time.Second)
		if _, err := n.lists.Checked(digest(hex)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("it was checked before its time: %v", err)
		}
		time.Sleep(2 * time.Second)
		first, err := n.lists.Checked(digest(hex))
		if err != nil {
			t.Fatal(err)
		}
		if roots := w.state.Roots; len(roots) != 0 {
			t.Errorf("the check has a list agreed that nobody asked for: %v", roots)
		}
		s.flip(hex)
		time.Sleep(23 * time.Hour)
		n.stop()
		n = w.node("a", s, dir, nil) // the time of the last check outlives the process
		time.Sleep(10 * time.Minute)
		if at, err := n.lists.Checked(digest(hex)); err != nil || !at.Equal(first) || n.tells(hex) != cluster.BlobWhole {
			t.Errorf("it was checked again after less than a day: %v %v %v", at, err, n.tells(hex))
		}
		time.Sleep(time.Hour)
		if n.tells(hex) != cluster.BlobDamaged {
			t.Errorf("after a day it was not checked again: %q", n.tells(hex))
		}
	})
}

func TestNothingIsCheckedWhenChecksAreOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newStores(t), newShelf(t)
		s.put("m", random(1, 1<<20), []byte("{}"))
		n := w.node("a", s, t.TempDir(), nil, func(c *Config) { c.CheckRate = 0 })
		time.Sleep(48 * time.Hour)
		if all, err := n.lists.Digests(); err != nil || len(all) > 0 {
			t.Errorf("%v %v", all, err)
		}
	})
}

func TestALastDamagedCopyIsToldAndNotServedAndNeverDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newStores(t), newShelf(t)
		weights, config := random(1, 9<<20), []byte("{}")
		model := s.put("m", weights, config)
		other := s.put("other", random(2, 1<<20), []byte("{ }"))
		hex, dir := manifest.DigestOf(weights), t.TempDir()
		n := w.node("a", s, dir, nil)
		time.Sleep(10 * time.Minute)
		if _, release, err := n.hold(t.Context(), digest(hex)); err != nil {
			t.Fatalf("a blob that was checked is not held: %v", err)
		} else {
			release()
		}
		s.flip(hex)
		time.Sleep(25 * time.Hour)
		if got := n.Told().Damaged; !maps.Equal(got, map[string]bool{model: true}) {
			t.Errorf("damaged are %v, not %s only (%s is good)", got, model, other)
		}
		if n.tells(hex) != cluster.BlobDamaged || n.tells(manifest.DigestOf(config)) != cluster.BlobWhole {
			t.Errorf("%v", n.Told().Blobs)
		}
		if _, _, err := n.hold(t.Context(), digest(hex)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a damaged blob is held: %v", err)
		}
		if err := n.offer(t.Context(), hex); !errors.Is(err, blob.ErrWrong) {
			t.Errorf("a damaged blob is offered: %v", err)
		}
		if err := n.Fetch(t.Context(), FetchRequest{Name: "m", Digest: model}, nil); !errors.Is(err, errLastCopy) {
			t.Errorf("a fetch that cannot repair it ends with %v", err)
		}
		time.Sleep(48 * time.Hour)
		if asked := s.log(); len(asked) > 0 {
			t.Errorf("the engine was asked: %v", asked)
		}
		n.stop()
		n = w.node("a", s, dir, nil)
		time.Sleep(time.Second)
		if n.tells(hex) != cluster.BlobDamaged || !n.Told().Damaged[model] {
			t.Errorf("after a start it is told %q", n.tells(hex))
		}
		if err := os.WriteFile(s.blob(hex), weights, 0o644); err != nil { // its owner restores it
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if n.tells(hex) != cluster.BlobWhole || len(n.Told().Damaged) > 0 {
			t.Errorf("a file that is right again is told %q", n.tells(hex))
		}
	})
}

func TestADamagedBlobIsReplacedFromAMemberWithEveryNameThatUsesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, good, bad := newStores(t), newShelf(t), newShelf(t)
		weights, adapter, config, shared := random(1, 9<<20), random(2, 5<<20), []byte("{}"), random(3, 2<<20)
		var tuned string
		for _, s := range []*shelf{good, bad} {
			s.put("m", weights, shared, config)
			s.put("team/twin:v1", weights, shared, config)
			s.put("apart", shared, []byte("{ }"))
		}
		tuned = bad.put("tuned", weights, adapter, config) // whose adapter nobody else has
		hex := manifest.DigestOf(weights)
		before := bad.names()
		w.node("a", good, t.TempDir(), nil)
		n := w.node("b", bad, t.TempDir(), nil)
		time.Sleep(10 * time.Minute)
		bad.flip(hex)
		deleted := 0
		bad.hook(func(ask string) {
			if !strings.HasPrefix(ask, "delete ") {
				return
			}
			deleted++
			for _, data := range [][]byte{weights, adapter, config} {
				if p, err := n.spool.Get(t.Context(), digest(manifest.DigestOf(data))); err != nil || p.Missing() > 0 {
					t.Errorf("%s: a blob is not in the spool yet: %v", ask, err)
				}
				if !n.isSynced(manifest.DigestOf(data)) {
					t.Errorf("%s: a loss of power takes a blob from the spool", ask)
				}
			}
			if p, err := n.spool.Get(t.Context(), digest(manifest.DigestOf(shared))); err == nil {
				t.Errorf("a blob that stays was copied: %d", p.List().Size())
			}
			if _, err := n.keptManifest(tuned); err != nil {
				t.Errorf("the manifest is not kept: %v", err)
			}
		}, nil)
		time.Sleep(25 * time.Hour)
		if !bad.right(hex) || !bad.right(manifest.DigestOf(adapter)) || !bad.right(manifest.DigestOf(shared)) {
			t.Errorf("the files are not whole")
		}
		if after := bad.names(); !maps.Equal(before, after) {
			t.Errorf("names are %v, were %v", after, before)
		}
		if n.tells(hex) != cluster.BlobWhole || len(n.Told().Damaged) > 0 || len(n.Told().Fetches) > 0 {
			t.Errorf("told is %v %v %v", n.tells(hex), n.Told().Damaged, n.Told().Fetches)
		}
		want := []string{"unload m:latest", "delete m:latest", "unload team/twin:v1", "delete team/twin:v1", "unload tuned:latest", "delete tuned:latest",
			"copy to m:latest", "copy to team/twin:v1", "copy to tuned:latest"}
		if asked := bad.log(); !slices.Equal(asked, want) || deleted != 3 {
			t.Errorf("the engine was asked %q", asked)
		}
		if all, err := n.spool.Digests(); err != nil || len(all) > 0 {
			t.Errorf("the spool still has %v %v", all, err)
		}
		if asked := good.log(); len(asked) > 0 {
			t.Errorf("the good engine was asked %q", asked)
		}
	})
}

func TestACrashInTheMiddleOfARepairLosesNoModel(t *testing.T) {
	for _, at := range []string{"delete m:latest", "delete twin:latest", "copy to m:latest"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, good, bad, dir := newStores(t), newShelf(t), newShelf(t), t.TempDir()
				weights := random(1, 9<<20)
				for _, s := range []*shelf{good, bad} {
					s.put("m", weights, []byte("{}"))
				}
				bad.put("twin", weights, []byte("{ }")) // which nobody else has
				before, hex := bad.names(), manifest.DigestOf(weights)
				w.node("a", good, t.TempDir(), nil)
				n := w.node("b", bad, dir, nil)
				time.Sleep(10 * time.Minute)
				bad.flip(hex)
				crashed := make(chan struct{})
				bad.hook(nil, func(ask string) {
					if ask != at {
						return
					}
					bad.hook(nil, nil)
					go func() {
						n.stop()
						close(crashed)
					}()
					<-n.dying.Done()
				})
				<-crashed
				if maps.Equal(bad.names(), before) && bad.right(hex) {
					t.Fatal("there was nothing to resume")
				}
				w.node("b", bad, dir, nil)
				time.Sleep(time.Minute)
				if after := bad.names(); !maps.Equal(before, after) || !bad.right(hex) {
					t.Errorf("names are %v, were %v", after, before)
				}
				if _, err := os.Stat(filepath.Join(dir, spoolDir, awayFile)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("names are still remembered as away: %v", err)
				}
			})
		})
	}
}

func TestATransferThatBringsAModelBackIsNotCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, good, bad := newStores(t), newShelf(t), newShelf(t)
		weights := random(1, 9<<20)
		good.put("m", weights, []byte("{}"))
		model := bad.put("mine", weights, []byte("{ }")) // which nobody else has
		w.place("mine", model, 1)
		hex := manifest.DigestOf(weights)
		w.node("a", good, t.TempDir(), nil)
		n := w.node("b", bad, t.TempDir(), nil)
		time.Sleep(10 * time.Minute)
		bad.flip(hex)
		cancelled := 0
		bad.hook(func(ask string) {
			if ask != "pull" || cancelled > 0 {
				return
			}
			cancelled++
			id := n.Transfers()[0].ID
			if err := n.CancelOn(t.Context(), "b", id); !errors.Is(err, ErrRepair) {
				t.Errorf("it is cancelled: %v", err)
			}
			n.Cancel(id) // as a node does whose asker does not know better
		}, nil)
		time.Sleep(25 * time.Hour)
		if cancelled != 1 || bad.names()["mine:latest"] != model || !bad.right(hex) {
			t.Errorf("after %d attempts to cancel there are %v", cancelled, bad.names())
		}
		if _, wanted := w.state.WantedModel("mine"); !wanted {
			t.Error("the model is not wanted any more")
		}
	})
}

func TestADamagedModelThatWasPlacedIsReplacedFromTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, far := newStores(t), newShelf(t), t.TempDir()
		weights, config := random(1, 5<<20), []byte("{}")
		model := s.put("m", weights, config)
		registry := registrytest.New(far)
		if _, err := registry.Add("m", weights, config); err != nil {
			t.Fatal(err)
		}
		hex := manifest.DigestOf(weights)
		s.flip(hex)
		n := w.node("a", s, t.TempDir(), registry)
		time.Sleep(10 * time.Minute)
		if len(s.log()) > 0 || n.tells(hex) != cluster.BlobDamaged {
			t.Errorf("one that nobody placed: the engine was asked %q, told is %q", s.log(), n.tells(hex))
		}
		w.place("m", model, 1)
		time.Sleep(time.Minute)
		if !s.right(hex) || s.names()["m:latest"] != model || n.tells(hex) != cluster.BlobWhole {
			t.Errorf("it was not replaced: %v %v", s.names(), n.tells(hex))
		}
		if sent := registry.Sent(hex); sent != int64(len(weights)) {
			t.Errorf("the registry sent %d bytes", sent)
		}
	})
}

func TestADamagedModelIsReplacedFromTheNameThatItWasPulledBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newStores(t), newShelf(t)
		weights, config := random(1, 5<<20), []byte("{}")
		model := s.put("registry.test/u/m", weights, config)
		s.put("a-copy", weights, config)
		w.place("http://registry.test/u/m", model, 1)
		w.place("a-copy", model, 1)
		hex := manifest.DigestOf(weights)
		n := w.node("a", s, t.TempDir(), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Scheme != "http" || r.URL.Host != "registry.test" {
				http.NotFound(rw, r)
				return
			}
			http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(weights))
		}))
		s.flip(hex)
		time.Sleep(25 * time.Hour)
		if !s.right(hex) || len(s.names()) != 2 || n.tells(hex) != cluster.BlobWhole {
			t.Errorf("it was not replaced: %v %v", s.names(), n.tells(hex))
		}
	})
}

func TestWhoIsToFetchADamagedModelWaitsForItsRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, good, bad := newStores(t), newShelf(t), newShelf(t)
		weights := random(1, 5<<20)
		var model string
		for _, s := range []*shelf{good, bad} {
			model = s.put("m", weights, []byte("{}"))
		}
		hex := manifest.DigestOf(weights)
		w.node("a", good, t.TempDir(), nil)
		n := w.node("b", bad, t.TempDir(), nil)
		time.Sleep(10 * time.Minute)
		bad.flip(hex)
		n.checkBlob(t.Context(), blob.Folder(bad.dir), hex)
		if n.tells(hex) == cluster.BlobWhole {
			t.Fatal("the damage was not found")
		}
		for range maxJobs + 1 { // they do not keep the repair from its own
			if err := n.Fetch(t.Context(), FetchRequest{Name: "m", Digest: model}, nil); err != nil {
				t.Error(err)
			}
		}
		if !bad.right(hex) {
			t.Error("the fetch ended, and the file is not right")
		}
	})
}

func TestWhatCannotBeReadIsDamagedAndWhatIsGoneIsNot(t *testing.T) {
	data := random(1, 9<<20)
	hex := manifest.DigestOf(data)
	flipped := slices.Clone(data)
	flipped[len(flipped)-1] ^= 1
	broken := &disk{data: data, broken: 5 << 20}
	for _, c := range []struct {
		name    string
		disks   []*disk // one a check
		damaged bool
	}{
		{"whole", []*disk{{data: data}}, false},
		{"another last byte", []*disk{{data: flipped}}, true},
		{"cut off", []*disk{{data: data[:len(data)-1]}}, true},
		{"longer", []*disk{{data: append(slices.Clone(data), 0)}}, true},
		{"empty", []*disk{{}}, true},
		{"unreadable in the middle, twice", []*disk{broken, broken}, false},
		{"unreadable, but for once", []*disk{broken, broken, {data: data}, broken, broken}, false},
		{"unreadable whenever it was tried", []*disk{broken, broken, broken}, true},
		{"gone", []*disk{{open: fs.ErrNotExist}}, false},
		{"not for this user", []*disk{{open: fs.ErrPermission}}, false},
	} {
		for _, listed := range []bool{false, true} {
			t.Run(c.name+map[bool]string{false: "", true: " with a list"}[listed], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, s := newStores(t), newShelf(t)
					s.put("m", data, []byte("{}"))
					n := w.node("a", s, t.TempDir(), nil, func(cfg *Config) { cfg.CheckEvery = 24 * time.Hour })
					time.Sleep(time.Second)
					if listed {
						n.checkBlob(t.Context(), blob.Folder(s.dir), hex)
					}
					for _, d := range c.disks {
						n.checkBlob(t.Context(), d, hex)
					}
					if got := n.tells(hex) == cluster.BlobDamaged; got != c.damaged {
						t.Errorf("damaged: %v", got)
					}
				})
			})
		}
	}
}
