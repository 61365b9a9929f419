package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

const (
	digest = "00000000000000000000000000000000000000000000000000000000000000aa"
	other  = "00000000000000000000000000000000000000000000000000000000000000bb"
)

// noon is the time of the tests.
var noon = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

// room is the operators' API with a node of fakes behind it, which remember what they were asked.
type room struct {
	mux   *http.ServeMux
	view  *cluster.View
	state *cluster.State

	model     string // of the last call
	wish      api.Download
	streamed  bool
	placement api.Placement
	cancelled string

	pull      func(ctx context.Context, progress func([]byte) error) error
	err       error // what Place, Delete and CancelTransfer return
	transfers []api.Transfer
	missing   []string
}

// newRoom has nodes alpha, which is asked, and beta; beta is dead.
func newRoom(t *testing.T) *room {
	t.Helper()
	state := cluster.NewState()
	state.ClusterID = "c"
	state.Members = map[cluster.NodeID]cluster.Member{
		"id-alpha": {ID: "id-alpha", Name: "alpha", Serial: 1}, "id-beta": {ID: "id-beta", Name: "beta", Serial: 2},
	}
	deleted := noon.Add(-time.Hour)
	state.Models = map[string]cluster.Wanted{
		"m:latest":      {Name: "m", Digest: digest, Replicas: 2, Nodes: []cluster.NodeID{"id-gone", "id-beta", "id-alpha"}, Labels: map[string]string{"gpu": "yes"}, Pin: true, Version: 7},
		"user/new:q4":   {Name: "User/New:Q4", Digest: other, Replicas: cluster.EveryNode, Preload: true, Version: 8},
		"old:latest":    {Name: "old", Replicas: 1, Deleted: &deleted, Version: 3},
		"remade:latest": {Name: "remade", Replicas: 1, Deleted: &deleted, Version: 4},
	}
	h := &room{mux: http.NewServeMux(), state: state, pull: func(context.Context, func([]byte) error) error { return nil }}
	h.view = cluster.NewView("id-alpha", noon, []*cluster.Node{
		{ID: "id-alpha", Name: "alpha", Condition: cluster.Alive, Models: []cluster.Model{
			{Name: "m", Digest: digest, Size: 5}, {Name: "old", Digest: digest, ModifiedAt: deleted.Add(-time.Hour)},
			{Name: "remade", Digest: other, ModifiedAt: deleted.Add(time.Minute), Damaged: true},
		}, Loaded: []cluster.Loaded{{Name: "m:latest"}}},
		{ID: "id-beta", Name: "beta", Condition: cluster.Dead, Models: []cluster.Model{{Name: "M:latest", Digest: other, Size: 6}, {Name: "stray", Digest: digest}}},
	})
	New(Deps{
		Gatherer: prometheus.NewRegistry(), Now: func() time.Time { return noon },
		View: func() *cluster.View { return h.view }, State: func() *cluster.State { return h.state },
		Pull: func(ctx context.Context, model string, wish api.Download, progress func([]byte) error) error {
			h.model, h.wish, h.streamed = model, wish, progress != nil
			return h.pull(ctx, progress)
		},
		Place: func(_ context.Context, model string, p api.Placement) error {
			h.model, h.placement = model, p
			return h.err
		},
		Delete:         func(_ context.Context, model string) error { h.model = model; return h.err },
		Transfers:      func(context.Context) ([]api.Transfer, []string) { return h.transfers, h.missing },
		CancelTransfer: func(_ context.Context, id string) error { h.cancelled = id; return h.err },
	}).Register(h.mux)
	return h
}

// ask sends a request and decodes the answer into v, if it is not nil.
func (h *room) ask(t *testing.T, method, path, body string, v any) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.mux.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	if v != nil {
		if err := json.Unmarshal(w.Body.Bytes(), v); err != nil {
			t.Fatalf("%s %s: %d %s: %v", method, path, w.Code, w.Body, err)
		}
	}
	return w
}

// refused checks that a request is answered with an error that says why and who says so.
func (h *room) refused(t *testing.T, method, path, body string, status int, code, says string) {
	t.Helper()
	var e api.ErrorBody
	w := h.ask(t, method, path, body, &e)
	if w.Code != status || e.Error == nil || e.Error.Code != code || e.Error.Origin != "alpha" || !strings.Contains(e.Error.Error(), says) {
		t.Errorf("%s %s %s: %d %s, want %d, %s and %q from alpha", method, path, body, w.Code, w.Body, status, code, says)
	}
}

func TestModelsTellWhatIsHeldAndWhatIsWanted(t *testing.T) {
	h := newRoom(t)
	var got api.Models
	h.ask(t, "GET", "/api/v1/models", "", &got)
	m := api.Model{
		Name: "m:latest", Conflict: true,
		Wanted: &api.Wanted{Digest: digest, Replicas: 2, Nodes: []string{"alpha", "beta", "id-gone"}, Labels: map[string]string{"gpu": "yes"}, Pin: true, Version: 7},
		Replicas: []api.Replica{
			{Node: "alpha", Condition: cluster.Alive, Digest: digest, Size: 5, Loaded: true}, {Node: "beta", Condition: cluster.Dead, Digest: other, Size: 6},
		},
	}
	want := api.Models{Models: []api.Model{
		m,
		{Name: "remade:latest", Replicas: []api.Replica{{Node: "alpha", Condition: cluster.Alive, Digest: other, Damaged: true}}},
		{Name: "stray:latest", Replicas: []api.Replica{{Node: "beta", Condition: cluster.Dead, Digest: digest}}},
		{Name: "user/new:q4", Wanted: &api.Wanted{Digest: other, Replicas: cluster.EveryNode, Nodes: []string{}, Labels: map[string]string{}, Preload: true, Version: 8}, Replicas: []api.Replica{}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var one api.Model
	h.ask(t, "GET", "/api/v1/models/library%2FM", "", &one)
	if diff := cmp.Diff(m, one); diff != "" {
		t.Error(diff)
	}
	if body := h.ask(t, "GET", "/api/v1/models/User%2FNew:Q4", "", nil).Body.String(); !strings.Contains(body, `"replicas":"all","nodes":[],"labels":{}`) || !strings.Contains(body, `"replicas":[]`) {
		t.Errorf("a model that nobody holds yet: %s", body)
	}
	if body := h.ask(t, "GET", "/api/v1/models/stray", "", nil).Body.String(); !strings.Contains(body, `"wanted":null`) {
		t.Errorf("a model that nobody placed: %s", body)
	}
	for _, name := range []string{"old", "nothing", "%20"} {
		h.refused(t, "GET", "/api/v1/models/"+name, "", 404, api.CodeNotFound, "ollamamax models")
	}
}

func TestNamesReachTheNodeAsTheyWereWritten(t *testing.T) {
	h := newRoom(t)
	for path, name := range map[string]string{
		"User%2FM:tag":                      "User/M:tag",
		"hf.co%2FA%2FB-GGUF:Q4_K_M":         "hf.co/A/B-GGUF:Q4_K_M",
		"127.0.0.1:5000%2Fx%2Fy":            "127.0.0.1:5000/x/y",
		"http:%2F%2F127.0.0.1:5000%2Fx%2Fy": "http://127.0.0.1:5000/x/y",
		"m":                                 "m",
		"a%2F..%2Fb":                        "a/../b",
	} {
		for _, call := range [][3]string{{"POST", "/download", ""}, {"PUT", "/placement", "{}"}, {"DELETE", "", ""}} {
			h.model = ""
			if w := h.ask(t, call[0], "/api/v1/models/"+path+call[1], call[2], nil); w.Code >= 300 || h.model != name {
				t.Errorf("%s of %s: %d %s, reached the node as %q", call[0], path, w.Code, w.Body, h.model)
			}
		}
	}
	h.refused(t, "POST", "/api/v1/models/%20/download", "", 400, api.CodeBadRequest, "no name")
}

func TestPlacementChangesWhatItNamesOnly(t *testing.T) {
	h := newRoom(t)
	var m api.Model
	if w := h.ask(t, "PUT", "/api/v1/models/M/placement", `{"replicas":2,"nodes":["Beta","alpha","id-beta"],"labels":{},"pin":false,"preload":true,"version":7}`, &m); w.Code != 200 || m.Wanted == nil {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	two, no, yes := cluster.Replicas(2), false, true
	want := api.Placement{Replicas: &two, Nodes: &[]string{"id-beta", "id-alpha"}, Labels: &map[string]string{}, Pin: &no, Preload: &yes, Seen: 7}
	if diff := cmp.Diff(want, h.placement); diff != "" {
		t.Error(diff)
	}
	h.ask(t, "PUT", "/api/v1/models/m/placement", `{"nodes":[]}`, nil)
	if diff := cmp.Diff(api.Placement{Nodes: &[]string{}}, h.placement); diff != "" {
		t.Error(diff)
	}
}

func TestErrorsOfModelsSayWhatToDo(t *testing.T) {
	for _, tc := range []struct {
		err        error
		status     int
		code, says string
	}{
		{cluster.ErrUnknownModel, 404, "unknown_model", "ollamamax models"},
		{cluster.ErrUnknownNode, 404, "unknown_node", "ollamamax nodes"},
		{cluster.ErrContradiction, 409, "contradiction", "fit together"},
		{cluster.ErrChanged, 409, "changed", "look again"},
		{cluster.ErrNoQuorum, 503, "no_quorum", "ollamamax status"},
		{cluster.ErrUncertain, 503, "uncertain", "repeated"},
		{cluster.ErrBadCommand, 400, "bad_command", "malformed"},
		{errors.New("disk is full"), 500, api.CodeInternal, "disk is full"},
		{&api.Error{Code: api.CodeConflict, Message: "too large: 9 GB"}, 409, api.CodeConflict, "9 GB"},
		{&api.Error{Code: api.CodeNotFound, Message: "the registry has none"}, 404, api.CodeNotFound, "registry"},
	} {
		h := newRoom(t)
		h.err = fmt.Errorf("do it: %w", tc.err)
		h.pull = func(context.Context, func([]byte) error) error { return h.err }
		for _, call := range [][2]string{{"POST", "/m/download"}, {"PUT", "/m/placement"}, {"DELETE", "/m"}} {
			h.refused(t, call[0], "/api/v1/models"+call[1], "", tc.status, tc.code, tc.says)
		}
	}
}

func TestBodiesThatAreNotUnderstoodChangeNothing(t *testing.T) {
	h := newRoom(t)
	for _, call := range [][2]string{{"POST", "/api/v1/models/m/download"}, {"PUT", "/api/v1/models/m/placement"}} {
		for _, tc := range []struct {
			body       string
			status     int
			code, says string
		}{
			{`{"replica":3}`, 400, api.CodeBadRequest, `unknown field "replica"`},
			{`{"replicas":0}`, 400, api.CodeBadRequest, "give a number from 1"},
			{`{"replicas":"most"}`, 400, api.CodeBadRequest, "give a number from 1"},
			{`{"replicas":1.5}`, 400, api.CodeBadRequest, "give a number from 1"},
			{`{"nodes":"alpha"}`, 400, api.CodeBadRequest, "read body"},
			{`{"nodes":["gamma"]}`, 404, "unknown_node", "ollamamax nodes"},
			{`{"nodes":["alpha",""]}`, 404, "unknown_node", "ollamamax nodes"},
			{`{"replicas":2`, 400, api.CodeBadRequest, "read body"},
			{`{} {}`, 400, api.CodeBadRequest, "read body"},
			{`[]`, 400, api.CodeBadRequest, "read body"},
			{`{"labels":{"a":"` + strings.Repeat("x", maxBody) + `"}}`, 413, api.CodeBadRequest, "65536"},
			{`{"replicas":2}` + strings.Repeat(" ", maxBody), 413, api.CodeBadRequest, "65536"},
		} {
			h.refused(t, call[0], call[1], tc.body, tc.status, tc.code, tc.says)
		}
	}
	if h.model != "" || !reflect.DeepEqual(h.placement, api.Placement{}) {
		t.Errorf("the node was asked about %q", h.model)
	}
}

func TestTransfersAreListedFoundAndCancelled(t *testing.T) {
	h := newRoom(t)
	if body := h.ask(t, "GET", "/api/v1/transfers", "", nil).Body.String(); body != `{"transfers":[],"missing":[]}`+"\n" {
		t.Errorf("none: %s", body)
	}
	later := api.Transfer{ID: "a/1", Node: "beta", Model: "m:latest", State: api.TransferWaiting, Sources: []api.TransferSource{}, Since: noon}
	first := api.Transfer{ID: "b", Node: "alpha", Model: "m:latest", Digest: digest, State: api.TransferRunning, Size: 10, Have: 4, Rate: 2, ETA: "3s",
		Sources: []api.TransferSource{{Node: "beta", Bytes: 4, Rate: 2, Connected: true}}, Upstream: true, Since: noon.Add(-time.Minute)}
	nowhere := later
	nowhere.Sources, nowhere.Since = nil, noon.In(time.FixedZone("", 3600))
	h.transfers, h.missing = []api.Transfer{nowhere, first}, []string{"gamma", "delta"}
	var got api.Transfers
	h.ask(t, "GET", "/api/v1/transfers", "", &got)
	if diff := cmp.Diff(api.Transfers{Transfers: []api.Transfer{first, later}, Missing: []string{"delta", "gamma"}}, got); diff != "" {
		t.Error(diff)
	}
	var one api.Transfer
	if h.ask(t, "GET", "/api/v1/transfers/a%2F1", "", &one); !cmp.Equal(one, later) {
		t.Error(cmp.Diff(later, one))
	}
	h.refused(t, "GET", "/api/v1/transfers/c", "", 404, api.CodeNotFound, "delta, gamma")
	if w := h.ask(t, "DELETE", "/api/v1/transfers/a%2F1", "", nil); w.Code != 204 || h.cancelled != "a/1" {
		t.Errorf("%d, cancelled %q", w.Code, h.cancelled)
	}
	h.err = fmt.Errorf("cancel transfer c: %w", ErrUnknownTransfer)
	h.refused(t, "DELETE", "/api/v1/transfers/c", "", 404, api.CodeNotFound, "ollamamax transfers")
}

func TestDeleteIsAnsweredWithoutABody(t *testing.T) {
	h := newRoom(t)
	if w := h.ask(t, "DELETE", "/api/v1/models/m", "", nil); w.Code != 204 || w.Body.Len() > 0 || h.model != "m" {
		t.Errorf("%d %s of %q", w.Code, w.Body, h.model)
	}
}

func TestAClientHasItsTimeToTakeAnAnswer(t *testing.T) {
	for _, path := range []string{"/healthz", "/metrics", "/api/v1/nodes"} {
		synctest.Test(t, func(t *testing.T) {
			h := newRoom(t)
			w := &bounded{ResponseRecorder: httptest.NewRecorder()}
			h.mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if w.Code != 200 || !w.write.Equal(time.Now().Add(patience)) {
				t.Errorf("%s: %d, until %v", path, w.Code, w.write)
			}
		})
	}
}
