package cluster

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// MaxCommand is the greatest length of an encoded command in bytes.
const MaxCommand = 64 << 10

// Command is one change of the agreed State. Exactly one of its pointers is set. Everything that is
// not determined by the State travels in it: the time, and what was drawn at random.
//
// Every command may be applied twice (a proposer that lost its leader cannot know whether the first
// try took effect): the second time it changes nothing, or says that it has happened already.
type Command struct {
	// At is the proposer's time.
	At time.Time `json:"at"`

	Found       *Found       `json:"found,omitempty"`
	Join        *Join        `json:"join,omitempty"`
	Remove      *Remove      `json:"remove,omitempty"`
	Drain       *Drain       `json:"drain,omitempty"`
	CreateToken *CreateToken `json:"create_token,omitempty"`
	RevokeToken *RevokeToken `json:"revoke_token,omitempty"`
	Update      *Update      `json:"update,omitempty"`
	Place       *Place       `json:"place,omitempty"`
	Forget      *Forget      `json:"forget,omitempty"`
	SetRoot     *SetRoot     `json:"set_root,omitempty"`
}

// Found begins a cluster with its first member.
type Found struct {
	ClusterID  string            `json:"cluster_id"`
	PublicKey  ed25519.PublicKey `json:"public_key"`
	SigningKey Secret            `json:"signing_key"`
	ID         NodeID            `json:"id"`
	Name       string            `json:"name"`
	Addrs      []string          `json:"addrs,omitempty"`
}

// Join makes a node a member. It is proposed by the member that the newcomer has asked, after
// State.CheckToken; Apply checks again at the command's time.
type Join struct {
	ID    NodeID   `json:"id"`
	Name  string   `json:"name"`
	Addrs []string `json:"addrs,omitempty"`
	// TokenID and SecretHash come from the newcomer's token: its id, and JoinToken.Hash.
	TokenID    string `json:"token_id"`
	SecretHash []byte `json:"secret_hash"`
}

// Remove ends a membership and bars the id. Leaving is removing oneself.
type Remove struct {
	ID  NodeID `json:"id"`
	Why string `json:"why,omitempty"`
}

// Drain sets or clears a member's drain mark.
type Drain struct {
	ID NodeID `json:"id"`
	On bool   `json:"on"`
}

// CreateToken agrees on a join token. See NewToken.
type CreateToken struct {
	ID        string    `json:"id"`
	Hash      []byte    `json:"hash"`
	ExpiresAt time.Time `json:"expires_at"`
}

// RevokeToken forgets a join token; nobody can join with it any more.
type RevokeToken struct {
	ID string `json:"id"`
}

// Update tells what has changed about a member; nil is no change.
type Update struct {
	ID    NodeID    `json:"id"`
	Name  *string   `json:"name,omitempty"`
	Addrs *[]string `json:"addrs,omitempty"`
}

// NewFound returns the command that founds a cluster, with a new id and a new key.
func NewFound(at time.Time, id NodeID, name string, addrs []string) (Command, error) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return Command{}, fmt.Errorf("make signing key: %w", err)
	}
	return Command{At: at, Found: &Found{
		ClusterID: randomID(10), PublicKey: pub, SigningKey: Secret(key), ID: id, Name: name, Addrs: addrs,
	}}, nil
}

// Kind returns the name of the command's change, such as "join", and "" when it has none.
func (c Command) Kind() string {
	kind, _ := c.kind()
	return kind
}

// Node returns the member that the command is about, "" if it is about none.
func (c Command) Node() NodeID {
	switch {
	case c.Found != nil:
		return c.Found.ID
	case c.Join != nil:
		return c.Join.ID
	case c.Remove != nil:
		return c.Remove.ID
	case c.Drain != nil:
		return c.Drain.ID
	case c.Update != nil:
		return c.Update.ID
	}
	return ""
}

// aboutNode tells whether the command must name a node.
func (c Command) aboutNode() bool {
	return c.CreateToken == nil && c.RevokeToken == nil && c.Place == nil && c.Forget == nil && c.SetRoot == nil
}

// kind also counts the changes that are set.
func (c Command) kind() (kind string, n int) {
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"found", c.Found != nil}, {"join", c.Join != nil}, {"remove", c.Remove != nil},
		{"drain", c.Drain != nil}, {"create token", c.CreateToken != nil},
		{"revoke token", c.RevokeToken != nil}, {"update", c.Update != nil},
		{"place", c.Place != nil}, {"forget", c.Forget != nil}, {"set root", c.SetRoot != nil},
	} {
		if k.set {
			kind, n = k.name, n+1
		}
	}
	return kind, n
}

// Encode checks the command's form and writes it as JSON.
func (c Command) Encode() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w: %w", ErrBadCommand, err)
	}
	if len(b) > MaxCommand {
		return nil, fmt.Errorf("encode command: %d bytes, at most %d: %w", len(b), MaxCommand, ErrBadCommand)
	}
	return b, nil
}

// DecodeCommand reads what Encode wrote. A field that this version does not know is an error that
// wraps ErrBadCommand, since applying half a command would make two nodes disagree.
func DecodeCommand(b []byte) (Command, error) {
	var c Command
	if len(b) > MaxCommand {
		return c, fmt.Errorf("decode command: %d bytes, at most %d: %w", len(b), MaxCommand, ErrBadCommand)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Command{}, fmt.Errorf("decode command: %w: %w", ErrBadCommand, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Command{}, fmt.Errorf("decode command: something follows it: %w", ErrBadCommand)
	}
	if err := c.check(); err != nil {
		return Command{}, err
	}
	return c, nil
}

// check judges the form alone; whether the command makes sense is for Apply.
func (c Command) check() error {
	kind, n := c.kind()
	if n != 1 {
		return fmt.Errorf("check command: it carries %d changes instead of one: %w", n, ErrBadCommand)
	}
	bad := func(what string) error {
		return fmt.Errorf("check command %s: %s: %w", kind, what, ErrBadCommand)
	}
	if !validTime(c.At) {
		return bad("its time is missing or out of range")
	}
	if c.aboutNode() && !validID(string(c.Node())) {
		return bad("the node's id is malformed")
	}
	switch {
	case c.Found != nil:
		f := c.Found
		switch {
		case !validID(f.ClusterID):
			return bad("the cluster's id is malformed")
		case len(f.PublicKey) != ed25519.PublicKeySize || len(f.SigningKey) != ed25519.PrivateKeySize:
			return bad("a key has the wrong length")
		case !f.PublicKey.Equal(ed25519.PrivateKey(f.SigningKey).Public()):
			return bad("the keys do not belong together")
		case !validName(f.Name):
			return bad("the node's name is malformed")
		case !validAddrs(f.Addrs):
			return bad("the node's addresses are malformed")
		}
	case c.Join != nil:
		j := c.Join
		switch {
		case !validName(j.Name):
			return bad("the node's name is malformed")
		case !validAddrs(j.Addrs):
			return bad("the node's addresses are malformed")
		case !validID(j.TokenID) || len(j.SecretHash) != sha256.Size:
			return bad("the token is malformed")
		}
	case c.Remove != nil:
		if len(c.Remove.Why) > 1024 {
			return bad("the reason is longer than 1024 bytes")
		}
	case c.CreateToken != nil:
		t := c.CreateToken
		if !validID(t.ID) || len(t.Hash) != sha256.Size || !validTime(t.ExpiresAt) {
			return bad("the token is malformed")
		}
	case c.RevokeToken != nil:
		if !validID(c.RevokeToken.ID) {
			return bad("the token's id is malformed")
		}
	case c.Update != nil:
		if c.Update.Name != nil && !validName(*c.Update.Name) {
			return bad("the node's name is malformed")
		}
		if c.Update.Addrs != nil && !validAddrs(*c.Update.Addrs) {
			return bad("the node's addresses are malformed")
		}
	case c.Place != nil:
		if what := c.Place.bad(); what != "" {
			return bad(what)
		}
	case c.Forget != nil:
		if !validModel(c.Forget.Model) {
			return bad("the model's name is malformed")
		}
	case c.SetRoot != nil:
		r := c.SetRoot
		if !validDigest(r.Blob) || !validDigest(r.Root.Hash) || r.Root.Size < 0 || r.Instead != "" && !validDigest(r.Instead) {
			return bad("a digest or the size is malformed")
		}
	}
	return nil
}

func validTime(t time.Time) bool { return !t.IsZero() && t.Year() >= 1970 && t.Year() < 9999 }

// validID allows what peer ids, cluster ids and token ids are made of, and nothing that needs
// quoting anywhere.
func validID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, r := range id {
		if !validNameByte(r) && r != '-' && r != '_' {
			return false
		}
	}
	return true
}

func validAddrs(addrs []string) bool {
	if len(addrs) > 32 {
		return false
	}
	for _, a := range addrs {
		if len(a) > 256 || !strings.HasPrefix(a, "/") || !strings.Contains(a, "/p2p/") {
			return false
		}
		for _, r := range a {
			if r <= ' ' || r > '~' {
				return false
			}
		}
	}
	return true
}

// randomID draws an id of n random bytes.
func randomID(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: the runtime ends the process instead
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}
