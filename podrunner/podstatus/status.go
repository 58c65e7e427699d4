// SPDX-License-Identifier: Apache-2.0

// Package podstatus words the status of a Pod from its spec, what the runtime
// reports of it, and what its probes found, as the kubelet words it. It is
// pure: no I/O, no clock. It decides nothing about what should run; only
// ShouldRestart, which the phase depends on, is shared with who does.
package podstatus

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/podrunner/podspec"
)

// Waiting is why a container could not be started the last time.
type Waiting struct{ Reason, Message string }

// Failure ends a Pod for a reason of its own: DeadlineExceeded, Evicted,
// OutOfcpu and so on.
type Failure struct{ Reason, Message string }

// Probed says what probes found of a running container.
type Probed struct {
	// Started: there is no startup probe, or it has succeeded.
	Started bool
	// Ready: there is no readiness probe, or its last result was good.
	Ready bool
}

// Input is all that a status follows from.
type Input struct {
	// Pod with the status that it came with: conditions of others are kept.
	Pod      *corev1.Pod
	Observed *Observed
	// Waiting by the container's name; of those that should run and do not.
	Waiting map[string]Waiting
	// Probed answers for a running container of the Pod.
	Probed func(c *corev1.Container, id string) Probed
	// Previous is the status before.
	Previous corev1.PodStatus
	// Terminal: no container is started any more.
	Terminal bool
	// Failed overrides the phase when no container runs any more. Until then the
	// Pod is not ready.
	Failed *Failure
	// Extra are conditions to set: of a resize, DisruptionTarget.
	Extra   []corev1.PodCondition
	HostIPs []netip.Addr
	// Runtime is the scheme of container IDs ("containerd").
	Runtime string
	Now     time.Time
}

// Make words the status.
func Make(in *Input) corev1.PodStatus {
	var s corev1.PodStatus
	s.ObservedGeneration = in.Pod.Generation
	s.QOSClass = podspec.QOS(in.Pod)
	in.addresses(&s)
	s.ContainerStatuses = in.containers(in.Pod.Spec.Containers, in.Previous.ContainerStatuses, regular)
	s.InitContainerStatuses = in.containers(in.Pod.Spec.InitContainers, in.Previous.InitContainerStatuses, initial)
	if n := len(in.Pod.Spec.EphemeralContainers); n > 0 {
		ephemerals := make([]corev1.Container, n)
		for i := range ephemerals {
			ephemerals[i] = corev1.Container(in.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		}
		s.EphemeralContainerStatuses = in.containers(ephemerals, in.Previous.EphemeralContainerStatuses, ephemeral)
	}
	if in.Terminal {
		in.over(&s)
	}
	in.phase(&s)
	s.Conditions = in.conditions(&s)
	s.StartTime = in.startTime()
	s.NominatedNodeName = in.Previous.NominatedNodeName
	s.Resize = in.Previous.Resize
	s.ResourceClaimStatuses = in.Previous.ResourceClaimStatuses
	return s
}

func (in *Input) phase(s *corev1.PodStatus) {
	s.Phase = phase(in.Pod, s.InitContainerStatuses, s.ContainerStatuses, in.Terminal, in.regularStarted())
	for _, old := range []*corev1.PodStatus{&in.Previous, &in.Pod.Status} {
		if (old.Phase == corev1.PodFailed || old.Phase == corev1.PodSucceeded) && s.Phase != old.Phase {
			s.Phase = old.Phase // no way leads out of these
			break
		}
	}
	if s.Phase == in.Previous.Phase {
		s.Reason, s.Message = in.Previous.Reason, in.Previous.Message
	}
	if in.Failed != nil && (in.Terminal || in.Observed.Running() == 0) {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, in.Failed.Reason, in.Failed.Message
	}
}

// regularStarted: a regular container has started in the active sandbox.
func (in *Input) regularStarted() bool { return RegularStarted(in.Pod, in.Observed) }

// RegularStarted says whether a regular container of the Pod has been created in
// its active sandbox and got as far as to run: then it is initialized.
func RegularStarted(pod *corev1.Pod, o *Observed) bool {
	for i := range pod.Spec.Containers {
		if c := o.NewestActive(pod.Spec.Containers[i].Name); c != nil && c.State != Created {
			return true
		}
	}
	return false
}

func (in *Input) startTime() *metav1.Time {
	for _, old := range []*metav1.Time{in.Previous.StartTime, in.Pod.Status.StartTime} {
		if old != nil {
			return old
		}
	}
	t := metav1.NewTime(in.Now)
	for i := range in.Observed.Sandboxes {
		if c := in.Observed.Sandboxes[i].Created; c.Before(t.Time) {
			t.Time = c
		}
	}
	return &t
}

// addresses: the Pod's first address of the node's family, then one of the
// other; the node's own on its network.
func (in *Input) addresses(s *corev1.PodStatus) {
	for _, a := range in.HostIPs[:min(2, len(in.HostIPs))] {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: a.String()})
	}
	if len(s.HostIPs) > 0 {
		s.HostIP = s.HostIPs[0].IP
	}
	for _, a := range PodIPs(in.Pod, in.Observed, in.HostIPs) {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(s.PodIPs) == 0 && in.Terminal {
		s.PodIPs = in.Previous.PodIPs
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
}

// PodIPs are the addresses of a Pod, at most one of each family, that of the
// node's primary address first.
func PodIPs(pod *corev1.Pod, o *Observed, hostIPs []netip.Addr) (ips []netip.Addr) {
	s := o.Active()
	if s == nil {
		return nil
	}
	from := s.IPs
	if pod.Spec.HostNetwork {
		from = hostIPs
	}
	first4 := len(hostIPs) == 0 || hostIPs[0].Is4()
	for _, want4 := range []bool{first4, !first4} {
		for _, a := range from {
			if a.Is4() == want4 {
				ips = append(ips, a)
				break
			}
		}
	}
	return ips
}
