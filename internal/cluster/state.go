package cluster

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// StateFormat is the number of the form in which Encode writes a State. DecodeState reads this one
// and those before it: a node that is older than the form refuses it instead of losing what it does not know.
const StateFormat = 2

// firstFormat is the oldest form that is read: of before models were placed.
const firstFormat = 1

// State is everything that the cluster agrees on. It is immutable once published: read its fields
// freely, change none, and get the next State from Apply.
type State struct {
	// Version counts the commands that changed something. Equal versions of one cluster are equal
	// States, so waiting for a version is waiting for a write.
	Version uint64 `json:"version"`
	// ClusterID names the cluster for ever; "" until it is founded.
	ClusterID string `json:"cluster_id"`
	// PublicKey verifies membership certificates.
	PublicKey ed25519.PublicKey `json:"public_key"`
	// SigningKey (an ed25519 private key) issues them. Every member holds it, nobody else may see it.
	SigningKey Secret `json:"signing_key"`
	// NextSerial is the serial that the next member gets; serials are never reused.
	NextSerial uint64 `json:"next_serial"`
	// Members are the nodes that belong.
	Members map[NodeID]Member `json:"members"`
	// Barred are the nodes that were removed or have left.
	Barred map[NodeID]Bar `json:"barred"`
	// Tokens are the join tokens that are neither revoked nor swept after their expiry, by id.
	Tokens map[string]Token `json:"tokens"`
	// Models are those that somebody placed or deleted, by CanonicalModel. What nodes hold besides is left alone.
	Models map[string]Wanted `json:"models"`
	// Roots are those of blobs, by their digest (64 hexadecimal digits).
	Roots map[string]Root `json:"roots"`
}

// Member is a node that belongs to the cluster.
type Member struct {
	ID NodeID `json:"id"`
	// Name is unique among the members, without regard to case.
	Name string `json:"name"`
	// Serial is that of the member's certificate.
	Serial uint64 `json:"serial"`
	// Addrs are the last known p2p multiaddrs, each with its /p2p/ part.
	Addrs []string `json:"addrs,omitempty"`
	// Draining: the node gets no new requests.
	Draining bool      `json:"draining,omitempty"`
	JoinedAt time.Time `json:"joined_at"`
}

// Bar says why a node may not come back.
type Bar struct {
	Serial uint64    `json:"serial"`
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	Why    string    `json:"why,omitempty"`
}

// Token is the agreed half of a join token.
type Token struct {
	ID string `json:"id"`
	// Hash is the SHA-256 of the secret.
	Hash      []byte    `json:"hash"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Secret is a value that is agreed and stored, and never shown: printing or logging it says so.
type Secret []byte

// String returns a mask.
func (Secret) String() string { return "(secret)" }

// GoString returns a mask.
func (Secret) GoString() string { return "(secret)" }

// Format writes a mask, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(secret)") }

// NewState returns the State before anything was agreed. A node that has not joined yet serves
// with it.
func NewState() *State {
	return &State{
		NextSerial: 1,
		Members:    map[NodeID]Member{},
		Barred:     map[NodeID]Bar{},
		Tokens:     map[string]Token{},
		Models:     map[string]Wanted{},
		Roots:      map[string]Root{},
	}
}

// Founded reports whether the State belongs to a cluster.
func (s *State) Founded() bool { return s.ClusterID != "" }

// Member finds a member by its id, its name (case does not matter), or the beginning or end of
// its id, at least six characters. The error wraps ErrUnknownNode or ErrAmbiguousNode.
func (s *State) Member(nameOrID string) (Member, error) {
	if m, ok := s.Members[NodeID(nameOrID)]; ok {
		return m, nil
	}
	var fits []Member
	for _, m := range s.Sorted() {
		if strings.EqualFold(m.Name, nameOrID) {
			return m, nil
		}
		id := string(m.ID)
		if len(nameOrID) >= 6 && (strings.HasPrefix(id, nameOrID) || strings.HasSuffix(id, nameOrID)) {
			fits = append(fits, m)
		}
	}
	switch len(fits) {
	case 1:
		return fits[0], nil
	case 0:
		for id, b := range s.Barred {
			if string(id) == nameOrID {
				return Member{}, fmt.Errorf("find node %q: it was removed on %s: %w",
					nameOrID, b.At.Format(time.RFC3339), ErrUnknownNode)
			}
		}
		return Member{}, fmt.Errorf("find node %q: no member has this name or id; `ollamamax nodes` lists them: %w",
			nameOrID, ErrUnknownNode)
	default:
		return Member{}, fmt.Errorf("find node %q: it fits %s and %s; give the name or the whole id: %w",
			nameOrID, fits[0].Name, fits[1].Name, ErrAmbiguousNode)
	}
}

// Sorted returns the members in the order of their serials, the founder first.
func (s *State) Sorted() []Member {
	return slices.SortedFunc(maps.Values(s.Members), func(a, b Member) int {
		switch {
		case a.Serial < b.Serial:
			return -1
		case a.Serial > b.Serial:
			return 1
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
}

// Trust returns what a node must know to judge certificates of this cluster.
func (s *State) Trust() Trust { return Trust{ClusterID: s.ClusterID, PublicKey: s.PublicKey} }

type stateFile struct {
	Format int    `json:"format"`
	State  *State `json:"state"`
}

// Encode writes the State, secrets included, as JSON with its format number.
func (s *State) Encode() ([]byte, error) {
	b, err := json.Marshal(stateFile{Format: StateFormat, State: s})
	if err != nil {
		return nil, fmt.Errorf("encode cluster state: %w", err)
	}
	return b, nil
}

// DecodeState reads what Encode wrote.
func DecodeState(b []byte) (*State, error) {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("decode cluster state: %w", err)
	}
	if head.Format < firstFormat || head.Format > StateFormat {
		return nil, fmt.Errorf("decode cluster state: it has format %d, this version reads %d; upgrade ollamamax on this node",
			head.Format, StateFormat)
	}
	f := stateFile{State: NewState()}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("decode cluster state: %w", err)
	}
	s := f.State
	if s == nil || s.Members == nil || s.Barred == nil || s.Tokens == nil || s.Models == nil || s.Roots == nil {
		return nil, fmt.Errorf("decode cluster state: a part is missing")
	}
	return s, nil
}

// next returns a shallow copy with the version after this one; the caller replaces the maps that
// it changes.
func (s *State) next() *State {
	n := *s
	n.Version++
	return &n
}
