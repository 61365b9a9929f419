package node

import "testing"

func TestAFullDiskIsNotAnUnknownOne(t *testing.T) {
	for free, want := range map[uint64]int64{0: 1, 1<<30 - 1: 1, 3<<30 + 5: 3 << 30} {
		if got := roundDisk(free); got != want {
			t.Errorf("of %d bytes free %d are told", free, got)
		}
	}
}
