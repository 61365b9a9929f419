package mesh

import "maps"

// Stats are counts for metrics.
type Stats struct {
	Peers       int            // with at least one connection
	Connections int            // of all peers
	Strangers   int            // connections of peers that are no members
	Streams     map[string]int // that Dial and Accept have given out and nobody has closed, by protocol
	Pending     int            // streams at the gate
	Refused     uint64         // streams that the gate refused, since Open
	Dropped     uint64         // streams reset for lack of room, time or a sound preamble, since Open
}

// Stats counts what is open now.
func (h *Host) Stats() Stats {
	s := Stats{
		Peers:   len(h.p2p.Network().Peers()),
		Pending: len(h.gate.pending) + len(h.gate.pendingStrangers),
		Refused: h.gate.refused.Load(), Dropped: h.gate.dropped.Load(),
	}
	for _, c := range h.p2p.Network().Conns() {
		s.Connections++
		if !h.trusts(c.RemotePeer()) {
			s.Strangers++
		}
	}
	h.gate.mu.Lock()
	defer h.gate.mu.Unlock()
	s.Streams = maps.Clone(h.gate.open)
	return s
}
