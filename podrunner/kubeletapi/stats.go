// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// StatsOptions of Stats. NodeName, Pods and Runtime are needed.
type StatsOptions struct {
	NodeName string
	Pods     func() []*corev1.Pod
	Runtime  Runtime
	// PodCgroup is the cgroup of a Pod, as "/kubepods/podUID"; nil: a Pod uses
	// what its containers use.
	PodCgroup func(*corev1.Pod) string
	// Volumes are the bytes that a Pod's volumes take, by name; nil: not told.
	Volumes func(types.UID) (map[string]int64, error)
	// ImageFs says where images are; nil: not told.
	ImageFs func(context.Context) (*runtimeapi.ImageFsInfoResponse, error)
	// Root is a directory of the node's filesystem; default /var/lib.
	Root string
	// LogRoot is where the logs of Pods are; default /var/log/pods.
	LogRoot string
}

// Stats measures what the node and its Pods use: by the runtime where it tells,
// and else by the kernel's files.
type Stats struct {
	o      StatsOptions
	kernel kernel
	rates  rates

	mu   sync.Mutex
	pids map[string]int // of sandboxes' processes, by the sandbox's ID
}

// NewStats checks the options.
func NewStats(o StatsOptions) (*Stats, error) {
	if o.NodeName == "" || o.Pods == nil || o.Runtime == nil {
		return nil, errors.New("stats need the node's name, its Pods and a container runtime")
	}
	if o.Root == "" {
		o.Root = "/var/lib"
	}
	if o.LogRoot == "" {
		o.LogRoot = "/var/log/pods"
	}
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	return &Stats{o: o, kernel: k, rates: rates{last: map[string]cpuSample{}}, pids: map[string]int{}}, nil
}

func (s *Stats) serveSummary(w http.ResponseWriter, r *http.Request) {
	summary, err := s.Summary(r.Context(), r.URL.Query().Get("only_cpu_and_memory") == "true")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(summary) // an error here is the client's leaving
}

// Summary is what the node and its Pods use now. With usageOnly it has CPU and
// memory, and reads no directory.
func (s *Stats) Summary(ctx context.Context, usageOnly bool) (*statsapi.Summary, error) {
	containers, err := s.o.Runtime.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{})
	if err != nil {
		return nil, fmt.Errorf("stats of containers: %w", err)
	}
	started, err := s.startTimes(ctx)
	if err != nil {
		return nil, err
	}
	byPod := map[types.UID][]*runtimeapi.ContainerStats{}
	for _, c := range containers {
		uid := types.UID(c.GetAttributes().GetLabels()[labelPodUID])
		byPod[uid] = append(byPod[uid], c)
	}
	var sandboxes map[string]*runtimeapi.PodSandboxStats
	ids := map[types.UID]string{}
	if !usageOnly {
		if sandboxes, ids, err = s.sandboxes(ctx); err != nil {
			return nil, err
		}
	}
	out := &statsapi.Summary{Node: s.node(ctx, usageOnly), Pods: []statsapi.PodStats{}}
	for _, p := range s.o.Pods() {
		if len(byPod[p.UID]) == 0 {
			continue
		}
		ps := s.podUsage(p, byPod[p.UID], started)
		if !usageOnly {
			s.podRest(ctx, p, &ps, byPod[p.UID], ids[p.UID], sandboxes[ids[p.UID]])
		}
		out.Pods = append(out.Pods, ps)
	}
	s.rates.prune()
	return out, nil
}

// startTimes are when the running containers were made, by their ID.
func (s *Stats) startTimes(ctx context.Context) (map[string]time.Time, error) {
	list, err := s.o.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{State: running()})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	out := map[string]time.Time{}
	for _, c := range list {
		out[c.GetId()] = time.Unix(0, c.GetCreatedAt())
	}
	return out, nil
}

// podUsage is the CPU and memory of a Pod and of its containers that run.
func (s *Stats) podUsage(p *corev1.Pod, containers []*runtimeapi.ContainerStats, started map[string]time.Time) statsapi.PodStats {
	ps := statsapi.PodStats{
		PodRef:     statsapi.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)},
		Containers: []statsapi.ContainerStats{},
	}
	if p.Status.StartTime != nil {
		ps.StartTime = *p.Status.StartTime
	}
	for _, c := range containers {
		at, runs := started[c.GetAttributes().GetId()]
		if !runs {
			continue
		}
		ps.Containers = append(ps.Containers, statsapi.ContainerStats{
			Name: c.GetAttributes().GetMetadata().GetName(), StartTime: metav1.NewTime(at),
			CPU: s.cpu(c), Memory: memory(c.GetMemory()), Swap: swap(c.GetSwap()),
		})
	}
	slices.SortFunc(ps.Containers, func(a, b statsapi.ContainerStats) int { return compare(a.Name, b.Name) })
	if !s.podCgroup(p, &ps) {
		sumContainers(&ps)
	}
	return ps
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (s *Stats) cpu(c *runtimeapi.ContainerStats) *statsapi.CPUStats {
	u := c.GetCpu()
	if u == nil {
		return nil
	}
	out := &statsapi.CPUStats{Time: metav1.NewTime(time.Unix(0, u.GetTimestamp()))}
	if v := u.GetUsageCoreNanoSeconds(); v != nil {
		out.UsageCoreNanoSeconds = new(v.GetValue())
		out.UsageNanoCores = s.rates.of(c.GetAttributes().GetId(), v.GetValue(), out.Time.Time)
	}
	if v := u.GetUsageNanoCores(); v != nil {
		out.UsageNanoCores = new(v.GetValue())
	}
	return out
}

func memory(m *runtimeapi.MemoryUsage) *statsapi.MemoryStats {
	if m == nil {
		return nil
	}
	out := &statsapi.MemoryStats{Time: metav1.NewTime(time.Unix(0, m.GetTimestamp()))}
	for _, v := range []struct {
		from *runtimeapi.UInt64Value
		to   **uint64
	}{
		{m.WorkingSetBytes, &out.WorkingSetBytes}, {m.AvailableBytes, &out.AvailableBytes}, {m.UsageBytes, &out.UsageBytes},
		{m.RssBytes, &out.RSSBytes}, {m.PageFaults, &out.PageFaults}, {m.MajorPageFaults, &out.MajorPageFaults},
	} {
		if v.from != nil {
			*v.to = new(v.from.GetValue())
		}
	}
	return out
}

func swap(u *runtimeapi.SwapUsage) *statsapi.SwapStats {
	if u == nil {
		return nil
	}
	out := &statsapi.SwapStats{Time: metav1.NewTime(time.Unix(0, u.GetTimestamp()))}
	if u.SwapUsageBytes != nil {
		out.SwapUsageBytes = new(u.SwapUsageBytes.GetValue())
	}
	if u.SwapAvailableBytes != nil {
		out.SwapAvailableBytes = new(u.SwapAvailableBytes.GetValue())
	}
	return out
}

// sumContainers makes a Pod's usage that of its containers.
func sumContainers(ps *statsapi.PodStats) {
	for _, c := range ps.Containers {
		if c.CPU != nil {
			if ps.CPU == nil {
				ps.CPU = &statsapi.CPUStats{Time: c.CPU.Time}
			}
			add(&ps.CPU.UsageCoreNanoSeconds, c.CPU.UsageCoreNanoSeconds)
			add(&ps.CPU.UsageNanoCores, c.CPU.UsageNanoCores)
		}
		if c.Memory != nil {
			if ps.Memory == nil {
				ps.Memory = &statsapi.MemoryStats{Time: c.Memory.Time}
			}
			add(&ps.Memory.WorkingSetBytes, c.Memory.WorkingSetBytes)
			add(&ps.Memory.UsageBytes, c.Memory.UsageBytes)
			add(&ps.Memory.RSSBytes, c.Memory.RSSBytes)
		}
	}
}

func add(sum **uint64, v *uint64) {
	if v == nil {
		return
	}
	if *sum == nil {
		*sum = new(uint64)
	}
	**sum += *v
}
