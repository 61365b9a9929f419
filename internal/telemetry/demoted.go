package telemetry

import (
	"context"
	"log/slog"
)

// Demoted is a handler for what a library says by itself: its warnings and errors are debugging messages of ours, since
// what matters of them the library returns as well, and the rest is nothing.
func Demoted(h slog.Handler) slog.Handler { return demoted{h} }

type demoted struct{ slog.Handler }

func (d demoted) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && d.Handler.Enabled(ctx, slog.LevelDebug)
}

func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}

func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
