package enginetest

import (
	"cmp"
	"strings"
)

const (
	defaultHost      = "registry.ollama.ai"
	defaultNamespace = "library"
	defaultTag       = "latest"
)

// name is a model's name in Ollama's form: host/namespace/model:tag.
type name struct{ host, namespace, model, tag string }

// parseName fills in what is missing; the result may be invalid.
func parseName(s string) name {
	n := name{host: defaultHost, namespace: defaultNamespace, tag: defaultTag}
	if colon := strings.LastIndex(s, ":"); colon > strings.LastIndex(s, "/") {
		s, n.tag = s[:colon], s[colon+1:]
	}
	rest, model, ok := cutLast(s, "/")
	if !ok {
		n.model = s
		return n
	}
	n.model = model
	host, namespace, ok := cutLast(rest, "/")
	if !ok {
		n.namespace = rest
		return n
	}
	n.namespace = namespace
	if _, after, ok := strings.Cut(host, "://"); ok {
		host = after
	}
	n.host = host
	return n
}

// String is the shortest form, which always has its tag.
func (n name) String() string {
	s := n.model + ":" + n.tag
	if n.host != defaultHost {
		return n.host + "/" + n.namespace + "/" + s
	}
	if n.namespace != defaultNamespace {
		return n.namespace + "/" + s
	}
	return s
}

// full is the form with nothing left out.
func (n name) full() string { return n.host + "/" + n.namespace + "/" + n.model + ":" + n.tag }

// key is equal for names that differ only in case.
func (n name) key() string { return strings.ToLower(n.String()) }

func (n name) valid() bool {
	return validPart(n.host, 350, ".:-_") && validPart(n.namespace, 80, "-_") &&
		validPart(n.model, 80, ".-_") && validPart(n.tag, 80, ".-_")
}

// validPart says whether s has 1 to longest letters, digits and others, the first no other than _.
func validPart(s string, longest int, others string) bool {
	for i := range len(s) {
		c := s[i]
		plain := c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '_'
		if !plain && (i == 0 || strings.IndexByte(others, c) < 0) {
			return false
		}
	}
	return len(s) == min(max(len(s), 1), longest)
}

// modelName returns the first of a body's two fields for a model's name that is set.
func modelName(model, deprecated string) string { return cmp.Or(model, deprecated) }
