package roundtrip

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// closing is a connection that counts when it is closed.
type closing struct {
	net.Conn
	closed *int
}

func (c closing) Close() error { *c.closed++; return nil }

func TestConnectionsToAHostThatIsGoneMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &idle{max: 1, timeout: time.Minute}
		closed := 0
		fill := func(host string) (kept int) {
			for range 10_000 { // the shard is drawn
				if i.put(&connection{Conn: closing{closed: &closed}, host: host}) {
					kept++
				}
			}
			return kept
		}
		if kept := fill("gone"); kept != shards || closed != 0 {
			t.Fatalf("%d are kept of the first, and %d are closed", kept, closed)
		}
		if kept := fill("other"); kept != 0 || closed != 0 {
			t.Fatalf("%d are kept beyond the maximum, and %d are closed", kept, closed)
		}
		time.Sleep(2 * time.Minute)
		if kept := fill("other"); kept != shards || closed != shards {
			t.Errorf("%d are kept, and %d of the first are closed", kept, closed)
		}
	})
}
