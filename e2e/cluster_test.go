package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

// member is one node of a test's cluster, with what it needs to be started again.
type member struct {
	*program
	name, url, dataDir string
	fake               *program // nil with a real engine
	engine             string   // the engine's URL; "" if the node supervises it
	api, p2p           string   // HOST:PORT
	quic               bool     // peers over QUIC instead of TCP
	args, env          []string
	models             string // what is configured of models; "": quietModels
	disk               string // the size of a disk of its own for the data directory, as mount takes it; "": none
}

// testCluster is nodes as processes of their own, each with an engine.
type testCluster []*member

// fakeMember is a node with a fake Ollama that holds the models given.
func fakeMember(t *testing.T, name string, models ...string) *member {
	t.Helper()
	m := &member{name: name, dataDir: filepath.Join(t.TempDir(), name)}
	addr := freeAddr(t)
	args := []string{"-listen", addr, "-slots", "64", "-queue", "4096"}
	for _, model := range models {
		args = append(args, "-model", model)
	}
	m.fake, m.engine = start(t, nil, fakeBinary, args...), "http://"+addr
	m.args = []string{"--engine-url", m.engine}
	return m
}

// realMember is a node that supervises a real Ollama.
func realMember(t *testing.T, name string) *member {
	t.Helper()
	return &member{name: name, dataDir: filepath.Join(t.TempDir(), name), args: []string{"--engine-command", filepath.Join(engineDir(t), "bin", "ollama")}}
}

// start runs the member's node, at the addresses it had or, the first time, at free ones.
func (m *member) start(t *testing.T, extra ...string) {
	t.Helper()
	if m.api == "" {
		m.api, m.p2p = freeAddr(t), freeAddr(t)
	}
	host, port, _ := strings.Cut(m.p2p, ":")
	listen := "/ip4/" + host + "/tcp/" + port
	if m.quic {
		listen = "/ip4/" + host + "/udp/" + port + "/quic-v1"
	}
	args := slices.Concat([]string{"serve", "--config", quietConfig(t, m.models), "--name", m.name, "--data-dir", m.dataDir, "--listen", m.api,
		"--p2p-listen", listen, "--log-level", "debug"}, m.args, extra)
	m.url = "http://" + m.api
	command := binary
	if m.disk != "" {
		script := `mkdir -p "$1" && mount -t tmpfs -o size="$2" none "$1" && shift 2 && exec "$@"`
		args = slices.Concat([]string{"-m", "sh", "-c", script, "sh", m.dataDir, m.disk, binary}, args)
		command = "unshare"
	}
	m.program = start(t, append([]string{"OLLAMA_NO_CLOUD=1", "HOME=" + t.TempDir()}, m.env...), command, args...)
}

// up waits until prompts sent to the member can be answered.
func (m *member) up(t *testing.T) {
	t.Helper()
	eventually(t, 30*time.Second, m.name+" is ready", func() bool {
		select {
		case <-m.exited:
			t.Fatalf("%s ended: %v\n%s", m.name, m.err, m.output)
		default:
		}
		return answers(m.url + "/readyz")
	})
}

// form makes a cluster of the members: the first founds it, the others join with its token.
func form(t *testing.T, members ...*member) testCluster {
	t.Helper()
	members[0].start(t)
	eventually(t, 20*time.Second, "the first node serves", func() bool { return answers(members[0].url + "/healthz") })
	if len(members) > 1 {
		token := newToken(t, members[0])
		for _, m := range members[1:] {
			m.start(t, "--join", token)
		}
	}
	c := testCluster(members)
	for _, m := range c {
		m.up(t)
	}
	c.settled(t)
	return c
}

// settled waits until every member sees all members alive, all their engines, a leader, and an odd
// number of voters.
func (c testCluster) settled(t *testing.T) {
	t.Helper()
	voters := min(len(c), 5)
	if voters%2 == 0 {
		voters--
	}
	for _, m := range c {
		eventually(t, 20*time.Second, m.name+" sees the whole cluster", func() bool {
			s, ok := status(t, m)
			if !ok || !s.Quorum || s.Voters != voters || len(s.Nodes) != len(c) ||
				!slices.ContainsFunc(c, func(m *member) bool { return m.name == s.Leader }) {
				return false
			}
			return !slices.ContainsFunc(s.Nodes, func(n *cluster.Node) bool {
				return n.Condition != cluster.Alive || n.Engine == nil || n.Engine.Condition != cluster.EngineReady
			})
		})
	}
}

// status asks a member for its picture of the cluster; false if it does not answer.
func status(t *testing.T, m *member) (s api.Status, ok bool) {
	t.Helper()
	resp, err := client.Get(m.url + "/api/v1/cluster/status")
	if err != nil {
		return s, false
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s) == nil
}

// condition is what a member believes of another.
func condition(t *testing.T, m *member, name string) cluster.Condition {
	t.Helper()
	s, _ := status(t, m)
	for _, n := range s.Nodes {
		if n.Name == name {
			return n.Condition
		}
	}
	return ""
}

// leader returns the member that leads and the others.
func (c testCluster) leader(t *testing.T) (leads *member, others testCluster) {
	t.Helper()
	eventually(t, 20*time.Second, "there is a leader", func() bool {
		s, ok := status(t, c[0])
		leads, others = nil, nil
		for _, m := range c {
			if ok && m.name == s.Leader {
				leads = m
			} else {
				others = append(others, m)
			}
		}
		return leads != nil
	})
	return leads, others
}

func newToken(t *testing.T, m *member) string {
	t.Helper()
	text, code := run(t, "token", "create", "--api", m.url)
	if code != 0 || strings.Count(text, "\n") != 1 {
		t.Fatalf("token create: %d %q", code, text)
	}
	return strings.TrimSpace(text)
}

func generate(t *testing.T, m *member, model, prompt string) (int, string, string) {
	t.Helper()
	code, header, text := askHeader(t, "POST", m.url+"/api/generate", fmt.Sprintf(`{"model":%q,"prompt":%q,"stream":false,"options":{"num_predict":8,"temperature":0}}`, model, prompt))
	return code, header.Get("X-Ollamamax-Node"), text
}

func TestAnyNodeAnswersAnyPrompt(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "all", "at-a"), fakeMember(t, "b", "all", "at-b"), fakeMember(t, "c", "all", "at-c"))
	for _, m := range c {
		for _, at := range []string{"a", "b", "c"} {
			code, node, text := generate(t, m, "at-"+at, "hello")
			if code != 200 || node != at {
				t.Errorf("%s asked for at-%s: %d from %q: %s", m.name, at, code, node, text)
			}
		}
		if code, _, text := generate(t, m, "nowhere", "hello"); code != 404 || text != `{"error":"model 'nowhere' not found"}` {
			t.Errorf("%s asked for a model that nobody has: %d %s", m.name, code, text)
		}
		_, text := ask(t, "GET", m.url+"/api/tags", "")
		for _, model := range []string{"all:latest", "at-a:latest", "at-b:latest", "at-c:latest"} {
			if n := strings.Count(text, `"name":"`+model+`"`); n != 1 {
				t.Errorf("%s lists %s %d times: %s", m.name, model, n, text)
			}
		}
		if _, text := ask(t, "GET", m.url+"/v1/models", ""); strings.Count(text, `"id"`) != 4 {
			t.Errorf("%s: /v1/models: %s", m.name, text)
		}
		eventually(t, 30*time.Second, "ps lists what is loaded anywhere", func() bool {
			_, text := ask(t, "GET", m.url+"/api/ps", "")
			return strings.Contains(text, "at-a") && strings.Contains(text, "at-b") && strings.Contains(text, "at-c")
		})
		if code, text := ask(t, "POST", m.url+"/api/show", `{"model":"AT-B"}`); code != 200 {
			t.Errorf("%s: show: %d %s", m.name, code, text)
		}
		if code, text := ask(t, "GET", m.url+"/v1/models/at-c", ""); code != 200 {
			t.Errorf("%s: /v1/models/at-c: %d %s", m.name, code, text)
		}
	}
	// Requests for a model that all have loaded are spread.
	for _, m := range c {
		ask(t, "POST", m.engine+"/api/generate", `{"model":"all","prompt":"load","stream":false}`)
	}
	eventually(t, 30*time.Second, "all have it loaded", func() bool {
		_, text := ask(t, "GET", c[0].url+"/api/v1/models/all", "")
		return strings.Count(text, `"loaded":true`) == 3
	})
	served := map[string]int{}
	i := 0
	eventually(t, 20*time.Second, "all three serve", func() bool {
		_, node, _ := generate(t, c[i%3], "all", fmt.Sprint(i))
		served[node]++
		i++
		return len(served) == 3
	})
}

func TestCopyAndDeleteReachEveryHolder(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c"))
	if code, text := ask(t, "POST", c[2].url+"/api/copy", `{"source":"m","destination":"m2"}`); code != 200 || text != "" {
		t.Fatalf("copy: %d %s", code, text)
	}
	_, text := ask(t, "GET", c[2].url+"/api/v1/models/m2", "")
	if !strings.Contains(text, `"node":"a"`) || !strings.Contains(text, `"node":"b"`) || strings.Contains(text, `"node":"c"`) {
		t.Errorf("replicas of the copy, at once after it: %s", text)
	}
	if code, text := ask(t, "DELETE", c[2].url+"/api/delete", `{"model":"m"}`); code != 200 {
		t.Fatalf("delete: %d %s", code, text)
	}
	if code, _ := ask(t, "GET", c[2].url+"/api/v1/models/m", ""); code != 404 {
		t.Errorf("the model is still listed after delete: %d", code)
	}
	if code, text := ask(t, "DELETE", c[0].url+"/api/delete", `{"model":"nowhere"}`); code != 404 || text != `{"error":"model 'nowhere' not found"}` {
		t.Errorf("delete of a model that nobody has: %d %s", code, text)
	}
	// A holder that cannot do it is named, and those that did it too.
	fault(t, c[1], `{"kind":"error500","path":"/api/delete"}`)
	code, text := ask(t, "DELETE", c[2].url+"/api/delete", `{"model":"m2"}`)
	if code < 500 || !strings.Contains(text, "failed on b: ") || !strings.Contains(text, "done on a") {
		t.Errorf("delete that fails on one: %d %s", code, text)
	}
}

// fault switches a fault of a member's fake engine on.
func fault(t *testing.T, m *member, body string) {
	t.Helper()
	if code, text := ask(t, "POST", m.engine+"/_fault", body); code != 200 && code != 204 {
		t.Fatalf("set fault: %d %s", code, text)
	}
}

func TestAFailureBeforeTheFirstByteIsMadeUpElsewhere(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m"))
	for _, m := range c[1:] { // loaded is preferred to stored
		ask(t, "POST", m.engine+"/api/generate", `{"model":"m","prompt":"load","stream":false}`)
	}
	eventually(t, 30*time.Second, "both have it loaded", func() bool {
		_, text := ask(t, "GET", c[0].url+"/api/v1/models/m", "")
		return strings.Count(text, `"loaded":true`) == 2
	})
	for _, kind := range []string{"error500", "reset", "refuse"} {
		t.Run(kind, func(t *testing.T) {
			before := requests(t, c)
			fault(t, c[1], fmt.Sprintf(`{"kind":%q,"path":"/api/generate"}`, kind))
			defer fault(t, c[1], `{"kind":"none"}`)
			one := func(i int) {
				if code, node, text := generate(t, c[0], "m", fmt.Sprint(kind, i)); code != 200 || node != "c" {
					t.Errorf("%d from %q: %s", code, node, text)
				}
			}
			for i := range 20 {
				one(i)
			}
			if kind == "refuse" { // the fake does not count whom it refuses
				return
			}
			// It failed in the test before: it is left alone for a while.
			eventually(t, 20*time.Second, "the node with the fault is asked", func() bool { one(20); return requests(t, c) != before })
		})
	}
	// The control: without the fault both serve.
	// How busy a node says it is may be a second old, so that the draw favours one for as long.
	served := map[string]bool{}
	eventually(t, 20*time.Second, "both serve", func() bool {
		_, node, _ := generate(t, c[0], "m", "x")
		served[node] = true
		return served["b"] && served["c"]
	})
	// Nobody left: one clear error, in the client's dialect.
	fault(t, c[1], `{"kind":"refuse"}`)
	fault(t, c[2], `{"kind":"refuse"}`)
	code, text := ask(t, "POST", c[0].url+"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}]}`)
	if code != 502 && code != 503 || !strings.HasPrefix(text, `{"error":{"message":"`) {
		t.Errorf("all failed: %d %s", code, text)
	}
}

func TestAnEngineThatFailsEverywhereIsNotAskedForEver(t *testing.T) {
	t.Parallel()
	c := testCluster{fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m")}
	for _, m := range c { // time earns nothing
		m.args = append(m.args, "--config", configured(t, "gateway: {retry: {floor: 0}}\n"))
	}
	form(t, c...)
	for _, m := range c {
		fault(t, m, `{"kind":"error500","path":"/api/generate"}`)
	}
	before := requests(t, c)
	const n = 100
	for i := range n {
		if code, _, text := generate(t, c[i%3], "m", fmt.Sprint(i)); code != 500 {
			t.Fatalf("%d %s: the engine's own answer is 500", code, text)
		}
	}
	// Each gateway has a reserve of 10 and earns a fifth of a retry a request.
	if asked := requests(t, c) - before; asked > n+3*10+n/5 {
		t.Errorf("%d requests became %d on the engines", n, asked)
	}
}

// requests counts what the fakes were asked for in inference.
func requests(t *testing.T, c testCluster) (n int) {
	t.Helper()
	for _, m := range c {
		var s struct{ Faulted int }
		_, text := ask(t, "GET", m.engine+"/_stats", "")
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		n += s.Faulted
	}
	return n
}

func TestReplicasThatDifferInDigestAreShown(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m,"+strings.Repeat("a", 64)), fakeMember(t, "b", "m,"+strings.Repeat("b", 64)))
	for _, m := range c {
		_, text := ask(t, "GET", m.url+"/api/v1/models", "")
		var list api.Models
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Models) != 1 || !list.Models[0].Conflict || len(list.Models[0].Replicas) != 2 {
			t.Errorf("%s: %s", m.name, text)
		}
		// The asked node's own digest is the one listed, and the one that serves.
		_, tags := ask(t, "GET", m.url+"/api/tags", "")
		if !strings.Contains(tags, strings.Repeat(m.name, 64)) || strings.Count(tags, `"name"`) != 1 {
			t.Errorf("%s lists %s", m.name, tags)
		}
		for i := range 10 {
			if _, node, _ := generate(t, m, "m", fmt.Sprint(i)); node != m.name {
				t.Errorf("%s had its request served by %s, which holds another model of that name", m.name, node)
			}
		}
	}
}

func TestTheOllamaCommandWorksThroughEveryNode(t *testing.T) {
	t.Parallel()
	c := form(t, realMember(t, "a"), realMember(t, "b"), realMember(t, "c"))
	for _, m := range c {
		exerciseCommand(t, m.url)
	}
	// A model that one node has answers through all, with the same text.
	create(t, c[1].url, "noise", filepath.Join(engineDir(t), "noise.gguf"))
	var texts []string
	for _, m := range c {
		eventually(t, 30*time.Second, m.name+" knows the model", func() bool {
			_, text := ask(t, "GET", m.url+"/api/tags", "")
			return strings.Contains(text, "noise")
		})
		code, node, text := generate(t, m, "noise", "The sea")
		if code != 200 || node != "b" {
			t.Fatalf("%s: %d from %s: %s", m.name, code, node, text)
		}
		var r struct{ Response string }
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		texts = append(texts, r.Response)
	}
	if texts[0] != texts[1] || texts[1] != texts[2] || texts[0] == "" {
		t.Errorf("%q", texts)
	}
}

func TestTokensThatDoNotAdmitChangeNothing(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m"))
	foreign := form(t, fakeMember(t, "f", "m"))
	good, other := newToken(t, c[0]), newToken(t, foreign[0])
	expired, code := run(t, "token", "create", "--ttl", "1ms", "--api", c[0].url)
	if code != 0 {
		t.Fatal(expired)
	}
	revoked := newToken(t, c[0])
	_, list := ask(t, "GET", c[0].url+"/api/v1/tokens", "")
	var tokens api.Tokens
	if err := json.Unmarshal([]byte(list), &tokens); err != nil || strings.Contains(list, "omx1-") {
		t.Fatalf("tokens: %v %s", err, list)
	}
	parsed, err := cluster.ParseToken(revoked)
	if err != nil {
		t.Fatal(err)
	}
	if text, code := run(t, "token", "revoke", parsed.ID, "--api", c[0].url); code != 0 {
		t.Fatal(text)
	}
	wrong, err := cluster.ParseToken(good)
	if err != nil {
		t.Fatal(err)
	}
	wrong.Secret = slices.Clone(wrong.Secret)
	wrong.Secret[0] ^= 1
	foreignToken, err := cluster.ParseToken(other)
	if err != nil {
		t.Fatal(err)
	}
	misled := foreignToken // a token of the one cluster with the addresses of the other
	misled.Addrs = wrong.Addrs

	for _, tc := range []struct{ name, token, want string }{
		{"cut short", good[:len(good)-5], "not a whole join token"},
		{"not a token", "hello", "not a whole join token"},
		{"wrong secret", wrong.Text(), "wrong secret"},
		{"expired", strings.TrimSpace(expired), "expired"},
		{"revoked", revoked, "unknown join token"},
		{"foreign", misled.Text(), "unknown join token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			text, code := run(t, "serve", "--config", quietConfig(t), "--name", "new", "--listen", freeAddr(t), "--p2p-listen", "/ip4/127.0.0.1/tcp/0",
				"--data-dir", dir, "--engine-url", c[0].engine, "--join", tc.token, "--log-level", "error")
			if code != 1 || !strings.Contains(text, tc.want) || !strings.Contains(text, "ollamamax: join: ") {
				t.Errorf("%d %s", code, text)
			}
			if s, _ := status(t, c[0]); len(s.Nodes) != 1 {
				t.Errorf("the cluster has %d nodes", len(s.Nodes))
			}
			// Nothing was kept of it: the same directory joins with the right token.
			if _, err := os.Stat(filepath.Join(dir, "membership.json")); err == nil {
				t.Error("the refused node has kept a membership")
			}
		})
	}
}

func TestARunningNodeThatIsAloneCanJoin(t *testing.T) {
	t.Parallel()
	a, b := fakeMember(t, "a", "m"), fakeMember(t, "b", "n")
	form(t, a)
	form(t, b)
	token := newToken(t, a)
	var asking sync.WaitGroup
	for range 3 { // an impatient operator
		asking.Go(func() {
			resp, err := client.Post(b.url+"/api/v1/cluster/join", "application/json", strings.NewReader(fmt.Sprintf(`{"token":%q}`, token)))
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != 204 {
				t.Errorf("join: %d", resp.StatusCode)
			}
		})
	}
	asking.Wait()
	testCluster{a, b}.settled(t)
	if code, text := ask(t, "POST", b.url+"/api/v1/cluster/join", fmt.Sprintf(`{"token":%q}`, token)); code != 204 {
		t.Errorf("joining one's own cluster again: %d %s", code, text)
	}
	d := fakeMember(t, "d", "n")
	form(t, d)
	newToken(t, d) // has agreed on something else than itself
	if code, text := ask(t, "POST", d.url+"/api/v1/cluster/join", fmt.Sprintf(`{"token":%q}`, token)); code != 409 {
		t.Errorf("join of a node that is not alone any more: %d %s", code, text)
	}
	b.stop(t)
	b.start(t)
	b.up(t)
	testCluster{a, b}.settled(t)
}

func TestAGatewayWithoutAnEngineMakesAndPullsModelsOnOneOfTheOthers(t *testing.T) {
	t.Parallel()
	dir := engineDir(t)
	bare := &member{name: "bare", dataDir: filepath.Join(t.TempDir(), "bare"), args: []string{"--engine-url", "http://" + freeAddr(t)}}
	a, b := realMember(t, "a"), realMember(t, "b")
	form(t, a, b)
	bare.start(t, "--join", newToken(t, a))
	bare.up(t)
	exerciseCommand(t, bare.url)
	create(t, bare.url, "noise", filepath.Join(dir, "noise.gguf")) // its blob and its create find one engine
	_, text := ask(t, "GET", bare.url+"/api/v1/models/noise", "")
	if held, wanted := gjson.Get(text, "replicas.#").Int(), gjson.Get(text, "wanted.digest").Str; held != 1 || wanted == "" {
		t.Errorf("held by one node and wanted of it, as the node that was asked sees it at once: %s", text)
	}
	for path, want := range map[string]string{"/api/pull": "pulling manifest", "/api/push": "retrieving manifest"} {
		// A registry that is not there: the engine says so, in its own stream.
		if code, text := ask(t, "POST", bare.url+path, `{"model":"127.0.0.1:1/me/noise","insecure":true}`); code != 200 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if code, text := ask(t, "GET", bare.url+"/api/version", ""); code != 200 || !strings.Contains(text, "0.3") {
		t.Errorf("version: %d %s", code, text)
	}
}

func TestNodesWithOneNameAreToldApart(t *testing.T) {
	t.Parallel()
	a, b := fakeMember(t, "box", "m"), fakeMember(t, "box", "m")
	b.dataDir += "2"
	form(t, a)
	b.start(t, "--join", newToken(t, a))
	b.up(t)
	eventually(t, 20*time.Second, "the second box has another name", func() bool {
		s, _ := status(t, a)
		return len(s.Nodes) == 2 && s.Nodes[0].Name == "box" && s.Nodes[1].Name == "box-2"
	})
}

func TestANodeComesBackToItsCluster(t *testing.T) {
	t.Parallel()
	c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m"))
	before, _ := status(t, c[0])
	c[2].stop(t)
	eventually(t, 20*time.Second, "the others see it gone", func() bool { return condition(t, c[0], "c") == cluster.Dead && condition(t, c[1], "c") == cluster.Dead })
	// A token for the same cluster is not needed, and said so; one for another is refused.
	token := newToken(t, c[0])
	c[2].start(t, "--join", token)
	c[2].up(t)
	c.settled(t)
	after, _ := status(t, c[2])
	if after.ClusterID != before.ClusterID {
		t.Errorf("cluster %s became %s", before.ClusterID, after.ClusterID)
	}
	if !strings.Contains(c[2].output.String(), "the token is not needed") || !strings.Contains(c[2].output.String(), "coming back to the cluster") {
		t.Errorf("it did not say that it comes back")
	}
	foreign := form(t, fakeMember(t, "f", "m"))
	c[2].stop(t)
	text, code := run(t, "serve", "--config", quietConfig(t), "--name", "c", "--listen", c[2].api, "--data-dir", c[2].dataDir, "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--join", newToken(t, foreign[0]), "--log-level", "error")
	if code != 1 || !strings.Contains(text, "belongs to cluster "+before.ClusterID) {
		t.Errorf("a token for another cluster: %d %s", code, text)
	}
	// Two processes cannot use one data directory.
	text, code = run(t, "serve", "--config", quietConfig(t), "--name", "a", "--listen", freeAddr(t), "--data-dir", c[0].dataDir, "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--log-level", "error")
	if code != 1 || !strings.Contains(text, "another") {
		t.Errorf("a data directory in use: %d %s", code, text)
	}
}

func TestAllNodesStopAndStartAgain(t *testing.T) {
	if raceFlag != nil { // else it measures
		t.Parallel()
	}
	for _, tc := range []struct {
		name  string
		moved bool
	}{{"at their addresses", false}, {"at other addresses", true}} {
		t.Run(tc.name, func(t *testing.T) {
			c := form(t, fakeMember(t, "a", "m"), fakeMember(t, "b", "m"), fakeMember(t, "c", "m"))
			before, _ := status(t, c[0])
			ids := map[string]cluster.NodeID{}
			for _, n := range before.Nodes {
				ids[n.Name] = n.ID
			}
			var ending sync.WaitGroup
			for _, m := range c {
				ending.Go(func() { m.stop(t) })
			}
			ending.Wait()
			var extra []string
			if tc.moved {
				for _, m := range c {
					m.api, m.p2p = freeAddr(t), freeAddr(t)
				}
				host, port, _ := strings.Cut(c[0].p2p, ":")
				file := filepath.Join(t.TempDir(), "moved.yaml")
				text := fmt.Sprintf("p2p: {mdns: false, bootstrap: [/ip4/%s/tcp/%s/p2p/%s]}\n", host, port, ids["a"])
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				extra = []string{"--config", file}
			}
			for _, m := range c {
				m.start(t, extra...)
			}
			began := time.Now()
			for _, m := range c {
				m.up(t)
			}
			ready := time.Since(began)
			c.settled(t)
			if raceFlag == nil && ready > 5*time.Second {
				t.Errorf("ready on all only %v after the last start", ready)
			}
			t.Logf("ready on all %v after the last start, settled after %v", ready.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
			after, _ := status(t, c[1])
			if after.ClusterID != before.ClusterID {
				t.Errorf("cluster %s became %s", before.ClusterID, after.ClusterID)
			}
			for _, n := range after.Nodes {
				if ids[n.Name] != n.ID {
					t.Errorf("%s has another id", n.Name)
				}
			}
			for _, m := range c {
				if code, _, text := generate(t, m, "m", "x"); code != http.StatusOK {
					t.Errorf("%s: %d %s", m.name, code, text)
				}
			}
		})
	}
}
