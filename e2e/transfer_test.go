package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/engine/enginetest"
	"github.com/ollamamax/ollamamax/internal/mesh/meshtest"
)

// folderMember is a node with a fake Ollama that keeps its models in a folder, which is returned.
func folderMember(t *testing.T, name, models string, flags ...string) (m *member, folder string) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), name+"-models")
	m = tuned(t, name, "", append([]string{"-folder", folder}, flags...)...)
	m.args = m.args[:2] // the engine's; what is configured is models'
	m.models = models
	return m, folder
}

// write puts a model of so many bytes into an engine's folder.
func write(t *testing.T, folder, model string, size int64, seed uint64) (digest string) {
	t.Helper()
	digest, err := enginetest.WriteModel(folder, model, size, seed)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// transfers are the models on their way.
func transfers(t *testing.T, m *member) []api.Transfer {
	t.Helper()
	var list api.Transfers
	_, text := ask(t, "GET", m.url+"/api/v1/transfers", "")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return list.Transfers
}

// middle is the median.
func middle(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

// firstTokens is an open loop of streams, so many a second for so long: how long each was to its first token, sorted.
func firstTokens(t *testing.T, url string, perSecond int, lasting time.Duration) (took []time.Duration) {
	t.Helper()
	var running sync.WaitGroup
	var mu sync.Mutex
	every := time.Second / time.Duration(perSecond)
	began := time.Now()
	for i := range int(lasting / every) {
		due := began.Add(time.Duration(i) * every)
		time.Sleep(time.Until(due))
		running.Go(func() {
			d, err := beginning(url, i, due)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("stream %d: %v", i, err)
				return
			}
			took = append(took, d)
		})
	}
	running.Wait()
	if len(took) == 0 {
		t.Fatal("no stream began")
	}
	slices.Sort(took)
	return took
}

// beginning is the time from when a stream was due to its first record.
func beginning(url string, i int, due time.Time) (time.Duration, error) {
	body := fmt.Sprintf(`{"model":"m","prompt":"prompt %d of %d","options":{"num_predict":8}}`, i, due.UnixNano())
	resp, err := loadClient.Post(url+"/api/generate", "application/json", strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	line, err := r.ReadString('\n')
	took := time.Since(due)
	if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(line, `"response"`)) {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, line)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	return took, err
}

// bareStream is what a stream of the mesh alone carries on this machine, bytes a second.
func bareStream(t *testing.T) float64 {
	t.Helper()
	hosts, err := meshtest.Hosts(2)
	if err != nil {
		t.Fatal(err)
	}
	defer hosts[0].Close()
	defer hosts[1].Close()
	var rates []float64
	for range 6 {
		rate, err := meshtest.Stream(t.Context(), hosts[0], hosts[1], 256<<20, meshtest.Fitting)
		if err != nil {
			t.Fatal(err)
		}
		rates = append(rates, rate)
	}
	return middle(rates[1:])
}

// TestFiguresOfATransferBesidePrompts asks two nodes through a third, while one of the two fetches a model from the
// other, and before and after. The bandwidth is a quarter of what a bare stream has. While they answer
// prompts the transfer has a quarter of that: what it really had is said.
func TestFiguresOfATransferBesidePrompts(t *testing.T) {
	figures(t)
	const perSecond, without, with, window = 100, 3, 5, 4 * time.Second
	bare := bareStream(t)
	bandwidth := bare / 4
	models := fmt.Sprintf("%s, bandwidth: %.0f", quietModels, bandwidth)
	flags := []string{"-slots", "64", "-first-token", "100ms", "-token-gap", "2ms"}
	door, _ := folderMember(t, "a", models)
	source, folder := folderMember(t, "b", models, flags...)
	target, other := folderMember(t, "c", models, flags...)
	write(t, folder, "m", 1e6, 2)
	write(t, other, "m", 1e6, 2)
	// It lasts through all windows, and some seconds more.
	write(t, folder, "big", int64(bandwidth/4*(with*window+4*time.Second).Seconds()), 1)
	c := form(t, door, source, target)
	c.warm(t, "m", source, target)
	measure := func(windows int) (p50, p99 []float64) { // of each window, ms
		for range windows {
			took := firstTokens(t, door.url, perSecond, window)
			at := func(q float64) float64 {
				return float64(took[int(math.Ceil(q*float64(len(took))))-1]) / float64(time.Millisecond)
			}
			p50, p99 = append(p50, at(0.50)), append(p99, at(0.99))
		}
		return p50, p99
	}
	firstTokens(t, door.url, perSecond, time.Second) // all connections are there
	syscall.Sync()                                   // writing the model is no part of it
	before50, before99 := measure(without)

	type end struct {
		text string
		code int
	}
	ended := make(chan end, 1)
	go func() {
		text, code := run(t, "pull", "big", "--replicas", "2", "--nodes", "b,c", "--api", door.url)
		ended <- end{text, code}
	}()
	have := func() (n int64) {
		for _, one := range transfers(t, target) {
			n += one.Have
		}
		return n
	}
	eventually(t, 60*time.Second, "the transfer runs", func() bool { return have() > 0 })
	firstTokens(t, door.url, perSecond, time.Second) // it has made way
	began, first := time.Now(), have()
	with50, with99 := measure(with)
	rate := float64(have()-first) / time.Since(began).Seconds()
	select {
	case e := <-ended:
		t.Errorf("the transfer ended before the measurement: %d %s", e.code, e.text)
	default:
		if e := <-ended; e.code != 0 {
			t.Errorf("pull: %d %s", e.code, e.text)
		}
	}
	if rate <= 0 {
		t.Errorf("nothing came while it was measured")
	}

	syscall.Sync()
	after50, after99 := measure(without)
	without50, without99 := middle(append(before50, after50...)), middle(append(before99, after99...))
	added := 100 * (middle(with99)/without99 - 1)
	t.Logf("a bare stream %.0f MB/s, models.bandwidth %.0f; %d prompts/s through a remote node, windows of %v, %d before, %d with, %d after",
		bare/1e6, bandwidth/1e6, perSecond, window, without, with, without)
	t.Logf("the transfer had %.0f MB/s beside them: %.1f %% of a bare stream", rate/1e6, 100*rate/bare)
	t.Logf("to the first token, medians of the windows: p50 %.1f ms without, %.1f with; p99 %.1f without (before %.1f, after %.1f), %.1f with (%.1f): %+.1f %%",
		without50, middle(with50), without99, before99, after99, middle(with99), with99, added)
	if added > 60 {
		t.Errorf("a transfer adds %.0f %% to the p99 of the first token", added)
	}
}
