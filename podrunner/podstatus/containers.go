// SPDX-License-Identifier: Apache-2.0

package podstatus

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// Reasons of containers, as the kubelet's.
const (
	reasonCreating      = "ContainerCreating"
	reasonInitializing  = "PodInitializing"
	reasonStatusUnknown = "ContainerStatusUnknown"
)

type role int

const (
	regular role = iota
	initial
	ephemeral
)

// containers words the statuses of the containers of one role, in the order of
// the spec.
func (in *Input) containers(specs []corev1.Container, previous []corev1.ContainerStatus, r role) []corev1.ContainerStatus {
	if len(specs) == 0 {
		return nil
	}
	out := make([]corev1.ContainerStatus, len(specs))
	for i := range specs {
		out[i] = in.container(&specs[i], find(previous, specs[i].Name), r)
	}
	return out
}

func (in *Input) container(c *corev1.Container, old *corev1.ContainerStatus, r role) corev1.ContainerStatus {
	s := in.unseen(c, old)
	seen := 0
	for i := range in.Observed.Containers {
		o := &in.Observed.Containers[i]
		if o.Name != c.Name {
			continue
		}
		if seen == 0 {
			s = in.seen(c, o, old)
		} else {
			s.LastTerminationState = in.state(o)
			break
		}
		seen++
	}
	if r == initial && seen == 0 && !IsSidecar(c) && s.State.Waiting != nil && in.regularCreated() {
		// The runtime has forgotten it: since others came after it, it was done.
		s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Reason:  "Completed",
			Message: "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally",
		}}
	}
	in.waiting(c, &s, r)
	in.probed(c, &s, r)
	if old != nil {
		keepTimes(&s, old)
	}
	return s
}

func (in *Input) regularCreated() bool {
	for i := range in.Pod.Spec.Containers {
		if in.Observed.Newest(in.Pod.Spec.Containers[i].Name) != nil {
			return true
		}
	}
	return false
}

// unseen is the status of a container that the runtime does not have.
func (in *Input) unseen(c *corev1.Container, old *corev1.ContainerStatus) corev1.ContainerStatus {
	reason := reasonCreating
	if len(in.Pod.Spec.InitContainers) > 0 {
		reason = reasonInitializing
	}
	s := corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, VolumeMounts: volumeMounts(c),
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}},
	}
	if old == nil {
		return s
	}
	if old.State.Terminated != nil {
		return *old.DeepCopy()
	}
	s.RestartCount, s.LastTerminationState = old.RestartCount, *old.LastTerminationState.DeepCopy()
	if old.State.Running != nil && s.LastTerminationState.Terminated == nil {
		s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
			Reason:   reasonStatusUnknown,
			Message:  "The container could not be located when the pod was deleted.  The container used to be Running",
			ExitCode: 137,
		}
		if in.Pod.DeletionTimestamp == nil {
			s.RestartCount++
		}
	}
	return s
}

func volumeMounts(c *corev1.Container) (out []corev1.VolumeMountStatus) {
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		v := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			v.RecursiveReadOnly = ptr.To(corev1.RecursiveReadOnlyDisabled)
			if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled {
				v.RecursiveReadOnly = ptr.To(corev1.RecursiveReadOnlyEnabled)
			}
		}
		out = append(out, v)
	}
	return out
}

func (in *Input) seen(c *corev1.Container, o *Container, old *corev1.ContainerStatus) corev1.ContainerStatus {
	s := corev1.ContainerStatus{
		Name: c.Name, RestartCount: int32(o.RestartCount), Image: o.Image, ImageID: o.ImageRef,
		ContainerID: in.Runtime + "://" + o.ID, State: in.state(o), VolumeMounts: volumeMounts(c),
		AllocatedResources: c.Resources.Requests, Resources: resources(c, o), User: o.User,
	}
	if old != nil {
		s.RestartCount = max(s.RestartCount, old.RestartCount)
		if old.ContainerID == s.ContainerID {
			s.LastTerminationState = old.LastTerminationState
		} else if old.State.Terminated != nil {
			s.LastTerminationState = old.State
		}
	}
	return s
}

func (in *Input) state(o *Container) corev1.ContainerState {
	switch o.State {
	case Running:
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(o.Started)}}
	case Created:
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reasonCreating}}
	case Exited:
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: o.ExitCode, Reason: o.Reason, Message: o.Message, ContainerID: in.Runtime + "://" + o.ID,
			StartedAt: metav1.NewTime(o.Started), FinishedAt: metav1.NewTime(o.Finished),
		}}
	}
	t := lost(in.Runtime + "://" + o.ID)
	t.StartedAt = metav1.NewTime(o.Started)
	return corev1.ContainerState{Terminated: t}
}

// waiting: a container that should run again waits; what it was is its last
// state.
func (in *Input) waiting(c *corev1.Container, s *corev1.ContainerStatus, r role) {
	w, ok := in.Waiting[c.Name]
	if !ok || in.Terminal || s.State.Running != nil {
		return
	}
	if t := s.State.Terminated; t != nil {
		if r == ephemeral || !ShouldRestart(in.Pod, c, r == initial, t.ExitCode) {
			return
		}
		s.LastTerminationState = s.State
	}
	s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}}
}

func (in *Input) probed(c *corev1.Container, s *corev1.ContainerStatus, r role) {
	s.Started = ptr.To(false)
	if r == ephemeral {
		s.Started = nil
	}
	switch {
	case s.State.Running != nil && r == ephemeral:
	case s.State.Running != nil && r == initial && !IsSidecar(c):
		s.Started = ptr.To(true)
	case s.State.Running != nil:
		p := in.Probed(c, trimScheme(s.ContainerID))
		s.Started = ptr.To(p.Started)
		s.Ready = p.Started && p.Ready
	case r == initial && !IsSidecar(c) && s.State.Terminated != nil:
		s.Ready = s.State.Terminated.ExitCode == 0
	default:
		s.Ready = false
	}
}

func trimScheme(id string) string {
	for i := 0; i+3 <= len(id); i++ {
		if id[i:i+3] == "://" {
			return id[i+3:]
		}
	}
	return id
}

// keepTimes keeps the second's worth of time that went over the wire where it
// is the same, so that a status that did not change compares as equal.
func keepTimes(s, old *corev1.ContainerStatus) {
	if a, b := s.State.Running, old.State.Running; a != nil && b != nil && a.StartedAt.Unix() == b.StartedAt.Unix() {
		a.StartedAt = b.StartedAt
	}
}
