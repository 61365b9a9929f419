package models

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// damage takes a blob out of service whose bytes are not what they were.
func (m *Models) damage(ctx context.Context, hex string, why error) {
	info, _ := m.stat(hex) // nil: it is looked at again
	m.mu.Lock()
	_, known := m.damaged[hex]
	m.damaged[hex] = info
	m.mu.Unlock()
	if err := m.lists.SetChecked(digest(hex), foundDamaged); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.deps.Log.Warn("cannot remember that a blob is damaged", "blob", short(hex), "err", err)
	}
	if !known {
		m.deps.Log.Error("blob is damaged: it is replaced if a good copy is found", "blob", short(hex), "err", why)
	}
	m.tell(ctx)
	m.repairs.nudge()
}

// foundDamaged is in the place of the last check of a blob that was found to be damaged, so that the next start knows. One
// that has no list is found again.
var foundDamaged = time.Unix(0, 0)

// recall takes the blobs out of service that an earlier run has found to be damaged. They are checked before others.
func (m *Models) recall() {
	if m.cfg.CheckRate == 0 {
		return
	}
	m.mu.Lock()
	var held []string
	for hex := range m.held {
		if !m.isDamaged(hex) {
			held = append(held, hex)
		}
	}
	m.mu.Unlock()
	for _, hex := range held {
		if at, err := m.lists.Checked(digest(hex)); err == nil && at.Equal(foundDamaged) {
			m.mu.Lock()
			m.damaged[hex] = nil
			m.mu.Unlock()
		}
	}
}

// heal puts a blob back into service whose bytes are right.
func (m *Models) heal(ctx context.Context, hex string) {
	m.mu.Lock()
	_, was := m.damaged[hex]
	delete(m.damaged, hex)
	m.repairs.change()
	m.mu.Unlock()
	if was {
		m.deps.Log.Info("blob is whole again", "blob", short(hex))
		m.tell(ctx)
	}
}

// stat describes the file that a blob of the engine's is.
func (m *Models) stat(hex string) (fs.FileInfo, error) {
	m.mu.Lock()
	dir := m.folder
	m.mu.Unlock()
	if dir == nil {
		return nil, fs.ErrNotExist
	}
	file, err := dir.OpenBlob(hex)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return file.Stat()
}

// sameFile tells whether nobody has written or replaced a file since.
func sameFile(a, b fs.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// isDamaged tells whether a blob is known to be. The caller holds the lock.
func (m *Models) isDamaged(hex string) bool {
	_, is := m.damaged[hex]
	return is
}

// damageOf is a damaged blob of a model, or "". The caller holds the lock.
func (m *Models) damageOf(model manifest.Manifest) string {
	for _, b := range model.Blobs {
		if m.isDamaged(b.Digest) {
			return b.Digest
		}
	}
	return ""
}

// forgetGone forgets the damage of files that are gone. The caller holds the lock.
func (m *Models) forgetGone() {
	for hex := range m.damaged {
		if _, there := m.held[hex]; !there {
			delete(m.damaged, hex)
			m.repairs.change()
		}
	}
}
