// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroups makes the cgroups that Pods' containers are put into, as the kubelet
// does: ROOT, ROOT/burstable, ROOT/besteffort, and in one of them podUID with
// the limits of the whole Pod. With the systemd driver names are slices, which
// systemd makes when the runtime asks for them, without limits of their own.
type cgroups struct {
	log *slog.Logger
	// unified is the mount of the v2 hierarchy, if it has controllers.
	unified string
	// v1 has the mount of each v1 hierarchy, and of a v2 one without
	// controllers, by its controllers ("cpu,cpuacct", "name=systemd", "").
	v1 map[string]string

	mu     sync.Mutex
	shares map[types.UID]int64 // of burstable Pods
}

// findCgroups reads where the hierarchies are.
func findCgroups(log *slog.Logger) (*cgroups, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find the cgroup hierarchies: %w", err)
	}
	g := &cgroups{log: log, v1: map[string]string{}, shares: map[types.UID]int64{}}
	for line := range strings.Lines(string(b)) {
		mount, fsType, options := parseMount(line)
		switch fsType {
		case "cgroup":
			g.v1[controllersOf(options)] = mount
		case "cgroup2":
			if c, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers")); err == nil && strings.Contains(string(c), "memory") {
				g.unified = mount
			} else {
				g.v1[""] = mount
			}
		}
	}
	return g, nil
}

func parseMount(line string) (mount, fsType, options string) {
	before, after, ok := strings.Cut(line, " - ")
	f, a := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 5 || len(a) < 3 {
		return "", "", ""
	}
	return f[4], a[0], a[2]
}

// controllersOf the super options of a v1 mount: without "rw" and the like.
func controllersOf(options string) string {
	var c []string
	for o := range strings.SplitSeq(options, ",") {
		if o != "rw" && o != "ro" && o != "xattr" && !strings.HasPrefix(o, "release_agent=") && o != "clone_children" {
			c = append(c, o)
		}
	}
	return strings.Join(c, ",")
}

// mountOf a v1 controller, "" where there is none.
func (g *cgroups) mountOf(controller string) string {
	for names, mount := range g.v1 {
		if slices.Contains(strings.Split(names, ","), controller) {
			return mount
		}
	}
	return ""
}

// v2 is the mount of the v2 hierarchy, with controllers or without; "" where
// there is none.
func (g *cgroups) v2() string {
	if g.unified != "" {
		return g.unified
	}
	return g.v1[""]
}

// isSlice: a parent as the systemd driver names it.
func isSlice(parent string) bool { return strings.HasSuffix(parent, ".slice") }

// ensure makes a Pod's cgroup with its limits; it is there after that, or the
// error says why not. Called again, it changes the limits.
func (g *cgroups) ensure(pod *corev1.Pod, parent string, limits *runtimeapi.LinuxContainerResources) error {
	if parent == "" || isSlice(parent) {
		return nil
	}
	if err := g.set(parent, limits); err != nil {
		return fmt.Errorf("cgroup %s of the Pod: %w", parent, err)
	}
	return g.weigh(pod.UID, path.Dir(parent), limits)
}

func (g *cgroups) set(cgroup string, l *runtimeapi.LinuxContainerResources) error {
	if g.unified != "" {
		return g.setUnified(cgroup, l)
	}
	cpu, memory := g.mountOf("cpu"), g.mountOf("memory")
	if cpu != "" {
		dir := filepath.Join(cpu, cgroup)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if l != nil {
			period := max(l.CpuPeriod, 0)
			if err := errors.Join(writeNumber(dir, "cpu.shares", l.CpuShares, l.CpuShares > 0),
				writeNumber(dir, "cpu.cfs_period_us", period, period > 0),
				writeNumber(dir, "cpu.cfs_quota_us", quota(l.CpuQuota), true)); err != nil {
				return err
			}
		}
	}
	if memory != "" {
		dir := filepath.Join(memory, cgroup)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if l != nil {
			return writeNumber(dir, "memory.limit_in_bytes", noLimit(l.MemoryLimitInBytes), true)
		}
	}
	return nil
}

// quota and noLimit: -1 is none.
func quota(q int64) int64 {
	if q <= 0 {
		return -1
	}
	return q
}

func noLimit(bytes int64) int64 {
	if bytes <= 0 {
		return -1
	}
	return bytes
}

func (g *cgroups) setUnified(cgroup string, l *runtimeapi.LinuxContainerResources) error {
	dir := g.unified
	for part := range strings.SplitSeq(strings.Trim(cgroup, "/"), "/") {
		g.delegate(dir)
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	g.delegate(dir)
	if l == nil {
		return nil
	}
	cpuMax := "max"
	if l.CpuQuota > 0 {
		cpuMax = strconv.FormatInt(l.CpuQuota, 10)
	}
	if l.CpuPeriod > 0 {
		cpuMax += " " + strconv.FormatInt(l.CpuPeriod, 10)
	}
	memoryMax := "max"
	if l.MemoryLimitInBytes > 0 {
		memoryMax = strconv.FormatInt(l.MemoryLimitInBytes, 10)
	}
	return errors.Join(writeNumber(dir, "cpu.weight", weight(l.CpuShares), l.CpuShares > 0),
		write(dir, "cpu.max", cpuMax), write(dir, "memory.max", memoryMax))
}

// delegate enables in a v2 cgroup, for those below it, what it has itself. What
// the kernel refuses is missed later, by the write of a limit.
func (g *cgroups) delegate(dir string) {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	on, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	enabled := strings.Fields(string(on))
	for _, c := range strings.Fields(string(have)) {
		if !slices.Contains(enabled, c) {
			_ = write(dir, "cgroup.subtree_control", "+"+c)
		}
	}
}

// weight of v2 for shares of v1, as runc converts: 2..262144 to 1..10000.
func weight(shares int64) int64 {
	return 1 + (min(max(shares, 2), 262144)-2)*9999/262142
}

// weigh keeps the shares of the QoS cgroups: besteffort the least, burstable
// what its Pods ask for together.
func (g *cgroups) weigh(pod types.UID, parent string, l *runtimeapi.LinuxContainerResources) error {
	switch path.Base(parent) {
	case "besteffort":
		return g.setShares(parent, 2)
	case "burstable":
		g.mu.Lock()
		defer g.mu.Unlock()
		if l != nil {
			g.shares[pod] = l.CpuShares
		}
		return g.setShares(parent, g.sum())
	}
	return nil
}

func (g *cgroups) sum() (total int64) {
	for _, s := range g.shares {
		total += s
	}
	return max(total, 2)
}

func (g *cgroups) setShares(cgroup string, shares int64) error {
	if g.unified != "" {
		return writeNumber(filepath.Join(g.unified, cgroup), "cpu.weight", weight(shares), true)
	}
	if cpu := g.mountOf("cpu"); cpu != "" {
		return writeNumber(filepath.Join(cpu, cgroup), "cpu.shares", shares, true)
	}
	return nil
}

// remove removes a Pod's cgroup in all hierarchies. One that still has
// processes, or that is gone, is no error of the first, but of the second kind.
func (g *cgroups) remove(pod types.UID, parent string) error {
	if parent == "" || isSlice(parent) {
		return nil
	}
	var errs []error
	for _, mount := range g.mounts() {
		errs = append(errs, removeTree(filepath.Join(mount, parent)))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.shares[pod]; ok {
		delete(g.shares, pod)
		if err := g.setShares(path.Dir(parent), g.sum()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (g *cgroups) mounts() []string {
	var m []string
	if g.unified != "" {
		m = append(m, g.unified)
	}
	for _, mount := range g.v1 {
		m = append(m, mount)
	}
	return m
}

// removeTree removes a cgroup and those below it. None may have a process.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// known are the Pods that have a cgroup below root, with its name.
func (g *cgroups) known(root string) map[types.UID]string {
	found := map[types.UID]string{}
	if isSlice(root) {
		return found
	}
	for _, mount := range g.mounts() {
		for _, class := range []string{"", "burstable", "besteffort"} {
			entries, err := os.ReadDir(filepath.Join(mount, root, class))
			if err != nil {
				continue
			}
			for _, e := range entries {
				if uid, ok := strings.CutPrefix(e.Name(), "pod"); ok && e.IsDir() && uid != "" {
					found[types.UID(uid)] = path.Join(root, class, e.Name())
				}
			}
		}
	}
	return found
}

func writeNumber(dir, file string, n int64, when bool) error {
	if !when {
		return nil
	}
	return write(dir, file, strconv.FormatInt(n, 10))
}

// write writes a file of a cgroup in one call, as the kernel wants it.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
