package enginetest

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"
)

// llamaDialect writes the records of llama-server's /v1/chat/completions and /v1/completions.
type llamaDialect struct {
	llamaErrors
	head    string // members of all objects: created, model, system_fingerprint, id
	chat    bool
	usage   bool    // asked for in streams
	prefill message // what the assistant had begun to say: a whole answer repeats it
	opened  bool    // the chunk with the role went out
	tools   bool    // a call went out
}

func (s *Server) llamaHead(c *call) string {
	return fmt.Sprintf(`"created":%d,"model":"%s","system_fingerprint":"%s","id":"chatcmpl-%016x%016x"`,
		time.Now().Unix(), quoted(c.model.Name), quoted(s.cfg.Version), rand.Uint64(), s.seq.Add(1))
}

func (d *llamaDialect) contentTypes() (stream, whole string) { return typeSSE, typeJSON }

func (d *llamaDialect) piece(b []byte, _, json string) []byte {
	if d.chat {
		return d.delta(b, `"content":"`, json, `"`)
	}
	b = append(append(append(b, `data: {"choices":[{"text":"`...), json...), `","index":0,"logprobs":null,"finish_reason":null}],`...)
	return append(append(b, d.head...), ",\"object\":\"text_completion\"}\n\n"...)
}

func (d *llamaDialect) thought(b []byte, _, json string) []byte {
	return d.delta(b, `"reasoning_content":"`, json, `"`)
}

func (d *llamaDialect) called(b []byte, c *toolCall) []byte {
	d.tools = true
	return d.delta(b, `"tool_calls":[{"index":0,"id":"`+c.ID+`","type":"function",`, d.function(c), `}]`)
}

func (d *llamaDialect) function(c *toolCall) string {
	return `"function":{"name":"` + quoted(c.Name) + `","arguments":"` + quoted(c.Arguments) + `"}`
}

// delta is one chunk of a chat that does not finish, after the first, which has only the role.
func (d *llamaDialect) delta(b []byte, key, json, end string) []byte {
	if !d.opened {
		d.opened = true
		b = d.delta(b, `"role":"assistant","content":null`, "", "")
	}
	b = append(append(b, `data: {"choices":[{"finish_reason":null,"index":0,"delta":{`...), key...)
	b = append(append(append(b, json...), end...), "}}],"...)
	return append(append(b, d.head...), ",\"object\":\"chat.completion.chunk\"}\n\n"...)
}

func (d *llamaDialect) reason(r *result, called bool) string {
	if called && r.reason == "stop" {
		return "tool_calls"
	}
	return r.reason
}

func (d *llamaDialect) end(b []byte, r *result) []byte {
	if !d.chat {
		b = append(b, `data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"`+r.reason+`"}],`...)
		b = append(append(b, d.head...), `,"object":"text_completion"`...)
		return append(d.timings(d.counts(b, r), r), "}\n\ndata: [DONE]\n\n"...)
	}
	if !d.opened {
		d.opened = true
		b = d.delta(b, `"role":"assistant","content":null`, "", "")
	}
	b = append(b, `data: {"choices":[{"finish_reason":"`+d.reason(r, d.tools)+`","index":0,"delta":{}}],`...)
	b = append(append(b, d.head...), `,"object":"chat.completion.chunk"`...)
	if d.usage {
		b = append(b, "}\n\ndata: {\"choices\":[],"...)
		b = d.counts(append(append(b, d.head...), `,"object":"chat.completion.chunk"`...), r)
	}
	return append(d.timings(b, r), "}\n\ndata: [DONE]\n\n"...)
}

func (d *llamaDialect) whole(b []byte, s said, r *result) []byte {
	if d.chat {
		b = append(b, `{"choices":[{"finish_reason":"`+d.reason(r, s.call != nil)+`","index":0,"message":{"role":"assistant","content":"`...)
		b = append(b, quoted(d.prefill.Content+s.content)+`"`...)
		if t := d.prefill.Thinking + s.thinking; t != "" {
			b = append(b, `,"reasoning_content":"`+quoted(t)+`"`...)
		}
		if s.call != nil {
			b = append(b, `,"tool_calls":[{"type":"function",`+d.function(s.call)+`,"id":"`+s.call.ID+`"}]`...)
		}
		b = append(append(append(b, `}}],`...), d.head...), `,"object":"chat.completion"`...)
	} else {
		b = append(b, `{"choices":[{"text":"`+quoted(s.content)+`","index":0,"logprobs":null,"finish_reason":"`+r.reason+`"}],`...)
		b = append(append(b, d.head...), `,"object":"text_completion"`...)
	}
	return append(d.timings(d.counts(b, r), r), '}')
}

func (d *llamaDialect) counts(b []byte, r *result) []byte {
	b = appendInt(b, `,"usage":{"completion_tokens":`, int64(r.tokens))
	b = appendInt(b, `,"prompt_tokens":`, int64(r.promptTokens))
	b = appendInt(b, `,"total_tokens":`, int64(r.promptTokens+r.tokens))
	return append(appendInt(b, `,"prompt_tokens_details":{"cached_tokens":`, int64(r.promptTokens-r.fresh)), "}}"...)
}

func (d *llamaDialect) timings(b []byte, r *result) []byte {
	b = appendInt(b, `,"timings":{"cache_n":`, int64(r.promptTokens-r.fresh))
	b = d.timing(b, "prompt", r.fresh, r.prefill)
	return append(d.timing(b, "predicted", r.tokens, r.eval), '}')
}

func (d *llamaDialect) timing(b []byte, name string, n int, took time.Duration) []byte {
	ms := float64(took) / float64(time.Millisecond)
	per, rate := 0.0, 0.0
	if n > 0 && ms > 0 {
		per, rate = ms/float64(n), float64(n)/ms*1000
	}
	b = appendInt(b, `,"`+name+`_n":`, int64(n))
	for _, f := range [...]struct {
		key string
		x   float64
	}{{"_ms", ms}, {"_per_token_ms", per}, {"_per_second", rate}} {
		b = strconv.AppendFloat(append(b, `,"`+name+f.key+`":`...), f.x, 'f', -1, 64)
	}
	return b
}
