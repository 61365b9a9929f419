package node

import (
	"context"
	"math"
	"time"

	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/schedule/availability"
)

// measureEvery is how often the machine is looked at, for what the node tells of it.
const measureEvery = 30 * time.Second

// keepMeasuring looks at the machine until ctx ends.
func (n *Node) keepMeasuring(ctx context.Context) {
	ticker := time.NewTicker(measureEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			n.measure(ctx)
			n.touch()
		}
	}
}

// measure looks at the machine once. What a system does not tell stays zero: unknown. Figures are
// rounded, since every change of them is told to all peers.
func (n *Node) measure(ctx context.Context) {
	var m cluster.Machine
	if v, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		m.Memory = cluster.Memory{Total: int64(v.Total), Free: round(v.Available, 256<<20)}
	}
	if u, err := disk.UsageWithContext(ctx, n.cfg.Node.DataDir); err == nil {
		m.DiskFree = roundDisk(u.Free)
	}
	if n.models != nil {
		if free := n.models.EngineDiskFree(ctx); free > 0 {
			m.ModelsDiskFree = roundDisk(uint64(free))
		}
	}
	if l, err := load.AvgWithContext(ctx); err == nil {
		m.Load = cluster.Load{One: math.Round(l.Load1*2) / 2, Five: math.Round(l.Load5*2) / 2}
	}
	n.machine.Store(&m)
}

// round rounds down to a whole number of units.
func round(bytes, unit uint64) int64 { return int64(bytes / unit * unit) }

// roundDisk rounds what a disk has free, the more finely the less that is. A full one has a byte, since 0 is unknown.
func roundDisk(bytes uint64) int64 {
	unit := uint64(1 << 30)
	for unit > 1<<20 && bytes < 32*unit {
		unit /= 2
	}
	return max(round(bytes, unit), 1)
}

// keepPinging measures the links to the peers until ctx ends.
func (n *Node) keepPinging(ctx context.Context) {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		for _, node := range n.View().Nodes {
			if node.ID == n.id || node.Condition != cluster.Alive {
				continue
			}
			once, cancel := context.WithTimeout(ctx, pingTimeout)
			if err := n.host.Ping(once, node.ID); err != nil && ctx.Err() == nil {
				n.log.Debug("cannot measure a link", "peer", node.Name, "err", err)
			}
			cancel()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

const (
	pingEvery   = 15 * time.Second
	pingTimeout = 5 * time.Second
)

// keepAvailable looks whether the owner lets the cluster have the engine, until ctx ends.
func (n *Node) keepAvailable(ctx context.Context) {
	if !n.cfg.Schedule.Availability.Set() {
		return
	}
	watch := availability.New(n.cfg.Schedule.Availability, availability.ThisMachine())
	ticker := time.NewTicker(availableEvery)
	defer ticker.Stop()
	last := ""
	for {
		once, cancel := context.WithTimeout(ctx, availableTimeout)
		why := watch.Look(once, time.Now(), n.engine.Busy() > 0)
		cancel()
		if why != last {
			last = why
			n.out.Store(&why)
			n.touch()
			n.log.Info("availability of the engine for the cluster changed", "unavailable", why)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

const (
	availableEvery   = 5 * time.Second
	availableTimeout = 3 * time.Second // of the programs that tell of battery and GPU
)
