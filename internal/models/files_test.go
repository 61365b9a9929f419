package models

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

func TestAFilesNameTellsItsModelAndIsOneOfItsOwn(t *testing.T) {
	t.Parallel()
	taken := []string{"a_b_c.gguf"}
	is := func(file string) bool { return slices.Contains(taken, file) }
	for key, want := range map[string]string{
		"m:latest":               "m_latest.gguf",
		"team/big.model:v1":      "team_big.model_v1.gguf",
		"host:5000/team/m:q4_k":  "host_5000_team_m_q4_k.gguf",
		"a/b:c":                  "a_b_c-",
		strings.Repeat("x", 300): strings.Repeat("x", 100) + "-",
	} {
		got := fileName(key, is)
		if !strings.HasPrefix(got, want) || strings.HasSuffix(want, ".gguf") && got != want || !strings.HasSuffix(got, ".gguf") || len(got) > 255 || strings.ContainsAny(got, `/\:`) {
			t.Errorf("%s is the file %s, want %s", key, got, want)
		}
	}
	if fileName("a/b:c", is) == fileName("a_b:c", is) {
		t.Error("two models have one file")
	}
}

func TestOnlyAModelOfOneFileIsGivenToALlamaServer(t *testing.T) {
	t.Parallel()
	const media = "application/vnd.ollama.image."
	layer := func(kind, digit string) manifest.Blob {
		return manifest.Blob{MediaType: media + kind, Digest: strings.Repeat(digit, 64), Size: 7}
	}
	for _, tc := range []struct {
		name  string
		blobs []manifest.Blob
		err   string
	}{
		{"weights and texts", []manifest.Blob{layer("license", "1"), layer("model", "2"), layer("template", "3"), layer("params", "4"), {MediaType: "application/vnd.docker.container.image.v1+json", Digest: strings.Repeat("5", 64)}}, ""},
		{"a projector", []manifest.Blob{layer("model", "2"), layer("projector", "3")}, "of the kind projector"},
		{"an adapter", []manifest.Blob{layer("adapter", "3"), layer("model", "2")}, "of the kind adapter"},
		{"a draft", []manifest.Blob{layer("model", "2"), layer("draft", "3")}, "of the kind draft"},
		{"weights in two files", []manifest.Blob{layer("model", "2"), layer("model", "3")}, "of the kind model"},
		{"no weights", []manifest.Blob{layer("system", "2")}, "no file of weights"},
	} {
		b, err := weights(manifest.Manifest{Blobs: tc.blobs})
		switch {
		case tc.err == "" && (err != nil || b.Digest != strings.Repeat("2", 64)):
			t.Errorf("%s: %+v %v", tc.name, b, err)
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// filing is a Models that has put m_latest.gguf into a folder.
func filing(t *testing.T) (m *Models, dir string, reloads *int) {
	t.Helper()
	dir, reloads = t.TempDir(), new(int)
	deps := Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: time.Now, Busy: func() bool { return false }, DataDir: t.TempDir(), Refresh: func(context.Context) {}, Changed: func() {}, Files: &Files{
		Dir: dir, Lists: func() []cluster.Model { return nil }, Ended: func() string { return "" },
		Reload: func(context.Context, bool) error { *reloads++; return nil },
	}}
	m, err := Open(Default(), deps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	file := filepath.Join(dir, "m_latest.gguf")
	if err := os.WriteFile(file, []byte("weights"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.note("m:latest", &placed{Model: "M:latest", Digest: strings.Repeat("1", 64), Blob: manifest.DigestOf([]byte("weights")), Size: 7, File: "m_latest.gguf", Modified: info.ModTime()}); err != nil {
		t.Fatal(err)
	}
	return m, dir, reloads
}

func TestOnlyOurFilesAreRemoved(t *testing.T) {
	t.Parallel()
	digest := strings.Repeat("1", 64)
	for _, tc := range []struct {
		name, key, model string
		change           func(file string) error
		left             []string
		reloads          int
	}{
		{"ours", "m:latest", digest, nil, []string{"own.gguf"}, 1},
		{"ours, whatever it is", "m:latest", "", nil, []string{"own.gguf"}, 1},
		{"another model of that name is meant", "m:latest", strings.Repeat("2", 64), nil, []string{"m_latest.gguf", "own.gguf"}, 0},
		{"one that is not ours", "own:latest", "", nil, []string{"m_latest.gguf", "own.gguf"}, 0},
		{"one that somebody put in its place", "m:latest", "", func(file string) error { return os.WriteFile(file, []byte("other"), 0o600) }, []string{"m_latest.gguf", "own.gguf"}, 1},
		{"one that somebody wrote anew", "m:latest", "", func(file string) error { return os.Chtimes(file, time.Time{}, time.Unix(1e9, 0)) }, []string{"m_latest.gguf", "own.gguf"}, 1},
		{"one that somebody removed", "m:latest", "", os.Remove, []string{"own.gguf"}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, dir, reloads := filing(t)
			if err := os.WriteFile(filepath.Join(dir, "own.gguf"), []byte("own"), 0o600); err != nil {
				t.Fatal(err)
			}
			if tc.change != nil {
				if err := tc.change(filepath.Join(dir, "m_latest.gguf")); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // again it is nothing
				if err := m.removeFile(t.Context(), tc.key, tc.model); err != nil {
					t.Fatal(err)
				}
			}
			var left []string
			entries, err := os.ReadDir(dir)
			for _, e := range entries {
				left = append(left, e.Name())
			}
			if err != nil || !slices.Equal(left, tc.left) || *reloads != tc.reloads {
				t.Errorf("left are %v, after %d reloads: %v", left, *reloads, err)
			}
		})
	}
}

func TestAFileGoesAgainWhenItsModelWasDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	m, dir, _ := filing(t)
	at := time.Now()
	m.deps.State = func() *cluster.State {
		return &cluster.State{Version: 9, Models: map[string]cluster.Wanted{"m:latest": {Name: "m", Deleted: &at, Version: 5}}}
	}
	r := &running{job: job{"m:latest", strings.Repeat("1", 64)}, request: FetchRequest{Name: "M"}, version: 6}
	if err := m.undo(t.Context(), r); err != nil {
		t.Errorf("it was deleted before: %v", err)
	}
	r.version = 4
	if err := m.undo(t.Context(), r); !errors.Is(err, errDeleted) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v %v", entries, err)
	}
}

func TestWhatWasPutThereIsKnownAfterARestart(t *testing.T) {
	t.Parallel()
	m, dir, _ := filing(t)
	if err := os.WriteFile(filepath.Join(dir, passingFile+"1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := func() map[string]cluster.Model {
		t.Helper()
		if err := m.loadPlaced(); err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.files()
	}
	if got := again()["m_latest"]; got.Name != "M:latest" || got.Weights != strings.Repeat("1", 64) || got.Digest != "" || got.Size != 7 || got.ModifiedAt.IsZero() {
		t.Errorf("told is %+v", got)
	}
	p, _ := m.placedAs("m:latest")
	p.Passing = true
	if err := m.note("m:latest", &p); err != nil {
		t.Fatal(err)
	}
	if got, there := again()["m_latest"]; !there || got.Name != "" {
		t.Errorf("one that is on its way is told: %+v", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "m_latest.gguf"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := again(); len(got) != 0 {
		t.Errorf("somebody else's is told: %v", got)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}

func TestAFileThatTheEngineDoesNotRunWithGoesAgain(t *testing.T) {
	t.Parallel()
	m, dir, reloads := filing(t)
	m.deps.Files.Ended = func() string { return "exit status 1" }
	p, _ := m.placedAs("m:latest")
	r := &running{job: job{"m:latest", p.Digest}, progress: newProgress()}
	if err := m.show(t.Context(), r, p, false); err == nil || !strings.Contains(err.Error(), "m_latest.gguf: exit status 1") {
		t.Errorf("%v", err)
	}
	if _, there := m.placedAs("m:latest"); there || *reloads != 2 {
		t.Errorf("it is still known, after %d reloads", *reloads)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v %v", entries, err)
	}
}

func TestAFileWhoseBytesHaveChangedIsToldAndReplaced(t *testing.T) {
	t.Parallel()
	m, dir, reloads := filing(t)
	m.deps.Files.Lists = func() []cluster.Model { return []cluster.Model{{Name: "m_latest"}} }
	m.run = t.Context()
	check := func() cluster.Model {
		t.Helper()
		name, check := m.due(map[string]time.Time{})
		if name != "m_latest.gguf" {
			t.Fatalf("due is %q", name)
		}
		if check(t.Context()) {
			t.Error("it is to be checked again soon")
		}
		return m.Told().Files["m_latest"]
	}
	if told := check(); told.Damaged || told.Name == "" {
		t.Errorf("told is %+v", told)
	}
	if name, _ := m.due(nil); name != "" {
		t.Errorf("%s is due again at once", name)
	}
	p, _ := m.placedAs("m:latest")
	p.Checked = time.Now().Add(-25 * time.Hour)
	if err := m.note("m:latest", &p); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "m_latest.gguf")
	if err := os.WriteFile(file, []byte("Weights"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, time.Time{}, p.Modified); err != nil {
		t.Fatal(err)
	}
	if told := check(); !told.Damaged || told.Weights != p.Digest {
		t.Errorf("told is %+v", told)
	}
	if err := m.loadPlaced(); err != nil { // as after a restart
		t.Fatal(err)
	}
	list, err := m.lists.Get(digest(p.Blob))
	if err != nil {
		t.Fatal(err)
	}
	good, err := m.spool.Open(t.Context(), list)
	if err == nil {
		err = good.WritePiece(0, []byte("weights"))
	}
	if err != nil {
		t.Fatal(err)
	}
	of := manifest.Manifest{Model: p.Digest, Blobs: []manifest.Blob{{MediaType: "application/vnd.ollama.image.model", Digest: p.Blob, Size: 7}}}
	name, err := manifest.ParseName("m")
	if err != nil {
		t.Fatal(err)
	}
	r := &running{job: job{"m:latest", p.Digest}, progress: newProgress()}
	if err := m.fetchFile(t.Context(), r, name, of); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "weights" || *reloads != 1 {
		t.Errorf("the file is %q after %d reloads: %v", data, *reloads, err)
	}
	if told := m.Told().Files["m_latest"]; told.Damaged || told.Name == "" {
		t.Errorf("told is %+v", told)
	}
	if name, _ := m.due(nil); name != "" {
		t.Errorf("%s is due again at once", name)
	}
}
