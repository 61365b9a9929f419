package telemetry

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestALibrarysErrorsAreSaidOnlyToWhoDebugs(t *testing.T) {
	for level, want := range map[slog.Level]string{slog.LevelInfo: "", slog.LevelDebug: "level=DEBUG msg=broken a=1 g.b=2\n"} {
		var out bytes.Buffer
		text := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})
		log := slog.New(Demoted(text)).With("a", 1).WithGroup("g")
		log.Error("broken", "b", 2)
		log.Info("fine")
		if _, got, _ := strings.Cut(out.String(), " "); got != want {
			t.Errorf("at %v: %q", level, out.String())
		}
	}
}
