// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
)

// worker brings one Pod in line with what is wanted of it. Others put into its
// inbox and wake it; all that is not guarded by mu is its goroutine's own.
type worker struct {
	r   *Runner
	uid types.UID
	key types.NamespacedName
	// after is closed when this Pod may begin; nil: at once. gone is closed when
	// nothing of this one is left.
	after <-chan struct{}
	gone  chan struct{}
	waker chan struct{}
	// next, guarded by the Runner's mu, begins the same Pod again when this is
	// gone.
	next func()

	// admitted is the Pod while it takes room on the node.
	admitted atomic.Pointer[corev1.Pod]
	// deferred: a resize waits for room.
	deferred atomic.Bool

	// run is the context of what an end of the Pod interrupts: pulls, hooks, the
	// making of what is not wanted any more.
	run       context.Context
	interrupt context.CancelFunc

	mu    sync.Mutex
	inbox inbox
	shown shown

	wanted *corev1.Pod // as it was told
	pod    *corev1.Pod // the same with the resources that were granted; nil: an orphan
	given  bool        // its UID was
	lost   bool        // the source does not have it any more
	orphan *corev1.Pod // what the runtime knows of one that was never told of

	observed podstatus.Observed
	changed  time.Time // when the worker last changed something in the runtime
	recalled bool

	waiting  map[string]podstatus.Waiting
	backoff  *backoff
	pulls    map[string]*pull // by image
	stopping map[string]*stop // by container ID
	ended    []string         // containers without processes, of which the runtime does not know yet
	applied  map[string]*corev1.ResourceRequirements
	resizing []corev1.PodCondition

	sandboxesStopped map[string]bool

	mounted  bool
	probing  bool
	failed   *podstatus.Failure
	grace    *time.Duration // a bound of an eviction
	rejected bool
	terminal bool // nothing is started any more, and all has stopped
	cleaned  bool
	status   corev1.PodStatus
	failures int // in a row
}

// shown is what the Runner's readers see.
type shown struct {
	pod        *corev1.Pod
	status     corev1.PodStatus
	containers []podstatus.Container
	sandbox    string
	// probed: the status is of a time when all probes had been asked.
	probed bool
}

func (r *Runner) newWorker(uid types.UID, key types.NamespacedName) *worker {
	w := &worker{
		r: r, uid: uid, key: key, gone: make(chan struct{}), waker: make(chan struct{}, 1),
		waiting: map[string]podstatus.Waiting{}, backoff: newBackoff(r.o.RestartBackoff, r.o.RestartBackoffMax),
		pulls: map[string]*pull{}, stopping: map[string]*stop{}, applied: map[string]*corev1.ResourceRequirements{},
		sandboxesStopped: map[string]bool{},
	}
	w.run, w.interrupt = context.WithCancel(context.Background())
	return w
}

func (w *worker) wake() {
	select {
	case w.waker <- struct{}{}:
	default:
	}
}

func (w *worker) refersTo(k objects.Key) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inbox.pod != nil && refersTo(w.inbox.pod, k)
}

func (w *worker) snapshot() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shown.pod == nil {
		return nil
	}
	p := w.shown.pod.DeepCopy()
	w.shown.status.DeepCopyInto(&p.Status)
	return p
}

func (w *worker) container(name string, skip int) (id, logPath string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.shown.containers {
		if c.Name != name {
			continue
		}
		if skip == 0 {
			return c.ID, c.LogPath, nil
		}
		skip--
	}
	return "", "", fmt.Errorf("container %q of pod %q %w", name, w.key, ErrNotFound)
}

func (w *worker) sandboxID() (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shown.sandbox == "" {
		return "", fmt.Errorf("sandbox of pod %q %w", w.key, ErrNotFound)
	}
	return w.shown.sandbox, nil
}

// loop works until nothing of the Pod is left, or ctx ends.
func (w *worker) loop(ctx context.Context) {
	defer w.interrupt()
	defer context.AfterFunc(ctx, w.interrupt)()
	select {
	case <-ctx.Done():
		return
	case <-w.r.ready:
	}
	if !w.await(ctx) {
		return
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next, done := w.sync(ctx)
		if done {
			close(w.gone)
			w.r.gone(w)
			return
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = max(time.Until(next), time.Millisecond)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			w.drain()
			return
		case <-w.waker:
		case <-timer.C:
		}
	}
}

// await waits for the Pod of the same name that was before this one.
func (w *worker) await(ctx context.Context) bool {
	for w.after != nil {
		select {
		case <-ctx.Done():
			return false
		case <-w.after:
			w.after = nil
		case <-w.waker:
			if w.removed() {
				w.after = nil
				w.wake()
			}
		}
	}
	return ctx.Err() == nil
}

// drain waits for the stops and pulls that run; ctx has ended, and so do they.
func (w *worker) drain() {
	for _, s := range w.stopping {
		<-s.done
	}
	for _, p := range w.pulls {
		<-p.done
	}
}

// sync does what is to be done now. next is when to look again at the latest,
// zero: when woken.
func (w *worker) sync(ctx context.Context) (next time.Time, done bool) {
	in := w.take()
	w.accept(&in)
	if err := w.observe(ctx, &in); err != nil {
		if ctx.Err() == nil {
			w.r.log.Debug("look at a Pod", "pod", w.key, "error", err)
		}
		w.lookAgainLater(&in)
		return w.retry(), false
	}
	w.recall()
	if d := w.deadline(); !d.IsZero() {
		next = d
	}
	w.probe()
	if w.ending() {
		at, done := w.end(ctx)
		return earlier(next, at), done
	}
	if !w.admit() {
		return time.Time{}, false
	}
	probed := w.probed()
	w.report()
	w.mu.Lock()
	w.shown.probed = probed
	w.mu.Unlock()
	return earlier(next, w.act(ctx, in.refresh)), false
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// retry is when to try again after a failure.
func (w *worker) retry() time.Time {
	wait := w.r.o.Retry << min(w.failures, 4)
	w.failures++
	return time.Now().Add(wait)
}

// accept takes what is new of the Pod itself.
func (w *worker) accept(in *inbox) {
	if in.pod != nil && in.pod != w.wanted {
		if w.wanted == nil {
			w.status = in.pod.Status
		}
		w.wanted, w.given = in.pod, in.given
		w.grant()
		w.r.o.Objects.Use(w.pod)
	}
	if w.deferred.Load() {
		w.grant()
	}
	w.lost = in.removed
	for _, id := range in.stopped {
		delete(w.stopping, id)
	}
	w.ended = slices.DeleteFunc(append(w.ended, in.ended...), func(id string) bool {
		return !slices.ContainsFunc(w.observed.Containers, func(c podstatus.Container) bool { return c.ID == id && c.State == podstatus.Running })
	})
	if in.evicted != nil && w.failed == nil {
		w.failed, w.grace = in.evicted, &in.grace
	}
}

// facts of the node, with the Pod's addresses.
func (w *worker) facts() *podspec.Facts {
	f := w.r.o.Facts()
	f.Features = w.r.features()
	if w.pod != nil {
		f.PodIPs = podstatus.PodIPs(w.pod, &w.observed, f.HostIPs)
	}
	return &f
}

// deadline fails a Pod that has been active for too long, and says when it will
// have been.
func (w *worker) deadline() time.Time {
	if w.pod == nil || w.pod.Spec.ActiveDeadlineSeconds == nil || w.failed != nil || w.terminal || w.status.StartTime == nil {
		return time.Time{}
	}
	at := w.status.StartTime.Add(time.Duration(*w.pod.Spec.ActiveDeadlineSeconds) * time.Second)
	if time.Now().Before(at) {
		return at
	}
	w.failed = &podstatus.Failure{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}
	w.r.event(w.pod, "", corev1.EventTypeNormal, w.failed.Reason, w.failed.Message)
	return time.Time{}
}

// admit asks once whether the Pod can be run at all, and beside the others. One
// that was found running was admitted before, with the resources it has.
func (w *worker) admit() bool {
	if w.admitted.Load() != nil {
		return true
	}
	if w.observed.Active() != nil {
		had := w.wanted.DeepCopy()
		for _, cs := range [][]corev1.Container{had.Spec.InitContainers, had.Spec.Containers} {
			for i := range cs {
				if c := w.observed.Newest(cs[i].Name); c != nil && c.State == podstatus.Running && c.Given != nil {
					cs[i].Resources = *c.Given.DeepCopy()
				}
			}
		}
		w.pod = had
		w.admitted.Store(had)
		w.grant()
		return true
	}
	w.r.admitMu.Lock()
	defer w.r.admitMu.Unlock()
	why := podspec.Check(w.pod, w.facts())
	if why == nil {
		why = w.r.o.Admit(w.pod, w.r.others(w.uid))
	}
	if why == nil {
		w.admitted.Store(w.pod)
		return true
	}
	w.failed = &podstatus.Failure{Reason: why.Reason, Message: "Pod was rejected: " + why.Message}
	w.rejected = true
	w.r.event(w.pod, "", corev1.EventTypeWarning, why.Reason, why.Message)
	w.wake()
	return false
}

// takesRoom is the Pod, if it takes room on the node: it was admitted, or was
// found running and will be.
func (w *worker) takesRoom() *corev1.Pod {
	if p := w.admitted.Load(); p != nil {
		return p
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.inbox.pod
	if p == nil || w.inbox.listed == nil || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded ||
		w.shown.status.Phase == corev1.PodFailed || w.shown.status.Phase == corev1.PodSucceeded {
		return nil
	}
	return p
}
