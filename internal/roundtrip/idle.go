package roundtrip

import (
	"math/rand/v2"
	"sync"
	"time"
)

// shards is into how many parts the kept connections are divided, so that requests do not wait for
// each other here.
const shards = 8

// idle is the connections that nobody uses, those used last first.
type idle struct {
	max     int // of a shard
	timeout time.Duration
	parts   [shards]struct {
		mu    sync.Mutex
		hosts map[string][]*connection
		count int
		_     [32]byte // a cache line of its own
	}
}

// take returns a connection to a host that was given back after a moment; nil if there is none.
func (i *idle) take(host string, after time.Time) *connection {
	first := rand.IntN(shards)
	for n := range shards {
		p := &i.parts[(first+n)%shards]
		p.mu.Lock()
		list := p.hosts[host]
		if len(list) == 0 {
			p.mu.Unlock()
			continue
		}
		conn := list[len(list)-1]
		var old []*connection
		if conn.since.Before(after) { // and all others are older
			old = list
			delete(p.hosts, host)
			p.count -= len(list)
			conn = nil
		} else {
			list[len(list)-1] = nil
			p.hosts[host] = list[:len(list)-1]
			p.count--
		}
		p.mu.Unlock()
		for _, o := range old {
			_ = o.Conn.Close() // nobody uses it
		}
		if conn != nil {
			return conn
		}
	}
	return nil
}

// put keeps a connection; false if there are enough.
func (i *idle) put(c *connection) bool {
	p := &i.parts[rand.IntN(shards)]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count >= max(i.max, 1) {
		return false
	}
	if p.hosts == nil {
		p.hosts = map[string][]*connection{}
	}
	c.since = time.Now()
	list := p.hosts[c.host]
	for len(list) > 0 && c.since.Sub(list[0].since) > i.timeout { // else a burst's connections would stay for ever
		_ = list[0].Conn.Close() // nobody uses it
		list[0] = nil
		list = list[1:]
		p.count--
	}
	p.hosts[c.host] = append(list, c)
	p.count++
	return true
}

func (i *idle) closeAll() {
	for n := range i.parts {
		p := &i.parts[n]
		p.mu.Lock()
		hosts := p.hosts
		p.hosts, p.count = nil, 0
		p.mu.Unlock()
		for _, list := range hosts {
			for _, c := range list {
				_ = c.Conn.Close() // nobody uses it
			}
		}
	}
}
