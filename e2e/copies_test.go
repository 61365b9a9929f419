package e2e

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

// TestFiguresOfWhatTheRegistrySends has all nodes of a cluster pull a model at once that none has.
func TestFiguresOfWhatTheRegistrySends(t *testing.T) {
	figures(t)
	for _, n := range []int{3, 8} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			far := t.TempDir()
			write(t, far, "far:v1", 48e6, 1)
			registry := registrytest.New(far)
			server := httptest.NewServer(registry)
			defer server.Close()
			var members []*member
			var folders []string
			for i := range n {
				m, folder := folderMember(t, string(rune('a'+i)), "replicas: all, mirror: "+strconv.Quote(server.URL))
				members, folders = append(members, m), append(folders, folder)
			}
			c := form(t, members...)
			began := time.Now()
			var pulling sync.WaitGroup
			for _, m := range c {
				pulling.Go(func() {
					if text, code := run(t, "pull", "far:v1", "--api", m.url); code != 0 || !strings.Contains(text, "pulled") {
						t.Errorf("pull at %s: %d %s", m.name, code, text)
					}
				})
			}
			pulling.Wait()
			took := time.Since(began)
			size := blobsIn(t, far)
			for i, folder := range folders {
				if got := blobsIn(t, folder); got != size {
					t.Errorf("%s has %d bytes of the model's %d", c[i].name, got, size)
				}
			}
			times := float64(registry.Total()) / float64(size)
			t.Logf("%d nodes, each asked for a model of %d bytes that a registry has: it sent %d, %.4f x the model; all have it after %v",
				n, size, registry.Total(), times, took.Round(10*time.Millisecond))
			if registry.Total() != size {
				t.Errorf("the registry sent %.4f x the model", times)
			}
		})
	}
}

// blobsIn is how many bytes the blobs of a model folder have.
func blobsIn(t *testing.T, folder string) (n int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "blobs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

// TestFiguresOfALostReplica kills a node that holds one of two replicas, and its engine, in clusters of three, two of
// which run at a time. The control is what the copy itself takes, as the node that makes it says.
func TestFiguresOfALostReplica(t *testing.T) {
	figures(t)
	const clusters = 4
	var mu sync.Mutex
	var copies, restores, beyond []float64
	t.Run("clusters", func(t *testing.T) {
		for i := range clusters {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				copied, restored := loseReplica(t)
				mu.Lock()
				defer mu.Unlock()
				copies, restores = append(copies, copied), append(restores, restored)
				beyond = append(beyond, restored-copied)
			})
		}
	})
	if len(beyond) < clusters {
		return
	}
	t.Logf("the wanted number is there again %.1f s after a node's death (%.1f), the copy itself %.1f s (%.1f): %.1f s beyond it; medians of %d",
		middle(restores), restores, middle(copies), copies, middle(beyond), clusters)
	if most := middle(beyond); most > 30 {
		t.Errorf("restored %.1f s beyond the copy's own time", most)
	}
}

var fetchTook = regexp.MustCompile(`msg="model fetched".* took=(\S+) err=<nil>`)

// loseReplica is how long it takes until there is another copy in place of a lost one, and how long the copying of that, seconds.
func loseReplica(t *testing.T) (copied, restored float64) {
	a, folder := folderMember(t, "a", quietModels)
	b, _ := folderMember(t, "b", quietModels)
	c, other := folderMember(t, "c", quietModels)
	write(t, folder, "m", 200e6, 1)
	form(t, a, b, c)
	if text, code := run(t, "pull", "m", "--replicas", "2", "--nodes", "a,b", "--api", a.url); code != 0 {
		t.Fatalf("pull: %d %q", code, text)
	}
	if text, code := run(t, "place", "m", "--nodes", "", "--api", a.url); code != 0 {
		t.Fatalf("place: %d %s", code, text)
	}
	size := blobsIn(t, folder)
	b.crash(t)
	began := time.Now()
	eventually(t, 60*time.Second, "c holds the model instead of b", func() bool {
		held := heldBy(t, a, "m")
		return held["c"] != "" && held["b"] == ""
	})
	restored = time.Since(began).Seconds()
	if got := blobsIn(t, other); got != size {
		t.Errorf("c has %d of %d bytes", got, size)
	}
	var took []string
	eventually(t, 10*time.Second, "c says how long it took", func() bool {
		took = fetchTook.FindStringSubmatch(c.output.String())
		return took != nil
	})
	d, err := time.ParseDuration(took[1])
	if err != nil {
		t.Fatal(err)
	}
	return d.Seconds(), restored
}
