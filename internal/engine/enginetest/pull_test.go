package enginetest

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/models/registrytest"
)

func TestPulledModelIsThatOfTheRegistry(t *testing.T) {
	const size = 1 << 20
	dir := t.TempDir()
	beside(t, func(t *testing.T, u *upstream, to http.RoundTripper) {
		digest, blob := u.write(t, size, 1)
		u.Set(registrytest.Faults{BytesPerSecond: size})
		r, stop := startIn(t, dir, to)
		defer stop()
		statuses, failed := r.pull()
		want := []string{"pulling manifest", "pulling " + blob[:12], "verifying sha256 digest", "writing manifest", "success"}
		if diff := cmp.Diff(want, statuses); failed != "" || diff != "" {
			t.Errorf("it said %q; statuses (- want, + got):\n%s", failed, diff)
		}
		if got := r.tags(); len(got) != 1 || got[0].Name != pulled || got[0].Digest != digest || got[0].Size < size || got[0].Modified.IsZero() {
			t.Errorf("it lists %+v, want the digest %s", got, digest)
		}
		if diff := cmp.Diff(blobFiles(t, u.dir), blobFiles(t, dir)); diff != "" {
			t.Errorf("blobs in the registry (-) and in the folder (+):\n%s", diff)
		}
		if u.Total() > size+1000 {
			t.Errorf("%d bytes were sent", u.Total())
		}
		another, stopAnother := startIn(t, u.dir, to)
		defer stopAnother()
		if a, b := r.says(pulled), another.says("some/m:v1"); a != b || a == "" {
			t.Errorf("two servers with the same model say %q and %q", a, b)
		}
		// A second time nothing is fetched; of a new version only what is new, and the old weights go.
		sent := u.Total()
		if statuses, failed := r.pull(); failed != "" || len(statuses) != 7 || u.Total() != sent {
			t.Errorf("again: %q %q, %d bytes", statuses, failed, u.Total()-sent)
		}
		u.write(t, size, 2)
		if statuses, failed := r.pull(); failed != "" || !slices.Contains(statuses, "removing unused layers") || u.Total() != sent+size {
			t.Errorf("a new version: %q %q, %d bytes", statuses, failed, u.Total()-sent)
		}
		if blobs := blobFiles(t, dir); len(blobs) != 3 || slices.Contains(blobs, "sha256-"+blob) {
			t.Errorf("after it the blobs are %q", blobs)
		}
	})
}

func TestPullGoesOnWhereItsConnectionBroke(t *testing.T) {
	const size = 1 << 20
	for _, row := range []struct {
		name   string
		after  int64
		failed string
	}{
		{"a few times", size/5 + 1, ""},
		{"six times", size/7 + 1, "max retries exceeded: unexpected EOF"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			beside(t, func(t *testing.T, u *upstream, to http.RoundTripper) {
				_, blob := u.write(t, size, 1)
				u.Set(registrytest.Faults{BreakAfter: row.after})
				r, stop := startIn(t, dir, to)
				defer stop()
				if _, failed := r.pull(); failed != row.failed {
					t.Errorf("it said %q", failed)
				}
				if whole := len(r.tags()) == 1; whole != (row.failed == "") {
					t.Errorf("it lists %v", r.tags())
				}
				u.Set(registrytest.Faults{})
				if _, failed := r.pull(); failed != "" || u.Sent(blob) != size {
					t.Errorf("in the end it said %q, and %d bytes of %d were sent", failed, u.Sent(blob), size)
				}
			})
		})
	}
}

func TestPullThatTheClientLeftGoesOnInAnotherServer(t *testing.T) {
	const size = 1 << 20
	dir := t.TempDir()
	beside(t, func(t *testing.T, u *upstream, to http.RoundTripper) {
		_, blob := u.write(t, size, 1)
		u.Set(registrytest.Faults{BytesPerSecond: size / 4})
		r, stop := startIn(t, dir, to)
		r.leave("/api/pull", `{"model":"`+pulled+`","insecure":true}`, 2*time.Second)
		stop()
		u.Set(registrytest.Faults{})
		before := u.Sent(blob)
		r, stop = startIn(t, dir, to)
		defer stop()
		if _, failed := r.pull(); failed != "" {
			t.Errorf("it said %q", failed)
		}
		if again := u.Sent(blob) - size; before < size/3 || again > 64<<10 {
			t.Errorf("%d of %d bytes came first, %d again", before, size, again)
		}
		if diff := cmp.Diff(blobFiles(t, u.dir), blobFiles(t, dir)); diff != "" {
			t.Errorf("blobs in the registry (-) and in the folder (+):\n%s", diff)
		}
	})
}

func TestPartThatIsSilentIsBegunAnew(t *testing.T) {
	const size = 1 << 20
	dir := t.TempDir()
	beside(t, func(t *testing.T, u *upstream, to http.RoundTripper) {
		_, blob := u.write(t, size, 1)
		u.Set(registrytest.Faults{StallAfter: size / 2, Times: 3}) // the manifest, the length, the bytes
		r, stop := startIn(t, dir, to)
		defer stop()
		var failed string
		if d := took(func() { _, failed = r.pull() }); failed != "" || d < 30*time.Second || d > 32*time.Second {
			t.Errorf("after %v it said %q", d, failed)
		}
		if sent := u.Sent(blob); sent != size+size/2 {
			t.Errorf("%d bytes were sent for %d", sent, size)
		}
	})
}

func TestWrongBytesAreDeletedAndToldOf(t *testing.T) {
	dir := t.TempDir()
	beside(t, func(t *testing.T, u *upstream, to http.RoundTripper) {
		_, blob := u.write(t, 1<<20, 1)
		u.Set(registrytest.Faults{Lie: true})
		r, stop := startIn(t, dir, to)
		defer stop()
		if _, failed := r.pull(); !strings.HasPrefix(failed, "digest mismatch, file must be downloaded again: want sha256:"+blob) {
			t.Errorf("it said %q", failed)
		}
		if len(r.tags()) != 0 || slices.Contains(blobFiles(t, dir), "sha256-"+blob) {
			t.Errorf("it lists %v and has %v", r.tags(), blobFiles(t, dir))
		}
	})
}

func TestBlobComesInPartsAtOnce(t *testing.T) {
	const size, parts = 1 << 20, 8
	dir := t.TempDir()
	beside(t, func(t *testing.T, u *upstream, to http.RoundTripper) {
		u.write(t, size, 1)
		r, stop := startIn(t, dir, to)
		defer stop()
		r.catalog.folder.minPart = size / parts
		u.Set(registrytest.Faults{BytesPerSecond: size / parts})
		// Eight at once take a second for the weights; one after the other took eight.
		d := took(func() {
			if _, failed := r.pull(); failed != "" {
				t.Errorf("it said %q", failed)
			}
		})
		if d < time.Second || d > 2*time.Second {
			t.Errorf("it took %v", d)
		}
		if err := r.catalog.folder.verify(mustFind(t, dir, pulled).Layers[0].Digest); err != nil {
			t.Error(err)
		}
	})
}

func TestPullsOfTheSameBlobShareItsTransfer(t *testing.T) {
	const size = 1 << 20
	dir := t.TempDir()
	beside(t, func(t *testing.T, u *upstream, to http.RoundTripper) {
		_, blob := u.write(t, size, 1)
		mustWrite(t, u.dir, "some/twin:v1", size, 1)
		u.Set(registrytest.Faults{BytesPerSecond: size})
		r, stop := startIn(t, dir, to)
		defer stop()
		twin := make(chan string)
		go func() { twin <- r.post("/api/pull", `{"model":"`+registryHost+`/some/twin:v1","insecure":true}`) }()
		if _, failed := r.pull(); failed != "" {
			t.Errorf("it said %q", failed)
		}
		if said := <-twin; !strings.HasSuffix(said, `{"status":"success"}`+"\n") || len(r.tags()) != 2 || u.Sent(blob) != size {
			t.Errorf("%d bytes of %d were sent, %+v; the other pull said %s", u.Sent(blob), size, r.tags(), said)
		}
	})
}

func TestWhatCannotBePulledIsToldInOllamasWords(t *testing.T) {
	dir := t.TempDir()
	beside(t, func(t *testing.T, u *upstream, to http.RoundTripper) {
		_, blob := u.write(t, 1<<10, 1)
		r, stop := start(t, Config{Folder: dir, Transport: to, Pullable: []Model{{Name: "known"}}})
		defer stop()
		try := func(model string) string {
			rs := lines(t, r.post("/api/pull", fmt.Sprintf(`{"model":%q,"insecure":true}`, model)))
			return rs[len(rs)-1].Status + rs[len(rs)-1].Error
		}
		asked := u.Requests()
		for _, row := range []struct{ model, want string }{
			{"known", "success"},
			{"unknown", "pull model manifest: file does not exist"},
			{"registry.ollama.ai/library/m:v1", "pull model manifest: file does not exist"},
		} {
			if got := try(row.model); got != row.want {
				t.Errorf("%s: %q", row.model, got)
			}
		}
		if n := u.Requests() - asked; n != 0 {
			t.Errorf("%d requests went out for names of the public registry", n)
		}
		if got := try(registryHost + "/some/other:v1"); got != "pull model manifest: file does not exist" {
			t.Errorf("a model that is not there: %q", got)
		}
		u.Set(registrytest.Faults{Status: 503})
		if got := try(pulled); got != "pull model manifest: 503: out of order\n" {
			t.Errorf("a registry out of order: %q", got)
		}
		u.Set(registrytest.Faults{})
		if err := os.Remove(filepath.Join(u.dir, "blobs", "sha256-"+blob)); err != nil {
			t.Fatal(err)
		}
		if got := try(pulled); got != "file does not exist" {
			t.Errorf("a blob that is not there: %q", got)
		}
	})
}
