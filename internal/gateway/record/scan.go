package record

import "strconv"

// members walks over the members of a JSON object, without allocating and without a copy.
type members struct {
	data []byte
	at   int  // behind the last member
	bad  bool // data is no JSON object
}

// next returns the next member: the inside of its key, still escaped, and its raw value.
func (m *members) next() (key, value []byte, ok bool) {
	i := space(m.data, m.at)
	first := m.at == 0
	if first {
		if i == len(m.data) || m.data[i] != '{' {
			return m.stop(true)
		}
		i = space(m.data, i+1)
	}
	if i == len(m.data) {
		return m.stop(true)
	}
	switch {
	case m.data[i] == '}':
		return m.stop(space(m.data, i+1) != len(m.data))
	case first:
	case m.data[i] == ',':
		i = space(m.data, i+1)
	default:
		return m.stop(true)
	}
	if i == len(m.data) || m.data[i] != '"' {
		return m.stop(true)
	}
	end := skipString(m.data, i)
	if end < 0 {
		return m.stop(true)
	}
	key = m.data[i+1 : end-1]
	i = space(m.data, end)
	if i == len(m.data) || m.data[i] != ':' {
		return m.stop(true)
	}
	i = space(m.data, i+1)
	if end = skip(m.data, i, 0); end < 0 {
		return m.stop(true)
	}
	m.at = end
	return key, m.data[i:end], true
}

func (m *members) stop(bad bool) (key, value []byte, ok bool) {
	m.bad = bad
	return nil, nil, false
}

// member returns the raw value of one member, nil if there is none.
func member(object []byte, name string) (value []byte) {
	m := members{data: object}
	for key, v, ok := m.next(); ok; key, v, ok = m.next() {
		if string(key) == name {
			value = v
		}
	}
	return value
}

// elements walks over the elements of a valid JSON array.
type elements struct {
	data []byte
	at   int
}

func (e *elements) next() (value []byte, ok bool) {
	i := space(e.data, e.at)
	if i == len(e.data) || e.at == 0 && e.data[i] != '[' || e.data[i] == ']' {
		return nil, false
	}
	i = space(e.data, i+1) // behind the bracket or the comma
	if i == len(e.data) || e.data[i] == ']' {
		return nil, false
	}
	end := skip(e.data, i, 0)
	if end < 0 {
		return nil, false
	}
	e.at = end
	return e.data[i:end], true
}

func space(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\n' || data[i] == '\t' || data[i] == '\r') {
		i++
	}
	return i
}

// deepest is how deep values may lie in each other: as in encoding/json.
const deepest = 10000

// skip returns the index behind the JSON value that begins at i, -1 if none does.
func skip(data []byte, i, depth int) int {
	if i >= len(data) || depth > deepest {
		return -1
	}
	switch data[i] {
	case '"':
		return skipString(data, i)
	case '{', '[':
		return skipNested(data, i, depth)
	case 't':
		return skipWord(data, i, "true")
	case 'f':
		return skipWord(data, i, "false")
	case 'n':
		return skipWord(data, i, "null")
	}
	return skipNumber(data, i)
}

func skipString(data []byte, i int) int {
	i++
	for {
		for i < len(data) && (data[i] >= '#' && data[i] != '\\' || data[i] == ' ') { // nearly all bytes
			i++
		}
		if i >= len(data) {
			return -1
		}
		switch c := data[i]; {
		case c == '"':
			return i + 1
		case c < ' ':
			return -1
		case c == '\\':
			if i++; i == len(data) {
				return -1
			}
			switch data[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if _, ok := hex4(data[i+1:]); !ok {
					return -1
				}
				i += 4
			default:
				return -1
			}
		}
		i++
	}
}

func skipNested(data []byte, i, depth int) int {
	object := data[i] == '{'
	closing := byte(']')
	if object {
		closing = '}'
	}
	i = space(data, i+1)
	if i < len(data) && data[i] == closing {
		return i + 1
	}
	for {
		if object {
			if i == len(data) || data[i] != '"' {
				return -1
			}
			if i = skipString(data, i); i < 0 {
				return -1
			}
			if i = space(data, i); i == len(data) || data[i] != ':' {
				return -1
			}
			i = space(data, i+1)
		}
		if i = skip(data, i, depth+1); i < 0 {
			return -1
		}
		if i = space(data, i); i == len(data) {
			return -1
		}
		if data[i] == closing {
			return i + 1
		}
		if data[i] != ',' {
			return -1
		}
		i = space(data, i+1)
	}
}

func skipWord(data []byte, i int, word string) int {
	if len(data)-i < len(word) || string(data[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}

func skipNumber(data []byte, i int) int {
	digits := func() bool {
		start := i
		for i < len(data) && data[i] >= '0' && data[i] <= '9' {
			i++
		}
		return i > start
	}
	if data[i] == '-' {
		i++
	}
	zero := i < len(data) && data[i] == '0'
	if start := i; !digits() || zero && i > start+1 {
		return -1
	}
	if i < len(data) && data[i] == '.' {
		if i++; !digits() {
			return -1
		}
	}
	if i < len(data) && (data[i] == 'e' || data[i] == 'E') {
		if i++; i < len(data) && (data[i] == '+' || data[i] == '-') {
			i++
		}
		if !digits() {
			return -1
		}
	}
	return i
}

// inside returns the inside of a raw JSON string, nil of any other value.
func inside(value []byte) []byte {
	if len(value) < 2 || value[0] != '"' {
		return nil
	}
	return value[1 : len(value)-1]
}

// whole returns a raw JSON number's value as far as it is a whole number that fits, else 0.
func whole(value []byte) int {
	n := 0
	for _, c := range value {
		if c < '0' || c > '9' || n > (1<<62)/10 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// decimal returns a raw JSON number's value, 0 of any other value.
func decimal(value []byte) float64 {
	f, err := strconv.ParseFloat(string(value), 64)
	if err != nil {
		return 0
	}
	return f
}

func isTrue(value []byte) bool { return len(value) == 4 && value[0] == 't' }

func isNull(value []byte) bool { return len(value) == 4 && value[0] == 'n' }

// empty tells whether a raw value is null, or a string, an array or an object with nothing in it.
func empty(value []byte) bool {
	return isNull(value) || len(value) == 2 && (value[0] == '"' || value[0] == '[' || value[0] == '{')
}

// filled tells whether a raw value is an array with something in it.
func filled(value []byte) bool {
	return len(value) > 1 && value[0] == '[' && value[space(value, 1)] != ']'
}
