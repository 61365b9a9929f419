package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/models/install"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
	"github.com/ollamamax/ollamamax/internal/models/registry"
)

func TestModelReachesAnotherOllamaWholeAndLeavesNothingElse(t *testing.T) {
	for way, take := range map[string]func(*held, *testing.T, *beside, string, string){
		"from the folder": (*held).fromFolder,
		"by a push":       (*held).fromPush,
	} {
		t.Run(way, func(t *testing.T) {
			source := newHeld()
			a, b := startBeside(t, source), startBeside(t, source)
			for _, name := range []string{"noise:latest", "Some-One/NoIsE.v2:Q4_K_M", "example.com:5000/Team_x/Model:1.5B"} {
				model := a.createOf(t, name, "noise.gguf", "You are "+name)
				take(source, t, a, name, model)
				if names := a.tags(t); slices.ContainsFunc(slices.Collect(keys(names)), func(n string) bool { return strings.Contains(n, manifest.PassingNamespace) }) {
					t.Errorf("A lists %v", names)
				}

				var said []string
				err := b.install.Install(t.Context(), parseName(t, name), model, func(record []byte) error {
					var wire struct{ Status string }
					if err := json.Unmarshal(record, &wire); err != nil {
						return err
					}
					if n := len(said); n == 0 || said[n-1] != wire.Status {
						said = append(said, wire.Status)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				n := len(said)
				if n < 4 || said[0] != "pulling manifest" || !slices.Equal(said[n-3:], []string{"verifying sha256 digest", "writing manifest", "success"}) {
					t.Errorf("the progress of %s was %q", name, said)
				}
				if got, want := b.says(t, name), a.says(t, name); got != want {
					t.Errorf("B says %q, A %q", got, want)
				}
			}
			if diff := cmp.Diff(a.tags(t), b.tags(t)); diff != "" {
				t.Errorf("A lists (-), B lists (+):\n%s", diff)
			}
			namesA, blobsA := a.files(t)
			namesB, blobsB := b.files(t)
			if diff := cmp.Diff(namesA, namesB); diff != "" {
				t.Errorf("names in the folders of A (-) and B (+):\n%s", diff)
			}
			var used []string
			for blob := range source.blobs {
				used = append(used, "sha256-"+blob)
			}
			slices.Sort(used)
			if diff := cmp.Diff(used, blobsB); diff != "" {
				t.Errorf("blobs that the models have (-) and B has (+):\n%s\nA has %q", diff, blobsA)
			}
		})
	}
}

func keys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func quietly([]byte) error { return nil }

func TestNewVersionTakesTheNameAndTheOldOneLeavesNoBlob(t *testing.T) {
	source := newHeld()
	a, b := startBeside(t, source), startBeside(t, source)
	old := a.createOf(t, "m", "sentence.gguf", "the old one")
	source.fromFolder(t, a, "m", old)
	if err := b.install.Install(t.Context(), parseName(t, "m"), old, quietly); err != nil {
		t.Fatal(err)
	}
	_, before := b.files(t)
	model := a.createOf(t, "m", "noise.gguf", "the new one")
	clear(source.blobs)
	source.fromFolder(t, a, "m", model)
	if err := b.install.Install(t.Context(), parseName(t, "m"), model, quietly); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a.tags(t), b.tags(t)); diff != "" {
		t.Errorf("A lists (-), B lists (+):\n%s", diff)
	}
	_, blobs := b.files(t)
	if len(before) != 3 || len(blobs) != len(source.blobs) {
		t.Errorf("B had %q and has %q, of which the model uses %d", before, blobs, len(source.blobs))
	}
	if got, want := b.says(t, "m"), a.says(t, "m"); got != want {
		t.Errorf("B says %q, A %q", got, want)
	}
	// Once more the same: nothing changes.
	if err := b.install.Install(t.Context(), parseName(t, "m"), model, quietly); err != nil {
		t.Fatal(err)
	}
	if _, again := b.files(t); !slices.Equal(again, blobs) {
		t.Errorf("installed twice: %q became %q", blobs, again)
	}
}

func TestNamesThatACrashLeftAreDeletedAndTheirModelsStay(t *testing.T) {
	source := newHeld()
	b := startBeside(t, source)
	model := b.createOf(t, "m", "noise.gguf", "one")
	for _, left := range []manifest.Name{manifest.Incoming("127.0.0.1:9", model), manifest.Outgoing("127.0.0.1:9", model)} {
		if status, text := ask(t, "POST", b.url+"/api/copy", fmt.Sprintf(`{"source":"m","destination":%q}`, left)); status != 200 {
			t.Fatalf("copy: %d %s", status, text)
		}
	}
	if len(b.tags(t)) != 3 {
		t.Fatalf("B lists %v", b.tags(t))
	}
	if err := b.install.Clean(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"m:latest": model}, b.tags(t)); diff != "" {
		t.Error(diff)
	}
	b.says(t, "m")
}

func TestPullThatBrokeOffGoesOnWhereItWas(t *testing.T) {
	for _, how := range []string{"the caller leaves", "Ollama is killed"} {
		t.Run(how, func(t *testing.T) {
			source := newHeld()
			a, b := startBeside(t, source), startBeside(t, source)
			model := a.createOf(t, "m", "noise.gguf", "one")
			source.fromFolder(t, a, "m", model)
			var size int64
			for _, blob := range source.blobs {
				size += int64(len(blob))
			}
			source.hold, source.holding = make(chan struct{}), make(chan struct{}, 1)

			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			shown := make(chan int64, 1000)
			go func() {
				ended <- b.install.Install(ctx, parseName(t, "m"), model, func(record []byte) error {
					var wire struct{ Completed, Total int64 }
					err := json.Unmarshal(record, &wire)
					if wire.Total > 1<<20 {
						select {
						case shown <- wire.Completed:
						default:
						}
					}
					return err
				})
			}()
			<-source.holding
			for <-shown < 1<<20 { // as Ollama's own progress bar shows it
			}
			if how == "the caller leaves" {
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("broken off: %v", err)
				}
				eventually(t, 20*time.Second, "Ollama has written down how far it came", func() bool { return b.partial(t) >= 1<<20 })
			} else {
				b.process.kill()
				if err := <-ended; err == nil {
					t.Error("installed in a dead Ollama")
				}
				b.run(t)
			}
			close(source.hold)
			if err := b.install.Install(t.Context(), parseName(t, "m"), model, quietly); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(a.tags(t), b.tags(t)); diff != "" {
				t.Errorf("A lists (-), B lists (+):\n%s", diff)
			}
			if _, blobs := b.files(t); len(blobs) != len(source.blobs) {
				t.Errorf("B has %q", blobs)
			}
			// A killed Ollama begins the part anew, of which there is one for 100 MB.
			if sent := source.sent.Load(); how == "the caller leaves" && sent > size+1<<20 {
				t.Errorf("%d bytes were sent for %d", sent, size)
			}
			if got, want := b.says(t, "m"), a.says(t, "m"); got != want {
				t.Errorf("B says %q, A %q", got, want)
			}
		})
	}
}

func TestModelThatNobodyHoldsIsOneClearErrorAtOnce(t *testing.T) {
	source := newHeld()
	a, b := startBeside(t, source), startBeside(t, source)
	model := a.createOf(t, "m", "noise.gguf", "one")
	source.fromFolder(t, a, "m", model)
	for digest, data := range source.blobs {
		if len(data) > 1<<20 {
			delete(source.blobs, digest)
		}
	}
	begun := time.Now()
	err := b.install.Install(t.Context(), parseName(t, "m"), model, quietly)
	if !errors.Is(err, registry.ErrNotHeld) || time.Since(begun) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
	if err := b.install.Install(t.Context(), parseName(t, "m"), strings.Repeat("0", 64), quietly); !errors.Is(err, registry.ErrNotHeld) {
		t.Errorf("no such model: %v", err)
	}
	if len(b.tags(t)) != 0 {
		t.Errorf("B lists %v", b.tags(t))
	}
	if _, err := b.install.Export(t.Context(), parseName(t, "nothing"), model); !errors.Is(err, install.ErrNoModel) {
		t.Errorf("export of nothing: %v", err)
	}
}
