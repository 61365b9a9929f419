package blob

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

const small = 1 << 10

// random gives the same bytes for the same seed.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

func listOf(t testing.TB, b []byte) *List {
	t.Helper()
	l, err := Make(t.Context(), bytes.NewReader(b), DigestOf(sha256.Sum256(b)), small)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestListSurvivesEncoding(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, small - 1, small, small + 1, 9*small + 7} {
		b := random(1, size)
		l := listOf(t, b)
		back, err := Decode(l.Encode(), l.Root())
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if back.Root() != l.Root() || back.Size() != int64(size) || back.Digest() != l.Digest() || back.Len() != (size+small-1)/small {
			t.Errorf("%d bytes: %d bytes in %d pieces of %s came back", size, back.Size(), back.Len(), back.Digest())
		}
		for i := range back.Len() {
			at, n := back.Span(i)
			if err := back.Check(i, b[at:int(at)+n]); err != nil {
				t.Error(err)
			}
			if err := back.Check(i, append([]byte{^b[at]}, b[at+1:int(at)+n]...)); !errors.Is(err, ErrWrong) {
				t.Errorf("piece %d with another first byte: %v", i, err)
			}
		}
	}
}

func TestListIsNotMadeOfOtherBytes(t *testing.T) {
	t.Parallel()
	b := random(1, 5*small)
	d := DigestOf(sha256.Sum256(b))
	if _, err := Make(t.Context(), bytes.NewReader(b[:len(b)-1]), d, small); !errors.Is(err, ErrWrong) {
		t.Errorf("a byte short: %v", err)
	}
	for _, size := range []int{0, small - 1, small + 1, 2 * PieceSize} {
		if _, err := Make(t.Context(), bytes.NewReader(b), d, size); err == nil {
			t.Errorf("pieces of %d bytes: no error", size)
		}
	}
}

func TestRootCoversEverything(t *testing.T) {
	t.Parallel()
	l := listOf(t, random(1, 3*small+5))
	good := l.Encode()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := Decode(bad, l.Root()); !errors.Is(err, ErrWrong) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	for _, n := range []int{0, listHead - 1, listHead, len(good) - 1} {
		if _, err := Decode(good[:n], l.Root()); err == nil {
			t.Errorf("cut to %d bytes: no error", n)
		}
		if _, err := Decode(good[:n], rootOf(good[:n])); err == nil {
			t.Errorf("cut to %d bytes under its own root: no error", n)
		}
	}
	if sha256.Sum256(good) == l.Root() {
		t.Error("the root is not separated from a digest")
	}
	if r, err := ParseRoot(l.Root().String()); r != l.Root() || err != nil {
		t.Error(r, err)
	}
	for _, s := range []string{"", "0", strings.Repeat("0", 63), strings.Repeat("0", 65), strings.Repeat("g", 64)} {
		if _, err := ParseRoot(s); err == nil {
			t.Errorf("root %q: no error", s)
		}
	}
}

func TestParseDigestRefusesWhatIsNone(t *testing.T) {
	t.Parallel()
	good := "sha256:" + strings.Repeat("0f", 32)
	if d, err := ParseDigest(good); err != nil || DigestOf(d.Sum()) != d {
		t.Error(d, err)
	}
	for _, s := range []string{"", "sha256:", good[7:], good + "0", good[:70], strings.ToUpper(good), "sha256:" + strings.Repeat("../", 21) + "x"} {
		if _, err := ParseDigest(s); err == nil {
			t.Errorf("%q: no error", s)
		}
	}
}

// FuzzDecode looks for lists that are taken although they contradict themselves.
func FuzzDecode(f *testing.F) {
	good := listOf(f, random(1, 2*small+1)).Encode()
	f.Add(good)
	f.Add(good[:listHead])
	f.Add(make([]byte, listHead))
	f.Add(bytes.Repeat([]byte{255}, listHead+64))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Decode(b, rootOf(b))
		if err != nil {
			return
		}
		if !bytes.Equal(l.Encode(), b) {
			t.Fatal("encodes to something else")
		}
		var sum int64
		for i := range l.Len() {
			at, n := l.Span(i)
			if at != sum || n <= 0 || n > PieceSize {
				t.Fatalf("piece %d at %d has %d bytes", i, at, n)
			}
			sum += int64(n)
		}
		if sum != l.Size() {
			t.Fatalf("pieces of %d bytes make %d", sum, l.Size())
		}
	})
}

// FuzzMap looks for maps that are taken and name pieces that there are not.
func FuzzMap(f *testing.F) {
	f.Add([]byte{3}, 2)
	f.Add([]byte{255, 1}, 9)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, b []byte, pieces int) {
		if pieces < 0 || pieces > maxPieces || Map(b).Check(pieces) != nil {
			return
		}
		n := 0
		for i := range pieces {
			if Map(b).Has(i) {
				n++
			}
		}
		if n != Map(b).Count() {
			t.Fatalf("%d pieces, %d counted", n, Map(b).Count())
		}
	})
}

func TestAListRemembersWhenItsBlobWasChecked(t *testing.T) {
	lists, err := OpenLists(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("a blob")
	d := DigestOf(sha256.Sum256(data))
	if _, err := lists.Checked(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one without a list: %v", err)
	}
	at := time.Unix(1_700_000_000, 0)
	if err := lists.SetChecked(d, at); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one without a list: %v", err)
	}
	l, err := Make(t.Context(), bytes.NewReader(data), d, PieceSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(lists.Put(l), lists.SetChecked(d, at)); err != nil {
		t.Fatal(err)
	}
	if got, err := lists.Checked(d); err != nil || !got.Equal(at) {
		t.Errorf("%v %v", got, err)
	}
	if _, err := lists.Checked("../x"); err == nil {
		t.Error("no digest")
	}
}
