package load

import (
	"syscall"
	"time"
)

// sleepUntil sleeps with the kernel's precision, some 50 µs.
func sleepUntil(t time.Time) {
	for {
		d := time.Until(t)
		if d <= 0 {
			return
		}
		ts := syscall.NsecToTimespec(int64(d))
		_ = syscall.Nanosleep(&ts, nil) // a signal may end it early
	}
}
