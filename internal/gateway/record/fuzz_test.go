package record

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzStreamsLoseNothing feeds anything as a stream: no panic, no byte lost, and what was written for a
// client is whole records of JSON.
func FuzzStreamsLoseNothing(f *testing.F) {
	for _, c := range captures(f) {
		f.Add(uint8(c.form), c.usage, c.stream, len(c.stream)/2)
	}
	f.Add(uint8(Chat), false, []byte(`{"message":{"content":"a"},"done":false}`), 7)
	f.Add(uint8(Messages), false, []byte("data: {\"type\":\"content_block_start\",\"index\":3}\n\n"), 0)
	f.Fuzz(func(t *testing.T, form uint8, usage bool, stream []byte, cut int) {
		fm := Form(form % 6)
		fm.Whole(stream)
		tr, fold := NewTracker(fm, usage), NewFold(fm)
		var recs [][]byte
		var text, thinking []byte
		for rest := stream; len(rest) > 0; {
			n := fm.Split(rest)
			if n < 0 || n > len(rest) {
				t.Fatalf("Split gives %d of %d", n, len(rest))
			}
			if n == 0 {
				n = len(rest)
			}
			recs = append(recs, rest[:n])
			rest = rest[n:]
		}
		if !bytes.Equal(bytes.Join(recs, nil), stream) {
			t.Fatal("Split lost something")
		}
		var at int
		for i, rec := range recs {
			ev := tr.Follow(rec)
			if ev.Garbage && (ev.Done || len(ev.Text) > 0) {
				t.Fatalf("garbage that says something: %s", rec)
			}
			if !ev.Failed {
				text, thinking = append(text, ev.Text...), append(thinking, ev.Thinking...)
			}
			fold.Add(rec, ev)
			if at = i + 1; at >= cut {
				break
			}
		}
		if body := fold.AppendBody(nil); body != nil {
			if !json.Valid(body) {
				t.Fatalf("folded: %s", body)
			}
			if !bytes.Equal(fold.Text(), text) || !bytes.Equal(fold.Thinking(), thinking) {
				t.Fatalf("fold lost something: %q, want %q", fold.Text(), text)
			}
		}
		out := tr.AppendText(nil, Event{Text: []byte("a"), Thinking: []byte("b")})
		r := NewReplay(tr, text, thinking)
		for _, rec := range recs {
			out, _, _ = r.Append(out, rec)
		}
		out = tr.AppendEnd(out, End{Reason: "stop", Text: text, Thinking: thinking})
		out = tr.AppendError(out, 500, "no")
		if tr.begun {
			valid(t, fm, out)
		}
	})
}

// valid fails the test if what was written is not whole records.
func valid(t *testing.T, f Form, out []byte) {
	for len(out) > 0 {
		n := f.Split(out)
		if n == 0 {
			t.Fatalf("no whole record: %q", out)
		}
		data := out[:n]
		if !f.lines() {
			e := parseSSE(out[:n])
			data = e.data
			if !e.some || string(data) == "[DONE]" {
				data = []byte("{}")
			}
		}
		if !json.Valid(data) {
			t.Fatalf("record %q", out[:n])
		}
		out = out[n:]
	}
}

// FuzzScan holds the scanner against encoding/json.
func FuzzScan(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,-0.5e+3,"\u00e9\n",{"b":null}],"c":true}`, `{"a":01}`, `{"a":"` + "\x01" + `"}`, `{"a":1,}`, ` { "a" : [ ] } `, `{"a"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := members{data: data}
		n := 0
		for _, _, ok := m.next(); ok; _, _, ok = m.next() {
			n++
		}
		var v map[string]json.RawMessage
		err := json.Unmarshal(data, &v)
		object := len(bytes.TrimLeft(data, " \t\r\n")) > 0 && bytes.TrimLeft(data, " \t\r\n")[0] == '{'
		if valid := object && json.Valid(data); valid == m.bad {
			t.Fatalf("bad %v; encoding/json: %v", m.bad, err)
		}
		if !m.bad && n < len(v) {
			t.Fatalf("%d members of %d", n, len(v))
		}
		var s string
		quoted := appendRaw(nil, data)
		if json.Unmarshal(quoted, &s) == nil && !bytes.Contains(data, []byte(`\ud`)) && !bytes.Contains(data, []byte(`\uD`)) && json.Valid(quoted) {
			if got := string(unescape(nil, data)); got != s && bytes.Equal(bytes.ToValidUTF8(data, nil), data) {
				t.Fatalf("unescaped %q, want %q", got, s)
			}
		}
	})
}
