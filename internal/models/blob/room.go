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

// CheckRoom is a *NoRoomError unless the disk of a folder has room for the bytes that are to come, and a reserve.
func CheckRoom(ctx context.Context, dir string, bytes, reserve int64) error {
	free, err := Free(ctx, dir)
	if err != nil {
		return err
	}
	need := int64(math.MaxInt64) // of sizes that somebody made up
	if bytes < math.MaxInt64-reserve {
		need = bytes + reserve
	}
	if free < need {
		return &NoRoomError{Dir: dir, Free: free, Need: need}
	}
	return nil
}

// Free is how many bytes the disk of a folder has free.
func Free(ctx context.Context, dir string) (int64, error) {
	usage, err := disk.UsageWithContext(ctx, dir)
	if err != nil {
		return 0, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	return int64(min(usage.Free, math.MaxInt64)), nil
}

// SameDisk tells whether two folders share the room of one disk. Subvolumes have devices of their own and tell the figures of the
// disk, but for what is written between the two looks.
func SameDisk(ctx context.Context, a, b string) bool {
	if sameDevice(a, b) {
		return true
	}
	of, err := disk.UsageWithContext(ctx, a)
	if err != nil {
		return false
	}
	other, err := disk.UsageWithContext(ctx, b)
	return err == nil && of.Total == other.Total && max(of.Free, other.Free)-min(of.Free, other.Free) <= writtenBetween
}

const writtenBetween = 64 << 20
