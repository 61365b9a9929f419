package gateway

import (
	"crypto/rand"
	"strings"

	"github.com/ollamamax/ollamamax/internal/gateway/record"
)

// dialect is a family of APIs with its own form of errors.
type dialect record.Dialect

const ollama = dialect(record.OllamaDialect)

// dialectOf returns the dialect of a client's route.
func dialectOf(path string) dialect { return dialect(record.DialectOf(path)) }

// body returns an error's body in the dialect, as Ollama writes it.
func (d dialect) body(status int, message string) []byte {
	return record.Dialect(d).AppendError(nil, status, message, "req_"+strings.ToLower(rand.Text())[:24])
}
