package cluster

import (
	"crypto/subtle"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Apply returns the State after the command. It is pure and deterministic. When the command changes
// nothing it returns s itself; when it is refused it returns s and an error that wraps one of the
// package's sentinels.
func (s *State) Apply(c Command) (*State, error) {
	if err := c.check(); err != nil {
		return s, err
	}
	if c.Found == nil && !s.Founded() {
		return s, fmt.Errorf("%s: %w", c.Kind(), ErrNotFounded)
	}
	at := c.At.Round(0).UTC()
	switch {
	case c.Found != nil:
		return s.found(c.Found, at)
	case c.Join != nil:
		return s.join(c.Join, at)
	case c.Remove != nil:
		return s.remove(c.Remove, at)
	case c.Drain != nil:
		return s.change(c.Drain.ID, func(m *Member) { m.Draining = c.Drain.On })
	case c.CreateToken != nil:
		return s.createToken(c.CreateToken, at)
	case c.RevokeToken != nil:
		return s.revokeToken(c.RevokeToken)
	case c.Place != nil:
		return s.place(c.Place)
	case c.Forget != nil:
		return s.forget(c.Forget, at)
	case c.SetRoot != nil:
		return s.setRoot(c.SetRoot)
	default:
		return s.update(c.Update)
	}
}

// CheckToken judges a newcomer's token at a time: ErrTokenUnknown, ErrTokenExpired, ErrTokenSecret.
// It compares in constant time.
func (s *State) CheckToken(id string, secretHash []byte, at time.Time) error {
	t, ok := s.Tokens[id]
	switch {
	case !ok:
		return fmt.Errorf("check join token %s: it was revoked, has expired long ago, or belongs to another cluster; "+
			"make a new one with `ollamamax token create`: %w", id, ErrTokenUnknown)
	case subtle.ConstantTimeCompare(t.Hash, secretHash) != 1:
		return fmt.Errorf("check join token %s: %w", id, ErrTokenSecret)
	case !at.Before(t.ExpiresAt):
		return fmt.Errorf("check join token %s: it was valid until %s; make a new one with `ollamamax token create`: %w",
			id, t.ExpiresAt.Format(time.RFC3339), ErrTokenExpired)
	}
	return nil
}

func (s *State) found(f *Found, at time.Time) (*State, error) {
	if s.Founded() {
		if s.ClusterID == f.ClusterID {
			return s, nil // the same command again
		}
		return s, fmt.Errorf("found cluster %s: this is cluster %s: %w", f.ClusterID, s.ClusterID, ErrAlreadyFounded)
	}
	n := s.next()
	n.ClusterID = f.ClusterID
	n.PublicKey = slices.Clone(f.PublicKey)
	n.SigningKey = slices.Clone(f.SigningKey)
	return n.admit(f.ID, f.Name, f.Addrs, at), nil
}

func (s *State) join(j *Join, at time.Time) (*State, error) {
	if bar, ok := s.Barred[j.ID]; ok {
		return s, fmt.Errorf("join node %s: it was removed on %s; empty its data directory and join again with a token: %w",
			j.Name, bar.At.Format(time.RFC3339), ErrBarred)
	}
	if _, ok := s.Members[j.ID]; ok { // the same command again, or a newcomer that lost the answer
		return s.change(j.ID, func(m *Member) {
			if len(j.Addrs) > 0 {
				m.Addrs = slices.Clone(j.Addrs)
			}
		})
	}
	if err := s.CheckToken(j.TokenID, j.SecretHash, at); err != nil {
		return s, err
	}
	return s.next().admit(j.ID, j.Name, j.Addrs, at), nil
}

// admit adds a member to s, which must be the caller's own copy.
func (s *State) admit(id NodeID, name string, addrs []string, at time.Time) *State {
	s.Members = maps.Clone(s.Members)
	s.Members[id] = Member{
		ID: id, Name: s.freeName(name, id), Serial: s.NextSerial, Addrs: cloneAddrs(addrs), JoinedAt: at,
	}
	s.NextSerial++
	return s
}

func (s *State) remove(r *Remove, at time.Time) (*State, error) {
	m, ok := s.Members[r.ID]
	if !ok {
		if _, barred := s.Barred[r.ID]; barred {
			return s, nil // the same command again
		}
		return s, fmt.Errorf("remove node %s: %w", r.ID, ErrUnknownNode)
	}
	if len(s.Members) == 1 {
		return s, fmt.Errorf("remove node %s: %w; stop it and empty its data directory instead", m.Name, ErrLastMember)
	}
	n := s.next()
	n.Members = maps.Clone(s.Members)
	delete(n.Members, r.ID)
	n.Barred = maps.Clone(s.Barred)
	n.Barred[r.ID] = Bar{Serial: m.Serial, Name: m.Name, At: at, Why: r.Why}
	n.Models = withoutNode(s.Models, r.ID, n.Version)
	return n, nil
}

func (s *State) update(u *Update) (*State, error) {
	return s.change(u.ID, func(m *Member) {
		if u.Name != nil {
			m.Name = s.freeName(*u.Name, u.ID)
		}
		if u.Addrs != nil {
			m.Addrs = cloneAddrs(*u.Addrs)
		}
	})
}

func (s *State) createToken(t *CreateToken, at time.Time) (*State, error) {
	if old, ok := s.Tokens[t.ID]; ok {
		if subtle.ConstantTimeCompare(old.Hash, t.Hash) == 1 {
			return s, nil // the same command again
		}
		return s, fmt.Errorf("create join token %s: the id is taken: %w", t.ID, ErrBadCommand)
	}
	expires := t.ExpiresAt.Round(0).UTC()
	if !expires.After(at) {
		return s, fmt.Errorf("create join token %s: it would expire before it begins: %w", t.ID, ErrTokenExpired)
	}
	n := s.next()
	n.Tokens = maps.Clone(s.Tokens)
	// Tokens are swept a day after their expiry, so that "expired" can be told from "unknown".
	maps.DeleteFunc(n.Tokens, func(_ string, old Token) bool { return at.Sub(old.ExpiresAt) > 24*time.Hour })
	n.Tokens[t.ID] = Token{ID: t.ID, Hash: slices.Clone(t.Hash), CreatedAt: at, ExpiresAt: expires}
	return n, nil
}

func (s *State) revokeToken(r *RevokeToken) (*State, error) {
	if _, ok := s.Tokens[r.ID]; !ok {
		return s, fmt.Errorf("revoke join token %s: %w", r.ID, ErrTokenUnknown)
	}
	n := s.next()
	n.Tokens = maps.Clone(s.Tokens)
	delete(n.Tokens, r.ID)
	return n, nil
}

// change applies f to a copy of a member; if it changed nothing the State stays the same.
func (s *State) change(id NodeID, f func(*Member)) (*State, error) {
	old, ok := s.Members[id]
	if !ok {
		if _, barred := s.Barred[id]; barred {
			return s, fmt.Errorf("change node %s: %w", id, ErrBarred)
		}
		return s, fmt.Errorf("change node %s: %w", id, ErrUnknownNode)
	}
	m := old
	f(&m)
	if m.Name == old.Name && m.Draining == old.Draining && slices.Equal(m.Addrs, old.Addrs) {
		return s, nil
	}
	n := s.next()
	n.Members = maps.Clone(s.Members)
	n.Members[id] = m
	return n, nil
}

// cloneAddrs returns nil for none, so that a State and its decoded snapshot are equal.
func cloneAddrs(addrs []string) []string {
	if len(addrs) == 0 {
		return nil
	}
	return slices.Clone(addrs)
}
