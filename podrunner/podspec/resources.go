// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kernel's units of CPU time: shares of 1024 a CPU, at least 2 and at
// most 262144 (kernel/sched/sched.h), and microseconds of quota in a period.
const (
	sharesPerCPU         = 1024
	minShares, maxShares = 2, 262144
	quotaPeriod          = 100_000 // µs
	minQuota             = 1_000   // µs
)

// cpuShares of a request in thousandths of a CPU.
func cpuShares(milli int64) int64 {
	return min(max(milli*sharesPerCPU/1000, minShares), maxShares)
}

// cpuQuota of a limit in thousandths of a CPU; 0, no limit, is 0.
func cpuQuota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*quotaPeriod/1000, minQuota)
}

// Resources returns what the runtime is told about a container's resources,
// at its creation and at a resize. A limit that the container has not is the
// Pod's, where that has one.
func Resources(pod *corev1.Pod, c *corev1.Container, f *Facts) *runtimeapi.LinuxContainerResources {
	request, requested := c.Resources.Requests[corev1.ResourceCPU]
	cpu, memory := limit(pod, c, corev1.ResourceCPU), limit(pod, c, corev1.ResourceMemory)
	if !requested {
		request = cpu
	}
	r := linuxResources(request, cpu, memory)
	r.OomScoreAdj = OOMScoreAdj(pod, c, f)
	r.HugepageLimits = hugepages(pod, c, f)
	if f.CgroupV2 { // all of a container dies of its OOM, not one process
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return r
}

func limit(pod *corev1.Pod, c *corev1.Container, n corev1.ResourceName) resource.Quantity {
	q := c.Resources.Limits[n]
	if q.IsZero() && resourcehelper.IsPodLevelResourcesSet(pod) {
		return pod.Spec.Resources.Limits[n]
	}
	return q
}

func linuxResources(cpuRequest, cpuLimit, memory resource.Quantity) *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{
		CpuShares:          cpuShares(cpuRequest.MilliValue()),
		CpuQuota:           cpuQuota(cpuLimit.MilliValue()),
		CpuPeriod:          quotaPeriod,
		MemoryLimitInBytes: memory.Value(),
	}
}

// hugepages limits every size the node has; what is not asked for is not had.
func hugepages(pod *corev1.Pod, c *corev1.Container, f *Facts) []*runtimeapi.HugepageLimit {
	want := map[string]uint64{}
	if resourcehelper.IsPodLevelResourcesSet(pod) {
		addHugepages(want, pod.Spec.Resources.Limits)
	}
	addHugepages(want, c.Resources.Limits)
	var limits []*runtimeapi.HugepageLimit
	for _, size := range f.HugePageSizes {
		limits = append(limits, &runtimeapi.HugepageLimit{PageSize: size, Limit: want[size]})
	}
	return limits
}

func addHugepages(to map[string]uint64, list corev1.ResourceList) {
	for n, q := range list {
		if size, ok := hugepageSize(n); ok {
			to[size] = uint64(max(q.Value(), 0))
		}
	}
}

// hugepageSize returns the kernel's name of the size in hugepages-2Mi ("2MB").
func hugepageSize(n corev1.ResourceName) (string, bool) {
	s, ok := strings.CutPrefix(string(n), corev1.ResourceHugePagesPrefix)
	if !ok {
		return "", false
	}
	q, err := resource.ParseQuantity(s)
	if err != nil || q.Value() <= 0 {
		return "", false
	}
	v, unit := q.Value(), 0
	for v%1024 == 0 && unit < 3 {
		v, unit = v/1024, unit+1
	}
	return strconv.FormatInt(v, 10) + []string{"B", "KB", "MB", "GB"}[unit], true
}

// PodResources returns the limits of a Pod's own cgroup, of all its
// containers together with the overhead. A resource that one of them may use
// without limit has none (CpuPeriod 0, MemoryLimitInBytes 0).
func PodResources(pod *corev1.Pod, f *Facts) *runtimeapi.LinuxContainerResources {
	o := resourcehelper.PodResourcesOptions{}
	requests, limits := resourcehelper.PodRequests(pod, o), resourcehelper.PodLimits(pod, o)
	r := linuxResources(requests[corev1.ResourceCPU], limits[corev1.ResourceCPU], limits[corev1.ResourceMemory])
	if QOS(pod) == corev1.PodQOSBestEffort {
		r = &runtimeapi.LinuxContainerResources{CpuShares: minShares}
	}
	if !allLimited(pod, corev1.ResourceCPU) {
		r.CpuQuota, r.CpuPeriod = 0, 0
	}
	if !allLimited(pod, corev1.ResourceMemory) {
		r.MemoryLimitInBytes = 0
	}
	want := map[string]uint64{}
	addHugepages(want, requests)
	for _, size := range f.HugePageSizes {
		r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: size, Limit: want[size]})
	}
	return r
}

func allLimited(pod *corev1.Pod, n corev1.ResourceName) bool {
	if resourcehelper.IsPodLevelResourcesSet(pod) {
		if q := pod.Spec.Resources.Limits[n]; !q.IsZero() {
			return true
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if q := list[i].Resources.Limits[n]; q.IsZero() {
				return false
			}
		}
	}
	return true
}

// sandboxResources are those of PodResources that the runtime is told: of the
// containers, and the overhead apart.
func sandboxResources(pod *corev1.Pod) (containers, overhead *runtimeapi.LinuxContainerResources) {
	o := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
	requests, limits := resourcehelper.PodRequests(pod, o), resourcehelper.PodLimits(pod, o)
	request, ok := requests[corev1.ResourceCPU]
	if !ok {
		request = limits[corev1.ResourceCPU]
	}
	overhead = new(runtimeapi.LinuxContainerResources)
	if h := pod.Spec.Overhead; h != nil {
		overhead = linuxResources(h[corev1.ResourceCPU], h[corev1.ResourceCPU], h[corev1.ResourceMemory])
	}
	return linuxResources(request, limits[corev1.ResourceCPU], limits[corev1.ResourceMemory]), overhead
}
