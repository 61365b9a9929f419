// Package blob knows one file of a model in pieces: which hashes they have, which of them are there, where they lie.
//
// A List is the hashes of a blob's pieces; its Root is what the cluster agrees on, so that a list may come from
// any member, and a piece from anybody. A Spool is the folder of the blobs that are on their way; a Partial is
// one of them, a sparse file that fills in any order; an Intake is the way in for one whose list nobody has yet. A Folder is where Ollama's own blobs lie, read only.
//
// It talks neither to other nodes nor to an engine, and knows no names of models.
//
// Invariants:
//   - A piece counts as there only once its hash was right and it was written. What counted before the
//     process was killed counts afterwards; the bytes that a loss of power took are found out.
//   - A full disk is an error that says so, and costs nothing that was there.
//   - Nothing under Ollama's folder is written.
//
// Start reading at List, then Spool and Partial.
package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// PieceSize is how many bytes a piece has, of every list that the cluster agrees on: the last piece
// of a blob may have less. Tests use smaller ones.
const PieceSize = 4 << 20

var (
	// ErrWrong says that a piece's bytes do not have the hash that the list names.
	ErrWrong = errors.New("bytes do not match the hash")

	// ErrAbsent says that bytes were asked for that are not there yet.
	ErrAbsent = errors.New("not there yet")

	// ErrFull says that the disk is full. What was there is kept.
	ErrFull = errors.New("disk is full: free some space and try again, what has come is kept")
)

// Digest names a blob by the SHA-256 of its bytes, as Ollama writes it: "sha256:" and 64 hexadecimal
// digits in lower case.
type Digest string

const digestPrefix = "sha256:"

// ParseDigest checks that s is a digest.
func ParseDigest(s string) (Digest, error) {
	digits, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || len(digits) != 2*sha256.Size || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", fmt.Errorf("digest %.80q: want sha256: and 64 hexadecimal digits", s)
	}
	return Digest(s), nil
}

// HexDigest makes a digest of its 64 digits.
func HexDigest(digits string) (Digest, error) { return ParseDigest(digestPrefix + digits) }

// DigestOf makes a digest of the sum.
func DigestOf(sum [sha256.Size]byte) Digest { return Digest(digestPrefix + hex.EncodeToString(sum[:])) }

// Hex is the digest's 64 digits.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }

// Sum is the digest's bytes. The digest must be a valid one.
func (d Digest) Sum() (sum [sha256.Size]byte) {
	hex.Decode(sum[:], []byte(d.Hex()))
	return sum
}
