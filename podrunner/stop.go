// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/podrunner/podstatus"
)

// leastGrace is what every container has to end, as the kubelet's.
const leastGrace = 2 * time.Second

// stop is a container being stopped, by a goroutine of its own.
type stop struct {
	// deadline is when it is ended by force.
	deadline time.Time
	done     chan struct{}
}

// kill stops one container while the Pod goes on.
func (w *worker) kill(ctx context.Context, k *killOrder) {
	grace := w.specGrace()
	if k.probe != nil && k.probe.TerminationGracePeriodSeconds != nil && w.pod.DeletionGracePeriodSeconds == nil {
		grace = time.Duration(*k.probe.TerminationGracePeriodSeconds) * time.Second
	}
	w.stopContainer(ctx, k.container, k.spec, grace, k.message, nil)
}

// specGrace is how long a container of the Pod may take to end.
func (w *worker) specGrace() time.Duration {
	seconds := w.pod.Spec.TerminationGracePeriodSeconds
	if s := w.pod.DeletionGracePeriodSeconds; s != nil {
		seconds = s
	}
	if seconds == nil {
		return leastGrace
	}
	return time.Duration(max(*seconds, 0)) * time.Second
}

// stopContainer begins to stop a container: its preStop hook, its turn, then the
// runtime's stop signal, all within grace. Called again with less grace, it
// hurries the end.
func (w *worker) stopContainer(ctx context.Context, c podstatus.Container, spec *corev1.Container, grace time.Duration, message string, turn []<-chan struct{}) *stop {
	deadline := time.Now().Add(max(grace, leastGrace))
	if s := w.stopping[c.ID]; s != nil {
		if deadline.Add(leastGrace).Before(s.deadline) {
			s.deadline = deadline
			go func() { _ = w.r.client.StopContainer(ctx, c.ID, max(grace, leastGrace)) }()
		}
		return s
	}
	s := &stop{deadline: deadline, done: make(chan struct{})}
	w.stopping[c.ID] = s
	pod, host := w.pod, w.host()
	if message == "" {
		message = "Stopping container " + c.Name
	}
	w.r.event(pod, w.pathOf(c.Name), corev1.EventTypeNormal, "Killing", message)
	go func() {
		defer close(s.done)
		if spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil && grace > 0 {
			w.preStop(ctx, pod, spec, c.ID, host, grace)
		}
		waitAll(ctx, turn, deadline)
		err := w.r.client.StopContainer(ctx, c.ID, max(time.Until(deadline), leastGrace))
		if err == nil && c.State == podstatus.Unknown {
			err = w.r.client.RemoveContainer(ctx, c.ID) // the runtime has lost it; it will not say more
		}
		if err != nil && ctx.Err() == nil {
			w.r.log.Warn("stop a container", "pod", w.key, "container", c.Name, "error", err)
			select { // before it is tried again
			case <-ctx.Done():
			case <-time.After(w.r.o.Retry):
			}
		}
		w.put(func(in *inbox) { in.look, in.stopped = true, append(in.stopped, c.ID) })
	}()
	return s
}

// waitAll waits until all channels are closed, or the deadline.
func waitAll(ctx context.Context, turn []<-chan struct{}, deadline time.Time) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for _, c := range turn {
		select {
		case <-c:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// stopAll stops all containers of the Pod: the regular ones at once, sidecars
// when those have ended, the last one first.
func (w *worker) stopAll(ctx context.Context, grace time.Duration, message string) {
	sidecar := map[string]bool{}
	for i := range w.pod.Spec.InitContainers {
		if c := &w.pod.Spec.InitContainers[i]; podstatus.IsSidecar(c) {
			sidecar[c.Name] = true
		}
	}
	var before []<-chan struct{}
	running := map[string]podstatus.Container{}
	for _, c := range w.observed.Containers {
		if c.State != podstatus.Running && c.State != podstatus.Unknown {
			continue
		}
		if sidecar[c.Name] {
			running[c.Name] = c
			continue
		}
		before = append(before, w.stopContainer(ctx, c, w.spec(c.Name), grace, message, nil).done)
	}
	for i := len(w.pod.Spec.InitContainers) - 1; i >= 0; i-- {
		spec := &w.pod.Spec.InitContainers[i]
		if c, ok := running[spec.Name]; ok {
			s := w.stopContainer(ctx, c, spec, grace, message, before)
			before = append(before[:len(before):len(before)], s.done)
		}
	}
}

// spec of a container of the Pod by name, nil where it has none.
func (w *worker) spec(name string) *corev1.Container {
	for _, cs := range [][]corev1.Container{w.pod.Spec.Containers, w.pod.Spec.InitContainers} {
		for i := range cs {
			if cs[i].Name == name {
				return &cs[i]
			}
		}
	}
	return nil
}

// pathOf names a container of the Pod by name, for Events.
func (w *worker) pathOf(name string) string { return w.pathOfIn(w.pod, name) }

func (w *worker) pathOfIn(pod *corev1.Pod, name string) string {
	has := func(cs []corev1.Container) bool {
		return slices.ContainsFunc(cs, func(c corev1.Container) bool { return c.Name == name })
	}
	switch {
	case has(pod.Spec.Containers):
		return fieldPath(name, regular)
	case has(pod.Spec.InitContainers):
		return fieldPath(name, initial)
	}
	return fieldPath(name, ephemeral)
}

// host is where hooks and probes of the Pod go.
func (w *worker) host() string {
	if ips := w.facts().PodIPs; len(ips) > 0 {
		return ips[0].String()
	}
	return ""
}
