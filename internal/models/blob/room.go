package blob

import (
	"context"
	"fmt"
	"math"

	"github.com/shirou/gopsutil/v4/disk"
)

// NoRoomError says that a disk has too little room for a model.
type NoRoomError struct {
	Dir        string
	Free, Need int64 // bytes
}

func (e *NoRoomError) Error() string {
	return fmt.Sprintf("need %d MB free at %s: there are %d MB: free some space or choose another node", e.Need>>20, e.Dir, e.Free>>20)
}

// CheckRoom is a *NoRoomError unless the disk of a folder has room for twice the bytes that are to come, and
// a reserve. Twice, because the engine copies what the spool has.
func CheckRoom(ctx context.Context, dir string, bytes, reserve int64) error {
	usage, err := disk.UsageWithContext(ctx, dir)
	if err != nil {
		return fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	need := int64(math.MaxInt64) // of sizes that somebody made up
	if bytes < (math.MaxInt64-reserve)/2 {
		need = 2*bytes + reserve
	}
	if int64(min(usage.Free, math.MaxInt64)) < need {
		return &NoRoomError{Dir: dir, Free: int64(usage.Free), Need: need}
	}
	return nil
}
