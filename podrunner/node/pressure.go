// SPDX-License-Identifier: Apache-2.0

package node

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Pressure is what a node runs out of.
type Pressure struct {
	Memory, Disk, PID bool
}

// pressureTransition is how long a pressure is told after it has gone (the
// kubelet's eviction-pressure-transition-period), so that it does not flap.
const pressureTransition = 5 * time.Minute

// Gauge measures the Pressure of this machine with the kubelet's default
// thresholds: less than 100 Mi of memory available; less than 10 % of the bytes
// or 5 % of the inodes of the disk; less than 10 % of the process IDs.
type Gauge struct {
	dir   string
	now   func() time.Time
	probe func(dir string) Pressure

	mu                sync.Mutex
	memory, disk, pid time.Time // when it was last seen
}

// NewPressure measures the filesystem of a directory, and the machine.
func NewPressure(dir string) *Gauge {
	return &Gauge{dir: dir, now: time.Now, probe: probePressure}
}

// Measure is the Pressure now.
func (g *Gauge) Measure() Pressure {
	p, now := g.probe(g.dir), g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	lasting := func(last *time.Time, seen bool) bool {
		if seen {
			*last = now
		}
		return seen || (!last.IsZero() && now.Sub(*last) < pressureTransition)
	}
	return Pressure{Memory: lasting(&g.memory, p.Memory), Disk: lasting(&g.disk, p.Disk), PID: lasting(&g.pid, p.PID)}
}

// Saw notes a Pressure that was measured elsewhere, by who acts on it: it is told
// as if it had been measured here.
func (g *Gauge) Saw(p Pressure) {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for last, seen := range map[*time.Time]bool{&g.memory: p.Memory, &g.disk: p.Disk, &g.pid: p.PID} {
		if seen {
			*last = now
		}
	}
}

// probePressure reads what it can; what cannot be read is no pressure.
func probePressure(dir string) (p Pressure) {
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		v := parseMeminfo(b)
		p.Memory = v["MemTotal"] > 0 && v["MemAvailable"] < evictionMemory
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err == nil {
		p.Disk = s.Bavail < s.Blocks/evictionDiskPercent || (s.Files > 0 && s.Ffree < s.Files/20)
	}
	limit, err := os.ReadFile("/proc/sys/kernel/pid_max")
	load, err2 := os.ReadFile("/proc/loadavg")
	if err == nil && err2 == nil {
		p.PID = pidsShort(string(limit), string(load))
	}
	return p
}

// pidsShort reads pid_max, and the number of threads from loadavg ("0.1 0.2 0.3
// 1/234 5678").
func pidsShort(limit, loadavg string) bool {
	most, err := strconv.ParseInt(strings.TrimSpace(limit), 10, 64)
	fields := strings.Fields(loadavg)
	if err != nil || len(fields) < 4 {
		return false
	}
	_, threads, _ := strings.Cut(fields[3], "/")
	n, err := strconv.ParseInt(threads, 10, 64)
	return err == nil && most-n < most/10
}
