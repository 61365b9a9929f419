package cluster

import "strings"

// DefaultRegistry is the host of the registry that a model's name means which names none.
const DefaultRegistry = "registry.ollama.ai"

// CanonicalModel returns the one spelling that stands for all spellings of a model's name: lower
// case, without the default registry and namespace, with a tag. "m", "M", "m:latest", "library/m"
// and "registry.ollama.ai/library/m" are all "m:latest".
func CanonicalModel(name string) string {
	name = strings.ToLower(strings.TrimSpace(name))
	if _, rest, ok := strings.Cut(name, "://"); ok {
		name = rest
	}
	name = strings.TrimPrefix(name, DefaultRegistry+"/")
	name = strings.TrimPrefix(name, "library/")
	if name == "" {
		return ""
	}
	// A colon before the last slash belongs to a registry's port.
	if !strings.Contains(name[strings.LastIndexByte(name, '/')+1:], ":") {
		name += ":latest"
	}
	return name
}

// CloudModel tells whether a name asks for a model of Ollama's cloud (tag "cloud" or "…-cloud"),
// which every Ollama reaches by itself.
func CloudModel(name string) bool {
	canonical := CanonicalModel(name)
	tag := canonical[strings.LastIndexByte(canonical, ':')+1:]
	return canonical != "" && (tag == "cloud" || strings.HasSuffix(tag, "-cloud"))
}
