// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// kernel is where the kernel's files about usage are.
type kernel struct {
	unified string            // the v2 hierarchy, if it has controllers
	v1      map[string]string // mounts of v1 hierarchies, by controller
}

// cgroupUsage is what a cgroup uses; a negative value: not told.
type cgroupUsage struct {
	cpu                        int64 // nanoseconds of a core, in all
	memory, workingSet, limit  int64 // bytes
	rss, faults, majorFaults   int64
	swap, swapLimit, processes int64
}

func openKernel() (kernel, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return kernel{}, fmt.Errorf("find the cgroup hierarchies: %w", err)
	}
	return parseMounts(b), nil
}

func parseMounts(mountinfo []byte) kernel {
	k := kernel{v1: map[string]string{}}
	for line := range strings.Lines(string(mountinfo)) {
		before, after, ok := strings.Cut(line, " - ")
		f, a := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(a) < 3 {
			continue
		}
		switch mount := f[4]; a[0] {
		case "cgroup":
			for c := range strings.SplitSeq(a[2], ",") {
				if k.v1[c] == "" {
					k.v1[c] = mount
				}
			}
		case "cgroup2":
			if c, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers")); err == nil && bytes.Contains(c, []byte("memory")) {
				k.unified = mount
			}
		}
	}
	return k
}

// cgroup reads what a cgroup uses; false: there is none of that name.
func (k kernel) cgroup(name string) (u cgroupUsage, ok bool) {
	u = cgroupUsage{-1, -1, -1, -1, -1, -1, -1, -1, -1, -1}
	if k.unified != "" {
		return k.cgroupV2(filepath.Join(k.unified, name))
	}
	memory, cpu := filepath.Join(k.v1["memory"], name), filepath.Join(k.v1["cpuacct"], name)
	if k.v1["memory"] == "" || k.v1["cpuacct"] == "" {
		return u, false
	}
	if u.memory = readNumber(memory, "memory.usage_in_bytes"); u.memory < 0 {
		return u, false
	}
	stat := readStat(memory, "memory.stat")
	u.workingSet = max(0, u.memory-stat["total_inactive_file"])
	u.rss, u.faults, u.majorFaults = stat["total_rss"], stat["total_pgfault"], stat["total_pgmajfault"]
	if limit, ok := stat["hierarchical_memory_limit"]; ok && limit < 1<<60 {
		u.limit = limit
	}
	u.cpu = readNumber(cpu, "cpuacct.usage")
	if k.v1["pids"] != "" {
		u.processes = readNumber(filepath.Join(k.v1["pids"], name), "pids.current")
	}
	return u, true
}

func (k kernel) cgroupV2(dir string) (u cgroupUsage, ok bool) {
	u = cgroupUsage{-1, -1, -1, -1, -1, -1, -1, -1, -1, -1}
	if u.memory = readNumber(dir, "memory.current"); u.memory < 0 {
		return u, false
	}
	stat := readStat(dir, "memory.stat")
	u.workingSet = max(0, u.memory-stat["inactive_file"])
	u.rss, u.faults, u.majorFaults = stat["anon"], stat["pgfault"], stat["pgmajfault"]
	u.limit = readNumber(dir, "memory.max")
	u.swap, u.swapLimit = readNumber(dir, "memory.swap.current"), readNumber(dir, "memory.swap.max")
	if usec, ok := readStat(dir, "cpu.stat")["usage_usec"]; ok {
		u.cpu = usec * 1000
	}
	u.processes = readNumber(dir, "pids.current")
	return u, true
}

// readNumber is the number in a file; -1: there is none ("max").
func readNumber(dir, file string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// readStat reads a file of names and numbers.
func readStat(dir, file string) map[string]int64 {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil
	}
	return parseStat(b)
}

// parseStat parses lines of a name, perhaps a colon, and a number; with "kB"
// behind it the number is made one of bytes.
func parseStat(b []byte) map[string]int64 {
	out := map[string]int64{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n < 0 {
			continue
		}
		if len(f) > 2 && f[2] == "kB" && n < 1<<50 {
			n <<= 10
		}
		out[strings.TrimSuffix(f[0], ":")] = n
	}
	return out
}

// parseNetDev parses /proc/net/dev, without loopback.
func parseNetDev(b []byte) (out []statsapi.InterfaceStats) {
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(rest)
		if !ok || len(f) < 16 || name == "lo" {
			continue
		}
		// Received: bytes packets errs drop fifo frame compressed multicast; sent: the same.
		var n [4]uint64
		var err error
		for i, at := range []int{0, 2, 8, 10} {
			if n[i], err = strconv.ParseUint(f[at], 10, 64); err != nil {
				break
			}
		}
		if err == nil {
			out = append(out, statsapi.InterfaceStats{Name: name, RxBytes: &n[0], RxErrors: &n[1], TxBytes: &n[2], TxErrors: &n[3]})
		}
	}
	return out
}
