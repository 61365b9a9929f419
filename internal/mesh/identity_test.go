package mesh

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIdentityIsMadeOnceAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.key")
	first, err := LoadIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", info.Mode(), err)
	}
	second, err := LoadIdentity(path)
	if err != nil || !first.Equals(second) {
		t.Errorf("second time: %v", err)
	}
	id, err := NodeID(first)
	if err != nil || !strings.HasPrefix(string(id), "12D3Koo") {
		t.Errorf("id %q, %v", id, err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestABadIdentityFileIsExplained(t *testing.T) {
	dir := t.TempDir()
	damaged, open := filepath.Join(dir, "damaged"), filepath.Join(dir, "open")
	os.WriteFile(damaged, []byte("no key"), 0o600)
	os.WriteFile(open, nil, 0o600)
	os.Chmod(open, 0o644)
	for path, want := range map[string]string{
		damaged:                                "join again",
		open:                                   "chmod 600",
		filepath.Join(dir, "missing", "a.key"): "no such file",
	} {
		if _, err := LoadIdentity(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}
