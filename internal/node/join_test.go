package node

import (
	"errors"
	"fmt"
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestARefusalIsToldThoughAnotherMemberGaveNoAnswer(t *testing.T) {
	lost := fmt.Errorf("%w: reset", errJoinLost)
	for name, c := range map[string]struct {
		refused, lost error
		is            error
		again         bool
	}{
		"refused":                     {cluster.ErrTokenExpired, nil, cluster.ErrTokenExpired, false},
		"lost":                        {nil, lost, errJoinLost, true},
		"refused and lost":            {cluster.ErrTokenExpired, lost, cluster.ErrTokenExpired, false},
		"unknown to one, others lost": {cluster.ErrTokenUnknown, lost, cluster.ErrTokenUnknown, true},
	} {
		if err := notJoined(c.refused, c.lost); !errors.Is(err, c.is) || errors.Is(err, errJoinLost) != c.again {
			t.Errorf("%s: %v", name, err)
		}
	}
}
