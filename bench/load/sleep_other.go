//go:build !linux

package load

import "time"

// sleepUntil sleeps as precisely as the runtime does.
func sleepUntil(t time.Time) { time.Sleep(time.Until(t)) }
