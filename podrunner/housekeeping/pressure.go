// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/node"
)

// inodes is the kubelet's name of what a filesystem has a number of.
const inodes corev1.ResourceName = "inodes"

// disk is a filesystem: in bytes, and in inodes (0 where it has no number).
type disk struct {
	device              uint64
	capacity, available int64
	inodes, inodesFree  int64
}

func measureDisk(dir string) (disk, error) {
	var f unix.Statfs_t
	var s unix.Stat_t
	if err := unix.Statfs(dir, &f); err != nil {
		return disk{}, fmt.Errorf("measure the filesystem of %s: %w", dir, err)
	}
	if err := unix.Stat(dir, &s); err != nil {
		return disk{}, fmt.Errorf("measure the filesystem of %s: %w", dir, err)
	}
	return disk{
		device: s.Dev, capacity: int64(f.Blocks) * f.Bsize, available: int64(f.Bavail) * f.Bsize,
		inodes: int64(f.Files), inodesFree: int64(f.Ffree),
	}, nil
}

// measureMemory is MemAvailable, in bytes, as node.Gauge has it.
func measureMemory() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("measure memory: %w", err)
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) == 3 && f[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil || kib > math.MaxInt64>>10 {
				return 0, fmt.Errorf("measure memory: MemAvailable is %q", f[1])
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("measure memory: /proc/meminfo has no MemAvailable")
}

// imageDisk is where the runtime keeps images, and the layers that containers
// write.
func (k *Keeper) imageDisk(ctx context.Context, c *cri.Client) (disk, error) {
	if k.imageDir == "" {
		info, err := c.Images.ImageFsInfo(ctx)
		if err != nil {
			return disk{}, fmt.Errorf("ask where images are: %w", err)
		}
		for _, f := range info.GetImageFilesystems() {
			k.imageDir = f.GetFsId().GetMountpoint()
			break
		}
		if k.imageDir == "" {
			return disk{}, errors.New("the runtime does not tell where images are")
		}
	}
	return k.disk(k.imageDir)
}

// dedicatedImages says whether images have a filesystem of their own.
func (k *Keeper) dedicatedImages(ctx context.Context, c *cri.Client) bool {
	images, err := k.imageDisk(ctx, c)
	if err != nil {
		return false
	}
	own, err := k.disk(k.o.Root)
	return err == nil && own.device != images.device
}

// shortage is something that there is less of than the threshold.
type shortage struct {
	resource             corev1.ResourceName
	threshold, available int64
	images               bool // of the filesystem of images
}

func (s *shortage) quantity(n int64) string {
	if s.resource == inodes {
		return resource.NewQuantity(n, resource.DecimalSI).String()
	}
	return bytesOf(n).String()
}

// shortages are what the node is short of, the worst first. What cannot be
// measured is not short.
func (k *Keeper) shortages(ctx context.Context, c *cri.Client) (short []shortage) {
	look := func(r corev1.ResourceName, available, threshold int64, images bool) {
		if available < threshold {
			short = append(short, shortage{r, threshold, available, images})
		}
	}
	if available, err := k.memory(); err == nil {
		look(corev1.ResourceMemory, available, k.o.LeastMemoryBytes, false)
	}
	if d, err := k.disk(k.o.Root); err == nil {
		look(corev1.ResourceEphemeralStorage, d.available, percent(d.capacity, k.o.LeastNodePercent), false)
		look(inodes, d.inodesFree, percent(d.inodes, k.o.LeastInodesPercent), false)
	}
	if d, err := k.imageDisk(ctx, c); err == nil {
		look(corev1.ResourceEphemeralStorage, d.available, percent(d.capacity, k.o.LeastImagePercent), true)
		look(inodes, d.inodesFree, percent(d.inodes, k.o.LeastInodesPercent), true)
	}
	return short
}

func percent(n int64, p int) int64 { return int64(float64(n) * float64(p) / 100) }

// relieve does something about what the node is short of: it removes what can
// be had again, and where that is not enough evicts one Pod.
func (k *Keeper) relieve(ctx context.Context, c *cri.Client, pods []*corev1.Pod, running map[string]bool, dedicated bool) {
	short := k.shortages(ctx, c)
	if len(short) == 0 {
		return
	}
	if k.o.Pressure != nil {
		var p node.Pressure
		for _, s := range short {
			p.Memory = p.Memory || s.resource == corev1.ResourceMemory
			p.Disk = p.Disk || s.resource != corev1.ResourceMemory
		}
		k.o.Pressure.Saw(p)
	}
	if k.settling() {
		return
	}
	worst := short[0]
	k.nodeEvent("EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", worst.resource))
	// Where images have a disk of their own, their removal does not help the
	// node's.
	if worst.resource != corev1.ResourceMemory && (worst.images || !dedicated) {
		if err := k.removeDead(ctx, c, pods); err != nil {
			k.log.Warn("remove containers that have ended", "error", err)
		}
		if _, err := k.freeImages(ctx, c, math.MaxInt64); err != nil {
			k.log.Warn("remove images", "error", err)
		}
		if len(k.shortages(ctx, c)) == 0 {
			return
		}
	}
	k.evictForRoom(ctx, c, pods, running, worst, dedicated)
}

// evictForRoom evicts the first Pod of the kubelet's order that may be.
func (k *Keeper) evictForRoom(ctx context.Context, c *cri.Client, pods []*corev1.Pod, running map[string]bool, s shortage, dedicated bool) {
	stats, err := containerStats(ctx, c, "", running)
	if err != nil {
		k.log.Warn("the node is short, and which Pods take how much is not known; none is evicted", "resource", s.resource, "error", err)
		return
	}
	counted := where{layers: true, rest: true}
	if dedicated {
		counted = where{layers: s.images, rest: !s.images}
	}
	var ranked []candidate
	for _, p := range pods {
		if finished(p) || len(stats[p.UID]) == 0 {
			continue // it has nothing that could be ended
		}
		var u usage
		k.addContainers(&u, p, stats[p.UID])
		if s.resource == corev1.ResourceEphemeralStorage && counted.rest {
			if err := k.addVolumes(&u, p); err != nil {
				k.log.Debug("housekeeping: measure a Pod", "pod", p.Namespace+"/"+p.Name, "error", err)
			}
		}
		ranked = append(ranked, newCandidate(p, u, s.resource, counted))
	}
	rank(ranked)
	for i := range ranked {
		if k.evict(ranked[i].pod, ranked[i].message(&s)) {
			return
		}
	}
	k.log.Warn("the node is short, and there is no Pod that may be evicted", "resource", s.resource, "available", s.available)
}
