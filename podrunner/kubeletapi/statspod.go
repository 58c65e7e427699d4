// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// podCgroup fills the usage of a Pod from its cgroup, where it has one: so the
// sandbox and memory volumes count, too.
func (s *Stats) podCgroup(p *corev1.Pod, ps *statsapi.PodStats) bool {
	if s.o.PodCgroup == nil {
		return false
	}
	u, ok := s.kernel.cgroup(s.o.PodCgroup(p))
	if !ok || u.cpu < 0 {
		return false
	}
	now := metav1.Now()
	ps.CPU = &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: new(uint64(u.cpu)), UsageNanoCores: s.rates.of("pod"+string(p.UID), uint64(u.cpu), now.Time)}
	ps.Memory = &statsapi.MemoryStats{Time: now, UsageBytes: told(u.memory), WorkingSetBytes: told(u.workingSet),
		RSSBytes: told(u.rss), PageFaults: told(u.faults), MajorPageFaults: told(u.majorFaults)}
	if u.limit >= 0 {
		ps.Memory.AvailableBytes = new(uint64(max(0, u.limit-u.workingSet)))
	}
	if u.swap >= 0 {
		ps.Swap = &statsapi.SwapStats{Time: now, SwapUsageBytes: told(u.swap)}
		if u.swapLimit >= 0 {
			ps.Swap.SwapAvailableBytes = new(uint64(max(0, u.swapLimit-u.swap)))
		}
	}
	if u.processes >= 0 {
		ps.ProcessStats = &statsapi.ProcessStats{ProcessCount: told(u.processes)}
	}
	return true
}

func told(n int64) *uint64 {
	if n < 0 {
		return nil
	}
	return new(uint64(n))
}

// sandboxes are the stats of sandboxes by ID, where the runtime has them
// (containerd from 1.7), and the IDs of the ready ones by Pod.
func (s *Stats) sandboxes(ctx context.Context) (map[string]*runtimeapi.PodSandboxStats, map[types.UID]string, error) {
	list, err := s.o.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}})
	if err != nil {
		return nil, nil, fmt.Errorf("list sandboxes: %w", err)
	}
	ids := map[types.UID]string{}
	alive := map[string]bool{}
	for _, b := range list {
		ids[types.UID(b.GetMetadata().GetUid())] = b.GetId()
		alive[b.GetId()] = true
	}
	s.mu.Lock()
	for id := range s.pids {
		if !alive[id] {
			delete(s.pids, id)
		}
	}
	s.mu.Unlock()
	stats, err := s.o.Runtime.ListPodSandboxStats(ctx, &runtimeapi.PodSandboxStatsFilter{})
	if err != nil && status.Code(err) != codes.Unimplemented && ctx.Err() == nil {
		return nil, ids, nil // it tells less, and the rest is no less true
	}
	out := map[string]*runtimeapi.PodSandboxStats{}
	for _, b := range stats {
		out[b.GetAttributes().GetId()] = b
	}
	return out, ids, ctx.Err()
}

// podRest fills what is not CPU and memory.
func (s *Stats) podRest(ctx context.Context, p *corev1.Pod, ps *statsapi.PodStats, containers []*runtimeapi.ContainerStats, sandbox string, stats *runtimeapi.PodSandboxStats) {
	now := metav1.Now()
	if !p.Spec.HostNetwork {
		ps.Network = s.podNetwork(ctx, sandbox, stats, now)
	}
	if n := stats.GetLinux().GetProcess().GetProcessCount(); n != nil && ps.ProcessStats == nil {
		ps.ProcessStats = &statsapi.ProcessStats{ProcessCount: new(n.GetValue())}
	}
	var total uint64
	logs := filepath.Join(s.o.LogRoot, fmt.Sprintf("%s_%s_%s", p.Namespace, p.Name, p.UID))
	for i := range ps.Containers {
		c := &ps.Containers[i]
		used := treeSize(filepath.Join(logs, c.Name))
		total += used
		c.Logs = filesystem(s.o.LogRoot, now)
		if c.Logs != nil {
			c.Logs.UsedBytes, c.Logs.InodesUsed = &used, nil
		}
		for _, from := range containers {
			if w := from.GetWritableLayer(); from.GetAttributes().GetMetadata().GetName() == c.Name && w != nil {
				c.Rootfs = filesystem(w.GetFsId().GetMountpoint(), now)
				if c.Rootfs == nil {
					c.Rootfs = &statsapi.FsStats{Time: now}
				}
				c.Rootfs.UsedBytes, c.Rootfs.InodesUsed = new(w.GetUsedBytes().GetValue()), new(w.GetInodesUsed().GetValue())
				total += w.GetUsedBytes().GetValue()
			}
		}
	}
	total += s.podVolumes(p, ps, now)
	if ps.EphemeralStorage = filesystem(s.o.Root, now); ps.EphemeralStorage != nil {
		ps.EphemeralStorage.UsedBytes, ps.EphemeralStorage.InodesUsed = &total, nil
	}
}

// podVolumes fills the usage of volumes, and returns the bytes of those that
// are on the node's disk and written by the Pod.
func (s *Stats) podVolumes(p *corev1.Pod, ps *statsapi.PodStats, now metav1.Time) (ephemeral uint64) {
	if s.o.Volumes == nil {
		return 0
	}
	used, err := s.o.Volumes(p.UID)
	if err != nil {
		return 0 // the Pod is just removed
	}
	for _, v := range p.Spec.Volumes {
		n, ok := used[v.Name]
		if !ok || n < 0 {
			continue
		}
		stats := statsapi.FsStats{Time: now, UsedBytes: new(uint64(n))}
		if fs := filesystem(s.o.Root, now); fs != nil {
			stats.CapacityBytes, stats.AvailableBytes = fs.CapacityBytes, fs.AvailableBytes
		}
		if v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault {
			ephemeral += uint64(n)
		}
		ps.VolumeStats = append(ps.VolumeStats, statsapi.VolumeStats{Name: v.Name, FsStats: stats})
	}
	return ephemeral
}

// podNetwork is what the runtime tells of a sandbox's devices, and else what
// its process sees.
func (s *Stats) podNetwork(ctx context.Context, sandbox string, stats *runtimeapi.PodSandboxStats, now metav1.Time) *statsapi.NetworkStats {
	if n := stats.GetLinux().GetNetwork(); n.GetDefaultInterface() != nil {
		out := &statsapi.NetworkStats{Time: metav1.NewTime(time.Unix(0, n.GetTimestamp())), InterfaceStats: device(n.GetDefaultInterface())}
		out.Interfaces = []statsapi.InterfaceStats{out.InterfaceStats}
		for _, d := range n.GetInterfaces() {
			out.Interfaces = append(out.Interfaces, device(d))
		}
		return out
	}
	pid := s.sandboxPID(ctx, sandbox)
	if pid == 0 {
		return nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil
	}
	return network(b, now)
}

func device(d *runtimeapi.NetworkInterfaceUsage) statsapi.InterfaceStats {
	return statsapi.InterfaceStats{Name: d.GetName(),
		RxBytes: new(d.GetRxBytes().GetValue()), RxErrors: new(d.GetRxErrors().GetValue()),
		TxBytes: new(d.GetTxBytes().GetValue()), TxErrors: new(d.GetTxErrors().GetValue())}
}

// sandboxPID is a sandbox's process, which containerd and CRI-O tell in their
// verbose status; 0: not told.
func (s *Stats) sandboxPID(ctx context.Context, id string) int {
	if id == "" {
		return 0
	}
	s.mu.Lock()
	pid := s.pids[id]
	s.mu.Unlock()
	if pid != 0 {
		return pid
	}
	resp, err := s.o.Runtime.PodSandboxStatus(ctx, id, true)
	if err != nil {
		return 0
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil || info.PID <= 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pids[id] = info.PID
	return info.PID
}

// treeSize is the bytes of the files below a directory; what vanishes while it
// is read does not count.
func treeSize(dir string) (n uint64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if i, err := d.Info(); err == nil {
			n += uint64(i.Size())
		}
		return nil
	})
	return n
}
