// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
	"fairlead.dev/podrunner/probe"
)

// act follows the plan step by step, until there is nothing that can be done
// now. It gives when to look again.
func (w *worker) act(ctx context.Context, refresh bool) (next time.Time) {
	run := w.run
	if err := w.volumes(run, refresh); err != nil {
		return w.retry()
	}
	for run.Err() == nil {
		p := w.plan()
		if p.finished {
			w.wake() // to end what still runs
			return time.Time{}
		}
		if p.sandbox != "" && w.observed.Running() > 0 {
			w.stopAll(ctx, w.specGrace(), "Pod sandbox changed, it will be killed and re-created.")
			w.report()
			return time.Time{}
		}
		if p.sandbox != "" && len(w.stopping) > 0 {
			return time.Time{}
		}
		if p.sandbox != "" {
			if err := w.makeSandbox(run, &p); err != nil {
				return w.retry()
			}
			w.report()
			continue
		}
		for _, k := range p.kill {
			w.kill(ctx, &k)
		}
		for _, o := range p.resize {
			w.resize(ctx, o.spec)
		}
		started := false
		next = time.Time{}
		for _, o := range p.start {
			at, err := w.start(run, o)
			if run.Err() != nil {
				break
			}
			started = started || err == nil
			next = earlier(next, at)
			w.report()
		}
		if !started {
			w.report()
			return next
		}
		w.failures = 0
		w.prune(ctx)
	}
	return next
}

func (w *worker) plan() plan {
	p := planner{
		pod: w.pod, observed: &w.observed,
		probed:   func(id string, k probe.Kind) probe.Result { return w.r.prober.Result(w.uid, id, k) },
		stopping: func(id string) bool { return w.stopping[id] != nil },
		resized:  w.resized,
	}
	return p.plan()
}

// volumes sets the Pod's volumes up, once, and refreshes them when asked to.
func (w *worker) volumes(ctx context.Context, refresh bool) error {
	if w.mounted && !refresh {
		return nil
	}
	do := w.r.volumes.SetUp
	if w.mounted {
		do = w.r.volumes.Refresh
	}
	if err := do(ctx, w.pod, w.facts()); err != nil {
		if ctx.Err() == nil {
			w.r.event(w.pod, "", corev1.EventTypeWarning, "FailedMount", err.Error())
			w.r.log.Warn("volumes of a Pod", "pod", w.key, "error", err)
		}
		if w.mounted {
			return nil // the last good contents stay
		}
		return err
	}
	w.mounted = true
	return nil
}

// makeSandbox replaces the Pod's sandbox. Meanwhile its images are got.
func (w *worker) makeSandbox(ctx context.Context, p *plan) error {
	if len(w.observed.Sandboxes) > 0 {
		w.r.event(w.pod, "", corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
		if err := w.stopSandboxes(ctx); err != nil {
			return err
		}
	}
	f := w.facts()
	config, err := podspec.Sandbox(w.pod, p.attempt, f)
	var handler string
	if err == nil {
		handler, err = podspec.Handler(w.pod, f)
	}
	if err == nil {
		err = w.r.cgroups.ensure(w.pod, podspec.CgroupParent(w.pod, f), podspec.PodResources(w.pod, f))
	}
	if err == nil {
		err = os.MkdirAll(podspec.LogDir(w.pod, f), 0o755)
	}
	if err != nil {
		return w.sandboxFailed(ctx, err)
	}
	_, warnings := podspec.DNS(w.pod, f)
	for _, warning := range warnings {
		w.r.event(w.pod, "", corev1.EventTypeWarning, warning.Reason, warning.Message)
	}
	w.prefetch(config, handler)
	id, err := w.r.client.Runtime.RunPodSandbox(cri.Quiet(ctx), config, handler)
	if err != nil {
		w.lookAgain()
		return w.sandboxFailed(ctx, errors.New(cri.Message(err)))
	}
	s, _, err := w.r.client.Sandbox(ctx, id)
	if err != nil {
		w.lookAgain()
		return w.sandboxFailed(ctx, err)
	}
	w.sawSandbox(s)
	if why := podstatus.SandboxLacks(w.pod, &w.observed); why != "" {
		return w.sandboxFailed(ctx, errors.New(why))
	}
	return nil
}

func (w *worker) sandboxFailed(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		w.r.event(w.pod, "", corev1.EventTypeWarning, podspec.ReasonSandbox, "Failed to create pod sandbox: "+err.Error())
		w.r.log.Warn("sandbox of a Pod", "pod", w.key, "error", err)
	}
	return err
}

// stopSandboxes stops all sandboxes: those that ended by themselves too, once,
// since the runtime takes their network apart only then.
func (w *worker) stopSandboxes(ctx context.Context) error {
	var errs []error
	for _, s := range w.observed.Sandboxes {
		if !s.Ready && w.sandboxesStopped[s.ID] {
			continue
		}
		if err := w.r.client.StopSandbox(ctx, s.ID); err != nil {
			errs = append(errs, err)
			continue
		}
		w.sandboxesStopped[s.ID] = true
		s.Ready = false
		w.sawSandbox(s)
	}
	return errors.Join(errs...)
}

// start starts a container, the next one of its name. An error means that it
// does not run; next is then when to try again.
func (w *worker) start(ctx context.Context, o startOrder) (next time.Time, err error) {
	c := o.spec
	last := w.observed.Newest(c.Name)
	if last != nil && last.State == podstatus.Created {
		// It was half made, by who was interrupted: its place is needed.
		if err := w.r.client.RemoveContainer(ctx, last.ID); err != nil {
			return w.retry(), err
		}
		w.forgetContainer(last.ID)
		last = w.observed.Newest(c.Name)
	}
	if last != nil && last.State == podstatus.Exited {
		if until, wait := w.backoff.until(c.Name, last.Finished); time.Now().Before(until) {
			w.crashLoop(o, wait)
			return until, errBackOff
		}
	}
	event := func(kind, reason, message string) { w.r.event(w.pod, fieldPath(c.Name, o.role), kind, reason, message) }
	image, err := w.image(ctx, o)
	if err != nil {
		return w.noImage(o, err, event)
	}
	f := w.facts()
	config, sandbox, err := w.configure(ctx, c, last, image, f)
	if err != nil {
		reason := podspec.ReasonContainerConfig
		var refused *podspec.Refused
		if errors.As(err, &refused) && refused.Reason != "" {
			reason = refused.Reason
		}
		return w.notStarted(ctx, o, reason, err.Error(), event)
	}
	if last != nil && last.State == podstatus.Exited {
		w.backoff.restarted(c.Name, last.Finished, time.Now())
	}
	active := w.observed.Active().ID
	id, err := w.r.client.Runtime.CreateContainer(cri.Quiet(ctx), active, config, sandbox)
	if err != nil {
		return w.notStarted(ctx, o, "CreateContainerError", cri.Message(err), event)
	}
	event(corev1.EventTypeNormal, "Created", "Container created")
	failed := w.r.client.Runtime.StartContainer(cri.Quiet(ctx), id)
	seen, _, err := w.r.client.Container(ctx, id, active)
	if err != nil {
		w.lookAgain()
	} else {
		w.sawContainer(seen)
	}
	if failed != nil {
		w.lookAgain()
		return w.notStarted(ctx, o, "RunContainerError", cri.Message(failed), event)
	}
	if err != nil {
		return w.retry(), err
	}
	event(corev1.EventTypeNormal, "Started", "Container started")
	w.applied[id] = c.Resources.DeepCopy()
	delete(w.waiting, c.Name)
	return w.postStart(ctx, o, &seen, event)
}

var errBackOff = errors.New("back-off restarting failed container")

// crashLoop: the container waits for its backoff.
func (w *worker) crashLoop(o startOrder, wait time.Duration) {
	name := fmt.Sprintf("%s_%s(%s)", w.pod.Name, w.pod.Namespace, w.uid)
	message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", wait, o.spec.Name, name)
	if w.waiting[o.spec.Name].Message != message {
		w.r.event(w.pod, fieldPath(o.spec.Name, o.role), corev1.EventTypeWarning, "BackOff",
			fmt.Sprintf("Back-off restarting failed container %s in pod %s", o.spec.Name, name))
	}
	w.waiting[o.spec.Name] = podstatus.Waiting{Reason: "CrashLoopBackOff", Message: message}
}

// notStarted notes why a container could not be started.
func (w *worker) notStarted(ctx context.Context, o startOrder, reason, message string, event func(string, string, string)) (time.Time, error) {
	if ctx.Err() != nil {
		w.lookAgain()
		return time.Time{}, ctx.Err()
	}
	w.waiting[o.spec.Name] = podstatus.Waiting{Reason: reason, Message: message}
	event(corev1.EventTypeWarning, "Failed", "Error: "+message)
	return w.retry(), errors.New(message)
}

// configure makes the configuration of a container and of its sandbox.
func (w *worker) configure(ctx context.Context, c *corev1.Container, last *podstatus.Container, image cri.Image, f *podspec.Facts) (*runtimeapi.ContainerConfig, *runtimeapi.PodSandboxConfig, error) {
	restarts := 0
	if last != nil {
		restarts = last.RestartCount + 1
	} else {
		restarts = restartsByLogs(filepath.Join(podspec.LogDir(w.pod, f), c.Name))
	}
	sandbox, err := podspec.Sandbox(w.pod, w.observed.Active().Attempt, f)
	if err != nil {
		return nil, nil, err
	}
	mounts, err := w.r.volumes.Mounts(ctx, w.pod, c, restarts, f)
	if err != nil {
		return nil, nil, err
	}
	config, err := podspec.Container(ctx, w.pod, c, podspec.ContainerInput{
		RestartCount: restarts, ImageRef: image.Ref, ImageUser: podspec.ImageUser{UID: image.UID, Name: image.Username},
		Mounts: mounts, TargetID: w.target(c), EnvFile: w.r.volumes.EnvFile(w.pod),
	}, f, w.r.o.Objects)
	if err != nil {
		return nil, nil, err
	}
	dir := filepath.Dir(filepath.Join(sandbox.LogDirectory, config.LogPath))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, fmt.Errorf("failed to create log directory for container %s: %w", c.Name, err)
	}
	return config, sandbox, nil
}

// target is the container whose processes an ephemeral one sees.
func (w *worker) target(c *corev1.Container) string {
	for i := range w.pod.Spec.EphemeralContainers {
		e := &w.pod.Spec.EphemeralContainers[i]
		if e.Name == c.Name && e.TargetContainerName != "" {
			if t := w.observed.NewestActive(e.TargetContainerName); t != nil {
				return t.ID
			}
		}
	}
	return ""
}
