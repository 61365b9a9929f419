package cluster

import "errors"

// What can be wrong with a command, a token or a certificate. Every error of this package and of
// the consensus wraps one of these, so callers decide with errors.Is and show the text.
var (
	// ErrUnknownNode: no member has this id or name.
	ErrUnknownNode = errors.New("unknown node")
	// ErrAmbiguousNode: a shortened id fits more than one member.
	ErrAmbiguousNode = errors.New("ambiguous node")
	// ErrBarred: the node was removed from this cluster and may not come back under its old id.
	ErrBarred = errors.New("node was removed from this cluster")
	// ErrTokenUnknown: the cluster has no such join token; it was revoked or is another cluster's.
	ErrTokenUnknown = errors.New("unknown join token")
	// ErrTokenExpired: the join token was valid once.
	ErrTokenExpired = errors.New("join token has expired")
	// ErrTokenSecret: the token's id is known but its secret is not the one that was issued.
	ErrTokenSecret = errors.New("join token has the wrong secret")
	// ErrTokenDamaged: the text is not a whole join token (cut short, altered, or something else).
	ErrTokenDamaged = errors.New("not a whole join token")
	// ErrLastMember: the last member of a cluster cannot be removed.
	ErrLastMember = errors.New("the last member cannot be removed")
	// ErrAlreadyFounded: the State belongs to a cluster already.
	ErrAlreadyFounded = errors.New("cluster is founded already")
	// ErrNotFounded: the State belongs to no cluster yet.
	ErrNotFounded = errors.New("cluster is not founded yet")
	// ErrBadCommand: the command is malformed, or of a kind that this version does not know.
	ErrBadCommand = errors.New("malformed command")
	// ErrNotMember: the peer is neither a member nor does it show a valid certificate.
	ErrNotMember = errors.New("not a member")
	// ErrBadCertificate: the membership certificate is malformed, forged or somebody else's.
	ErrBadCertificate = errors.New("invalid membership certificate")
	// ErrNotLeader: the asked node does not lead; ask the leader.
	ErrNotLeader = errors.New("not the leader")
	// ErrNoQuorum: nothing can be agreed now, because no majority of the voters is reachable.
	ErrNoQuorum = errors.New("no quorum")
	// ErrUncertain: the leader was lost before it could say whether the command took effect.
	ErrUncertain = errors.New("outcome unknown")
	// ErrObserver: an observer has no vote and cannot lead.
	ErrObserver = errors.New("node is an observer")
	// ErrUnknownModel: nobody placed such a model, and nobody holds it.
	ErrUnknownModel = errors.New("unknown model")
	// ErrContradiction: what is asked for contradicts itself.
	ErrContradiction = errors.New("contradiction")
	// ErrChanged: what the caller decided upon has changed since.
	ErrChanged = errors.New("changed meanwhile")
)

type coded struct {
	code string
	err  error
}

// codes pairs each sentinel with the word that stands for it on the wire. Words never change.
func codes() []coded {
	return []coded{
		{"unknown_node", ErrUnknownNode},
		{"ambiguous_node", ErrAmbiguousNode},
		{"barred", ErrBarred},
		{"token_unknown", ErrTokenUnknown},
		{"token_expired", ErrTokenExpired},
		{"token_secret", ErrTokenSecret},
		{"token_damaged", ErrTokenDamaged},
		{"last_member", ErrLastMember},
		{"already_founded", ErrAlreadyFounded},
		{"not_founded", ErrNotFounded},
		{"bad_command", ErrBadCommand},
		{"not_member", ErrNotMember},
		{"bad_certificate", ErrBadCertificate},
		{"not_leader", ErrNotLeader},
		{"no_quorum", ErrNoQuorum},
		{"uncertain", ErrUncertain},
		{"observer", ErrObserver},
		{"unknown_model", ErrUnknownModel},
		{"contradiction", ErrContradiction},
		{"changed", ErrChanged},
	}
}

// ErrorCode returns the word that stands for err on the wire, "" if err wraps none of the
// package's sentinels.
func ErrorCode(err error) string {
	for _, c := range codes() {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return ""
}

// ErrorFromCode rebuilds an error that another node has sent as code and text: its text is text
// and errors.Is finds the sentinel of code. An unknown code gives an error with the text alone.
func ErrorFromCode(code, text string) error {
	for _, c := range codes() {
		if c.code == code {
			if text == "" {
				return c.err
			}
			return &carried{text: text, err: c.err}
		}
	}
	if text == "" {
		text = "unknown error " + code
	}
	return errors.New(text)
}

type carried struct {
	text string
	err  error
}

func (e *carried) Error() string { return e.text }
func (e *carried) Unwrap() error { return e.err }
