package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// keeper is a Models that notes what it is told.
type keeper struct {
	mu   sync.Mutex
	said []string
	err  error
	says []string // records of a pull, before err
	// goesOn: a pull does not end by itself.
	goesOn bool
}

func (k *keeper) Valid(name string) bool { return !strings.Contains(name, " ") }

func (k *keeper) Pull(ctx context.Context, name string, insecure bool, progress func([]byte) error) error {
	k.said = append(k.said, fmt.Sprintf("pull %s %v", name, insecure))
	for _, record := range k.says {
		if err := progress([]byte(record)); err != nil {
			return err
		}
	}
	if k.goesOn {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return k.err
}

func (k *keeper) Made(_ context.Context, on cluster.NodeID, name, digest string, size int64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.said = append(k.said, fmt.Sprintf("made %s on %s: %s, %d", name, on, digest, size))
	return k.err
}

func (k *keeper) Delete(_ context.Context, name string) error {
	k.said = append(k.said, "delete "+name)
	return k.err
}

// holding picks the first node that holds the model of the request, if it names one.
type holding struct{ inOrder }

func (h holding) Acquire(ctx context.Context, r *cluster.Request, tried []cluster.NodeID) (*cluster.Lease, error) {
	for _, n := range h.inOrder {
		if _, holds := n.Model(r.Canonical); !holds && r.Model != "" {
			tried = append(slices.Clone(tried), n.ID)
		}
	}
	return h.inOrder.Acquire(ctx, r, tried)
}

func TestAPullIsTheClustersAffair(t *testing.T) {
	pulling, success := `{"status":"pulling manifest"}`, `{"status":"success"}`
	for what, tc := range map[string]struct {
		says         []string
		err          error
		body         string
		code         int
		answer, said string
		own          bool // the own engine is asked
	}{
		"in a stream":                   {[]string{pulling, success}, nil, `{"model":"X"}`, 200, pulling + "\n" + success + "\n", "pull X false", false},
		"whole":                         {[]string{pulling, success}, nil, `{"name":"x","insecure":true,"stream":false}`, 200, success, "pull x true", false},
		"that fails on its way":         {[]string{pulling}, errors.New("no room"), `{"model":"x"}`, 200, pulling + "\n" + `{"error":"no room"}` + "\n", "pull x false", false},
		"that fails, whole":             {[]string{pulling}, errors.New("no room"), `{"model":"x","stream":false}`, 500, `{"error":"no room"}`, "pull x false", false},
		"of what is no name":            {nil, nil, `{"model":"x y"}`, 400, `{"error":"invalid model name"}`, "", false},
		"of the cloud's":                {nil, nil, `{"model":"x:cloud"}`, 200, "engine", "", true},
		"that an Ollama would not read": {nil, nil, `{"model":"x","insecure":"yes"}`, 200, "engine", "", true},
		"of a node that is no member":   {nil, cluster.ErrNotMember, `{"model":"x"}`, 200, "engine", "pull x false", true},
	} {
		t.Run(what, func(t *testing.T) {
			nodes, asked := testNodes("a", "b"), ""
			g := newGateway(t, inOrder(nodes), nodes, func(node string, r *http.Request) (*http.Response, error) {
				asked += node
				return respond(200, "engine"), nil
			})
			k := keeper{says: tc.says, err: tc.err}
			g.deps.Models = &k
			mux := http.NewServeMux()
			g.Register(mux)
			w := do(mux, "POST", "/api/pull", tc.body)
			if w.Code != tc.code || w.Body.String() != tc.answer || strings.Join(k.said, ", ") != tc.said || (asked == "a") != tc.own {
				t.Errorf("%d %q, %q, engines asked %q", w.Code, w.Body, k.said, asked)
			}
		})
	}
}

func TestAPullThatIsEndedTellsWhy(t *testing.T) {
	for what, tc := range map[string]struct {
		body, deadline string
		cancel         bool
		code           int
		answer         string
	}{
		"by an operator, in a stream":     {`{"model":"x"}`, "", true, 200, `{"error":"the request was cancelled by an operator"}`},
		"by an operator, whole":           {`{"model":"x","stream":false}`, "", true, 503, `{"error":"the request was cancelled by an operator"}`},
		"by its deadline, in a stream":    {`{"model":"x"}`, "1s", false, 200, `{"error":"the request's deadline passed before the model was here"}`},
		"by its deadline, whole":          {`{"model":"x","stream":false}`, "1s", false, 504, `{"error":"the request's deadline passed before an answer began"}`},
		"by the client, who sees no more": {`{"model":"x"}`, "gone", false, 200, `{"status":"pulling manifest"}`},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes := testNodes("a")
				g := newGateway(t, inOrder(nodes), nodes, nil)
				g.deps.Models = &keeper{says: []string{`{"status":"pulling manifest"}`}, goesOn: true}
				mux := http.NewServeMux()
				g.Register(mux)
				ctx, leave := context.WithCancel(t.Context())
				r := httptest.NewRequestWithContext(ctx, "POST", "/api/pull", strings.NewReader(tc.body))
				r.Header.Set("X-Request-Id", "p")
				switch {
				case tc.cancel:
					time.AfterFunc(time.Second, func() { g.Cancel("p") })
				case tc.deadline == "gone":
					time.AfterFunc(time.Second, leave)
				default:
					r.Header.Set("X-Deadline", tc.deadline)
				}
				w := httptest.NewRecorder()
				mux.ServeHTTP(w, r)
				lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
				if w.Code != tc.code || lines[len(lines)-1] != tc.answer {
					t.Errorf("%d %q", w.Code, w.Body)
				}
				leave()
			})
		})
	}
}

func TestWhatIsMadeIsTold(t *testing.T) {
	before, after := testNodes("a", "b"), testNodes("a", "b")
	before[1].Models = append(before[1].Models, cluster.Model{Name: "base", Digest: "5"})
	after[1].Models = append(after[1].Models, cluster.Model{Name: "base", Digest: "5"}, cluster.Model{Name: "new", Digest: "7", Size: 9})
	after[0].Models = append(after[0].Models, cluster.Model{Name: "new", Digest: "7", Size: 9})
	for what, tc := range map[string]struct {
		path, body, asked, said string
	}{
		"created on the asked node":           {"/api/create", `{"model":"new","from":"m"}`, "a", "made new on a: 7, 9"},
		"created of files that were sent":     {"/api/create", `{"model":"new","from":"base","files":{}}`, "a", "made new on a: 7, 9"},
		"created where alone its base is":     {"/api/create", `{"model":"new","from":"Base:latest"}`, "b", "made new on b: 7, 9"},
		"created as it was":                   {"/api/create", `{"model":"m","from":"n"}`, "a", ""},
		"copied":                              {"/api/copy", `{"source":"m","destination":"new"}`, "ab", "made new on a: 7, 9, made new on b: 7, 9"},
		"nothing, by one that makes no model": {"/api/show", `{"model":"m"}`, "a", ""},
	} {
		t.Run(what, func(t *testing.T) {
			var mu sync.Mutex
			var asked []string
			var now atomic.Pointer[cluster.View]
			now.Store(cluster.NewView("a", time.Time{}, before))
			g := newGateway(t, holding{before}, before, func(node string, _ *http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, node)
				return respond(200, "{}"), nil
			})
			g.deps.View = now.Load
			g.deps.Refresh = func(context.Context, *cluster.Node) { now.Store(cluster.NewView("a", time.Time{}, after)) }
			var k keeper
			g.deps.Models = &k
			mux := http.NewServeMux()
			g.Register(mux)
			if w := do(mux, "POST", tc.path, tc.body); w.Code != 200 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			slices.Sort(asked)
			slices.Sort(k.said)
			if strings.Join(asked, "") != tc.asked || strings.Join(k.said, ", ") != tc.said {
				t.Errorf("asked %q, told %q", asked, k.said)
			}
		})
	}
}

func TestADeletionIsTheClustersAffair(t *testing.T) {
	for what, tc := range map[string]struct {
		err   error
		model string
		code  int
		asked string
	}{
		"done":                        {nil, "m", 200, ""},
		"that cannot be agreed on":    {cluster.ErrNoQuorum, "m", 503, ""},
		"that failed on a node":       {errors.New("failed on b: no"), "m", 502, ""},
		"of what nobody has":          {cluster.ErrUnknownModel, "x", 404, "a"},
		"on a node that is no member": {cluster.ErrNotMember, "m", 200, "ab"},
	} {
		var mu sync.Mutex
		var asked []string
		nodes := testNodes("a", "b")
		g := newGateway(t, inOrder(nodes), nodes, func(node string, _ *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, node)
			if tc.model == "x" {
				return respond(404, `{"error":"model 'x' not found"}`), nil
			}
			return respond(200, ""), nil
		})
		k := keeper{err: tc.err}
		g.deps.Models = &k
		mux := http.NewServeMux()
		g.Register(mux)
		w := do(mux, "DELETE", "/api/delete", `{"model":"`+tc.model+`"}`)
		slices.Sort(asked)
		if w.Code != tc.code || strings.Join(asked, "") != tc.asked || !slices.Equal(k.said, []string{"delete " + tc.model}) {
			t.Errorf("%s: %d %s, asked %q, told %q", what, w.Code, w.Body, asked, k.said)
		}
	}
}

func TestAnEngineIsLookedAtAnewOnlyForWhatItMayHaveLoaded(t *testing.T) {
	for body, want := range map[string]int{
		`{"model":"m","prompt":"x","stream":false}`:              0, // it is loaded already
		`{"model":"n","prompt":"x","stream":false}`:              1,
		`{"model":"big:cloud","prompt":"x","stream":false}`:      0,
		`{"model":"big:120b-cloud","prompt":"x","stream":false}`: 0,
	} {
		nodes := testNodes("a")
		g := newGateway(t, inOrder(nodes), nodes, func(string, *http.Request) (*http.Response, error) { return respond(200, "{}"), nil })
		looked := 0
		g.deps.Refresh = func(context.Context, *cluster.Node) { looked++ }
		mux := http.NewServeMux()
		g.Register(mux)
		if w := do(mux, "POST", "/api/generate", body); w.Code != 200 || looked != want {
			t.Errorf("%s: %d, looked %d times, want %d", body, w.Code, looked, want)
		}
	}
}
