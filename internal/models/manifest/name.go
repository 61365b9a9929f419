package manifest

import (
	"fmt"
	"strings"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// DefaultHost is the host of a name that has none.
const DefaultHost = cluster.DefaultRegistry

const (
	defaultNamespace = "library"
	defaultTag       = "latest"
)

// Name is a model's name in Ollama's form: host/namespace/model:tag. Names that differ in case only are the
// same one.
type Name struct {
	Host, Namespace, Model, Tag string
	// Plain is set for a name that was written with http://.
	Plain bool
}

// ParseName reads a name and fills in what is left out of it.
func ParseName(text string) (Name, error) {
	n := Name{Host: DefaultHost, Namespace: defaultNamespace, Tag: defaultTag}
	rest := strings.TrimSpace(text)
	if scheme, after, ok := strings.Cut(rest, "://"); ok {
		switch {
		case strings.EqualFold(scheme, "http"):
			n.Plain = true
		case !strings.EqualFold(scheme, "https"):
			return Name{}, fmt.Errorf("read name %q: its scheme is neither http nor https", text)
		}
		rest = after
	}
	if colon := strings.LastIndexByte(rest, ':'); colon > strings.LastIndexByte(rest, '/') {
		rest, n.Tag = rest[:colon], rest[colon+1:]
	}
	parts := strings.Split(rest, "/")
	n.Model = parts[len(parts)-1]
	switch len(parts) {
	case 1:
	case 2:
		n.Namespace = parts[0]
	case 3:
		n.Host, n.Namespace = parts[0], parts[1]
	default:
		return Name{}, fmt.Errorf("read name %q: it has %d parts of at most three", text, len(parts))
	}
	for _, part := range []struct {
		what, text, others string
		longest            int
	}{
		{"host", n.Host, "-_.:", 350},
		{"namespace", n.Namespace, "-_", 80},
		{"model", n.Model, "-_.", 80},
		{"tag", n.Tag, "-_.", 80},
	} {
		if !validPart(part.text, part.longest, part.others) {
			return Name{}, fmt.Errorf("read name %q: %q is no %s", text, part.text, part.what)
		}
	}
	return n, nil
}

// validPart tells whether s is 1 to longest letters, digits and others, the first no other than _.
func validPart(s string, longest int, others string) bool {
	if s == "" || len(s) > longest {
		return false
	}
	for i := range len(s) {
		c := s[i]
		plain := c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '_'
		if !plain && (i == 0 || strings.IndexByte(others, c) < 0) {
			return false
		}
	}
	return true
}

// String is the shortest form, as Ollama lists it: always with the tag.
func (n Name) String() string {
	text := n.Model + ":" + n.Tag
	if !strings.EqualFold(n.Host, DefaultHost) {
		return n.Host + "/" + n.Namespace + "/" + text
	}
	if !strings.EqualFold(n.Namespace, defaultNamespace) {
		return n.Namespace + "/" + text
	}
	return text
}

// Equal tells whether both are one name.
func (n Name) Equal(o Name) bool {
	return strings.EqualFold(n.Host, o.Host) && strings.EqualFold(n.Namespace, o.Namespace) &&
		strings.EqualFold(n.Model, o.Model) && strings.EqualFold(n.Tag, o.Tag)
}

// The names that a cluster's node uses while a model passes its loopback registry. Nobody else is to use the
// namespace with a host of 127/8, and nobody is to see such names.
const (
	// PassingNamespace is the namespace of all of them.
	PassingNamespace = "omx"
	// passingTag is their tag, always: Ollama makes tags equal to others it has but for their case, and
	// takes "local" and "cloud" for something else.
	passingTag = "omx"
	// outgoing stands before the digest in the name of a model that leaves its engine.
	outgoing = "out-"
)

// Incoming is the name under which an engine pulls a model from the registry at host; Outgoing the one under
// which it pushes it there. The model is its manifest's digest.
func Incoming(host, model string) Name {
	return Name{Host: host, Namespace: PassingNamespace, Model: model, Tag: passingTag}
}

// Outgoing is the name under which an engine pushes a model to the registry at host.
func Outgoing(host, model string) Name {
	return Name{Host: host, Namespace: PassingNamespace, Model: outgoing + model, Tag: passingTag}
}

// IsPassing tells whether a name is one that Incoming or Outgoing made, at any loopback registry: the port of
// an earlier run may have been another.
func (n Name) IsPassing() bool {
	return strings.HasPrefix(n.Host, "127.") && strings.EqualFold(n.Namespace, PassingNamespace) &&
		IsDigest(strings.TrimPrefix(n.Model, outgoing))
}
