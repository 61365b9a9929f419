package cluster

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// MaxCertificate is the greatest length of a marshalled certificate in bytes.
const MaxCertificate = 512

// certificateV1 is the first byte of the only form there is.
const certificateV1 = 1

// Trust is what a node must know of a cluster to judge its certificates. A node keeps it from the
// answer to its join, because it may meet members before it has caught up with the State.
type Trust struct {
	ClusterID string            `json:"cluster_id"`
	PublicKey ed25519.PublicKey `json:"public_key"`
}

// Certificate is the cluster's signed word that a node was admitted. It does not expire: removing
// the node bars it.
type Certificate struct {
	ClusterID string
	NodeID    NodeID
	Serial    uint64
	signature []byte
}

// Issue signs a certificate for a member with the State's signing key. It returns ErrUnknownNode
// when id is no member.
func (s *State) Issue(id NodeID) (Certificate, error) {
	m, ok := s.Members[id]
	if !ok {
		return Certificate{}, fmt.Errorf("issue certificate for %s: %w", id, ErrUnknownNode)
	}
	if len(s.SigningKey) != ed25519.PrivateKeySize {
		return Certificate{}, fmt.Errorf("issue certificate for %s: %w", id, ErrNotFounded)
	}
	c := Certificate{ClusterID: s.ClusterID, NodeID: id, Serial: m.Serial}
	c.signature = ed25519.Sign(ed25519.PrivateKey(s.SigningKey), c.signed())
	return c, nil
}

// Marshal returns the certificate's binary form, at most MaxCertificate bytes.
func (c Certificate) Marshal() []byte { return append(c.body(), c.signature...) }

// ParseCertificate reads what Marshal wrote. It does not verify the signature.
func ParseCertificate(b []byte) (Certificate, error) {
	bad := func(what string) (Certificate, error) {
		return Certificate{}, fmt.Errorf("parse certificate: %s: %w", what, ErrBadCertificate)
	}
	if len(b) > MaxCertificate {
		return bad("it is too long")
	}
	if len(b) < 1+ed25519.SignatureSize {
		return bad("it is too short")
	}
	if b[0] != certificateV1 {
		return bad("its form is unknown; upgrade ollamamax on this node")
	}
	body, signature := b[1:len(b)-ed25519.SignatureSize], b[len(b)-ed25519.SignatureSize:]
	cluster, body, ok := cutText(body)
	if !ok || !validID(cluster) {
		return bad("the cluster's id is malformed")
	}
	node, body, ok := cutText(body)
	if !ok || !validID(node) {
		return bad("the node's id is malformed")
	}
	serial, n := binary.Uvarint(body)
	if n <= 0 || n != len(body) {
		return bad("the serial is malformed")
	}
	c := Certificate{ClusterID: cluster, NodeID: NodeID(node), Serial: serial, signature: append([]byte(nil), signature...)}
	if string(c.body()) != string(b[:len(b)-ed25519.SignatureSize]) {
		return bad("it is not in its shortest form")
	}
	return c, nil
}

// Verify reports why the certificate does not prove that id was admitted to the trusted cluster,
// nil if it does.
func (c Certificate) Verify(t Trust, id NodeID) error {
	switch {
	case c.ClusterID != t.ClusterID:
		return fmt.Errorf("verify certificate: it is of cluster %q, ours is %q: %w", c.ClusterID, t.ClusterID, ErrBadCertificate)
	case c.NodeID != id:
		return fmt.Errorf("verify certificate: it is of node %q, shown by %q: %w", c.NodeID, id, ErrBadCertificate)
	case len(t.PublicKey) != ed25519.PublicKeySize || !ed25519.Verify(t.PublicKey, c.signed(), c.signature):
		return fmt.Errorf("verify certificate: the signature is not our cluster's: %w", ErrBadCertificate)
	}
	return nil
}

// Admit decides whether the peer id may use the members' protocols: it is a member in our State, or
// it shows a valid certificate that our State does not bar. known is used while the State is not
// founded (a newcomer that has not caught up); cert may be empty. The error says why not and
// wraps ErrBarred, ErrNotMember or ErrBadCertificate.
func Admit(s *State, known Trust, id NodeID, cert []byte) error {
	if bar, ok := s.Barred[id]; ok {
		return fmt.Errorf("admit %s: removed on %s: %w", id, bar.At.Format("2006-01-02"), ErrBarred)
	}
	if _, ok := s.Members[id]; ok {
		return nil
	}
	if len(cert) == 0 {
		return fmt.Errorf("admit %s: it shows no certificate: %w", id, ErrNotMember)
	}
	trust := known
	if s.Founded() {
		trust = s.Trust()
	}
	if trust.ClusterID == "" {
		return fmt.Errorf("admit %s: this node belongs to no cluster: %w", id, ErrNotMember)
	}
	c, err := ParseCertificate(cert)
	if err != nil {
		return fmt.Errorf("admit %s: %w", id, err)
	}
	if err := c.Verify(trust, id); err != nil {
		return fmt.Errorf("admit %s: %w", id, err)
	}
	if s.Founded() && c.Serial < s.NextSerial && !slices.ContainsFunc(slices.Collect(maps.Values(s.Barred)), func(b Bar) bool { return b.Serial == c.Serial }) {
		return fmt.Errorf("admit %s: its serial %d was given to another: %w", id, c.Serial, ErrBadCertificate)
	}
	for barred, bar := range s.Barred {
		if bar.Serial == c.Serial {
			return fmt.Errorf("admit %s: its serial is that of %s, which was removed: %w", id, barred, ErrBarred)
		}
	}
	return nil
}

// signed is what the signature covers: the body after a prefix that keeps a signature from being
// taken for one of anything else that the key may ever sign.
func (c Certificate) signed() []byte { return append([]byte("ollamamax membership\x00"), c.body()...) }

func (c Certificate) body() []byte {
	b := []byte{certificateV1}
	b = appendText(b, c.ClusterID)
	b = appendText(b, string(c.NodeID))
	return binary.AppendUvarint(b, c.Serial)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func cutText(b []byte) (s string, rest []byte, ok bool) {
	length, n := binary.Uvarint(b)
	if n <= 0 || length > uint64(len(b)-n) {
		return "", nil, false
	}
	return string(b[n : n+int(length)]), b[n+int(length):], true
}
