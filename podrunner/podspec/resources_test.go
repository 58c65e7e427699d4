// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

// list makes a ResourceList of name, value, name, value ...
func list(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func withResources(requests, limits corev1.ResourceList) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
	}
}

func noHugepages() []*runtimeapi.HugepageLimit {
	return []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}
}

func TestResourcesBecomeCgroupValues(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   *runtimeapi.LinuxContainerResources
	}{
		"none": {withResources(nil, nil), &runtimeapi.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100000, OomScoreAdj: 1000, HugepageLimits: noHugepages()}},
		"guaranteed": {withResources(list("cpu", "500m", "memory", "64Mi"), list("cpu", "500m", "memory", "64Mi")),
			&runtimeapi.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: -997, HugepageLimits: noHugepages()}},
		"request only": {withResources(list("cpu", "1", "memory", "2Gi"), nil),
			&runtimeapi.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000, OomScoreAdj: 750, HugepageLimits: noHugepages()}},
		"limit only": {withResources(nil, list("cpu", "2")),
			&runtimeapi.LinuxContainerResources{CpuShares: 2048, CpuQuota: 200000, CpuPeriod: 100000, OomScoreAdj: 999, HugepageLimits: noHugepages()}},
		"least and most": {withResources(list("cpu", "1m"), list("cpu", "1m")),
			&runtimeapi.LinuxContainerResources{CpuShares: 2, CpuQuota: 1000, CpuPeriod: 100000, OomScoreAdj: 999, HugepageLimits: noHugepages()}},
		"huge": {withResources(list("cpu", "1000", "memory", "8Gi"), list("hugepages-2Mi", "6Mi")),
			&runtimeapi.LinuxContainerResources{CpuShares: 262144, CpuPeriod: 100000, OomScoreAdj: 3, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 6 << 20}, {PageSize: "1GB"}}}},
		"of the Pod": {func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("cpu", "1", "memory", "1Gi"), Limits: list("cpu", "1", "memory", "2Gi", "hugepages-1Gi", "1Gi")}
		}, &runtimeapi.LinuxContainerResources{CpuShares: 1024, CpuQuota: 100000, CpuPeriod: 100000, MemoryLimitInBytes: 2 << 30, OomScoreAdj: 875,
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1 << 30}}}},
	} {
		pod := testPod(c.change)
		if d := cmp.Diff(c.want, Resources(pod, &pod.Spec.Containers[0], testFacts()), protocmp.Transform()); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	pod := testPod()
	f := testFacts()
	f.CgroupV2 = true
	if u := Resources(pod, &pod.Spec.Containers[0], f).Unified; u["memory.oom.group"] != "1" || len(u) != 1 {
		t.Errorf("unified on cgroup v2: %v", u)
	}
}

func TestPodCgroupLimitsOnlyWhatAllContainersLimit(t *testing.T) {
	sidecar := corev1.Container{Name: "side", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways),
		Resources: corev1.ResourceRequirements{Requests: list("cpu", "100m", "memory", "1Mi"), Limits: list("cpu", "200m", "memory", "2Mi")}}
	init := corev1.Container{Name: "init", Resources: corev1.ResourceRequirements{Requests: list("cpu", "2"), Limits: list("cpu", "3", "memory", "1Mi")}}
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   *runtimeapi.LinuxContainerResources
	}{
		"best effort": {func(p *corev1.Pod) {}, &runtimeapi.LinuxContainerResources{CpuShares: 2, HugepageLimits: noHugepages()}},
		"one without memory limit": {withResources(list("cpu", "1", "memory", "1Gi"), list("cpu", "1")),
			&runtimeapi.LinuxContainerResources{CpuShares: 1024, CpuQuota: 100000, CpuPeriod: 100000, HugepageLimits: noHugepages()}},
		"sidecar, init and overhead": {func(p *corev1.Pod) {
			withResources(list("cpu", "1", "memory", "1Gi"), list("cpu", "1", "memory", "1Gi"))(p)
			p.Spec.InitContainers = []corev1.Container{sidecar, init}
			p.Spec.Overhead = list("cpu", "100m", "memory", "1Mi")
		}, &runtimeapi.LinuxContainerResources{ // cpu: max(1+0.1, 0.1+2)+0.1 = 2.2; limit max(1.2, 3.2)+0.1
			CpuShares: 2252, CpuQuota: 330000, CpuPeriod: 100000, MemoryLimitInBytes: 1<<30 + 3<<20, HugepageLimits: noHugepages()}},
		"Pod-level": {func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("cpu", "1"), Limits: list("memory", "2Gi")}
		}, &runtimeapi.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 2 << 30, HugepageLimits: noHugepages()}},
	} {
		if d := cmp.Diff(c.want, PodResources(testPod(c.change), testFacts()), protocmp.Transform()); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestQOSClassIsGuaranteedOnlyWhereAllIs(t *testing.T) {
	same := list("cpu", "1", "memory", "1Gi")
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   corev1.PodQOSClass
	}{
		"nothing":              {func(p *corev1.Pod) {}, corev1.PodQOSBestEffort},
		"only other resources": {withResources(list("ephemeral-storage", "1"), list("ephemeral-storage", "1")), corev1.PodQOSBestEffort},
		"equal":                {withResources(same, same), corev1.PodQOSGuaranteed},
		"equal in other words": {withResources(list("cpu", "1000m", "memory", "1024Mi"), same), corev1.PodQOSGuaranteed},
		"only cpu":             {withResources(list("cpu", "1"), list("cpu", "1")), corev1.PodQOSBurstable},
		"limits above":         {withResources(list("cpu", "1", "memory", "1Mi"), same), corev1.PodQOSBurstable},
		"zero":                 {withResources(list("cpu", "0"), list("cpu", "0")), corev1.PodQOSBestEffort},
		"init container has no": {func(p *corev1.Pod) {
			withResources(same, same)(p)
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
		}, corev1.PodQOSBurstable},
		"Pod-level": {func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: same, Limits: same}
		}, corev1.PodQOSGuaranteed},
		"status says it": {func(p *corev1.Pod) { withResources(same, same)(p); p.Status.QOSClass = corev1.PodQOSBurstable }, corev1.PodQOSBurstable},
	} {
		if got := QOS(testPod(c.change)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestOOMScoresKeepSidecarsAndCriticalPods(t *testing.T) {
	f := testFacts() // 8 GiB
	pod := testPod(withResources(list("memory", "4Gi"), nil), func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "side", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways)}, {Name: "init"}}
	})
	for i, want := range []int64{500, 999} {
		if got := OOMScoreAdj(pod, &pod.Spec.InitContainers[i], f); got != want {
			t.Errorf("%s: %d, want %d", pod.Spec.InitContainers[i].Name, got, want)
		}
	}
	critical := testPod(func(p *corev1.Pod) {
		p.Spec.PriorityClassName, p.Spec.Priority = "system-node-critical", ptr.To[int32](2_000_001_000)
	})
	if got := OOMScoreAdj(critical, &critical.Spec.Containers[0], f); got != -997 {
		t.Errorf("node critical: %d", got)
	}
	if got := OOMScoreAdj(pod, &pod.Spec.Containers[0], &Facts{}); got != 999 {
		t.Errorf("on a node of unknown memory: %d", got)
	}
	spread := testPod(withResources(list("memory", "1Gi"), nil), func(p *corev1.Pod) {
		p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("memory", "5Gi")}
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "two"})
	})
	if a, b := OOMScoreAdj(spread, &spread.Spec.Containers[0], f), OOMScoreAdj(spread, &spread.Spec.Containers[1], f); a != 625 || b != 750 {
		t.Errorf("4 GiB of the Pod's shared by two: %d, %d; want 625, 750", a, b)
	}
}

func TestCgroupIsNamedAsTheDriverWants(t *testing.T) {
	same := list("cpu", "1", "memory", "1Gi")
	for _, c := range []struct {
		change       func(*corev1.Pod)
		driver, root string
		want         string
	}{
		{func(p *corev1.Pod) {}, "", "", "/kubepods/besteffort/pod0b1c-2d"},
		{withResources(same, nil), "cgroupfs", "", "/kubepods/burstable/pod0b1c-2d"},
		{withResources(same, same), "cgroupfs", "/a/b-c/", "/a/b-c/pod0b1c-2d"},
		{withResources(same, nil), "systemd", "", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b1c_2d.slice"},
		{withResources(same, same), "systemd", "/x-y/kubepods", "/x_y.slice/x_y-kubepods.slice/x_y-kubepods-pod0b1c_2d.slice"},
	} {
		got := CgroupParent(testPod(c.change), &Facts{CgroupDriver: c.driver, CgroupRoot: c.root})
		if got != c.want {
			t.Errorf("%s %s: %s, want %s", c.driver, c.root, got, c.want)
		}
		if uid := PodOfCgroup(got[len(got)-len(lastElement(got)):]); uid != "0b1c-2d" {
			t.Errorf("%s is of Pod %q", got, uid)
		}
	}
	if got := ClassCgroup(corev1.PodQOSBurstable, &Facts{}); got != "/kubepods/burstable" {
		t.Errorf("class cgroup %s", got)
	}
	for _, name := range []string{"burstable", "kubepods-burstable.slice", "", "x"} {
		if uid := PodOfCgroup(name); uid != "" {
			t.Errorf("%q is of Pod %q", name, uid)
		}
	}
}

func lastElement(p string) string {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '/' {
			return p[i+1:]
		}
	}
	return p
}
