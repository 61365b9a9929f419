package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestAFullDiskInMidTransferIsOneErrorAndWhatCameIsKept(t *testing.T) {
	t.Parallel()
	if exec.Command("unshare", "-m", "true").Run() != nil {
		t.Skip("this process may not have mounts of its own, which make a small disk")
	}
	a, b := realMember(t, "a"), realMember(t, "b")
	b.disk = "600m" // twice the model, and a little
	// The engine's folder is on another disk.
	b.models = quietModels + fmt.Sprintf(", disk_reserve_bytes: 0, bandwidth: 30000000}\nengine: {models_dir: %s", strconv.Quote(filepath.Join(t.TempDir(), "models")))
	a.models = quietModels + ", disk_reserve_bytes: 0" // it leads, and looks for room by its own reserve
	form(t, a, b)
	create(t, a.url, "big", large(t))
	create(t, b.url, "small", filepath.Join(engineDir(t), "noise.gguf"))

	type end struct {
		text string
		code int
	}
	pull := func() chan end {
		ended := make(chan end, 1)
		go func() {
			text, code := run(t, "pull", "big", "--replicas", "2", "--api", a.url)
			ended <- end{text, code}
		}()
		return ended
	}
	have := func() (n int64) {
		for _, one := range transfers(t, b) {
			n += one.Have
		}
		return n
	}
	inside := func(script string) { // in b's mounts
		cmd := exec.Command("nsenter", "-t", strconv.Itoa(b.Process.Pid), "-m", "sh", "-c", script, "sh", filepath.Join(b.dataDir, "filler"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", script, err, out)
		}
	}
	ended := pull()
	eventually(t, 30*time.Second, "a part of it is there", func() bool {
		select {
		case e := <-ended:
			t.Fatalf("pull: %d %s", e.code, e.text)
		default:
		}
		return have() > 50e6
	})
	inside(`cat /dev/zero > "$1" 2>/dev/null || true`)
	e := <-ended
	if e.code == 0 || !strings.Contains(e.text, "disk is full") || strings.Count(e.text, "ollamamax:") != 1 {
		t.Errorf("pull: %d %s", e.code, e.text)
	}
	for _, m := range []*member{a, b} {
		if code, _, text := generate(t, m, "small", "unhurt"); code != 200 {
			t.Errorf("%s: %d %s", m.name, code, text)
		}
		if text, code := run(t, "status", "--api", m.url); code != 0 || strings.Contains(text, "no quorum") {
			t.Errorf("%s: %d %s", m.name, code, text)
		}
	}
	inside(`rm "$1"`)
	began := time.Now()
	ended = pull()
	eventually(t, 30*time.Second, "it goes on", func() bool { return have() > 0 })
	if n := have(); n < 50e6 {
		t.Errorf("it went on with %d bytes", n)
	}
	if e := <-ended; e.code != 0 {
		t.Fatalf("pull again: %d %s", e.code, e.text)
	}
	t.Logf("the rest came in %v", time.Since(began).Round(10*time.Millisecond))
	if held := heldBy(t, a, "big"); len(held) != 2 || held["a"] != held["b"] {
		t.Errorf("held by %v", held)
	}
}
