package node

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// connections bounds how many connections of clients are open. When there are too many, the one goes
// that has been silent for longest, so that those who only connect keep nobody out who asks.
type connections struct {
	max    int64
	open   atomic.Int64
	shards [32]silent // so that requests do not wait for each other here
}

// silent are connections on which no request is being served.
type silent struct {
	mu    sync.Mutex
	since map[net.Conn]time.Time
	// ended are those that were closed to make room, until their server notices. They count no more.
	ended map[net.Conn]struct{}
	_     [32]byte // a cache line of its own
}

func newConnections(max int) *connections {
	c := &connections{max: int64(max)}
	for i := range c.shards {
		c.shards[i].since, c.shards[i].ended = map[net.Conn]time.Time{}, map[net.Conn]struct{}{}
	}
	return c
}

func (c *connections) shard(conn net.Conn) *silent {
	// The address of what a connection is made of, which differs between connections that are open.
	at := (*[2]uintptr)(unsafe.Pointer(&conn))[1]
	return &c.shards[(at>>6)%uintptr(len(c.shards))]
}

// changed is a http.Server's ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	s := c.shard(conn)
	switch state {
	case http.StateNew, http.StateIdle:
		s.mu.Lock()
		if _, ended := s.ended[conn]; !ended {
			s.since[conn] = time.Now()
		}
		s.mu.Unlock()
		if state == http.StateNew && c.open.Add(1) > c.max {
			c.closeOldest()
		}
	case http.StateActive:
		s.mu.Lock()
		delete(s.since, conn)
		s.mu.Unlock()
	case http.StateClosed, http.StateHijacked:
		s.mu.Lock()
		delete(s.since, conn)
		_, ended := s.ended[conn]
		delete(s.ended, conn)
		s.mu.Unlock()
		if !ended {
			c.open.Add(-1)
		}
	}
}

// closeOldest closes the connection that has been silent for longest; the newest is silent too.
func (c *connections) closeOldest() {
	for {
		oldest := c.oldest()
		if oldest == nil {
			return
		}
		s := c.shard(oldest)
		s.mu.Lock()
		_, silent := s.since[oldest]
		if silent { // still, and nobody else makes room with it
			delete(s.since, oldest)
			s.ended[oldest] = struct{}{}
		}
		s.mu.Unlock()
		if silent {
			c.open.Add(-1)
			_ = oldest.Close() // its server notices later
			return
		}
	}
}

func (c *connections) oldest() (oldest net.Conn) {
	var since time.Time
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for conn, at := range s.since {
			if oldest == nil || at.Before(since) {
				oldest, since = conn, at
			}
		}
		s.mu.Unlock()
	}
	return oldest
}
