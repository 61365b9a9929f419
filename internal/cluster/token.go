package cluster

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// TokenPrefix begins every join token's text; the digit is the form's number.
const TokenPrefix = "omx1-"

// MaxToken is the greatest length of a join token's text in bytes.
const MaxToken = 4 << 10

const (
	secretSize   = 32
	checksumSize = 4
)

// JoinToken is the newcomer's half of a token: where the members are, who they are, and the secret
// that lets it in. Whoever holds its text can join until it expires or is revoked.
type JoinToken struct {
	ClusterID string
	ID        string
	// Addrs are members' p2p multiaddrs with their peer ids, so the newcomer knows whom it talks to.
	Addrs []string
	// Secret is 32 random bytes.
	Secret Secret
}

// tokenJSON is the token's text inside, before the checksum.
type tokenJSON struct {
	Cluster string   `json:"c"`
	ID      string   `json:"t"`
	Secret  []byte   `json:"s"`
	Addrs   []string `json:"a"`
}

// NewToken draws a join token for the cluster and the command that agrees on it. Of addrs it takes
// as many, from the first, as fit into MaxToken.
func NewToken(at time.Time, ttl time.Duration, clusterID string, addrs []string) (JoinToken, Command, error) {
	if len(addrs) == 0 || !validAddrs(addrs) {
		return JoinToken{}, Command{}, fmt.Errorf("make join token: the node has no address that others could reach; set p2p.announce")
	}
	if ttl <= 0 {
		return JoinToken{}, Command{}, fmt.Errorf("make join token: a ttl of %s is over before it begins; give a positive one", ttl)
	}
	t := JoinToken{ClusterID: clusterID, ID: randomID(5), Secret: make(Secret, secretSize), Addrs: slices.Clone(addrs)}
	_, _ = rand.Read(t.Secret) // never fails: the runtime ends the process instead
	for len(t.Text()) > MaxToken {
		t.Addrs = t.Addrs[:len(t.Addrs)-1]
	}
	return t, Command{At: at, CreateToken: &CreateToken{ID: t.ID, Hash: t.Hash(), ExpiresAt: at.Add(ttl)}}, nil
}

// Hash returns the SHA-256 of the secret, the only part of it that is agreed.
func (t JoinToken) Hash() []byte {
	h := sha256.Sum256(t.Secret)
	return h[:]
}

// Text returns the token as one line that needs no quoting in a shell.
func (t JoinToken) Text() string {
	b, err := json.Marshal(tokenJSON{Cluster: t.ClusterID, ID: t.ID, Secret: t.Secret, Addrs: t.Addrs})
	if err != nil {
		panic(err) // strings and bytes always marshal
	}
	sum := sha256.Sum256(b)
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:checksumSize]...))
}

// ParseToken reads a token's text; white space around and inside it (a pasted line break) does not
// matter. A text that is not a whole token gives an error that wraps ErrTokenDamaged and says what
// is wrong; whether the cluster accepts the token is not known here.
func ParseToken(text string) (JoinToken, error) {
	bad := func(what string) (JoinToken, error) {
		return JoinToken{}, fmt.Errorf("parse join token: %s: %w", what, ErrTokenDamaged)
	}
	if len(text) > 2*MaxToken {
		return bad("the text is far too long")
	}
	text = strings.Join(strings.Fields(text), "")
	switch {
	case text == "":
		return bad("it is empty")
	case len(text) > MaxToken:
		return bad("the text is too long")
	case !strings.HasPrefix(text, TokenPrefix):
		if strings.HasPrefix(text, "omx") {
			return bad("it has a form that this version does not know; upgrade ollamamax on this node")
		}
		return bad("it does not begin with " + TokenPrefix + "; copy what `ollamamax token create` printed")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text[len(TokenPrefix):])
	if err != nil || len(raw) <= checksumSize {
		return bad("it is cut short or altered; copy the whole line again")
	}
	body, sum := raw[:len(raw)-checksumSize], sha256.Sum256(raw[:len(raw)-checksumSize])
	if string(raw[len(body):]) != string(sum[:checksumSize]) {
		return bad("it is cut short or altered; copy the whole line again")
	}
	var j tokenJSON
	if err := json.Unmarshal(body, &j); err != nil {
		return bad("its contents are malformed")
	}
	if !validID(j.Cluster) || !validID(j.ID) || len(j.Secret) != secretSize || len(j.Addrs) == 0 || !validAddrs(j.Addrs) {
		return bad("its contents are malformed")
	}
	return JoinToken{ClusterID: j.Cluster, ID: j.ID, Secret: j.Secret, Addrs: j.Addrs}, nil
}
