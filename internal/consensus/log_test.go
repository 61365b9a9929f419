package consensus

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestWhatRaftSaysIsDebugOnly(t *testing.T) {
	for level, want := range map[slog.Level]string{
		slog.LevelInfo:  "",
		slog.LevelDebug: `level=DEBUG msg="failed to heartbeat" peer=b servers="[a b]" error=refused raft_level=error`,
	} {
		var out bytes.Buffer
		l := raftLog{to: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))}
		l.Named("raft").With("peer", "b").Error("failed to heartbeat", "servers", hclog.Fmt("%v", []string{"a", "b"}), "error", errors.New("refused"))
		got := strings.TrimSpace(out.String())
		if _, got, _ = strings.Cut(got, " "); got != want {
			t.Errorf("at %s: %s", level, got)
		}
	}
}
