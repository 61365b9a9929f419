package record

// arguments follows the arguments of a tool's call, JSON in a JSON string that may come in
// pieces: a call is complete when its object is closed.
type arguments struct {
	depth    int
	str, esc bool
}

// calls reads what a record says of tools, and tells whether the last call in it is complete.
func (a *arguments) calls(v []byte) (done bool) {
	e := elements{data: v}
	for call, ok := e.next(); ok; call, ok = e.next() {
		if id := inside(member(call, "id")); len(id) > 0 {
			*a = arguments{}
		}
		done = a.piece(inside(member(member(call, "function"), "arguments")))
	}
	return done
}

func (a *arguments) piece(s []byte) (done bool) {
	for len(s) > 0 {
		u := nextUnit(s)
		s = s[u.size:]
		switch c := u.bytes[0]; {
		case u.n > 1:
			a.esc = false
		case a.esc:
			a.esc = false
		case a.str && c == '\\':
			a.esc = true
		case c == '"':
			a.str = !a.str
		case a.str:
		case c == '{' || c == '[':
			a.depth++
		case c == '}' || c == ']':
			a.depth--
			done = done || a.depth == 0
		}
	}
	return done
}
