package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// kept is what a node writes down of its cluster beside the agreed state, to find its way back:
// membership.json in the data directory. It is safe for concurrent use.
type kept struct {
	path string

	mu sync.Mutex
	membership
}

// membership is the file's content.
type membership struct {
	Trust       cluster.Trust               `json:"trust"`
	Certificate []byte                      `json:"certificate,omitempty"`
	Addrs       map[cluster.NodeID][]string `json:"addrs,omitempty"`   // where peers were last reached
	Removed     string                      `json:"removed,omitempty"` // why we are no member any more
}

func openKept(dir string) (*kept, error) {
	k := &kept{path: filepath.Join(dir, "membership.json")}
	data, err := os.ReadFile(k.path)
	if errors.Is(err, os.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read membership: %w", err)
	}
	if err := json.Unmarshal(data, &k.membership); err != nil {
		return nil, fmt.Errorf("read membership %s: %w: restore it from a backup, or join again with a token and an empty data directory", k.path, err)
	}
	return k, nil
}

// read returns a copy, whose map is not changed later.
func (k *kept) read() membership {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.membership
}

// change applies f and writes the file, whole or not at all. What f changes of a map it copies.
func (k *kept) change(f func(*membership)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.membership
	f(&next)
	data, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(k.path, append(data, '\n')); err != nil {
		return err
	}
	k.membership = next
	return nil
}

// nextBoot numbers this start of the node: greater than all before, also after a restored backup.
func nextBoot(dir string, now time.Time) (uint64, error) {
	path := filepath.Join(dir, "boot")
	var last uint64
	if data, err := os.ReadFile(path); err == nil {
		last, _ = strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64) // damaged: the clock takes over
	}
	boot := max(last+1, uint64(now.UnixMilli()))
	return boot, writeFile(path, []byte(strconv.FormatUint(boot, 10)+"\n"))
}

// writeFile replaces a file whole: a crash leaves the old one or the new one.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
