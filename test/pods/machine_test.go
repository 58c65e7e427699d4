// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"fairlead.dev/podrunner/containerdtest"
)

// processOf finds the process of examples/web's Pod; 0 where there is none.
func processOf(pod string) int {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		b, _ := os.ReadFile(path)
		if args := strings.Split(string(b), "\x00"); len(args) > 1 && args[0] == "/responder" && args[1] == "-name="+pod {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

// limits of the process's cgroup, as its kernel writes them: version 1 or 2.
func (n *node) limits(pid int) (cpu, memory string) {
	n.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		n.Fatal(err)
	}
	read := func(path, name string) string {
		for _, top := range containerdtest.CgroupMounts() {
			if b, err := os.ReadFile(filepath.Join(top, path, name)); err == nil {
				return strings.TrimSpace(string(b))
			}
		}
		return ""
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, controller := range strings.Split(f[1], ",") {
			switch controller {
			case "cpu":
				cpu = read(f[2], "cpu.cfs_quota_us") + " " + read(f[2], "cpu.cfs_period_us")
			case "memory":
				memory = read(f[2], "memory.limit_in_bytes")
			case "":
				if max := read(f[2], "cpu.max"); max != "" {
					cpu, memory = max, read(f[2], "memory.max")
				}
			}
		}
	}
	return cpu, memory
}

// remains counts what the kernel has of Pods: links to them, mounts of theirs
// below the agent's and containerd's directories, and cgroups.
func (n *node) remains(uid string) (found []string) {
	n.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		n.Fatal(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, "veth") {
			found = append(found, "link "+name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.Contains(f[4], uid) {
			found = append(found, "mount "+f[4])
		}
	}
	for _, top := range containerdtest.CgroupMounts() {
		dirs, _ := filepath.Glob(top + n.rt.CgroupRoot + "/kubepods/*/*" + uid + "*")
		for _, d := range dirs {
			found = append(found, "cgroup "+d)
		}
	}
	for _, dir := range []string{n.rt.LogRoot + "/*" + uid + "*", n.rt.Root + "/pods/" + uid} {
		dirs, _ := filepath.Glob(dir)
		for _, d := range dirs {
			found = append(found, "directory "+d)
		}
	}
	return found
}
