package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// loadedOn are the nodes that have a model loaded, as one of them says.
func loadedOn(t *testing.T, m *member, model string) (names []string) {
	t.Helper()
	var wire struct {
		Replicas []struct {
			Node   string
			Loaded bool
		}
	}
	_, text := ask(t, "GET", m.url+"/api/v1/models/"+model, "")
	if err := json.Unmarshal([]byte(text), &wire); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, r := range wire.Replicas {
		if r.Loaded {
			names = append(names, r.Node)
		}
	}
	slices.Sort(names)
	return names
}

// asked sends the same short prompt again and again from so many clients until it is told to stop; by then nodes has
// who answered. Label is what the answering node must have.
type asked struct {
	stop    chan struct{}
	clients sync.WaitGroup
	mu      sync.Mutex
	nodes   map[string]int
}

func askOften(t *testing.T, m *member, model, label string, clients int) *asked {
	a := &asked{stop: make(chan struct{}), nodes: map[string]int{}}
	body := `{"model":"` + model + `","prompt":"Hello","stream":false,"options":{"num_predict":24,"temperature":0}}`
	for range clients {
		a.clients.Go(func() {
			for {
				select {
				case <-a.stop:
					return
				default:
				}
				code, header, text := askHeader(t, "POST", m.url+"/api/generate", body, "X-Require-Label", label)
				if code != 200 {
					t.Errorf("%d %s", code, text)
					return
				}
				a.mu.Lock()
				a.nodes[header.Get("X-Ollamamax-Node")]++
				a.mu.Unlock()
			}
		})
	}
	return a
}

func (a *asked) end() { close(a.stop); a.clients.Wait() }

// moved are the lines in which a member says what it has done with models.
func (m *member) moved(what string) (lines []string) {
	for line := range strings.SplitSeq(m.output.String(), "\n") {
		if strings.Contains(line, `msg="model is moved"`) && strings.Contains(line, " what="+what+" ") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestAHotModelIsLoadedOnOneMoreNodeAndLetGoThereWhenItIsIdle(t *testing.T) {
	t.Parallel()
	a, b := realMember(t, "a"), realMember(t, "b")
	a.args = append(a.args, "--config", configured(t, "node: {labels: {who: asked}}\nmodels: {"+quietModels+"}\n"))
	for _, m := range []*member{a, b} {
		m.env = []string{"OLLAMA_NUM_PARALLEL=1"}
	}
	c := form(t, a, b)
	create(t, a.url, "m", filepath.Join(engineDir(t), "noise.gguf"))
	if text, code := run(t, "pull", "m", "--replicas", "2", "--api", a.url); code != 0 {
		t.Fatalf("pull: %d %s", code, text)
	}
	if on := loadedOn(t, a, "m"); len(on) != 0 {
		t.Fatalf("loaded on %v before anybody asks", on)
	}
	leads, _ := c.leader(t)

	// The scheduler may send nothing to b, and so only the leader can have it loaded there. B's is the gateway that is asked.
	began := time.Now()
	clients := askOften(t, b, "m", "who=asked", 4)
	eventually(t, 60*time.Second, "it is loaded on both", func() bool { return slices.Equal(loadedOn(t, a, "m"), []string{"a", "b"}) })
	t.Logf("loaded on the second node %v after the first request", time.Since(began).Round(100*time.Millisecond))
	clients.end()
	if len(clients.nodes) != 1 || clients.nodes["a"] == 0 {
		t.Errorf("answered by %v", clients.nodes)
	}
	if loads := leads.moved("load"); len(loads) != 1 || !strings.Contains(loads[0], " on=b ") || !strings.Contains(loads[0], "requests at a time") {
		t.Errorf("the leader had it loaded %q", loads)
	}
	if unloads := leads.moved("unload"); len(unloads) != 0 {
		t.Errorf("let go while it was asked: %q", unloads)
	}

	began = time.Now()
	eventually(t, 120*time.Second, "one of them lets it go", func() bool { return len(loadedOn(t, a, "m")) == 1 })
	t.Logf("let go %v after the last request", time.Since(began).Round(100*time.Millisecond))
	stays := loadedOn(t, a, "m")
	time.Sleep(10 * time.Second) // it does not go on so
	if on := loadedOn(t, b, "m"); !slices.Equal(on, stays) {
		t.Errorf("loaded on %v, then on %v", stays, on)
	}
	if loads, unloads := leads.moved("load"), leads.moved("unload"); len(loads) != 1 || len(unloads) != 1 || strings.Contains(unloads[0], " on="+stays[0]+" ") {
		t.Errorf("%v keeps it, and the leader had it loaded %q, let go %q", stays, loads, unloads)
	}
}

// engineHas tells whether the engine that a member supervises has a model loaded for ever, as it says itself, and the
// engine's process.
func (m *member) engineHas(t *testing.T, model string) (is bool, pid int) {
	t.Helper()
	addr := ""
	for line := range strings.SplitSeq(m.output.String(), "\n") {
		if _, rest, ok := strings.Cut(line, " addr="); ok && strings.Contains(line, `msg="engine started"`) {
			addr, _, _ = strings.Cut(rest, " ")
		}
	}
	data, err := os.ReadFile(filepath.Join(m.dataDir, "engine.json"))
	var record struct{ PID int }
	if err != nil || json.Unmarshal(data, &record) != nil || !answers("http://"+addr+"/api/version") {
		return false, 0
	}
	var wire struct {
		Models []struct {
			Name      string
			ExpiresAt time.Time `json:"expires_at"`
		}
	}
	_, text := ask(t, "GET", "http://"+addr+"/api/ps", "")
	if err := json.Unmarshal([]byte(text), &wire); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, loaded := range wire.Models {
		is = is || loaded.Name == model && time.Until(loaded.ExpiresAt) > 1000*time.Hour
	}
	return is, record.PID
}

func TestWhatIsToBeKeptLoadedIsLoadedAgainWhenItsEngineDied(t *testing.T) {
	t.Parallel()
	a := realMember(t, "a")
	a.models = quietModels + ", preload: [M, sentence]"
	form(t, a)
	create(t, a.url, "m", filepath.Join(engineDir(t), "noise.gguf"))
	create(t, a.url, "other", filepath.Join(engineDir(t), "sentence.gguf"))
	var first int
	eventually(t, 30*time.Second, "it is loaded though nobody asks", func() (is bool) { is, first = a.engineHas(t, "m:latest"); return is })
	if on := loadedOn(t, a, "other"); len(on) != 0 {
		t.Errorf("the other model is loaded on %v", on)
	}

	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "it is loaded again", func() bool { is, pid := a.engineHas(t, "m:latest"); return is && pid != first })

	// And when the node itself is started anew; a client lets it go, which the owner does not want.
	a.kill()
	a.start(t)
	a.up(t)
	eventually(t, 60*time.Second, "it is loaded after the start", func() bool { is, _ := a.engineHas(t, "m:latest"); return is })
	if code, text := ask(t, "POST", a.url+"/api/generate", `{"model":"m","keep_alive":0}`); code != 200 || !strings.Contains(text, "unload") {
		t.Fatalf("%d %s", code, text)
	}
	eventually(t, 30*time.Second, "it is gone", func() bool { is, _ := a.engineHas(t, "m:latest"); return !is })
	eventually(t, 60*time.Second, "it is loaded again", func() bool { is, _ := a.engineHas(t, "m:latest"); return is })
	if code, _, text := generate(t, a, "m", "Hello"); code != 200 {
		t.Errorf("%d %s", code, text)
	}
}
