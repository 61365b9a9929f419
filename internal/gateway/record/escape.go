package record

import (
	"encoding/json"
	"unicode/utf16"
	"unicode/utf8"
)

// unit is one step through the inside of a JSON string.
type unit struct {
	bytes [utf8.UTFMax]byte // what it stands for: bytes of UTF-8; a lone surrogate is written as if it were a character
	n     int               // how many of bytes
	size  int               // how much of the string it took
	high  rune              // set if it is the escape of a lone high surrogate
	split bool              // it begins inside a character
}

// nextUnit reads the first unit of a string's inside, which is not empty: an escape (two, if they
// are the halves of one character), or one byte.
func nextUnit(s []byte) (u unit) {
	if s[0] != '\\' {
		u.bytes[0], u.n, u.size = s[0], 1, 1
		u.split = s[0]&0xc0 == 0x80
		return u
	}
	if len(s) < 2 {
		u.bytes[0], u.n, u.size = '\\', 1, 1
		return u
	}
	u.size = 2
	r := rune(s[1])
	switch s[1] {
	case 'b':
		r = '\b'
	case 'f':
		r = '\f'
	case 'n':
		r = '\n'
	case 'r':
		r = '\r'
	case 't':
		r = '\t'
	case 'u':
		r, _ = hex4(s[2:])
		u.size = min(6, len(s))
		if utf16.IsSurrogate(r) {
			if low, ok := escapedSurrogate(s[u.size:]); ok && utf16.DecodeRune(r, low) != utf8.RuneError {
				r = utf16.DecodeRune(r, low)
				u.size += 6
			} else if r < lowSurrogates {
				u.high = r
			}
		}
	}
	u.write(r)
	u.split = r >= lowSurrogates && r <= lastSurrogate
	return u
}

const (
	lowSurrogates = 0xdc00
	lastSurrogate = 0xdfff
)

// write sets the bytes of a character, or of half of one.
func (u *unit) write(r rune) {
	if utf16.IsSurrogate(r) {
		u.bytes = [utf8.UTFMax]byte{0xe0 | byte(r>>12), 0x80 | byte(r>>6)&0x3f, 0x80 | byte(r)&0x3f}
		u.n = 3
		return
	}
	u.n = utf8.EncodeRune(u.bytes[:], r)
}

// escapedSurrogate reads the escape of a surrogate at the beginning of s.
func escapedSurrogate(s []byte) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	r, ok := hex4(s[2:])
	return r, ok && utf16.IsSurrogate(r)
}

// hex4 reads four hexadecimal digits.
func hex4(s []byte) (r rune, ok bool) {
	if len(s) < 4 {
		return 0, false
	}
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// half tells whether an escaped text ends in the middle of a character: with a lone high surrogate,
// with bytes that are only the beginning of a character, or with U+FFFD, which engines write for such.
func half(text []byte) bool {
	n := len(text)
	if n == 0 {
		return false
	}
	if text[n-1] >= utf8.RuneSelf {
		r, _ := utf8.DecodeLastRune(text)
		return r == utf8.RuneError
	}
	if n < 6 || text[n-6] != '\\' || text[n-5] != 'u' || text[n-4]|0x20 != 'd' && text[n-4]|0x20 != 'f' {
		return false
	}
	for i := n - 7; i >= 0 && text[i] == '\\'; i-- { // an escaped backslash, and a word that looks like an escape?
		n--
	}
	if (len(text)-n)%2 == 1 {
		return false
	}
	r, _ := hex4(text[len(text)-4:])
	return r == utf8.RuneError || utf16.IsSurrogate(r) && r < lowSurrogates
}

// unescape appends what the inside of a JSON string stands for.
func unescape(b, s []byte) []byte {
	for len(s) > 0 {
		u := nextUnit(s)
		b = append(b, u.bytes[:u.n]...)
		s = s[u.size:]
	}
	return b
}

// appendString appends s as a JSON string.
func appendString(b []byte, s string) []byte {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings always marshal
	}
	return append(b, data...)
}

// appendRaw appends the inside of a JSON string as a JSON string.
func appendRaw(b, inside []byte) []byte {
	return append(append(append(b, '"'), inside...), '"')
}
