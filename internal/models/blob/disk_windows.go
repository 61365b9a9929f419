package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	errHandleDiskFull = syscall.Errno(39)
	errDiskFull       = syscall.Errno(112)
	fsctlSetSparse    = 0x900c4
)

// asFull makes an error of a full disk an ErrFull.
func asFull(err error) error {
	if errors.Is(err, errHandleDiskFull) || errors.Is(err, errDiskFull) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// sameDevice tells whether two files lie on one volume.
func sameDevice(a, b string) bool {
	return strings.EqualFold(filepath.VolumeName(a), filepath.VolumeName(b))
}

// onDisk is how many bytes of a file, which may be sparse, are sure to lie on the disk: none is known of.
func onDisk(fs.FileInfo) int64 { return 0 }

// makeSparse tells NTFS not to fill the gap with zeros when a late piece is written first. Where the
// file system knows no sparse files the gap is filled, which is slow and right.
func makeSparse(f *os.File) error {
	var n uint32
	err := syscall.DeviceIoControl(syscall.Handle(f.Fd()), fsctlSetSparse, nil, 0, nil, 0, &n, nil)
	if errors.Is(err, syscall.Errno(1)) || errors.Is(err, syscall.Errno(50)) { // ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED
		return nil
	}
	return err
}
