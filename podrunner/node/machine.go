// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// The kubelet's default eviction thresholds, which it keeps from Pods:
// memory.available<100Mi and nodefs.available<10%.
const (
	evictionMemory      = 100 << 20 // bytes
	evictionDiskPercent = 10
)

// machine is what does not change while this process runs.
type machine struct {
	cpus      int64
	memory    int64            // bytes
	swap      int64            // bytes
	disk      int64            // bytes
	hugePages map[string]int64 // bytes, by the name of the size: "2Mi"

	machineID, systemUUID, bootID, kernel, osImage string
}

// readMachine reads a root directory ("/") and the size of the filesystem of
// disk. Only memory is worth an error.
func readMachine(root fs.FS, disk string) (machine, error) {
	m := machine{cpus: int64(runtime.NumCPU()), hugePages: map[string]int64{}, osImage: "Unknown"}
	if n := countCPUs(readLine(root, "sys/devices/system/cpu/online")); n > 0 {
		m.cpus = n
	}
	info, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return machine{}, fmt.Errorf("read the size of memory: %w", err)
	}
	values := parseMeminfo(info)
	if m.memory, m.swap = values["MemTotal"], values["SwapTotal"]; m.memory == 0 {
		return machine{}, fmt.Errorf("read the size of memory: /proc/meminfo has no MemTotal")
	}
	var s unix.Statfs_t
	if err := unix.Statfs(disk, &s); err == nil {
		m.disk = int64(s.Blocks) * s.Bsize
	}
	m.readHugePages(root)
	m.machineID = readLine(root, "etc/machine-id")
	m.systemUUID = readLine(root, "sys/class/dmi/id/product_uuid")
	if m.systemUUID == "" {
		m.systemUUID = m.machineID
	}
	m.bootID = readLine(root, "proc/sys/kernel/random/boot_id")
	m.kernel = readLine(root, "proc/sys/kernel/osrelease")
	release, err := fs.ReadFile(root, "etc/os-release")
	if err != nil {
		release, _ = fs.ReadFile(root, "usr/lib/os-release")
	}
	if name := prettyName(release); name != "" {
		m.osImage = name
	}
	return m, nil
}

func (m *machine) readHugePages(root fs.FS) {
	const dir = "sys/kernel/mm/hugepages"
	entries, _ := fs.ReadDir(root, dir)
	for _, e := range entries {
		size, ok := strings.CutPrefix(e.Name(), "hugepages-")
		kb, err := strconv.ParseInt(strings.TrimSuffix(size, "kB"), 10, 64)
		if !ok || err != nil || kb <= 0 {
			continue
		}
		count, err := strconv.ParseInt(readLine(root, path.Join(dir, e.Name(), "nr_hugepages")), 10, 64)
		if err != nil {
			continue
		}
		m.hugePages[resource.NewQuantity(kb<<10, resource.BinarySI).String()] = count * kb << 10
	}
}

func (m *machine) capacity(maxPods int) corev1.ResourceList {
	l := corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(m.cpus, resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(m.memory, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(int64(maxPods), resource.DecimalSI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(m.disk, resource.BinarySI),
	}
	for size, bytes := range m.hugePages {
		l[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size)] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	return l
}

// allocatable is capacity without what is reserved, the eviction thresholds
// and, of memory, the huge pages.
func (m *machine) allocatable(o *Options) corev1.ResourceList {
	l := m.capacity(o.MaxPods)
	kept := o.Reserved.DeepCopy()
	if kept == nil {
		kept = corev1.ResourceList{}
	}
	keep := func(name corev1.ResourceName, n int64) {
		q := kept[name]
		q.Add(*resource.NewQuantity(n, resource.BinarySI))
		kept[name] = q
	}
	keep(corev1.ResourceMemory, evictionMemory)
	keep(corev1.ResourceEphemeralStorage, m.disk*evictionDiskPercent/100)
	for _, bytes := range m.hugePages {
		keep(corev1.ResourceMemory, bytes)
	}
	for name, q := range l {
		if k, ok := kept[name]; ok {
			q.Sub(k)
		}
		if q.Sign() < 0 {
			q.Set(0)
		}
		l[name] = q
	}
	return l
}

func (m *machine) info(i *corev1.NodeSystemInfo) {
	i.MachineID, i.SystemUUID, i.BootID = m.machineID, m.systemUUID, m.bootID
	i.KernelVersion, i.OSImage = m.kernel, m.osImage
	i.Swap = nil
	if m.swap > 0 {
		i.Swap = &corev1.NodeSwapStatus{Capacity: &m.swap}
	}
}

// readLine is the first line of a file, empty where there is none.
func readLine(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return string(bytes.TrimSpace(line))
}

// countCPUs counts a list of CPUs as the kernel writes it ("0-3,8"); 0: it is
// no such list.
func countCPUs(list string) (n int64) {
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		b, errB := strconv.ParseUint(to, 10, 16)
		if errA != nil || errB != nil || b < a {
			return 0
		}
		n += int64(b-a) + 1
	}
	return n
}

// parseMeminfo gives the values of /proc/meminfo in bytes.
func parseMeminfo(b []byte) map[string]int64 {
	out := map[string]int64{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		v, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil || v < 0 || v > 1<<50 {
			continue
		}
		if len(fields) > 1 && fields[1] == "kB" {
			v <<= 10
		}
		out[name] = v
	}
	return out
}

// prettyName is PRETTY_NAME of an os-release file.
func prettyName(b []byte) string {
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}
