// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
	"fairlead.dev/podrunner/probe"
)

// role of a container in its Pod.
type role uint8

const (
	regular role = iota
	initial      // an init container, sidecars too
	ephemeral
)

// startOrder is a container to start.
type startOrder struct {
	spec *corev1.Container
	role role
}

// killOrder is a container to stop while its Pod goes on.
type killOrder struct {
	spec      *corev1.Container
	container podstatus.Container
	// message is for the Event; probe is the one that failed, nil for another
	// reason: it may have a grace period of its own.
	message string
	probe   *corev1.Probe
}

// plan is what is to be done for a Pod next.
type plan struct {
	// finished: nothing of the Pod will run any more. What still does (sidecars)
	// is to be stopped.
	finished bool
	// sandbox: a new one is needed, for the reason; all else waits for it.
	sandbox string
	attempt uint32
	kill    []killOrder
	start   []startOrder
	resize  []startOrder
}

// planner decides. It is pure: the same Pod in the same state gives the same
// plan. When it is time to do it (backoff) is not its business.
type planner struct {
	pod      *corev1.Pod
	observed *podstatus.Observed
	// probed is the result of a running container's probe.
	probed func(id string, k probe.Kind) probe.Result
	// stopping: the container is being stopped already.
	stopping func(id string) bool
	// resized says whether the container's resources are to be changed, and
	// whether it must be restarted for that.
	resized func(spec *corev1.Container, c *podstatus.Container) (update, restart bool)
}

func (p *planner) plan() (out plan) {
	if p.done() {
		out.finished = true
		return out
	}
	if why := podstatus.SandboxLacks(p.pod, p.observed); why != "" {
		out.sandbox = why
		if s := p.observed.Active(); s != nil {
			out.attempt = s.Attempt + 1
		}
		return out
	}
	for i := range p.pod.Spec.EphemeralContainers {
		c := (*corev1.Container)(&p.pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		if p.observed.Newest(c.Name) == nil {
			out.start = append(out.start, startOrder{c, ephemeral})
		}
	}
	if !p.inits(&out) {
		return out
	}
	for i := range p.pod.Spec.Containers {
		p.container(&out, &p.pod.Spec.Containers[i], regular)
	}
	return out
}

// done: an init container failed for good, or all containers ended for good.
func (p *planner) done() bool {
	if !podstatus.RegularStarted(p.pod, p.observed) {
		for i := range p.pod.Spec.InitContainers {
			spec := &p.pod.Spec.InitContainers[i]
			c := p.observed.Newest(spec.Name)
			if c != nil && !podstatus.IsSidecar(spec) && c.State == podstatus.Exited && c.ExitCode != 0 &&
				!podstatus.ShouldRestart(p.pod, spec, true, c.ExitCode) {
				return true
			}
		}
	}
	for i := range p.pod.Spec.Containers {
		spec := &p.pod.Spec.Containers[i]
		c := p.observed.Newest(spec.Name)
		if c == nil || c.State != podstatus.Exited || podstatus.ShouldRestart(p.pod, spec, false, c.ExitCode) {
			return false
		}
	}
	return true
}

// inits plans the init containers, and says whether the regular ones may run.
func (p *planner) inits(out *plan) bool {
	if podstatus.RegularStarted(p.pod, p.observed) {
		for i := range p.pod.Spec.InitContainers {
			if spec := &p.pod.Spec.InitContainers[i]; podstatus.IsSidecar(spec) {
				p.container(out, spec, initial)
			}
		}
		return true
	}
	for i := range p.pod.Spec.InitContainers {
		if !p.init(out, i) {
			return false
		}
	}
	return true
}

// init plans one init container while the Pod is initialized, and says whether
// the next one may run.
func (p *planner) init(out *plan, i int) bool {
	spec := &p.pod.Spec.InitContainers[i]
	c := p.observed.NewestActive(spec.Name)
	if podstatus.IsSidecar(spec) {
		p.container(out, spec, initial)
		switch {
		case p.laterInit(i):
			return true // it has been started once
		case c == nil || c.State != podstatus.Running || p.stopping(c.ID):
			return false
		case spec.StartupProbe != nil:
			return p.probed(c.ID, probe.Startup) == probe.Success
		}
		return true
	}
	switch {
	case c == nil && p.laterInit(i):
		return true // it is done; somebody has removed it
	case c == nil, c.State == podstatus.Created:
		out.start = append(out.start, startOrder{spec, initial})
		return false
	case c.State == podstatus.Exited && c.ExitCode == 0:
		return true
	case c.State == podstatus.Exited: // done() knows those that are final
		out.start = append(out.start, startOrder{spec, initial})
		return false
	case c.State == podstatus.Unknown && !p.stopping(c.ID):
		out.kill = append(out.kill, unknownState(spec, c))
	}
	return false
}

// laterInit: an init container after the i-th is there in the active sandbox.
func (p *planner) laterInit(i int) bool {
	for _, later := range p.pod.Spec.InitContainers[i+1:] {
		if p.observed.NewestActive(later.Name) != nil {
			return true
		}
	}
	return false
}

func unknownState(spec *corev1.Container, c *podstatus.Container) killOrder {
	return killOrder{spec: spec, container: *c, message: fmt.Sprintf("Container is in %q state, try killing it before restart", c.State)}
}

// container plans a regular container or a sidecar.
func (p *planner) container(out *plan, spec *corev1.Container, r role) {
	c := p.observed.Newest(spec.Name)
	if r == initial {
		c = p.observed.NewestActive(spec.Name)
	}
	switch {
	case c != nil && p.stopping(c.ID):
		// What comes next is decided when it has stopped.
	case c == nil, c.State == podstatus.Created:
		out.start = append(out.start, startOrder{spec, r})
	case c.State == podstatus.Exited:
		if podstatus.ShouldRestart(p.pod, spec, r == initial, c.ExitCode) {
			out.start = append(out.start, startOrder{spec, r})
		}
	case c.State == podstatus.Unknown:
		out.kill = append(out.kill, unknownState(spec, c))
	default:
		p.running(out, spec, c, r)
	}
}

// running plans a container that runs: to be ended, resized, or left alone.
func (p *planner) running(out *plan, spec *corev1.Container, c *podstatus.Container, r role) {
	what := "Container"
	if r == initial {
		what = "Init container"
	}
	k := killOrder{spec: spec, container: *c}
	update, restart := p.resized(spec, c)
	switch {
	case c.Hash != 0 && c.Hash != podspec.ContainerHash(spec):
		k.message = fmt.Sprintf("%s %s definition changed", what, spec.Name)
	case spec.LivenessProbe != nil && p.probed(c.ID, probe.Liveness) == probe.Failure:
		k.message, k.probe = fmt.Sprintf("%s %s failed liveness probe", what, spec.Name), spec.LivenessProbe
	case spec.StartupProbe != nil && p.probed(c.ID, probe.Startup) == probe.Failure:
		k.message, k.probe = fmt.Sprintf("%s %s failed startup probe", what, spec.Name), spec.StartupProbe
	case restart:
		k.message = fmt.Sprintf("Container %s resize requires restart", spec.Name)
	case update:
		out.resize = append(out.resize, startOrder{spec, r})
		return
	default:
		return
	}
	if k.probe == nil || podstatus.ShouldRestart(p.pod, spec, r == initial, 137) {
		k.message += ", will be restarted"
	}
	out.kill = append(out.kill, k)
}
