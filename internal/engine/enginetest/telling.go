package enginetest

import "bytes"

// telling is how an answer leaves: each piece as it comes if it is streamed, but for what could
// become a stop sequence.
type telling struct {
	a      *answer
	d      dialect
	slot   *slot // the answer grows in it, and it remembers it with the prompt
	stream bool
	stop   []string

	kind       kind
	begin, out int            // where the run of pieces of this kind began in the slot's text; up to where it went out
	runs       [called][2]int // of content and thinking: from where to where
	call       *toolCall
	stopped    bool
}

// mostEqual is how often a piece may follow itself before Ollama 0.33 lets the answer go without an
// end: 31 equal pieces arrive, and no terminal record.
const mostEqual = 30

// speak generates the answer's pieces, streams them if asked to, and returns the answer if not.
func (s *Server) speak(a *answer, sl *slot, c *call, d dialect, res *result) (said, error) {
	defer func() { s.count.generatedTokens.Add(int64(res.tokens)) }()
	if c.stream {
		contentType, _ := d.contentTypes()
		a.stream(contentType)
	}
	sp, spoken := s.newSpeech(c)
	limit := c.limit
	res.reason = "length"
	if limit < 0 {
		limit = max(s.cfg.Length-spoken, 0)
		res.reason = "stop"
	}
	last, equal := "", 0 // Ollama's guard
	t := telling{a: a, d: d, slot: sl, stream: c.stream, stop: c.stop, begin: len(sl.text), out: len(sl.text)}
	for wait := s.cfg.FirstToken; res.tokens < limit && !sp.ended; wait = s.cfg.TokenGap {
		if err := a.sleep(wait, true); err != nil {
			return said{}, err
		}
		u := sp.next(res.tokens == limit-1)
		res.tokens++
		if equal++; u.text != last {
			last, equal = u.text, 0
		}
		if equal > mostEqual && s.cfg.Kind == KindOllama {
			res.cut = true
			return t.said(), nil
		}
		if err := t.tell(u); err != nil {
			return said{}, err
		}
		if t.stopped {
			res.reason = "stop"
			return t.said(), nil
		}
		if !c.stream {
			if err := a.gatePassing(res.tokens); err != nil {
				return said{}, err
			}
		}
	}
	if sp.ended {
		res.reason = "stop"
	}
	err := t.flush()
	return t.said(), err
}

// tell takes one piece.
func (t *telling) tell(u utterance) error {
	if u.kind != t.kind {
		if err := t.flush(); err != nil {
			return err
		}
	}
	t.slot.text = append(t.slot.text, u.tag...)
	if u.kind != t.kind {
		t.kind, t.begin, t.out = u.kind, len(t.slot.text), len(t.slot.text)
	}
	t.slot.text = append(t.slot.text, u.text...)
	if u.kind == called {
		t.call = u.call
		if t.stream {
			return t.a.record(t.d.called((*t.a.buf)[:0], u.call))
		}
		return nil
	}
	if len(t.stop) == 0 {
		t.runs[t.kind] = [2]int{t.begin, len(t.slot.text)}
		return t.send(u.text, u.json)
	}
	ready, stopped := untilStop(t.slot.text[t.out:], t.stop)
	t.stopped = stopped
	return t.sendTo(t.out + ready)
}

// flush sends what was held back.
func (t *telling) flush() error {
	if len(t.stop) == 0 || t.kind == called {
		return nil
	}
	return t.sendTo(len(t.slot.text))
}

func (t *telling) sendTo(end int) error {
	text := t.slot.text[t.out:end]
	t.out = end
	t.runs[t.kind] = [2]int{t.begin, end}
	if !t.stream || len(text) == 0 {
		return nil
	}
	return t.send(string(text), quoted(string(text)))
}

func (t *telling) send(text, json string) error {
	if !t.stream {
		return nil
	}
	b := (*t.a.buf)[:0]
	if t.kind == thought {
		return t.a.record(t.d.thought(b, text, json))
	}
	return t.a.record(t.d.piece(b, text, json))
}

// said returns the answer if it is not streamed.
func (t *telling) said() said {
	if t.stream {
		return said{}
	}
	part := func(k kind) string { return string(t.slot.text[t.runs[k][0]:t.runs[k][1]]) }
	return said{thinking: part(thought), content: part(content), call: t.call}
}

// gatePassing looks now and then whether the client of an unstreamed answer is still there.
func (a *answer) gatePassing(tokens int) error {
	if tokens&63 != 0 {
		return nil
	}
	return a.ctx.Err()
}

// untilStop returns how many bytes of text may go out: up to a stop sequence, or up to what could
// become one.
func untilStop(text []byte, stop []string) (ready int, stopped bool) {
	ready = len(text)
	for _, seq := range stop {
		if i := bytes.Index(text, []byte(seq)); i >= 0 && (i < ready || !stopped) {
			ready, stopped = i, true
		}
	}
	if stopped {
		return ready, true
	}
	for _, seq := range stop {
		for n := min(len(seq)-1, len(text)); n > 0; n-- {
			if string(text[len(text)-n:]) == seq[:n] {
				ready = min(ready, len(text)-n)
				break
			}
		}
	}
	return ready, false
}
