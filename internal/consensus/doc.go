// Package consensus lets the nodes agree on cluster.State: hashicorp/raft, and the rules by which
// nodes get and lose their vote.
//
// It does not decide who belongs (commands do), does not find or connect nodes (the mesh gives it a
// listener and a dial function), and does not judge who is healthy (it asks). Reading State or
// Status never waits: without a quorum they show what was agreed last.
//
// Invariants:
//
//   - Raft's server id and address are the node's id, so a new IP address changes nothing.
//   - State().Members is the truth. Only the leader changes raft's configuration, one server at a
//     time, and each change leaves a majority of the voters reachable. See nextChange.
//   - The number of voters is odd; it is even only between two changes.
//   - A command that was agreed survives the death of every process at once, on a disk that keeps
//     what it has synced, and State shows it again before any leader is found.
//
// Start reading at Consensus, then Apply in apply.go, then nextChange in change.go.
package consensus
