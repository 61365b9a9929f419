//go:build !windows

package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// asFull makes an error of a full disk, or of a used-up quota, an ErrFull.
func asFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// sameDevice tells whether two files lie in one file system.
func sameDevice(a, b string) bool {
	var of, other syscall.Stat_t
	return syscall.Stat(a, &of) == nil && syscall.Stat(b, &other) == nil && of.Dev == other.Dev
}

// onDisk is how many bytes of a file, which may be sparse, lie on the disk.
func onDisk(info fs.FileInfo) int64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return min(stat.Blocks*512, info.Size())
	}
	return 0
}

// makeSparse does nothing: a file is sparse where it was not written.
func makeSparse(*os.File) error { return nil }
