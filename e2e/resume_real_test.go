package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// realSlots is how many requests the real engines of these tests serve at once.
const realSlots = 12

// exact has a real engine calculate alike whether it reads a text or has written it, and whatever else
// it writes at the same time. With flash attention, or with one cache for all slots, it rounds otherwise,
// and among 400 tokens of noise are some that rounding decides: then even answers that nothing disturbed
// are not always the same. Threads beyond one only wait for each other where several engines share a
// machine.
var exact = []string{"OLLAMA_FLASH_ATTENTION=0", "LLAMA_ARG_FLASH_ATTN=off", "LLAMA_ARG_THREADS=1",
	"OLLAMA_CONTEXT_LENGTH=1024", fmt.Sprintf("OLLAMA_NUM_PARALLEL=%d", realSlots), fmt.Sprintf("LLAMA_ARG_N_PARALLEL=%d", realSlots)}

// realTeller is a node that supervises a real Ollama with several slots.
func realTeller(t *testing.T, name string) *member {
	t.Helper()
	m := realMember(t, name)
	m.args = append(m.args, "--config", configured(t, fmt.Sprintf("engine: {slots: %d}\n", realSlots)+unfrozen))
	m.env = exact
	return m
}

// realCluster is three nodes with a real Ollama each, all with the model noise loaded, which spread what they
// are asked evenly.
func realCluster(t *testing.T) testCluster {
	t.Helper()
	c := testCluster{realTeller(t, "a"), realTeller(t, "b"), realTeller(t, "c")}
	for _, m := range c { // each keeps the model
		m.args = append(m.args, "--config", configured(t, fmt.Sprintf("engine: {slots: %d}\nmodels: {replicas: 3}\nschedule: {policy: least-loaded}\n", realSlots)+unfrozen))
	}
	form(t, c...)
	for _, m := range c {
		create(t, m.url, "noise", filepath.Join(engineDir(t), "noise.gguf"))
	}
	loadEverywhere(t, c[0], "noise", c...)
	return c
}

func TestStreamsOfARealEngineSurviveTheDeathOfTheirNode(t *testing.T) {
	t.Parallel()
	losingRealNodes(t, 1)
}

func TestFiguresOfRealStreamsWhoseNodesDie(t *testing.T) {
	figures(t)
	losingRealNodes(t, 4)
}

// losingRealNodes kills nodes and their real engines in mid-stream, round after round.
func losingRealNodes(t *testing.T, rounds int) {
	t.Helper()
	c := realCluster(t)
	prompts := mixed(18, "noise", 400) // so that two engines have slots for all
	want := undisturbed(t, c[0].url, prompts)
	var all tally
	for i := range rounds {
		victim := c[1+i%2]
		r := killing(t, c[0], prompts, 20, victim)
		if i+1 < rounds {
			back(t, c, victim) // while the answers go on
			loadEverywhere(t, c[0], "noise", victim)
		}
		all.add(r, want, 0)
	}
	all.report(t, fmt.Sprintf("one of three nodes with real engines killed, %d rounds", rounds))
	by, n := resumes(t, c[0])
	t.Logf("resumes: %v", by)
	if n < rounds {
		t.Errorf("in %d rounds only %d streams went on", rounds, n)
	}
}

func TestStreamsOfARealEngineWhoseRunnerDiesGoOn(t *testing.T) {
	t.Parallel()
	c := form(t, realTeller(t, "a"))
	create(t, c[0].url, "noise", filepath.Join(engineDir(t), "noise.gguf"))
	loadEverywhere(t, c[0], "noise", c[0])
	prompts := mixed(len(generating), "noise", 400)
	want := undisturbed(t, c[0].url, prompts)
	r := &interrupted{prompts: prompts, wait: askAll(t.Context(), c[0].url, prompts), failed: []string{"a"}}
	r.first = begun(t, c[0], prompts, 20)
	r.at = time.Now()
	engine := enginePID(t, c[0].dataDir)
	for _, pid := range group(t, engine) {
		if pid != engine {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	var all tally
	all.add(r, want, 0)
	all.report(t, "a real Ollama's runner killed")
	by, n := resumes(t, c[0])
	t.Logf("resumes: %v", by)
	if n < r.goneOn() || by[`broke="error",method="raw"`] == 0 || by[`broke="truncated",method="raw"`] == 0 {
		t.Errorf("of %d streams of all dialects %d went on", r.goneOn(), n)
	}
}

// alteringProxy stands before an Ollama and alters one byte of some prompts that are sent raw: that
// Ollama has rendered before.
type alteringProxy struct {
	*httptest.Server
	raw, altered  atomic.Int64
	before, after string
}

func newAlteringProxy(t *testing.T, engine, before, after string) *alteringProxy {
	t.Helper()
	target, err := url.Parse(engine)
	if err != nil {
		t.Fatal(err)
	}
	p := &alteringProxy{before: before, after: after}
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.FlushInterval = -1
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the node has left
		}
		if r.URL.Path == "/api/generate" && gjson.GetBytes(body, "raw").Bool() {
			p.raw.Add(1)
			if bytes.Contains(body, []byte(p.before)) {
				p.altered.Add(1)
				body = bytes.Replace(body, []byte(p.before), []byte(p.after), 1)
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func TestAByteOfThePromptAlteredOnTheSecondNodeIsSeen(t *testing.T) {
	t.Parallel()
	proxy := newAlteringProxy(t, startOllamaWith(t, exact, "noise"), "sing me", "sinh me")
	door, first := fakeMember(t, "a"), realTeller(t, "b")
	door.args = append(door.args, "--config", configured(t, "schedule: {policy: weighted, weights: {c: 0}}\n"+unfrozen))
	second := &member{name: "c", dataDir: filepath.Join(t.TempDir(), "c"), args: []string{"--engine-url", proxy.URL}}
	form(t, door, first, second)
	create(t, first.url, "noise", filepath.Join(engineDir(t), "noise.gguf"))
	loadEverywhere(t, door, "noise", first)
	var prompts []prompt
	for i, path := range generating {
		for _, verb := range []string{"tell", "sing"} { // the one goes on as it is, the other is altered
			prompts = append(prompts, newPrompt(fmt.Sprint(verb, i), path, "noise", fmt.Sprintf("%s me tale %d", verb, i), 400, true))
		}
	}
	want := undisturbed(t, door.url, prompts)
	r := killing(t, door, prompts, 20, first)
	equal := map[bool]int{}
	for i, got := range r.wait() {
		if why := got.incomplete(); why != "" {
			t.Errorf("%s: %s", prompts[i].path, why)
		}
		if got.text == want[i].text {
			equal[strings.HasPrefix(prompts[i].id, "sing")]++
		}
	}
	raw, altered, n := int(proxy.raw.Load()), int(proxy.altered.Load()), len(generating)
	t.Logf("%d of %d streams went on elsewhere; behind their prompt %d, of which %d are equal; behind an altered one %d, of which %d are equal",
		r.goneOn(), 2*n, raw-altered, equal[false], altered, equal[true])
	if r.goneOn() != 2*n || raw != 2*n || altered != n {
		t.Errorf("want all to go on, half of them behind an altered prompt")
	}
	if equal[false] != n || equal[true] != 0 {
		t.Errorf("want all of the former to be equal, and none of the latter")
	}
}

func TestStreamsOfARealLlamaServerGoOnElsewhere(t *testing.T) {
	t.Parallel()
	file, err := filepath.Abs(filepath.Join(engineDir(t), "noise.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	c := testCluster{evenDoor(t)}
	for _, name := range []string{"b", "c"} {
		m := &member{name: name, dataDir: filepath.Join(t.TempDir(), name), args: []string{"--engine", "llama-server", "--engine-command", llamaServer(t)}, env: exact}
		models := filepath.Join(m.dataDir, "models")
		if err := os.MkdirAll(models, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(file, filepath.Join(models, "noise.gguf")); err != nil {
			t.Fatal(err)
		}
		c = append(c, m)
	}
	form(t, c...)
	var prompts []prompt
	for i := range realSlots { // as many as one engine serves at once
		path := []string{"/v1/chat/completions", "/v1/completions"}[i%2]
		prompts = append(prompts, newPrompt(fmt.Sprint("stream-", i), path, "noise", fmt.Sprintf("tell me tale %d", i), 400, true))
	}
	want := undisturbed(t, c[0].url, prompts)
	var all tally
	r := killing(t, c[0], prompts, 20, c[1])
	all.add(r, want, 0)
	all.report(t, "one of two llama-servers killed")
	by, n := resumes(t, c[0])
	if by[`broke="reset",method="prefill"`] != r.goneOn() || n != r.goneOn() || n == 0 {
		t.Errorf("how streams went on is counted as %v", by)
	}
}
