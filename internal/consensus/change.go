package consensus

import "github.com/ollamamax/ollamamax/internal/cluster"

// condition is what the leader thinks of a node's part in the agreement.
type condition int

const (
	// lost: unreachable for long enough to give its vote away.
	lost condition = iota
	// unsteady: neither up nor lost; nothing is decided about it.
	unsteady
	// up: reachable, caught up, and that for a while.
	up
)

// picture is everything that the next change depends on.
type picture struct {
	servers []voter          // raft's configuration
	members []cluster.NodeID // State's members, the longest members first
	is      map[cluster.NodeID]condition
	untold  map[cluster.NodeID]bool // former members that should still hear that they were removed
	self    cluster.NodeID          // the leader, a voter; always up
	leaving bool                    // the leader is about to stop: its vote should go elsewhere if it must
	want    int                     // Config.Voters
}

type voter struct {
	id    cluster.NodeID
	votes bool
}

// verb is what a change does to one node.
type verb string

const (
	observe  verb = "observe"  // begin to send it the log
	promote  verb = "promote"  // give it a vote
	demote   verb = "demote"   // take its vote
	drop     verb = "drop"     // stop sending it the log
	transfer verb = "transfer" // let it lead instead of us
)

type change struct {
	do verb
	id cluster.NodeID
}

// nextChange decides the one change that brings raft's configuration nearer to the members, if any.
// It is called again after each change, and these hold:
//
//  1. Every member is at least an observer, and who is no member any more is nothing.
//  2. The voters are members; their number is the largest odd one not above want and not above the
//     number of members that could vote. Two nodes are one voter and one observer.
//  3. A voter keeps its vote until it is lost and an observer that is up has taken its place: it is
//     demoted only after the other was promoted. Without such an observer it stays a voter.
//  4. After each change a majority of the voters is up, so that the change can be agreed.
//  5. A leader that is no member, or is leaving, hands its leadership to a voter that is up, after
//     making one if there is none.
func nextChange(p picture) (change, bool) {
	server, member := map[cluster.NodeID]bool{}, map[cluster.NodeID]bool{}
	for _, s := range p.servers {
		server[s.id] = true
	}
	for _, id := range p.members {
		member[id] = true
		if !server[id] {
			return change{observe, id}, true
		}
	}
	votes := map[cluster.NodeID]bool{}
	for _, s := range p.servers {
		if s.votes {
			votes[s.id] = true
		} else if !member[s.id] && !p.untold[s.id] {
			return change{drop, s.id}, true
		}
	}

	goes := p.leaving || !member[p.self]
	heir, others := p.heir(votes)
	if goes && heir != "" && (!member[p.self] || others >= len(votes)/2+1) {
		return change{transfer, heir}, true
	}

	wanted := p.wanted(votes)
	for _, id := range p.members {
		if wanted[id] && !votes[id] {
			return change{promote, id}, true // it is up, so a majority stays one
		}
	}
	// Whom to take the vote from: the lost first, then former members, then the newest members.
	for _, worst := range []condition{lost, unsteady, up} {
		for _, id := range p.voters() {
			if !member[id] && !p.untold[id] && id != p.self && p.condition(id) == worst && p.safeWithout(votes, id) {
				return change{drop, id}, true
			}
		}
		for i := len(p.members) - 1; i >= 0; i-- {
			id := p.members[i]
			if votes[id] && !wanted[id] && id != p.self && p.condition(id) == worst && p.safeWithout(votes, id) {
				return change{demote, id}, true
			}
		}
	}
	if goes && heir != "" {
		return change{transfer, heir}, true
	}
	return change{}, false
}

// wanted returns who should vote. The order of preference is what makes it stable: who votes and is
// not lost, then observers that are up, then lost voters as place holders.
func (p picture) wanted(votes map[cluster.NodeID]bool) map[cluster.NodeID]bool {
	var order []cluster.NodeID
	for _, fits := range []func(cluster.NodeID) bool{
		func(id cluster.NodeID) bool { return id == p.self },
		func(id cluster.NodeID) bool { return id != p.self && votes[id] && p.condition(id) == up },
		func(id cluster.NodeID) bool { return votes[id] && p.condition(id) == unsteady },
		func(id cluster.NodeID) bool { return !votes[id] && p.condition(id) == up },
		func(id cluster.NodeID) bool { return votes[id] && p.condition(id) == lost && !p.leaving },
	} {
		for _, id := range p.members {
			if fits(id) && !(p.leaving && id == p.self) {
				order = append(order, id)
			}
		}
	}
	n := min(len(order), p.want)
	if n%2 == 0 {
		n--
	}
	wanted := map[cluster.NodeID]bool{}
	for _, id := range order[:max(n, 0)] {
		wanted[id] = true
	}
	return wanted
}

// heir returns the voter that should lead after us, "" if none is up, and how many voters other
// than us are up.
func (p picture) heir(votes map[cluster.NodeID]bool) (heir cluster.NodeID, others int) {
	for _, id := range p.voters() {
		if id != p.self && p.condition(id) == up {
			others++
		}
	}
	for _, id := range p.members {
		if id != p.self && votes[id] && p.condition(id) == up {
			return id, others
		}
	}
	return "", others
}

// safeWithout reports whether the voters other than id have a majority that is up.
func (p picture) safeWithout(votes map[cluster.NodeID]bool, id cluster.NodeID) bool {
	n, alive := len(votes)-1, 0
	for _, v := range p.voters() {
		if v != id && p.condition(v) == up {
			alive++
		}
	}
	return alive >= n/2+1
}

func (p picture) voters() []cluster.NodeID {
	var ids []cluster.NodeID
	for _, s := range p.servers {
		if s.votes {
			ids = append(ids, s.id)
		}
	}
	return ids
}

func (p picture) condition(id cluster.NodeID) condition {
	if id == p.self {
		return up
	}
	return p.is[id]
}
