//go:build !windows

package blob

import (
	"errors"
	"fmt"
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

// makeSparse does nothing: a file is sparse where it was not written.
func makeSparse(*os.File) error { return nil }
