package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// asked is a fake of a node: it answers every request alike and remembers the last one.
type asked struct {
	*httptest.Server
	path, body string
}

func ask(t *testing.T, status int, answer string) *asked {
	t.Helper()
	n := &asked{}
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		n.path, n.body = r.Method+" "+r.URL.EscapedPath(), string(body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer) // the command may have gone
	}))
	t.Cleanup(n.Close)
	return n
}

// run runs a command against the node and returns what it wrote to its two outputs.
func (n *asked) run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, problems bytes.Buffer
	cmd := root()
	cmd.SetArgs(append(args, "--api", n.URL))
	cmd.SetOut(&out)
	cmd.SetErr(&problems)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), problems.String(), err
}

func TestCommandsOfModelsSendWhatWasGiven(t *testing.T) {
	for _, tc := range []struct {
		args              string
		answer            string
		asked, body, says string
	}{
		{"pull User/M:Tag", `{"status":"success"}`, "POST /api/v1/models/User%2FM:Tag/download", `{"stream":true}`, "pulled User/M:Tag"},
		{"pull m --replicas 3 --nodes a,b --insecure", `{"status":"success"}`, "POST /api/v1/models/m/download", `{"replicas":3,"nodes":["a","b"],"stream":true,"insecure":true}`, "pulled m"},
		{"pull m --replicas all", `{"status":"success"}`, "POST /api/v1/models/m/download", `{"replicas":"all","stream":true}`, "pulled m"},
		{"place m --replicas 2", "{}", "PUT /api/v1/models/m/placement", `{"replicas":2}`, "placed m"},
		{"place m --nodes=", "{}", "PUT /api/v1/models/m/placement", `{"nodes":[]}`, "placed m"},
		{"place m --nodes a,b --pin=false --preload", "{}", "PUT /api/v1/models/m/placement", `{"nodes":["a","b"],"pin":false,"preload":true}`, "placed m"},
		{"place m --label gpu=yes --label zone=a=b", "{}", "PUT /api/v1/models/m/placement", `{"labels":{"gpu":"yes","zone":"a=b"}}`, "placed m"},
		{"place m --label=", "{}", "PUT /api/v1/models/m/placement", `{"labels":{}}`, "placed m"},
		{"rm hf.co/A/B", "", "DELETE /api/v1/models/hf.co%2FA%2FB", "", "removed hf.co/A/B"},
		{"stop m", `{"done":true}`, "POST /api/generate", `{"keep_alive":0,"model":"m"}`, "stopped m"},
	} {
		n := ask(t, 200, tc.answer)
		out, _, err := n.run(t, strings.Fields(tc.args)...)
		if err != nil || n.path != tc.asked || n.body != tc.body || out != tc.says+"\n" {
			t.Errorf("%s: asked %s with %s, said %q, %v", tc.args, n.path, n.body, out, err)
		}
	}
}

func TestWrongUsageOfModelCommandsAsksNobody(t *testing.T) {
	for _, args := range []string{
		"pull", "pull m n", "pull m --replicas 0", "pull m --replicas=", "place m", "place m --replicas some", "place m --label gpu", "place m --label =yes", "rm", "stop", "transfers x",
	} {
		n := ask(t, 200, `{"status":"success"}`)
		if _, _, err := n.run(t, strings.Fields(args)...); !errors.As(err, new(usageError)) || n.path != "" {
			t.Errorf("%s: %v, asked %q", args, err, n.path)
		}
	}
}

func TestPullSaysOnceWhatBegins(t *testing.T) {
	n := ask(t, 200, `{"status":"pulling manifest"}
{"status":"pulling aa","digest":"sha256:aa","total":4}
{"status":"pulling bb","digest":"sha256:bb","total":4,"completed":1}
{"status":"pulling aa","digest":"sha256:aa","total":4,"completed":4}
{"status":"success"}
`)
	out, problems, err := n.run(t, "pull", "m")
	if err != nil || out != "pulled m\n" || problems != "pulling manifest\npulling aa\npulling bb\nsuccess\n" {
		t.Errorf("%q, %q, %v", out, problems, err)
	}
}

func TestPullFailsWithItsStream(t *testing.T) {
	for name, tc := range map[string]struct {
		status       int
		answer, says string
	}{
		"refused":       {409, `{"error":{"code":"contradiction","message":"3 replicas","hint":"name more nodes"}}`, "3 replicas: name more nodes"},
		"fails later":   {200, "{\"status\":\"a\"}\n{\"error\":{\"code\":\"internal\",\"message\":\"disk is full\",\"hint\":\"make room\"}}\n", "disk is full: make room"},
		"ends early":    {200, "{\"status\":\"a\"}\n", "before the model was there"},
		"says nothing":  {200, "", "before the model was there"},
		"another thing": {200, "<html>\n", "is it an OllamaMax node?"},
	} {
		out, _, err := ask(t, tc.status, tc.answer).run(t, "pull", "m")
		if err == nil || errors.As(err, new(usageError)) || !strings.Contains(err.Error(), tc.says) || out != "" {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
}

func TestErrorsOfOllamasRoutesAreReadable(t *testing.T) {
	if _, _, err := ask(t, 404, `{"error":"model 'm' not found"}`).run(t, "stop", "m"); err == nil || err.Error() != "model 'm' not found" {
		t.Error(err)
	}
}

func TestProgressDrawsALineAStepTwiceASecondAtMost(t *testing.T) {
	var out bytes.Buffer
	now := time.Time{}
	p := newProgress(&out)
	if p.terminal {
		t.Fatal("a buffer is taken for a terminal")
	}
	p.terminal, p.now = true, func() time.Time { return now }
	for _, step := range []struct {
		after  time.Duration
		record string
	}{
		{0, `{"status":"pulling manifest"}`},
		{0, `{"status":"pulling aa","digest":"aa","total":1000,"completed":0}`},
		{100 * time.Millisecond, `{"status":"pulling aa","digest":"aa","total":1000,"completed":100}`},
		{400 * time.Millisecond, `{"status":"pulling aa","digest":"aa","total":1000,"completed":500}`},
		{100 * time.Millisecond, `{"status":"pulling aa","digest":"aa","total":1000,"completed":1000}`},
		{0, `{"status":"pulling bb","digest":"bb","total":10,"completed":1}`},
		{100 * time.Millisecond, `{"status":"pulling aa","digest":"aa","total":1000,"completed":1000}`}, // an old step does not take the line back at once
		{0, `{"status":"success"}`},
	} {
		now = now.Add(step.after)
		if err := p.record([]byte(step.record)); err != nil {
			t.Fatal(err)
		}
	}
	p.end()
	const clear = "\x1b[K"
	want := "\rpulling manifest" + clear + "\n" +
		"\rpulling aa  0 B/1.0 kB 0%" + clear + "\rpulling aa  500 B/1.0 kB 50%" + clear + "\rpulling aa  1.0 kB/1.0 kB 100%" + clear + "\n" +
		"\rpulling bb  1 B/10 B 10%" + clear + "\n" + "\rsuccess" + clear + "\n"
	if out.String() != want || !p.success {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// table returns the lines of a table, their cells divided by one space each.
func table(text string) (lines []string) {
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}

func TestModelsShowsWhatIsWantedBesideWhatIsHeld(t *testing.T) {
	const answer = `{"models":[
{"name":"m:latest","conflict":true,"wanted":{"digest":"aaaaaaaaaaaaaaaa","replicas":2,"nodes":["alpha","beta"],"labels":{"zone":"a","gpu":"yes"},"pin":true,"preload":true,"version":1},
 "replicas":[{"node":"alpha","condition":"alive","digest":"aaaaaaaaaaaaaaaa","size":2000,"loaded":true},{"node":"beta","condition":"dead","digest":"bbbbbbbbbbbbbbbb","size":2000,"loaded":false}]},
{"name":"new:latest","conflict":false,"wanted":{"digest":"cccccccccccccccc","replicas":"all","nodes":[],"labels":{}},"replicas":[]},
{"name":"stray:latest","conflict":false,"wanted":null,"replicas":[{"node":"beta","condition":"alive","digest":"dddddddddddddddd","size":5,"loaded":false,"damaged":true}]}]}`
	n := ask(t, 200, answer)
	out, _, err := n.run(t, "models")
	want := []string{
		"MODEL SIZE DIGEST WANTED NODES",
		"m:latest 2.0 kB conflict 2 on alpha,beta gpu=yes zone=a pinned preloaded alpha=aaaaaaaaaaaa* beta=bbbbbbbbbbbb(dead)",
		"new:latest - cccccccccccc all none",
		"stray:latest 5 B dddddddddddd - beta(damaged)",
	}
	if got := table(out); err != nil || n.path != "GET /api/v1/models" || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%v\n%s", err, strings.Join(got, "\n"))
	}
}

func TestTransfersShowsHowFarAndWhereFrom(t *testing.T) {
	const answer = `{"transfers":[
{"id":"t1","node":"alpha","model":"m:latest","state":"running","size":4000,"have":1000,"rate":100,"eta":"30s","upstream":true,
 "sources":[{"node":"beta","bytes":1000,"rate":100,"connected":true},{"node":"gamma","failure":"sent wrong bytes","banned":true},{"node":"delta","failure":"reset"}]},
{"id":"t2","node":"beta","model":"m:latest","state":"waiting","size":0,"have":0,"rate":0,"eta":"","sources":[]}],"missing":["eps","zeta"]}`
	n := ask(t, 200, answer)
	out, _, err := n.run(t, "transfers")
	want := []string{
		"ID MODEL NODE DONE RATE ETA SOURCES",
		"t1 m:latest alpha 1.0 kB/4.0 kB 25% 100 B/s 30s beta gamma(banned: sent wrong bytes) delta(reset) registry",
		"t2 m:latest beta 0 B waiting - none",
		"",
		"No answer from: eps, zeta",
	}
	if got := table(out); err != nil || n.path != "GET /api/v1/transfers" || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%v\n%s", err, strings.Join(got, "\n"))
	}
	if out, _, err := n.run(t, "transfers", "--json"); err != nil || out != answer {
		t.Errorf("--json: %v\n%s", err, out)
	}
}
