// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/podspec"
)

// usage is what a Pod takes: of its containers those that run, as the kubelet
// counts.
type usage struct {
	containers map[string]containerUsage
	volumes    map[string]int64 // bytes
	// local are the volumes' bytes on the node's disk: emptyDirs and ConfigMaps.
	local int64
}

// containerUsage is in bytes, inodes in files of the layer.
type containerUsage struct {
	layer, logs, memory, inodes int64
}

// containerStats asks the runtime for the containers that run, of one Pod or
// (uid "") of all.
func containerStats(ctx context.Context, c *cri.Client, uid types.UID, running map[string]bool) (map[types.UID][]*runtimeapi.ContainerStats, error) {
	filter := &runtimeapi.ContainerStatsFilter{}
	if uid != "" {
		filter.LabelSelector = map[string]string{podspec.LabelPodUID: string(uid)}
	}
	stats, err := c.Runtime.ListContainerStats(ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("stats of containers: %w", err)
	}
	byPod := map[types.UID][]*runtimeapi.ContainerStats{}
	for _, s := range stats {
		if a := s.GetAttributes(); running[a.GetId()] {
			pod := types.UID(a.GetLabels()[podspec.LabelPodUID])
			byPod[pod] = append(byPod[pod], s)
		}
	}
	return byPod, nil
}

// addContainers adds what containers take.
func (k *Keeper) addContainers(u *usage, p *corev1.Pod, stats []*runtimeapi.ContainerStats) {
	u.containers = make(map[string]containerUsage, len(stats))
	dir := podspec.LogDir(p, &podspec.Facts{LogRoot: k.o.LogRoot})
	for _, s := range stats {
		name := s.GetAttributes().GetLabels()[podspec.LabelContainerName]
		u.containers[name] = containerUsage{
			layer:  int64(s.GetWritableLayer().GetUsedBytes().GetValue()),
			inodes: int64(s.GetWritableLayer().GetInodesUsed().GetValue()),
			memory: int64(s.GetMemory().GetWorkingSetBytes().GetValue()),
			logs:   bytesIn(filepath.Join(dir, name)),
		}
	}
}

// addVolumes adds what volumes take, which costs as much as they have files.
func (k *Keeper) addVolumes(u *usage, p *corev1.Pod) error {
	if !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.ConfigMap != nil || v.EmptyDir != nil }) {
		return nil
	}
	var err error
	if u.volumes, err = k.o.Volumes.Usage(p.UID); err != nil {
		return err
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.ConfigMap != nil || (v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault) {
			u.local += u.volumes[v.Name]
		}
	}
	return nil
}

// bytesIn are the blocks of the files in a directory, those below it not.
func bytesIn(dir string) (n int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok {
				n += s.Blocks * 512
			}
		}
	}
	return n
}

// where says which of a Pod's bytes are counted.
type where struct {
	layers, rest bool // rest: logs and volumes
}

func (u *usage) disk(w where) (n int64) {
	for _, c := range u.containers {
		if w.layers {
			n += c.layer
		}
		if w.rest {
			n += c.logs
		}
	}
	if w.rest {
		n += u.local
	}
	return n
}

func (u *usage) memory() (n int64) {
	for _, c := range u.containers {
		n += c.memory
	}
	return n
}

func (u *usage) inodes() (n int64) {
	for _, c := range u.containers {
		n += c.inodes
	}
	return n
}
