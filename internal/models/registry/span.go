package registry

import (
	"strconv"
	"strings"
)

// parseRange reads a Range header of one range and returns which bytes of size it means.
func parseRange(text string, size int64) (offset, length int64, ok bool) {
	text, ok = strings.CutPrefix(text, "bytes=")
	first, last, dash := strings.Cut(text, "-")
	if !ok || !dash || size <= 0 {
		return 0, 0, false
	}
	if first == "" { // the last so many
		n, ok := parseNumber(last)
		if !ok || n == 0 {
			return 0, 0, false
		}
		n = min(n, size)
		return size - n, n, true
	}
	offset, ok = parseNumber(first)
	if !ok || offset >= size {
		return 0, 0, false
	}
	end := size - 1
	if last != "" {
		n, ok := parseNumber(last)
		if !ok || n < offset {
			return 0, 0, false
		}
		end = min(n, end)
	}
	return offset, end - offset + 1, true
}

// parseContentRange reads which bytes a part of an upload has: "0-99", as Ollama writes it, or "bytes 0-99/200".
func parseContentRange(text string) (offset, length int64, ok bool) {
	text = strings.TrimPrefix(text, "bytes ")
	text, _, _ = strings.Cut(text, "/")
	first, last, dash := strings.Cut(text, "-")
	offset, ok = parseNumber(first)
	end, okEnd := parseNumber(last)
	if !dash || !ok || !okEnd || end < offset || end-offset+1 <= 0 {
		return 0, 0, false
	}
	return offset, end - offset + 1, true
}

// parseNumber reads digits only: no sign, no space.
func parseNumber(text string) (int64, bool) {
	if text == "" || text[0] < '0' || text[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}
