package enginetest

import (
	"math/rand/v2"
	"strconv"
	"strings"
)

// The tags between which a model thinks. They are no tokens of their own but begin the piece after
// them, so that pieces and tokens stay the same number.
const (
	thinkOpen  = "<think>"
	thinkClose = "</think>"
)

// repeatWord in a prompt makes the model say one piece again and again.
const repeatWord = "REPEAT"

// kind is what a parser makes of a piece.
type kind uint8

const (
	content kind = iota
	thought
	called
)

// utterance is one piece as it leaves the model.
type utterance struct {
	kind       kind
	tag        string // stands before the text; the parser takes it away
	text, json string // json is text inside a JSON string
	call       *toolCall
}

// speech makes an answer, a piece at a time. All that it goes by is the text before the piece, so
// that another speech that begins with a part of the answer in its prompt makes the rest.
type speech struct {
	h        textHash
	raw      bool   // without a parser: tags and calls are text
	thoughts int    // pieces of thinking still to come
	tag      string // stands before the next piece
	words    int    // pieces of content so far
	tool     string // to be called after callAfter words; empty for none
	object   bool   // the content is a JSON object of strings
	repeats  bool   // all pieces of content are the same
	same     *piece // which one, once it is known
	ended    bool   // a tool is called: nothing follows
}

// newSpeech begins the answer to c, and returns the number of pieces of it that c's prompt holds.
func (s *Server) newSpeech(c *call) (sp speech, spoken int) {
	sp = speech{h: newTextHash(s.cfg.Seed, c.model.Digest), raw: c.raw, object: c.object}
	if s.cfg.Sampling && c.temperature > 0 {
		seed := orDefault(c.seed, -1)
		if seed < 0 {
			seed = rand.Int64() // not counted: two servers would draw the same
		}
		sp.h = sp.h.write(strconv.FormatInt(seed, 10)).write("\x00")
	}
	for _, img := range c.images {
		sp.h = sp.h.write(img).write("\x00")
	}
	sp.h = sp.h.write(c.text)

	sp.repeats = hasWord(c.text, repeatWord)
	_, after, turn := cutLast(c.text, turnAssistant)
	if !turn {
		sp.repeat(c.text)
		return sp, 0
	}
	spoken = strings.Count(after, " ")
	if c.model.Thinking && !c.unthought {
		_, rest, over := strings.Cut(after, thinkClose)
		switch {
		case over:
			after = rest
		case after == "":
			sp.think(thinkOpen, s.cfg.ThinkLength)
		case strings.HasPrefix(after, thinkOpen):
			sp.think("", s.cfg.ThinkLength-spoken)
			after = ""
		}
	}
	if c.object { // the grammar begins at its root, whatever the prompt holds
		return sp, 0
	}
	sp.words = strings.Count(after, " ")
	sp.repeat(after)
	sp.ended = strings.Contains(after, callOpen)
	if c.model.Tools {
		sp.tool = toolToCall(c.text)
	}
	return sp, spoken
}

// repeat has the speech go on with the last piece before it, if the model repeats itself.
func (s *speech) repeat(before string) {
	if _, word, ok := cutLast(before, " "); ok && s.repeats {
		s.same = &piece{" " + word, quoted(" " + word)}
	}
}

// think has the speech begin with up to n pieces of thinking.
func (s *speech) think(tag string, n int) {
	s.thoughts, s.tag = max(n, 0), tag
	if s.thoughts == 0 {
		s.tag = thinkClose
	}
}

// next makes the next piece; last says that it ends the answer.
func (s *speech) next(last bool) utterance {
	u := utterance{tag: s.tag}
	s.tag = ""
	s.h = s.h.write(u.tag)
	switch {
	case s.thoughts > 0:
		u.kind = thought
		p := s.h.next()
		u.text, u.json = p.text, p.json
		if s.thoughts--; s.thoughts == 0 {
			s.tag = thinkClose
		}
	case s.tool != "" && s.words >= callAfter:
		u.kind, u.call = called, newCall(s.h, s.tool)
		u.text = u.call.raw()
		s.ended = true
	case s.object:
		u.text = s.member(s.h.next(), last)
		u.json = quoted(u.text)
		s.words++
	default:
		p := s.same
		if p == nil {
			p = s.h.next()
		}
		if s.repeats {
			s.same = p
		}
		u.text, u.json = p.text, p.json
		s.words++
	}
	s.h = s.h.write(u.text)
	if s.raw && (u.tag != "" || u.kind != content) {
		u.kind, u.text, u.tag = content, u.tag+u.text, ""
		u.json = quoted(u.text)
	}
	return u
}

// member is a piece of a JSON object: one key and its value.
func (s *speech) member(p *piece, last bool) string {
	b := []byte{'{'}
	if s.words > 0 {
		b = []byte(", ")
	}
	b = append(strconv.AppendInt(append(b, `"k`...), int64(s.words), 10), `":"`...)
	b = append(append(b, p.json[1:]...), '"')
	if last {
		b = append(b, '}')
	}
	return string(b)
}
