package models

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

func digestOf(data []byte) blob.Digest { return blob.DigestOf(sha256.Sum256(data)) }

// alone is a node that no leader has do anything.
func alone(t *testing.T) *member {
	g := newGroup(t, "a")
	n := &member{g: g, id: "a", data: t.TempDir(), folder: t.TempDir()}
	g.open(n)
	return n
}

// spooled puts a blob into the spool, or its first pieces.
func (n *member) spooled(data []byte, pieces int) blob.Digest {
	n.g.t.Helper()
	d := digestOf(data)
	l, err := blob.Make(n.g.t.Context(), bytes.NewReader(data), d, blob.PieceSize)
	if err != nil {
		n.g.t.Fatal(err)
	}
	p, err := n.spool.Open(n.g.t.Context(), l)
	if err != nil {
		n.g.t.Fatal(err)
	}
	for i := range min(pieces, l.Len()) {
		offset, size := l.Span(i)
		if err := p.WritePiece(i, data[offset:int(offset)+size]); err != nil {
			n.g.t.Fatal(err)
		}
	}
	return d
}

// sweepLater sweeps as if nobody had touched a blob for an hour, and tells whether it is in the spool still.
func (n *member) sweepLater(d blob.Digest) bool {
	n.g.t.Helper()
	n.mu.Lock()
	n.used[d.Hex()] = n.deps.Now().Add(-time.Hour)
	n.mu.Unlock()
	n.sweep(nil)
	whole, err := n.spool.Digests()
	half, err2 := n.spool.Intakes()
	if err := errors.Join(err, err2); err != nil {
		n.g.t.Fatal(err)
	}
	return slices.Contains(whole, d) || slices.Contains(half, d)
}

func TestABlobStaysInTheSpoolAsLongAsAPeerGetsIt(t *testing.T) {
	n := alone(t)
	d := n.spooled(some(300, 1), 1)
	_, release, err := n.hold(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if !n.sweepLater(d) {
		t.Error("it is dropped under the peer")
	}
	release()
	n.sweep(nil)
	if _, err := n.spool.Get(t.Context(), d); err != nil {
		t.Error("it is dropped as soon as the peer is gone: ", err)
	}
	if n.sweepLater(d) {
		t.Error("it is kept when nobody gets it")
	}
}

func TestWhatTheEnginePushesStaysInTheSpool(t *testing.T) {
	n := alone(t)
	d := digestOf(some(300, 1))
	in, err := n.spool.Intake(t.Context(), d, 300)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	n.mu.Lock()
	n.hashing[d.Hex()] = &hashingBlob{}
	n.mu.Unlock()
	if !n.sweepLater(d) {
		t.Error("it is dropped under the engine")
	}
	n.mu.Lock()
	delete(n.hashing, d.Hex())
	n.mu.Unlock()
	if n.sweepLater(d) {
		t.Error("it is kept when nothing is pushed")
	}
}

func TestWhatHasComeOfAModelStaysAsLongAsItMayGoOn(t *testing.T) {
	n := alone(t)
	data := some(9<<20, 1)
	m := n.g.publish("m", data, some(300, 2))
	d := n.spooled(data, 1)
	kept, err := n.upstream.Remote(mustName(t, "m"), false).Manifest(t.Context())
	if err == nil {
		_, err = n.learn(m.Model, kept)
	}
	if err != nil {
		t.Fatal(err)
	}
	j := job{"m", m.Model}
	n.mu.Lock()
	n.jobs[j] = &running{job: j}
	n.mu.Unlock()
	if !n.sweepLater(d) {
		t.Error("it is dropped while the model waits for its turn")
	}
	n.mu.Lock()
	delete(n.jobs, j)
	n.mu.Unlock()
	one := cluster.Replicas(1)
	if err := n.g.apply(t.Context(), cluster.Command{At: n.deps.Now(), Place: &cluster.Place{Model: "m", Digest: &m.Model, Replicas: &one}}); err != nil {
		t.Fatal(err)
	}
	if !n.sweepLater(d) {
		t.Error("it is dropped while nobody has the model and it is wanted")
	}
	if err := n.g.apply(t.Context(), cluster.Command{At: n.deps.Now(), Forget: &cluster.Forget{Model: "m"}}); err != nil {
		t.Fatal(err)
	}
	if n.sweepLater(d) {
		t.Error("it is kept when nobody wants the model")
	}
}

func mustName(t *testing.T, text string) manifest.Name {
	t.Helper()
	name, err := manifest.ParseName(text)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTheModelFolderIsFoundThroughAnyModelThatLiesInIt(t *testing.T) {
	dir := newShelf(t).dir
	asked := []string{}
	m := &Models{deps: Deps{Log: slog.New(slog.DiscardHandler), Engine: roundTrip(func(r *http.Request) (*http.Response, error) {
		var body struct{ Model string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			return nil, err
		}
		asked = append(asked, body.Model)
		w := httptest.NewRecorder()
		switch name, _, _ := strings.Cut(path.Base(body.Model), ":"); name {
		case "big", "copied":
			http.Error(w, `{"error":"remote model"}`, http.StatusForbidden)
		case "mlx":
			fmt.Fprint(w, `{"modelfile":"FROM mlx"}`)
		default:
			fmt.Fprintf(w, `{"modelfile":"FROM %s/blobs/sha256-%064d"}`, dir, 1)
		}
		return w.Result(), nil
	})}}
	models := []cluster.Model{{Name: "big:120b-cloud"}, {Name: "copied:latest"}, {Name: "mlx:latest"}, {Name: "m:latest"}}
	found, locked := m.find(t.Context(), models)
	if found == nil || found.Dir() != dir || locked {
		t.Fatalf("found %v, locked %v", found, locked)
	}
	if len(asked) != 3 {
		t.Errorf("the engine was asked of %q", asked)
	}
	m.folder = found
	if again, locked := m.find(t.Context(), models[:3]); again == nil || again.Dir() != dir || locked {
		t.Errorf("the folder is forgotten: %v, locked %v", again, locked)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if again, locked := m.find(t.Context(), models[:3]); again != nil || locked {
		t.Errorf("a folder that is gone is kept: %v, locked %v", again, locked)
	}
}

func TestListsOfBlobsThatAreGoneAreDropped(t *testing.T) {
	n := alone(t)
	m := n.file("m", some(300, 1), some(400, 2))
	gone := some(500, 3)
	for _, data := range [][]byte{some(300, 1), gone} {
		l, err := blob.Make(t.Context(), bytes.NewReader(data), digestOf(data), blob.PieceSize)
		if err == nil {
			err = errors.Join(n.lists.Put(l), n.lists.SetChecked(l.Digest(), n.deps.Now().Add(-time.Hour)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n.sweep(nil); len(n.listed()) != 2 {
		t.Errorf("lists are dropped before it is known what the engine has: %q are left", n.listed())
	}
	n.refresh(t.Context())
	n.take(t.Context())
	if n.sweep(nil); !slices.Equal(n.listed(), []blob.Digest{digest(m.Blobs[0].Digest)}) {
		t.Errorf("left are %q", n.listed())
	}
}

// listed are the blobs whose lists are kept.
func (n *member) listed() []blob.Digest {
	n.g.t.Helper()
	all, err := n.lists.Digests()
	if err != nil {
		n.g.t.Fatal(err)
	}
	return all
}

func TestAModelThatIsRepairedIsToldOnce(t *testing.T) {
	r := newRepairs()
	r.fetches = []cluster.Fetch{{Name: "m:latest", Digest: "1"}, {Name: "copy:latest", Digest: "1"}}
	if told := r.tell([]cluster.Fetch{{Name: "m:latest", Digest: "1", Size: 5}}); len(told) != 2 {
		t.Errorf("told are %v", told)
	}
}

func TestTheListOfAFileThatWasPutIntoAFolderStays(t *testing.T) {
	n := alone(t)
	n.write("there", 1<<10, 3) // so that the engine says where its folder is
	n.refresh(t.Context())
	n.take(t.Context())
	data := some(300, 1)
	d := digestOf(data)
	l, err := blob.Make(t.Context(), bytes.NewReader(data), d, blob.PieceSize)
	if err == nil {
		err = n.lists.Put(l)
	}
	if err == nil {
		err = n.lists.SetChecked(d, n.deps.Now().Add(-time.Hour))
	}
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.placed["m:latest"] = placed{Model: "m", Blob: d.Hex()}
	n.mu.Unlock()
	n.sweepLists(map[string]bool{})
	if _, err := n.lists.Get(d); err != nil {
		t.Error(err)
	}
	n.mu.Lock()
	delete(n.placed, "m:latest")
	n.mu.Unlock()
	n.sweepLists(map[string]bool{})
	if _, err := n.lists.Get(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the list of a blob that is not here stays: %v", err)
	}
}
