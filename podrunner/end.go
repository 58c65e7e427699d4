// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/podspec"
)

// ending: the Pod is to be brought to its end, or is there.
func (w *worker) ending() bool {
	if w.pod == nil || w.lost || w.pod.DeletionTimestamp != nil || w.failed != nil || w.terminal {
		return true
	}
	for _, p := range []corev1.PodPhase{w.status.Phase, w.pod.Status.Phase} {
		if p == corev1.PodSucceeded || p == corev1.PodFailed {
			return true
		}
	}
	p := w.plan()
	return p.finished
}

// end stops the Pod, and removes what is left of it when its object is going or
// gone. done: there is nothing left.
func (w *worker) end(ctx context.Context) (next time.Time, done bool) {
	if w.pod == nil {
		w.pod = w.orphan
		if w.pod == nil {
			w.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.key.Namespace, Name: w.key.Name, UID: w.uid}}
		}
	}
	if w.observed.Running() > 0 {
		w.stopAll(ctx, w.endGrace(), "")
		w.report()
		return time.Time{}, false
	}
	if len(w.stopping) > 0 {
		return time.Time{}, false
	}
	if err := w.stopSandboxes(ctx); err != nil {
		w.r.log.Warn("end a Pod", "pod", w.key, "error", err)
		return w.retry(), false
	}
	freed := w.admitted.Swap(nil) != nil
	w.terminal = true
	w.report() // before others are told: it is its phase that says it takes no room
	if freed {
		w.r.roomFreed()
	}
	if err := w.clean(ctx); err != nil {
		if ctx.Err() == nil {
			w.r.log.Warn("clean up after a Pod", "pod", w.key, "error", err)
		}
		return w.retry(), false
	}
	if !w.lost && w.pod.DeletionTimestamp == nil {
		return time.Time{}, false // its containers stay, for their logs
	}
	if err := w.wipe(ctx); err != nil {
		w.r.log.Warn("remove a Pod", "pod", w.key, "error", err)
		return w.retry(), false
	}
	w.r.o.Status.PodFinished(w.key, w.uid)
	return time.Time{}, true
}

// endGrace is how long the containers may take to end now.
func (w *worker) endGrace() time.Duration {
	g := w.specGrace()
	if w.grace != nil {
		g = min(g, *w.grace)
	}
	return g
}

// clean takes apart what a Pod that has ended does not need: volumes, cgroup,
// probes, what others keep for it.
func (w *worker) clean(ctx context.Context) error {
	if w.cleaned {
		return nil
	}
	w.r.prober.Set(w.uid, nil)
	if err := w.r.volumes.TearDown(ctx, w.uid); err != nil {
		return err
	}
	w.mounted = false
	if err := w.removeCgroup(); err != nil {
		return err
	}
	w.r.o.Objects.Release(w.uid)
	w.r.puller.Forget(w.uid)
	w.cleaned = true
	return nil
}

// wipe removes sandboxes, containers and logs.
func (w *worker) wipe(ctx context.Context) error {
	for _, s := range w.observed.Sandboxes {
		if err := w.r.client.RemoveSandbox(ctx, s.ID); err != nil {
			return err
		}
	}
	for _, c := range w.observed.Containers {
		if err := w.r.client.RemoveContainer(ctx, c.ID); err != nil {
			return err
		}
	}
	// What a call that was given up made after all is found here.
	left, err := w.r.client.ListPod(ctx, w.uid)
	if err != nil {
		return err
	}
	if len(left.Items) > 0 {
		w.lookAgain()
		return errors.New("the runtime still has something of it")
	}
	if err := os.RemoveAll(podspec.LogDir(w.pod, w.facts())); err != nil {
		return err
	}
	return w.removeCgroup() // where the runtime made it anew
}

func (w *worker) removeCgroup() error {
	f := w.facts()
	if w.wanted != nil {
		return w.r.cgroups.remove(w.uid, podspec.CgroupParent(w.pod, f))
	}
	// The class of an orphan is not known.
	return w.r.cgroups.remove(w.uid, w.r.cgroups.known(cgroupRoot(f))[w.uid])
}

// remember keeps of an orphan's containers what is needed to end them well.
func (w *worker) remember(info *podspec.ContainerInfo) {
	if w.pod != nil {
		return
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: info.Namespace, Name: info.Pod, UID: info.UID}}
	p.Spec.TerminationGracePeriodSeconds = info.TerminationGraceSeconds
	p.DeletionGracePeriodSeconds = info.DeletionGraceSeconds
	c := corev1.Container{Name: info.Name, Ports: info.Ports}
	if info.PreStop != nil {
		c.Lifecycle = &corev1.Lifecycle{PreStop: info.PreStop}
	}
	p.Spec.Containers = append(p.Spec.Containers, c)
	w.orphan = appendOrphan(w.orphan, p)
}

// appendOrphan puts the containers of both together.
func appendOrphan(a, b *corev1.Pod) *corev1.Pod {
	if a == nil {
		return b
	}
	a.Spec.Containers = append(a.Spec.Containers, b.Spec.Containers...)
	return a
}

// removeRemains removes what is on disk and in cgroups of Pods that nobody has.
func (r *Runner) removeRemains(ctx context.Context, have map[types.UID]bool) {
	known, err := r.volumes.Known()
	if err != nil {
		r.log.Warn("look for volumes of Pods that are gone", "error", err)
	}
	for _, uid := range known {
		if have[uid] {
			continue
		}
		if err := r.volumes.TearDown(ctx, uid); err != nil {
			r.log.Warn("remove volumes of a Pod that is gone", "uid", uid, "error", err)
		}
	}
	f := r.o.Facts()
	for uid, cgroup := range r.cgroups.known(cgroupRoot(&f)) {
		if !have[uid] {
			if err := r.cgroups.remove(uid, cgroup); err != nil {
				r.log.Warn("remove the cgroup of a Pod that is gone", "uid", uid, "error", err)
			}
		}
	}
	logs := logRoot(&f)
	entries, err := os.ReadDir(logs)
	if err != nil {
		return
	}
	for _, e := range entries {
		if _, uid, ok := podspec.ParseLogDir(e.Name()); ok && e.IsDir() && !have[uid] {
			if err := os.RemoveAll(filepath.Join(logs, e.Name())); err != nil {
				r.log.Warn("remove logs of a Pod that is gone", "uid", uid, "error", err)
			}
		}
	}
}

func cgroupRoot(f *podspec.Facts) string {
	if f.CgroupRoot == "" {
		return "/kubepods"
	}
	return f.CgroupRoot
}

func logRoot(f *podspec.Facts) string {
	if f.LogRoot == "" {
		return "/var/log/pods"
	}
	return f.LogRoot
}
