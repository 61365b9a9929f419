package cluster

import (
	"strconv"
	"strings"
)

// MaxName is the greatest length of a member's name in bytes.
const MaxName = 63

// CleanName turns any text, such as a host's name, into a valid member's name: letters, digits,
// '.', '_' and '-', beginning with a letter or digit, at most MaxName bytes. It returns "node"
// when nothing is left.
func CleanName(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case b.Len() >= MaxName:
		case validNameByte(r), b.Len() > 0 && strings.ContainsRune("._-", r):
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	if name := strings.TrimRight(b.String(), "._-"); name != "" {
		return name
	}
	return "node"
}

func validName(name string) bool { return name != "" && CleanName(name) == name }

func validNameByte(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// freeName returns name if no member other than id has it, else name-2, name-3 and so on.
func (s *State) freeName(name string, id NodeID) string {
	taken := make(map[string]bool, len(s.Members))
	for _, m := range s.Members {
		if m.ID != id {
			taken[strings.ToLower(m.Name)] = true
		}
	}
	free := name
	for n := 2; taken[strings.ToLower(free)]; n++ {
		suffix := "-" + strconv.Itoa(n)
		free = strings.TrimRight(name[:min(len(name), MaxName-len(suffix))], "._-") + suffix
	}
	return free
}
