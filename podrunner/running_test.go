// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestProbesSayWhetherAPodIsReadyAndLives(t *testing.T) {
	g := newRig(t)
	share := t.TempDir()
	key := g.pod(`
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 2
  volumes: [{name: v, hostPath: {path: ` + share + `}}]
  containers:
  - name: c
    image: IMAGE
    args: [serve]
    volumeMounts: [{name: v, mountPath: /v}]
    startupProbe: {httpGet: {port: 8080, path: /file/v/started}, periodSeconds: 1, failureThreshold: 100, timeoutSeconds: 20}
    readinessProbe: {httpGet: {port: 8080, path: /file/v/ready}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 20}
    livenessProbe: {exec: {command: [/guest, exists, /v/alive]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 20, terminationGracePeriodSeconds: 1}`)
	file := func(name string) string { return filepath.Join(share, name) }
	touch := func(name string) {
		if err := os.WriteFile(file(name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	touch("alive")
	touch("ready")
	s := g.await(key, "it runs", func(s *corev1.PodStatus) bool { return briefAll(s) == "c: running" })
	if ready(&s) || *s.ContainerStatuses[0].Started {
		t.Error("it is ready or started, and its startup probe says no")
	}
	touch("started")
	g.await(key, "it has started and is ready", func(s *corev1.PodStatus) bool { return ready(s) && *s.ContainerStatuses[0].Started })
	if err := os.Remove(file("ready")); err != nil {
		t.Fatal(err)
	}
	g.await(key, "it is not ready", func(s *corev1.PodStatus) bool { return !ready(s) && briefAll(s) == "c: running" })
	touch("ready")
	s = g.await(key, "it is ready again", ready)
	if n := s.ContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("it was restarted %d times for not being ready", n)
	}
	if err := os.Remove(file("alive")); err != nil {
		t.Fatal(err)
	}
	g.await(key, "it was ended", func(s *corev1.PodStatus) bool { return s.ContainerStatuses[0].RestartCount > 0 })
	touch("alive")
	g.await(key, "it is ready again after a restart", ready)
	if k := g.order("p", "Killing"); len(k) == 0 || k[0] != "Container c failed liveness probe, will be restarted" {
		t.Errorf("events: %q", k)
	}
}

func TestAResizeIsLive(t *testing.T) {
	g := newRig(t, func(o *Options) { o.Admit = room })
	p := parsePod(t, `
metadata: {name: p, uid: u-p, generation: 1}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - {name: c, image: IMAGE, args: [sleep], resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 200m, memory: 64Mi}}}
  - {name: r, image: IMAGE, args: [sleep], resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 32Mi}}, resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]}`)
	g.want(p)
	key := g.pod(`
metadata: {name: other, uid: u-other}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: IMAGE, args: [sleep], resources: {requests: {memory: 64Mi}}}]}`)
	other := key
	key.Name = "p"
	s := g.await(key, "ready", ready)
	g.await(other, "ready", ready)
	ids := []string{s.ContainerStatuses[0].ContainerID, s.ContainerStatuses[1].ContainerID}

	resize := func(c int, cpu, memory string) {
		p = p.DeepCopy()
		p.Generation++
		limits := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
		p.Spec.Containers[c].Resources.Limits = limits
		p.Spec.Containers[c].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: limits[corev1.ResourceMemory]}
		g.want(p)
	}
	allocated := func(c int, memory string) func(s *corev1.PodStatus) bool {
		return func(s *corev1.PodStatus) bool {
			return s.ContainerStatuses[c].AllocatedResources.Memory().Cmp(resource.MustParse(memory)) == 0 && ready(s) && condition(s, corev1.PodResizePending) == ""
		}
	}
	resize(0, "300m", "96Mi")
	s = g.await(key, "resized", allocated(0, "96Mi"))
	if s.ContainerStatuses[0].ContainerID != ids[0] || s.ContainerStatuses[0].RestartCount != 0 {
		t.Error("it was restarted for that")
	}
	g.until("p: its cgroups hold the new limits", patience, func() bool {
		return g.limit("podu-p", strings.TrimPrefix(ids[0], "containerd://")) == "100663296" && g.limit("podu-p", "") == "134217728"
	})
	resize(1, "200m", "48Mi")
	s = g.await(key, "resized with a restart", func(s *corev1.PodStatus) bool {
		return allocated(1, "48Mi")(s) && s.ContainerStatuses[1].RestartCount == 1
	})
	if s.ContainerStatuses[0].ContainerID != ids[0] {
		t.Error("the other container was restarted too")
	}

	resize(0, "300m", "192Mi")
	s = g.await(key, "deferred", func(s *corev1.PodStatus) bool { return condition(s, corev1.PodResizePending) == corev1.ConditionTrue })
	if r := reasonOf(&s, corev1.PodResizePending); r != corev1.PodReasonDeferred {
		t.Errorf("reason %s, want %s", r, corev1.PodReasonDeferred)
	}
	g.remove(other)
	g.await(key, "resized when there is room", allocated(0, "192Mi"))
	resize(0, "300m", "1Gi")
	s = g.await(key, "infeasible", func(s *corev1.PodStatus) bool { return condition(s, corev1.PodResizePending) == corev1.ConditionTrue })
	if r := reasonOf(&s, corev1.PodResizePending); r != corev1.PodReasonInfeasible || s.ContainerStatuses[0].AllocatedResources.Memory().Value() != 192<<20 {
		t.Errorf("reason %s, allocated %v", r, s.ContainerStatuses[0].AllocatedResources)
	}

	old := p
	p = p.DeepCopy()
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].Resources.Requests = p.Spec.Containers[i].Resources.Limits
	}
	p.Spec.Containers[0].Resources = p.Spec.Containers[1].Resources
	g.want(p)
	g.await(key, "infeasible, since its QoS class would change", func(s *corev1.PodStatus) bool {
		return reasonOf(s, corev1.PodResizePending) == corev1.PodReasonInfeasible && messageOf(s, corev1.PodResizePending) == "Pod QOS Class may not change as a result of resizing"
	})
	g.want(old)

	refused := g.pod(`
metadata: {name: big}
spec: {containers: [{name: c, image: IMAGE, args: [sleep], resources: {requests: {memory: 64Mi}}}]}`)
	s = g.await(refused, "refused", func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	if s.Reason != "OutOfmemory" || s.Message != "Pod was rejected: no room" {
		t.Errorf("reason %q, message %q", s.Reason, s.Message)
	}
}

func reasonOf(s *corev1.PodStatus, t corev1.PodConditionType) string {
	for _, c := range s.Conditions {
		if c.Type == t {
			return c.Reason
		}
	}
	return ""
}

func messageOf(s *corev1.PodStatus, t corev1.PodConditionType) string {
	for _, c := range s.Conditions {
		if c.Type == t {
			return c.Message
		}
	}
	return ""
}

// limit of memory in a Pod's cgroup, or in a container's below it.
func (g *rig) limit(pod, container string) string {
	for _, mount := range []string{g.r.cgroups.unified, g.r.cgroups.mountOf("memory")} {
		for _, file := range []string{"memory.max", "memory.limit_in_bytes"} {
			for _, class := range []string{"burstable", "", "besteffort"} {
				b, err := os.ReadFile(filepath.Join(mount, g.rt.CgroupRoot, "kubepods", class, pod, container, file))
				if err == nil && mount != "" {
					return strings.TrimSpace(string(b))
				}
			}
		}
	}
	return ""
}

func TestAnEvictedPodFailsAndSaysWhy(t *testing.T) {
	g := newRig(t)
	key := g.pod(`{metadata: {name: p}, spec: {terminationGracePeriodSeconds: 300, containers: [{name: c, image: IMAGE, args: [stubborn], LISTENS}]}}`)
	g.await(key, "ready", ready)
	g.r.Evict(g.r.Pod(key).UID, "Evicted", "The node was low on resource: memory. ", time.Second)
	s := g.await(key, "evicted", func(s *corev1.PodStatus) bool {
		return s.Phase == corev1.PodFailed && briefAll(s) == "c: terminated(Error,137)"
	})
	if s.Reason != "Evicted" || reasonOf(&s, corev1.DisruptionTarget) != corev1.PodReasonTerminationByKubelet {
		t.Errorf("reason %q, DisruptionTarget %q", s.Reason, reasonOf(&s, corev1.DisruptionTarget))
	}
}
