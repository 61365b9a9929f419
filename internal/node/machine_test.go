package node

import "testing"

func TestAFullDiskIsNotAnUnknownOne(t *testing.T) {
	for free, want := range map[uint64]int64{0: 1, 1<<20 - 1: 1, 600<<20 + 5: 592 << 20, 3<<30 + 5: 3 << 30, 100<<30 + 1<<29: 100 << 30} {
		if got := roundDisk(free); got != want {
			t.Errorf("of %d bytes free %d are told", free, got)
		}
	}
}
