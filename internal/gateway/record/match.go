package record

import (
	"unicode/utf16"
	"unicode/utf8"
)

// match compares texts that are the insides of JSON strings, one of which comes in pieces.
type match struct {
	want []byte // what is left of what the client has
	unit unit   // its last unit …
	used int    // … of which this much was found
	high rune   // the high surrogate with which the last piece ended: one more thing to be found
	held []byte // new text that is half of a character: it waits for the other half
}

// all tells whether everything was found.
func (m *match) all() bool { return len(m.want) == 0 && m.used == m.unit.n && m.high == 0 }

// found tells how much of what the client had was found, up to the beginning of a character.
func (m *match) found(had []byte) int {
	n := len(had) - len(m.want)
	if m.used < m.unit.n {
		n -= m.unit.size
	}
	return n
}

// rest returns what is new in a piece of text, as far as it is whole characters; false if the piece
// differs from what the client has.
func (m *match) rest(text []byte) (fresh []byte, ok bool) {
	if fresh, ok = m.fresh(text); !ok || len(fresh) == 0 {
		return fresh, ok
	}
	if m.held != nil {
		fresh = append(m.held, fresh...)
		m.held = nil
	}
	if n := len(fresh) - 6; n >= 0 && half(fresh) {
		if high, _ := escapedSurrogate(fresh[n:]); high != 0 && high < lowSurrogates {
			m.held = append([]byte{}, fresh[n:]...)
			fresh = fresh[:n]
		}
	}
	return fresh, true
}

func (m *match) fresh(text []byte) (fresh []byte, ok bool) {
	inside := false // the client has something of this piece
	for len(text) > 0 && !m.all() {
		have := nextUnit(text)
		if m.high != 0 {
			low, _ := escapedSurrogate(text)
			pair := utf16.DecodeRune(m.high, low)
			if pair == utf8.RuneError {
				return nil, false
			}
			have.write(pair)
			have.size, have.high, m.high = 6, 0, 0
		} else if have.high != 0 && have.size == len(text) && !m.halfNext() {
			m.high = have.high // its other half comes with the next piece
			return text[len(text):], true
		}
		for _, c := range have.bytes[:have.n] {
			if m.used == m.unit.n {
				if len(m.want) == 0 {
					return nil, false // the client has half of this character
				}
				m.unit, m.used = nextUnit(m.want), 0
				m.want = m.want[m.unit.size:]
			}
			if m.unit.bytes[m.used] != c {
				return nil, false
			}
			m.used++
		}
		text, inside = text[have.size:], true
	}
	if inside && len(text) > 0 && nextUnit(text).split {
		return nil, false // as above
	}
	return text, true
}

// halfNext tells whether the client, too, has the escape of half a character next.
func (m *match) halfNext() bool {
	return m.used == m.unit.n && len(m.want) > 0 && nextUnit(m.want).high != 0
}
