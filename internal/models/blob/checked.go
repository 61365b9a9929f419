package blob

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Checked is when the blob that a list is of was last seen to match it: fs.ErrNotExist for one without a list.
func (s *Lists) Checked(d Digest) (time.Time, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return time.Time{}, err
	}
	info, err := os.Stat(s.file(d))
	if err != nil {
		return time.Time{}, fmt.Errorf("look at list: %w", err)
	}
	return info.ModTime(), nil
}

// SetChecked notes when the blob of a list was seen to match it. A list that is put later is of bytes that were just seen.
func (s *Lists) SetChecked(d Digest, at time.Time) error {
	if _, err := ParseDigest(string(d)); err != nil {
		return err
	}
	if err := os.Chtimes(s.file(d), at, at); err != nil {
		return fmt.Errorf("note that a blob was checked: %w", err)
	}
	return nil
}

func (s *Lists) file(d Digest) string { return filepath.Join(s.dir, d.Hex()+".list") }
