package models

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// progress is what is said of a job, for all who listen: the last record of each blob, and each status once.
type progress struct {
	mu      sync.Mutex
	records []said
	seq     int
	changed chan struct{}
}

// said is a record, by what it is about.
type said struct {
	key       string
	seq       int
	completed int64
	record    []byte
}

func newProgress() *progress { return &progress{changed: make(chan struct{})} }

// say keeps a record. Of a blob none that says less than one before: it comes from the registry first, and then to
// the engine.
func (p *progress) say(record []byte) {
	key := gjson.GetBytes(record, "digest").String()
	completed := gjson.GetBytes(record, "completed").Int()
	if key == "" {
		key = gjson.GetBytes(record, "status").String()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.records, func(s said) bool { return s.key == key })
	switch {
	case i < 0 && len(p.records) >= maxSaid, len(record) > maxSaying:
		return
	case i < 0:
		p.records = append(p.records, said{})
		i = len(p.records) - 1
	case completed <= p.records[i].completed:
		return
	}
	p.seq++
	p.records[i] = said{key, p.seq, completed, bytes.Clone(record)}
	close(p.changed)
	p.changed = make(chan struct{})
}

// last counts what was said.
func (p *progress) last() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seq
}

const (
	maxSaid   = 10_000  // records: of a model with a blob for each tensor
	maxSaying = 4 << 10 // bytes of one
)

// follow passes on what is said, until done is closed or the caller leaves.
func (p *progress) follow(ctx context.Context, done <-chan struct{}, to func([]byte) error) error {
	last := 0
	for {
		p.mu.Lock()
		changed := p.changed
		var fresh []said
		if to != nil {
			for _, s := range p.records {
				if s.seq > last {
					fresh = append(fresh, s)
				}
			}
		}
		p.mu.Unlock()
		slices.SortFunc(fresh, func(a, b said) int { return a.seq - b.seq })
		for _, s := range fresh {
			last = s.seq
			if err := to(s.record); err != nil {
				return err
			}
		}
		if len(fresh) > 0 {
			continue // more may have come meanwhile
		}
		select {
		case <-changed:
		case <-done:
			select {
			case <-changed: // the last words
			default:
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// merged joins the progress of several nodes: of each blob the least that any of them has got.
type merged struct {
	mu    sync.Mutex
	said  *progress
	blobs map[string]map[cluster.NodeID]int64
}

func newMerged(said *progress) *merged {
	return &merged{said: said, blobs: map[string]map[cluster.NodeID]int64{}}
}

// say takes in what a node says.
func (m *merged) say(id cluster.NodeID, record []byte) {
	r := gjson.ParseBytes(record)
	digest, completed := r.Get("digest").String(), r.Get("completed").Int()
	switch {
	case r.Get("status").String() == "success":
		return // when all say so
	case digest == "":
		m.said.say(record)
		return
	}
	hex, ok := manifest.CutDigest(digest)
	if !ok {
		return
	}
	m.mu.Lock()
	of := m.blobs[hex]
	if of == nil {
		if len(m.blobs) >= maxSaid {
			m.mu.Unlock()
			return
		}
		of = map[cluster.NodeID]int64{}
		m.blobs[hex] = of
	}
	of[id] = max(of[id], completed)
	for _, other := range of {
		completed = min(completed, other)
	}
	m.mu.Unlock()
	m.said.say(pulling(hex, r.Get("total").Int(), completed))
}

func status(text string) []byte {
	data, _ := json.Marshal(map[string]string{"status": text}) // a string always has a form
	return data
}

// pulling is the record with which Ollama tells how far a blob is.
func pulling(digest string, total, completed int64) []byte {
	return []byte(fmt.Sprintf(`{"status":"pulling %s","digest":"sha256:%s","total":%d,"completed":%d}`, short(digest), digest, total, completed))
}
