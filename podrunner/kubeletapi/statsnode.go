// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// userHertz is the unit of /proc/stat (sysconf(_SC_CLK_TCK), the same on every
// architecture that Go has).
const userHertz = 100

// node measures the machine.
func (s *Stats) node(ctx context.Context, usageOnly bool) statsapi.NodeStats {
	now := metav1.Now()
	n := statsapi.NodeStats{NodeName: s.o.NodeName}
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		used, booted := parseProcStat(string(b))
		n.StartTime = metav1.NewTime(booted)
		n.CPU = &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: &used, UsageNanoCores: s.rates.of("", used, now.Time)}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		n.Memory, n.Swap = nodeMemory(parseStat(b), now)
		vm := readStat("/proc", "vmstat")
		n.Memory.PageFaults, n.Memory.MajorPageFaults = new(uint64(vm["pgfault"])), new(uint64(vm["pgmajfault"]))
	}
	if usageOnly {
		return n
	}
	if b, err := os.ReadFile("/proc/1/net/dev"); err == nil {
		n.Network = network(b, now)
	}
	n.Fs = filesystem(s.o.Root, now)
	n.Runtime = s.runtimeStats(ctx, now)
	n.Rlimit = processes(now)
	return n
}

// nodeMemory is as the kubelet has it of the root cgroup: the working set is
// what is used without the file pages that were not used lately.
func nodeMemory(info map[string]int64, now metav1.Time) (*statsapi.MemoryStats, *statsapi.SwapStats) {
	usage := info["MemTotal"] - info["MemFree"]
	workingSet := max(0, usage-info["Inactive(file)"])
	m := &statsapi.MemoryStats{Time: now,
		UsageBytes: new(uint64(usage)), WorkingSetBytes: new(uint64(workingSet)),
		AvailableBytes: new(uint64(max(0, info["MemTotal"]-workingSet))), RSSBytes: new(uint64(info["AnonPages"])),
	}
	sw := &statsapi.SwapStats{Time: now, SwapAvailableBytes: new(uint64(info["SwapFree"])),
		SwapUsageBytes: new(uint64(max(0, info["SwapTotal"]-info["SwapFree"])))}
	return m, sw
}

// parseProcStat gives the nanoseconds that all CPUs worked, and when the
// machine started.
func parseProcStat(b string) (used uint64, booted time.Time) {
	for line := range strings.Lines(b) {
		f := strings.Fields(line)
		switch {
		case len(f) > 8 && f[0] == "cpu":
			// user nice system (idle iowait) irq softirq steal
			for _, i := range []int{1, 2, 3, 6, 7, 8} {
				n, _ := strconv.ParseUint(f[i], 10, 64)
				used += n * uint64(time.Second) / userHertz
			}
		case len(f) == 2 && f[0] == "btime":
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				booted = time.Unix(n, 0)
			}
		}
	}
	return used, booted
}

// network names the device with the most traffic as the default one.
func network(netDev []byte, now metav1.Time) *statsapi.NetworkStats {
	devices := parseNetDev(netDev)
	if len(devices) == 0 {
		return nil
	}
	n := &statsapi.NetworkStats{Time: now, Interfaces: devices, InterfaceStats: devices[0]}
	for _, d := range devices {
		if *d.RxBytes+*d.TxBytes > *n.RxBytes+*n.TxBytes {
			n.InterfaceStats = d
		}
	}
	return n
}

// filesystem is the one that a directory is in; nil: it cannot be asked.
func filesystem(dir string, now metav1.Time) *statsapi.FsStats {
	var f unix.Statfs_t
	if err := unix.Statfs(dir, &f); err != nil {
		return nil
	}
	size := uint64(f.Bsize)
	return &statsapi.FsStats{Time: now,
		AvailableBytes: new(f.Bavail * size), CapacityBytes: new(f.Blocks * size), UsedBytes: new((f.Blocks - f.Bfree) * size),
		Inodes: new(f.Files), InodesFree: new(f.Ffree), InodesUsed: new(f.Files - f.Ffree),
	}
}

// runtimeStats is what images and containers take of their filesystems.
func (s *Stats) runtimeStats(ctx context.Context, now metav1.Time) *statsapi.RuntimeStats {
	if s.o.ImageFs == nil {
		return nil
	}
	info, err := s.o.ImageFs(ctx)
	if err != nil || len(info.GetImageFilesystems()) == 0 {
		return nil
	}
	r := &statsapi.RuntimeStats{}
	image := info.GetImageFilesystems()[0]
	r.ImageFs = filesystem(image.GetFsId().GetMountpoint(), now)
	r.ContainerFs = r.ImageFs
	if r.ImageFs != nil && image.GetUsedBytes() != nil {
		r.ImageFs.UsedBytes = new(image.GetUsedBytes().GetValue())
	}
	if c := info.GetContainerFilesystems(); len(c) > 0 {
		r.ContainerFs = filesystem(c[0].GetFsId().GetMountpoint(), now)
	}
	return r
}

func processes(now metav1.Time) *statsapi.RlimitStats {
	r := &statsapi.RlimitStats{Time: now}
	if n := readNumber("/proc/sys/kernel", "pid_max"); n > 0 {
		r.MaxPID = &n
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 3 {
			_, threads, _ := strings.Cut(f[3], "/")
			if n, err := strconv.ParseInt(threads, 10, 64); err == nil {
				r.NumOfRunningProcesses = &n
			}
		}
	}
	return r
}
