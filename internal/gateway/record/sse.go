package record

import "bytes"

// sse is what the lines of one server-sent event say.
type sse struct {
	event []byte
	data  []byte
	some  bool // there was a data line
	bad   bool // a line that no event has
}

// parseSSE reads the lines of an event. Data in one line, as everyone writes it, is not copied.
func parseSSE(rec []byte) (e sse) {
	for len(rec) > 0 {
		line := rec
		if n := bytes.IndexByte(rec, '\n'); n >= 0 {
			line, rec = rec[:n], rec[n+1:]
		} else {
			rec = nil
		}
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		if len(line) == 0 || line[0] == ':' { // a comment keeps a connection alive
			continue
		}
		field, value := line, line[len(line):]
		if n := bytes.IndexByte(line, ':'); n >= 0 {
			field, value = line[:n], line[n+1:]
		}
		if len(value) > 0 && value[0] == ' ' {
			value = value[1:]
		}
		switch string(field) {
		case "data":
			if e.some {
				e.data = append(append(bytes.Clone(e.data), '\n'), value...)
			} else {
				e.data, e.some = value, true
			}
		case "event":
			e.event = value
		case "id", "retry":
		default:
			e.bad = true
		}
	}
	return e
}

// openSSE writes what comes before an event's data; closeSSE what comes behind.
func openSSE(b []byte, event string) []byte {
	if event != "" {
		b = append(append(append(b, "event: "...), event...), '\n')
	}
	return append(b, "data: "...)
}

func closeSSE(b []byte) []byte { return append(b, "\n\n"...) }
