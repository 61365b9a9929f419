//go:build !windows

package blob

import "syscall"

const diskFull = syscall.ENOSPC
