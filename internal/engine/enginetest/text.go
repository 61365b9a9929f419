package enginetest

import (
	"encoding/json"
	"strings"
)

// textHash is the whole model: FNV-1a over all text so far. The next piece is a function of it.
type textHash uint64

const fnvPrime = 1099511628211

// newTextHash starts a text that the model with this digest continues.
func newTextHash(seed uint64, digest string) textHash {
	return (textHash(14695981039346656037) ^ textHash(seed)).write(digest).write("\x00")
}

func (h textHash) write(s string) textHash {
	for i := range len(s) {
		h = (h ^ textHash(s[i])) * fnvPrime
	}
	return h
}

// next chooses the piece that follows. The finalizer is that of splitmix64 (Steele et al. 2014);
// FNV's low bits alone repeat too soon.
func (h textHash) next() *piece {
	z := uint64(h)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	return &pieces[z%uint64(len(pieces))]
}

// unit maps the hash to -1..1.
func (h textHash) unit() float32 {
	z := uint64(h)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return float32(int64(z)>>40) / (1 << 23)
}

// piece is one token of an answer: a space and a word.
type piece struct {
	text string
	json string // text as it stands inside a JSON string
}

// pieces is the vocabulary. It holds characters that JSON escapes and some of several bytes; no
// word contains a space.
var pieces = func() []piece {
	words := strings.Fields(`the a of to and in that is was for it with as on be at by this had not
		are but from or have an they which one you were her all she there would their we him been
		has when who will more no if out so said what up its about into than them can only other
		new some could time these two may then do first any my now such like our over man me even
		most made after also did many before must through back years where much your way well down
		should because each just those people how too little state good very make world still own
		see men work long get here between both life being under never day same another know while
		last might us great old year off come since against go came right used take three
		café naïve Größe Łódź 日本 мир ελιά 🦙 "quoted" <b>bold</b> a&b it's C:\dir 50% x=1, yes! (no) end.`)
	out := make([]piece, len(words))
	for i, w := range words {
		out[i] = piece{text: " " + w, json: quoted(" " + w)}
	}
	return out
}()

// quoted returns s as it stands between the quotes of a JSON string.
func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always marshals
	}
	return string(b[1 : len(b)-1])
}

const whiteSpace = " \n\t\r"

// startsToken says whether a token starts with c inside a text: at every white space. The first
// byte of a text starts one too.
func startsToken(c byte) bool { return strings.IndexByte(whiteSpace, c) >= 0 }

// Tokens returns how many tokens s has: one for each piece that a server delivered, one for each
// word of a prompt, with the white space before it.
func Tokens(s string) int {
	if s == "" {
		return 0
	}
	n := 0
	for i := range len(whiteSpace) {
		n += strings.Count(s, whiteSpace[i:i+1]) // several times as fast as a loop
	}
	if !startsToken(s[0]) {
		n++
	}
	return n
}

// lastTokens returns the last n tokens of s.
func lastTokens(s string, n int) string {
	for i := len(s) - 1; i >= 0; i-- {
		if i == 0 || startsToken(s[i]) {
			if n--; n == 0 {
				return s[i:]
			}
		}
	}
	return s
}
