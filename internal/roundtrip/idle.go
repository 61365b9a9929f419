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
	parts   [shards]part
}

// part is one of those parts.
type part struct {
	mu    sync.Mutex
	hosts map[string][]*connection
	count int
	_     [32]byte // a cache line of its own
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
	c.since = time.Now()
	before := c.since.Add(-i.timeout)
	if p.count >= max(i.max, 1) {
		for host, list := range p.hosts { // one of which may be gone
			if p.hosts[host] = p.fresh(list, before); len(p.hosts[host]) == 0 {
				delete(p.hosts, host)
			}
		}
		if p.count >= max(i.max, 1) {
			return false
		}
	}
	if p.hosts == nil {
		p.hosts = map[string][]*connection{}
	}
	p.hosts[c.host] = append(p.fresh(p.hosts[c.host], before), c) // else a burst's connections would stay for ever
	p.count++
	return true
}

// fresh closes what was given back before a moment, and returns the rest of a list.
func (p *part) fresh(list []*connection, before time.Time) []*connection {
	for len(list) > 0 && list[0].since.Before(before) {
		_ = list[0].Conn.Close() // nobody uses it
		list[0] = nil
		list = list[1:]
		p.count--
	}
	return list
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
