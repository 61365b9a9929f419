// Package internal_test checks the laws of the house that a program can check.
package internal_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const ours = "github.com/ollamamax/ollamamax/"

// mayImport is who may import which of our packages. Components know the nouns only; what they
// need of each other, node introduces.
var mayImport = map[string][]string{
	"internal/cluster":  {},
	"internal/api":      {"internal/cluster"},
	"internal/access":   {"internal/cluster"},
	"internal/engine":   {"internal/cluster", "internal/roundtrip", "internal/socket"},
	"internal/gateway":  {"internal/cluster", "internal/api", "internal/gateway/record", "internal/gateway/resume"},
	"internal/control":  {"internal/cluster", "internal/api"},
	"internal/schedule": {"internal/cluster"},
	// The wire forms of answers, and how the rest of one is asked for: values only.
	"internal/gateway/record": {},
	"internal/gateway/resume": {"internal/cluster"},
	// Whether the owner lets the cluster have this machine, which is asked of the machine.
	"internal/schedule/availability": {},
	"internal/telemetry":             {},
	"internal/roundtrip":             {}, // connections only
	"internal/socket":                {},
	"internal/mesh":                  {"internal/cluster", "internal/socket"},
	"internal/mesh/meshtest":         {"internal/cluster", "internal/mesh"},
	"internal/consensus":             {"internal/cluster"},
	// One file of a model in pieces, and its way between nodes.
	"internal/models/blob":     {},
	"internal/models/exchange": {"internal/cluster", "internal/models/blob"},
	// Inside fault only leftward: anomaly, health, predict, heal.
	"internal/fault/health": {"internal/cluster"},
	"internal/config":       {"internal/cluster", "internal/access", "internal/engine", "internal/gateway", "internal/mesh", "internal/models", "internal/schedule", "internal/schedule/availability", "internal/telemetry"},
	"internal/node":         {"*"},
	"cmd/ollamamax":         {"internal/node", "internal/config", "internal/api", "internal/cluster", "internal/telemetry"},

	// Of models: manifest has the nouns, the others do not know each other. Placement knows what is agreed and told, no files.
	// models joins them.
	"internal/models": {"internal/cluster", "internal/models/blob", "internal/models/exchange", "internal/models/folder", "internal/models/gguf", "internal/models/install",
		"internal/models/manifest", "internal/models/placement", "internal/models/registry", "internal/models/upstream"},
	"internal/models/manifest":     {"internal/cluster"},
	"internal/models/registry":     {"internal/models/manifest"},
	"internal/models/upstream":     {"internal/models/manifest"},
	"internal/models/install":      {"internal/models/manifest"},
	"internal/models/folder":       {"internal/models/manifest"},
	"internal/models/gguf":         {"internal/models/manifest", "internal/cluster"},
	"internal/models/registrytest": {"internal/models/manifest"},
	"internal/models/placement":    {"internal/cluster"},

	"internal/engine/enginetest":            {},
	"internal/engine/enginetest/fakeengine": {"internal/engine/enginetest"},
}

func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	seen := map[string]bool{}
	for _, root := range []string{"../internal", "../cmd"} {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			room := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
			seen[room] = true
			allowed, known := mayImport[room]
			if !known {
				t.Errorf("%s: this room is not in the table", room)
				return nil
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			for _, spec := range f.Imports {
				name, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					return err
				}
				target, is := strings.CutPrefix(name, ours)
				if is && !slices.Contains(allowed, target) && !slices.Contains(allowed, "*") {
					t.Errorf("%s imports %s: let node introduce them", path, target)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for room := range mayImport {
		if !seen[room] {
			t.Errorf("%s is in the table and empty", room)
		}
	}
}

func TestNoContextBackgroundAndNoSleepInProductCode(t *testing.T) {
	err := filepath.WalkDir("../internal", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(filepath.ToSlash(path), "enginetest") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, word := range []string{"context.Background()", "context.TODO()", "time.Sleep(", "http.DefaultServeMux", "slog.Default()"} {
			if strings.Contains(string(text), word) {
				t.Errorf("%s uses %s", path, word)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
