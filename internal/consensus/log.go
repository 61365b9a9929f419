package consensus

import (
	"fmt"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLog passes what raft says on to slog, all of it at debug level: raft reports every failed
// heartbeat as an error, and what an operator must know is said once, by this package.
type raftLog struct {
	to   *slog.Logger
	name string
}

func (l raftLog) Log(level hclog.Level, msg string, args ...any) {
	out := make([]any, 0, len(args)+2)
	for _, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			a = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		out = append(out, a)
	}
	l.to.Debug(msg, append(out, "raft_level", level.String())...)
}

func (l raftLog) Trace(string, ...any)          {}
func (l raftLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l raftLog) IsTrace() bool { return false }
func (l raftLog) IsDebug() bool { return true }
func (l raftLog) IsInfo() bool  { return true }
func (l raftLog) IsWarn() bool  { return true }
func (l raftLog) IsError() bool { return true }

func (l raftLog) ImpliedArgs() []any            { return nil }
func (l raftLog) With(args ...any) hclog.Logger { return raftLog{to: l.to.With(args...), name: l.name} }
func (l raftLog) Name() string                  { return l.name }
func (l raftLog) Named(name string) hclog.Logger {
	return raftLog{to: l.to, name: l.name + name}
}
func (l raftLog) ResetNamed(name string) hclog.Logger { return raftLog{to: l.to, name: name} }
func (l raftLog) SetLevel(hclog.Level)                {}
func (l raftLog) GetLevel() hclog.Level               { return hclog.Debug }

func (l raftLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(nil), "", 0)
}

func (l raftLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return lineWriter{l} }

type lineWriter struct{ l raftLog }

func (w lineWriter) Write(p []byte) (int, error) {
	w.l.Debug(string(p))
	return len(p), nil
}
