package registry

import "testing"

func TestRangesAreRead(t *testing.T) {
	for text, want := range map[string][2]int64{
		"bytes=0-99": {0, 100}, "bytes=0-": {0, 100}, "bytes=99-99": {99, 1}, "bytes=50-1000": {50, 50}, "bytes=-10": {90, 10}, "bytes=-1000": {0, 100},
		"bytes=100-": {}, "bytes=5-4": {}, "bytes=-0": {}, "bytes=-": {}, "bytes=": {}, "0-9": {}, "bytes=0-9,20-29": {}, "bytes=+1-5": {}, "bytes= 1-5": {}, "bytes=99999999999999999999-": {},
	} {
		offset, length, ok := parseRange(text, 100)
		if ok != (want[1] > 0) || ok && (offset != want[0] || length != want[1]) {
			t.Errorf("%s: %d %d %v", text, offset, length, ok)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	f.Add("bytes=0-99", int64(100))
	f.Fuzz(func(t *testing.T, text string, size int64) {
		if offset, length, ok := parseRange(text, size); ok && (offset < 0 || length <= 0 || offset > size-length) {
			t.Errorf("%q of %d: %d bytes from %d", text, size, length, offset)
		}
	})
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("0-99")
	f.Add("bytes 0-99/100")
	f.Fuzz(func(t *testing.T, text string) {
		if offset, length, ok := parseContentRange(text); ok && (offset < 0 || length <= 0) {
			t.Errorf("%q: %d bytes from %d", text, length, offset)
		}
	})
}
