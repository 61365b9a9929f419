package install_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/ollamamax/ollamamax/internal/models/install"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const registry = "127.0.0.1:4711"

var (
	oldModel = strings.Repeat("0", 64)
	newModel = strings.Repeat("1", 64)
)

// ollama is an engine that has names only, and keeps what it was asked.
type ollama struct {
	mu     sync.Mutex
	names  map[string]string // digest of each
	asked  []string
	pull   string                // what it says to a pull; "": what an Ollama says
	fails  string                // what it cannot do, as in asked
	cancel func(error)           // ends the follower's context
	push   func(n manifest.Name) // what it does in a push
	hangs  bool                  // a pull or push never ends
}

func (o *ollama) RoundTrip(r *http.Request) (*http.Response, error) {
	var body struct{ Model, Source, Destination string }
	if data, err := io.ReadAll(r.Body); err != nil || len(data) > 0 && json.Unmarshal(data, &body) != nil {
		return nil, fmt.Errorf("bad body of %s", r.URL)
	}
	short := func(name string) string {
		name = strings.ReplaceAll(strings.ReplaceAll(name, oldModel, "OLD"), newModel, "NEW")
		return strings.TrimPrefix(name, registry+"/")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	ask := strings.TrimSpace(strings.Join([]string{strings.TrimPrefix(r.URL.Path, "/api/"), short(body.Model), short(body.Source), short(body.Destination)}, " "))
	ask = strings.Join(strings.Fields(ask), " ")
	o.asked = append(o.asked, ask)
	status, text := 200, ""
	switch r.URL.Path {
	case "/api/tags":
		var models []map[string]string
		for name, digest := range o.names {
			models = append(models, map[string]string{"name": name, "digest": digest})
		}
		data, err := json.Marshal(map[string]any{"models": models})
		if err != nil {
			return nil, err
		}
		text = string(data)
	case "/api/pull", "/api/push":
		name, err := manifest.ParseName(body.Model)
		if err != nil {
			return nil, err
		}
		if o.hangs {
			o.mu.Unlock()
			<-r.Context().Done()
			o.mu.Lock()
			return nil, r.Context().Err()
		}
		if r.URL.Path == "/api/pull" {
			o.names[body.Model] = name.Model
		} else {
			o.push(name)
		}
		if text = o.pull; text == "" {
			text = "{\"status\":\"pulling manifest\"}\n{\"status\":\"success\"}\n"
		}
	case "/api/copy":
		digest, ok := o.names[body.Source]
		if !ok {
			status, text = 404, fmt.Sprintf(`{"error":"model %s not found"}`, body.Source)
			break
		}
		if ask == o.fails {
			delete(o.names, body.Destination) // a copy is not atomic
			break
		}
		o.names[body.Destination] = digest
	case "/api/delete":
		if _, ok := o.names[body.Model]; !ok {
			status, text = 404, `{"error":"not found"}`
		}
		delete(o.names, body.Model)
	}
	if ask == o.fails {
		status, text = 500, `{"error":"no space left on device"}`
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
}

func (o *ollama) follow(ctx context.Context, _ string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	o.mu.Lock()
	o.cancel = cancel
	o.mu.Unlock()
	return ctx, func() { cancel(nil) }
}

func newInstaller(o *ollama, receive func(string, ...manifest.Wanted) (install.Receipt, error)) *install.Installer {
	return install.New(install.Deps{Log: slog.New(slog.DiscardHandler), Engine: o, Registry: registry, Follow: o.follow, Receive: receive})
}

func named(t *testing.T, text string) manifest.Name {
	t.Helper()
	name, err := manifest.ParseName(text)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestNewModelTakesTheNameInAnOrderThatLosesNothing(t *testing.T) {
	for what, c := range map[string]struct {
		had  string
		want []string
	}{
		"nothing there":  {"", []string{"pull omx/NEW:omx", "pull omx/NEW:omx", "tags", "copy omx/NEW:omx m:latest", "delete omx/NEW:omx", "tags"}},
		"an older model": {oldModel, []string{"pull omx/NEW:omx", "pull omx/NEW:omx", "tags", "copy m:latest omx/OLD:omx", "copy omx/NEW:omx m:latest", "delete omx/OLD:omx", "delete omx/NEW:omx", "tags"}},
		"the same":       {newModel, []string{"pull omx/NEW:omx", "pull omx/NEW:omx", "tags", "delete omx/NEW:omx", "tags"}},
	} {
		t.Run(what, func(t *testing.T) {
			o := &ollama{names: map[string]string{"other:latest": oldModel}}
			if c.had != "" {
				o.names["m:latest"] = c.had
			}
			var said []string
			err := newInstaller(o, nil).Install(t.Context(), named(t, "m"), newModel, func(record []byte) error {
				if len(said) > 0 && len(o.asked) != len(c.want) {
					t.Errorf("%s was said after %q", record, o.asked)
				}
				said = append(said, string(record))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, o.asked); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{`{"status":"pulling manifest"}`, `{"status":"success"}`}, said); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestANameIsRemovedOnlyIfItIsTheModelsStill(t *testing.T) {
	for what, c := range map[string]struct {
		model string
		left  bool
	}{
		"the model":               {oldModel, false},
		"another one, made since": {newModel, true},
		"whichever has it":        {"", false},
	} {
		o := &ollama{names: map[string]string{"m:latest": oldModel}}
		if err := newInstaller(o, nil).Remove(t.Context(), named(t, "m"), c.model); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, left := o.names["m:latest"]; left != c.left {
			t.Errorf("%s: the name is left: %v", what, left)
		}
	}
	if err := newInstaller(&ollama{}, nil).Remove(t.Context(), named(t, "m"), oldModel); err != nil {
		t.Errorf("a name that is gone: %v", err)
	}
}

func TestCopyThatFailsLeavesTheOldModel(t *testing.T) {
	o := &ollama{names: map[string]string{"m:latest": oldModel}, fails: "copy omx/NEW:omx m:latest"}
	err := newInstaller(o, nil).Install(t.Context(), named(t, "m"), newModel, func([]byte) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Error(err)
	}
	if diff := cmp.Diff(map[string]string{"m:latest": oldModel}, o.names); diff != "" {
		t.Error(diff)
	}
}

func TestWhatAnEngineSaysWrongIsAClearError(t *testing.T) {
	for what, c := range map[string]struct{ pull, says string }{
		"an error":     {"{\"status\":\"pulling manifest\"}\n{\"error\":\"no space left on device\"}\n", "engine says to /api/pull: no space left on device"},
		"no end":       {"{\"status\":\"pulling manifest\"}\n", "engine broke off"},
		"nothing":      {"\n", "engine broke off"},
		"a long line":  {strings.Repeat("x", 1<<20), "read progress"},
		"no success":   {"{\"status\":\"success\"}\n{\"status\":\"pulling\"}", "engine broke off"},
		"other things": {"null\n[]\n", "engine broke off"},
	} {
		t.Run(what, func(t *testing.T) {
			o := &ollama{names: map[string]string{"m:latest": oldModel}, pull: c.pull}
			err := newInstaller(o, nil).Install(t.Context(), named(t, "m"), newModel, func([]byte) error { return nil })
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "install m:latest: ") {
				t.Error(err)
			}
			if o.names["m:latest"] != oldModel {
				t.Errorf("%v", o.names)
			}
		})
	}
}

func TestCauseThatTheRegistryKnowsEndsThePull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("nobody holds blob 7")
		o := &ollama{names: map[string]string{}, hangs: true}
		time.AfterFunc(time.Minute, func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.cancel(cause)
		})
		err := newInstaller(o, nil).Install(t.Context(), named(t, "m"), newModel, func([]byte) error { return nil })
		if !errors.Is(err, cause) {
			t.Error(err)
		}
	})
}

func TestCallerWhoseProgressFailsEndsThePull(t *testing.T) {
	gone := errors.New("client left")
	o := &ollama{names: map[string]string{}}
	err := newInstaller(o, nil).Install(t.Context(), named(t, "m"), newModel, func([]byte) error { return gone })
	if !errors.Is(err, gone) || len(o.names) != 0 {
		t.Errorf("%v after %q, which leaves %q", err, o.asked, o.names) // the engine had pulled it
	}
}

func TestPullThatIsCancelledBehindItsEndLeavesNoName(t *testing.T) {
	gone := errors.New("client left")
	o := &ollama{names: map[string]string{"m:latest": oldModel}}
	ctx, cancel := context.WithCancelCause(t.Context())
	pulls := 0
	err := newInstaller(o, nil).Install(ctx, named(t, "m"), newModel, func([]byte) error {
		if pulls++; pulls == 1 {
			cancel(gone) // the engine says success all the same
		}
		return nil
	})
	if !errors.Is(err, gone) {
		t.Error(err)
	}
	if diff := cmp.Diff(map[string]string{"m:latest": oldModel}, o.names); diff != "" {
		t.Error(diff)
	}
}

func TestNamesThatPassAreNeitherInstalledNorKept(t *testing.T) {
	o := &ollama{names: map[string]string{"m:latest": oldModel, "omx/mine:latest": oldModel}}
	for _, left := range []manifest.Name{manifest.Incoming("127.0.0.1:1", oldModel), manifest.Outgoing("127.9.0.1:2", newModel)} {
		o.names[left.String()] = oldModel
		if err := newInstaller(o, nil).Install(t.Context(), left, newModel, func([]byte) error { return nil }); err == nil {
			t.Errorf("%s was installed", left)
		}
	}
	if err := newInstaller(o, nil).Install(t.Context(), named(t, "m"), "../x", func([]byte) error { return nil }); err == nil {
		t.Error("a path was installed")
	}
	if err := newInstaller(o, nil).Clean(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"m:latest": oldModel, "omx/mine:latest": oldModel}, o.names); diff != "" {
		t.Error(diff)
	}
}

func TestCleanLeavesTheNamesThatAreInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		used, left, foreign := manifest.Incoming(registry, newModel), manifest.Outgoing(registry, oldModel), manifest.Incoming("127.0.0.1:1", oldModel)
		o := &ollama{hangs: true, names: map[string]string{used.String(): newModel, left.String(): oldModel, foreign.String(): oldModel}}
		i := newInstaller(o, nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- i.Install(ctx, named(t, "m"), newModel, func([]byte) error { return nil }) }()
		synctest.Wait() // it pulls
		if err := i.Clean(t.Context(), false); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(map[string]string{used.String(): newModel, foreign.String(): oldModel}, o.names); diff != "" {
			t.Error(diff)
		}
		cancel()
		if err := <-ended; err == nil {
			t.Error("a pull that was broken off is no error")
		}
	})
}

type receipt struct{ closed bool }

func (*receipt) Repository() string        { return "out" }
func (*receipt) Manifest() ([]byte, error) { return []byte("{}"), nil }
func (r *receipt) Close()                  { r.closed = true }

func TestExportLeavesNoNameHoweverItEnds(t *testing.T) {
	for what, c := range map[string]struct {
		pull, fails string
		hangs       bool
		name        string
		want        []string
		ok          bool
	}{
		"well":          {name: "m", want: []string{"copy m:latest omx/out-OLD:omx", "push omx/out-OLD:omx", "delete omx/out-OLD:omx"}, ok: true},
		"no such model": {name: "other", want: []string{"copy other:latest omx/out-OLD:omx"}},
		"an error":      {name: "m", pull: `{"error":"x"}`, want: []string{"copy m:latest omx/out-OLD:omx", "push omx/out-OLD:omx", "delete omx/out-OLD:omx"}},
		"no answer":     {name: "m", hangs: true, want: []string{"copy m:latest omx/out-OLD:omx", "push omx/out-OLD:omx", "delete omx/out-OLD:omx"}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &ollama{names: map[string]string{"m:latest": oldModel}, pull: c.pull, hangs: c.hangs, push: func(manifest.Name) {}}
				var r receipt
				i := newInstaller(o, func(model string, wanted ...manifest.Wanted) (install.Receipt, error) {
					if model != oldModel || len(wanted) != 1 {
						t.Errorf("%s %v", model, wanted)
					}
					return &r, nil
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				text, err := i.Export(ctx, named(t, c.name), oldModel, manifest.Wanted{})
				if (err == nil) != c.ok || c.ok && string(text) != "{}" {
					t.Errorf("%q %v", text, err)
				}
				if !r.closed || len(o.names) != 1 || !slices.Equal(o.asked, c.want) {
					t.Errorf("closed %v, %v after %q", r.closed, o.names, o.asked)
				}
			})
		})
	}
}
