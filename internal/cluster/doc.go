// Package cluster holds the nouns of a cluster as plain values: what it agrees on (who belongs, who
// may join, who is barred, and the commands that change it), and the View, the picture of all nodes
// that every decision reads.
//
// It does no I/O, starts no goroutine, reads no clock and imports nothing of ours. Randomness is
// drawn only by the New… functions, on the side of the caller who proposes a change; what they draw
// travels in the command.
//
// Invariants:
//
//   - A published View never changes either; the next one replaces it.
//   - A published State never changes. State.Apply copies what it touches and returns a new State.
//   - State.Apply is a pure function of the State and the Command, so every node that applies the
//     same commands in the same order holds the same State.
//   - A command that is refused leaves the State as it was.
//   - An id that was removed stays barred: it can never be a member of this cluster again.
//   - Secrets of join tokens are never agreed, only their SHA-256.
//
// Start reading at State, then Command, then Admit; and at Node, then View.
package cluster
