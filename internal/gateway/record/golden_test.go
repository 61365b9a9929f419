package record

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// broken is an answer of which the client has the first n records.
type broken struct {
	*Tracker
	sent           []byte
	text, thinking []byte
	tool           bool
}

func breakAfter(c capture, recs [][]byte) *broken {
	b := &broken{Tracker: NewTracker(c.form, c.usage)}
	for _, rec := range recs {
		b.took(b.Follow(rec))
		b.sent = append(b.sent, rec...)
	}
	return b
}

func (b *broken) took(ev Event) {
	b.text = append(b.text, ev.Text...)
	b.thinking = append(b.thinking, ev.Thinking...)
	b.tool = b.tool || ev.Tool
}

// facts are what all records of a whole capture say.
type facts struct {
	text, thinking []byte
	end            End
}

func factsOf(c capture, recs [][]byte) (f facts) {
	t := NewTracker(c.form, c.usage)
	for _, rec := range recs {
		ev := t.Follow(rec)
		f.text = append(f.text, ev.Text...)
		f.thinking = append(f.thinking, ev.Thinking...)
		if ev.Prompt+ev.Output > 0 {
			f.end.Usage = ev.Usage
		}
		switch ev.Reason {
		case "":
		case "length", "max_tokens":
			f.end.Reason = "length"
		default:
			f.end.Reason = "stop"
		}
	}
	f.end.Text, f.end.Thinking = f.text, f.thinking
	return f
}

// TestBrokenAnswersEndAsIfTheyHadNotBroken cuts each capture at every record, and writes the rest
// from raw pieces, and from a replay with other ids and other cuts.
func TestBrokenAnswersEndAsIfTheyHadNotBroken(t *testing.T) {
	for _, c := range captures(t) {
		t.Run(c.name, func(t *testing.T) {
			recs := split(t, c.form, c.stream)
			want, ids := read(t, c.form, c.stream)
			f := factsOf(c, recs)
			check := func(t *testing.T, b *broken) {
				t.Helper()
				got, gotIDs := read(t, c.form, b.sent)
				if c.form == Messages || !c.usage {
					want.Prompt, got.Prompt = 0, 0
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("the answer differs: %s\n%s", diff, b.sent)
				}
				if !maps.Equal(ids, gotIDs) {
					t.Errorf("ids %v, want %v", gotIDs, ids)
				}
			}
			raw, replayed := 0, 0
			for n := 1; n < len(recs); n++ {
				b := breakAfter(c, recs[:n])
				if !b.begun {
					t.Fatalf("not begun after %q", recs[0])
				}
				if b.Finished() || len(b.text) > 0 && len(b.thinking) == len(f.thinking) && !callsTool(c, recs) || len(f.thinking) == 0 && !callsTool(c, recs) {
					raw++
					t.Run(fmt.Sprintf("raw after %d", n), func(t *testing.T) {
						random := rand.New(rand.NewPCG(0, uint64(n)))
						if !b.Finished() {
							for rest := f.text[len(b.text):]; len(rest) > 0; {
								m := 0
								for range 1 + random.IntN(4) {
									if m < len(rest) {
										m += nextUnit(rest[m:]).size
									}
								}
								for m < len(rest) && !utf8.RuneStart(rest[m]) {
									m++
								}
								b.sent = b.AppendText(b.sent, Event{Text: rest[:m], CreatedAt: []byte("2026-01-02T03:04:05.678Z")})
								rest = rest[m:]
							}
						}
						b.sent = b.AppendEnd(b.sent, f.end)
						if again := b.AppendEnd(nil, f.end); len(again) > 0 {
							t.Errorf("ended twice: %s", again)
						}
						check(t, b)
					})
				}
				if b = breakAfter(c, recs[:n]); b.tool || b.done {
					continue
				}
				replayed++
				for seed := range uint64(3) {
					t.Run(fmt.Sprintf("replay %d after %d", seed, n), func(t *testing.T) {
						b := breakAfter(c, recs[:n])
						if rest := f.text[len(b.text):]; seed == 1 && len(rest) > 0 && len(b.text) > 0 { // it broke before, and went on
							for range 5 {
								m := nextUnit(rest).size
								for m < len(rest) && !utf8.RuneStart(rest[m]) {
									m++
								}
								piece := Event{Text: rest[:m]}
								b.sent = b.AppendText(b.sent, piece)
								b.took(piece)
								if rest = rest[m:]; len(rest) == 0 {
									break
								}
							}
						}
						second := recut(t, c.form, otherIDs(c.form, recs), rand.New(rand.NewPCG(seed, uint64(n))))
						r := NewReplay(b.Tracker, bytes.Clone(b.text), bytes.Clone(b.thinking))
						for _, rec := range second {
							var ev Event
							var v Verdict
							b.sent, ev, v = r.Append(b.sent, rec)
							if v == Diverged {
								t.Fatalf("diverged at %s", rec)
							}
							if v == Delivered {
								b.took(ev)
							}
						}
						check(t, b)
					})
				}
			}
			if raw == 0 && !callsTool(c, recs) || replayed == 0 {
				t.Errorf("cut %d times for raw pieces, %d times for a replay", raw, replayed)
			}
		})
	}
}

func callsTool(c capture, recs [][]byte) bool { return breakAfter(c, recs).tool }

// TestEveryByteIsCutIntoTheSameRecords feeds the captures byte by byte.
func TestEveryByteIsCutIntoTheSameRecords(t *testing.T) {
	for _, c := range captures(t) {
		var got [][]byte
		rest := 0
		for i := range c.stream {
			if n := c.form.Split(c.stream[rest : i+1]); n > 0 {
				got = append(got, c.stream[rest:rest+n])
				rest += n
			}
		}
		if diff := cmp.Diff(split(t, c.form, c.stream), got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

var idsOf = regexp.MustCompile(`"(?:id|item_id|call_id)":"([^"]+)"`)

// otherIDs gives a capture the ids and times that another node would.
func otherIDs(f Form, recs [][]byte) (out [][]byte) {
	for _, rec := range recs {
		rec = idsOf.ReplaceAllFunc(rec, func(m []byte) []byte {
			if bytes.HasPrefix(m, []byte(`"call_id`)) {
				return m
			}
			return append(m[:len(m)-1:len(m)-1], `second"`...)
		})
		rec = regexp.MustCompile(`"created(_at)?":\d+`).ReplaceAll(rec, []byte(`"created$1":7`))
		rec = regexp.MustCompile(`"model":"\w+"`).ReplaceAll(rec, []byte(`"model":"alias"`))
		out = append(out, rec)
	}
	return out
}

// recut cuts the text of an answer otherwise, and escapes it otherwise.
func recut(t *testing.T, f Form, recs [][]byte, random *rand.Rand) (out [][]byte) {
	follow, write := NewTracker(f, false), NewTracker(f, false)
	var held []byte // a record
	var heldEv Event
	flush := func() {
		if held != nil {
			for _, part := range parts(heldEv, random) {
				b := write.AppendRecord(nil, held, part, follow)
				out = append(out, b)
			}
		}
		held = nil
	}
	write.Follow(recs[0]) // has the ids of the other answer
	for _, rec := range recs {
		ev := follow.Follow(rec)
		mixed := len(ev.Text) > 0 && len(ev.Thinking) > 0
		says := len(ev.Text)+len(ev.Thinking) > 0 && !mixed && ev.Reason == "" && !ev.Done && !bytes.Contains(rec, []byte(`"role":"assistant","content":"","reas`))
		if !says || f == ChatCompletions && bytes.Contains(rec, []byte(`"role"`)) {
			flush()
			out = append(out, rec)
			continue
		}
		if held != nil && (len(ev.Text) > 0) == (len(heldEv.Text) > 0) && random.IntN(2) == 0 {
			heldEv.Text = slices.Concat(heldEv.Text, ev.Text)
			heldEv.Thinking = slices.Concat(heldEv.Thinking, ev.Thinking)
			continue
		}
		flush()
		held, heldEv = rec, ev
	}
	flush()
	return out
}

// parts cuts what an event says into a few events, also between the halves of a character.
func parts(ev Event, random *rand.Rand) (out []Event) {
	text, thinking := otherEscapes(ev.Text, random), otherEscapes(ev.Thinking, random)
	said, n := text, len(text)
	if n == 0 {
		said = thinking
	}
	for len(said) > 0 {
		m := 0
		for range 1 + random.IntN(6) {
			if m < len(said) {
				u := nextUnit(said[m:])
				m += u.size
				if u.size == 12 && random.IntN(2) == 0 {
					m -= 6
				}
			}
		}
		for m < len(said) && !utf8.RuneStart(said[m]) {
			m++
		}
		if n > 0 {
			out = append(out, Event{Text: said[:m]})
		} else {
			out = append(out, Event{Text: ev.Text, Thinking: said[:m]})
		}
		said = said[m:]
	}
	return out
}

func otherEscapes(s []byte, random *rand.Rand) []byte {
	var b strings.Builder
	for _, r := range string(unescape(nil, s)) {
		switch {
		case r == '"' || r == '\\' || r < ' ' || random.IntN(3) == 0:
			if high, low := utf16.EncodeRune(r); high != utf8.RuneError {
				fmt.Fprintf(&b, `\u%04x\u%04X`, high, low)
			} else {
				fmt.Fprintf(&b, `\u%04x`, r)
			}
		default:
			b.WriteRune(r)
		}
	}
	return []byte(b.String())
}

// TestAnEngineOfAnotherKindGoesOn has an Ollama go on where a llama-server broke off, and the other way.
func TestAnEngineOfAnotherKindGoesOn(t *testing.T) {
	all := map[string]capture{}
	for _, c := range captures(t) {
		all[c.name] = c
	}
	for _, form := range []string{"chatcompletions", "completions", "messages", "responses"} {
		ollama, llama := all[form+"-noise"], all[form+"-llama"]
		if u := all[form+"-noise-usage"]; u.stream != nil {
			ollama = u
		}
		for _, pair := range [][2]capture{{ollama, llama}, {llama, ollama}} {
			first, second := pair[0], pair[1]
			t.Run(first.name+" "+second.name, func(t *testing.T) {
				want, _ := read(t, second.form, second.stream)
				_, ids := read(t, first.form, first.stream)
				recs, rest := split(t, first.form, first.stream), split(t, second.form, second.stream)
				cut := 0
				for n := 1; n < len(recs); n++ {
					b := breakAfter(first, recs[:n])
					if b.Finished() || len(b.text) > len(want.Text) || bytes.Contains(recs[n-1], []byte("content_block_stop")) {
						break // one of the two says more than the other
					}
					cut++
					r := NewReplay(b.Tracker, bytes.Clone(b.text), nil)
					for _, rec := range rest {
						var v Verdict
						if b.sent, _, v = r.Append(b.sent, rec); v == Diverged {
							t.Fatalf("after %d diverged at %s", n, rec)
						}
					}
					got, gotIDs := read(t, first.form, b.sent)
					if first.form == Messages {
						want.Prompt, got.Prompt = 0, 0
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("after %d the answer differs: %s\n%s", n, diff, b.sent)
					}
					if !maps.Equal(ids, gotIDs) {
						t.Errorf("ids %v, want %v", gotIDs, ids)
					}
				}
				if cut < 10 {
					t.Errorf("cut only %d times", cut)
				}
			})
		}
	}
}
