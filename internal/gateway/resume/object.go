package resume

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

var errNotObject = errors.New("read body: not a JSON object")

// member is one key of an object, and where its value lies in the text.
type member struct {
	key        string
	value, end int
}

// is tells whether the member is the field of that name for Go's decoder, which is Ollama's.
func (m member) is(name string) bool { return strings.EqualFold(m.key, name) }

// members lists the members of the JSON object that a text begins with, and returns the offset of the
// bracket that closes it. Like Ollama it ignores what follows.
func members(text []byte) (list []member, closing int, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	open, err := d.Token()
	if err != nil {
		return nil, 0, fmt.Errorf("read body: %w", err)
	}
	if open != json.Delim('{') {
		return nil, 0, errNotObject
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, 0, fmt.Errorf("read body: %w", err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, 0, fmt.Errorf("read body: %w", err)
		}
		name, _ := key.(string) // a key is a string, or Token had failed
		end := int(d.InputOffset())
		list = append(list, member{key: name, value: end - len(value), end: end})
	}
	if _, err := d.Token(); err != nil {
		return nil, 0, fmt.Errorf("read body: %w", err)
	}
	return list, int(d.InputOffset()) - 1, nil
}

// field is a member to write.
type field struct {
	key   string
	value any
}

// edit returns the object that a text begins with, with the given fields instead of those of the same
// names. The values of the others keep their bytes, so that what we do not know goes on as it came.
func edit(text []byte, fields ...field) ([]byte, error) {
	list, _, err := members(text)
	if err != nil {
		return nil, err
	}
	out := bytes.NewBufferString("{")
	write := func(key string, value []byte) error {
		name, err := marshal(key)
		if err != nil {
			return err
		}
		if out.Len() > 1 {
			out.WriteByte(',')
		}
		out.Write(name)
		out.WriteByte(':')
		out.Write(value)
		return nil
	}
	for _, m := range list {
		replaced := false
		for _, f := range fields {
			replaced = replaced || m.is(f.key)
		}
		if replaced {
			continue
		}
		if err := write(m.key, text[m.value:m.end]); err != nil {
			return nil, err
		}
	}
	for _, f := range fields {
		value, err := marshal(f.value)
		if err != nil {
			return nil, err
		}
		if err := write(f.key, value); err != nil {
			return nil, err
		}
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// written is a member as it stands in a text.
type written struct{ key, value string }

// withMembers returns an object, from bracket to bracket, with these members and every other byte as it
// was: each in the place of the last one of its name, if that is written so, else behind all others.
// Decoders take the last, in whatever case they read names.
func withMembers(object []byte, fields ...written) []byte {
	type part struct {
		at, end int // what it takes the place of
		text    string
	}
	comma := ""
	parts := make([]part, len(fields))
	gjson.ParseBytes(object).ForEach(func(key, value gjson.Result) bool {
		comma = ","
		for i, f := range fields {
			if strings.EqualFold(key.Str, f.key) {
				parts[i] = part{}
				if key.Str == f.key {
					parts[i] = part{value.Index, value.Index + len(value.Raw), f.value}
				}
			}
		}
		return true
	})
	closing := len(object) - 1
	for i, f := range fields {
		if parts[i].end == 0 {
			parts[i] = part{closing, closing, comma + strconv.Quote(f.key) + ":" + f.value}
			comma = ","
		}
	}
	slices.SortStableFunc(parts, func(a, b part) int { return a.at - b.at })
	out := make([]byte, 0, len(object)+64*len(parts))
	from := 0
	for _, p := range parts {
		out = append(append(out, object[from:p.at]...), p.text...)
		from = p.end
	}
	return append(out, object[from:]...)
}

// marshal is json.Marshal without its escapes for web pages, which only lengthen prompts.
func marshal(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("write body: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// last returns the value of the last member of that name, nil if there is none.
func last(text []byte, list []member, name string) json.RawMessage {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].is(name) {
			return text[list[i].value:list[i].end]
		}
	}
	return nil
}
