// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"encoding/json"
	"hash/fnv"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/podstatus"
)

// inbox is what others left for the worker.
type inbox struct {
	pod      *corev1.Pod
	given    bool
	hash     uint64
	removed  bool
	listed   *cri.Listed
	listedAt time.Time
	fresh    bool        // listed is news
	last     *cri.Listed // what was last put there
	look     bool        // ask the runtime about this Pod
	stopped  []string    // containers whose stop has ended
	ended    []string    // containers without processes
	refresh  bool
	evicted  *podstatus.Failure
	grace    time.Duration
}

// put changes the inbox and wakes the worker.
func (w *worker) put(f func(*inbox)) {
	w.mu.Lock()
	f(&w.inbox)
	w.mu.Unlock()
	w.wake()
}

// set gives the worker its Pod, which is not changed afterwards.
func (w *worker) set(p *corev1.Pod, given bool) {
	w.put(func(in *inbox) {
		in.pod, in.given, in.hash, in.removed = p, given, hashOf(p), false
	})
	w.mu.Lock()
	w.shown.pod = p
	if w.shown.status.Phase == "" {
		w.shown.status = p.Status
	}
	w.mu.Unlock()
	if p.DeletionTimestamp != nil {
		w.interrupt()
	}
}

// same says whether the Pod, as it was told, is what the worker has.
func (w *worker) same(p *corev1.Pod) bool {
	w.mu.Lock()
	in := w.inbox
	w.mu.Unlock()
	if in.removed || in.pod == nil || in.given != (p.UID != "") || in.given && p.UID != w.uid {
		return false
	}
	p = p.DeepCopy()
	Default(p)
	if !in.given {
		p.Status = corev1.PodStatus{}
	}
	return hashOf(p) == in.hash
}

// hashOf what matters of a Pod here: all that it is told, of its status only the
// conditions of others.
func hashOf(p *corev1.Pod) uint64 {
	h := fnv.New64a()
	conditions := slices.DeleteFunc(slices.Clone(p.Status.Conditions), func(c corev1.PodCondition) bool {
		return !slices.ContainsFunc(p.Spec.ReadinessGates, func(g corev1.PodReadinessGate) bool { return g.ConditionType == c.Type })
	})
	done := p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
	err := json.NewEncoder(h).Encode([]any{p.Spec, p.Labels, p.Annotations, p.DeletionTimestamp, p.DeletionGracePeriodSeconds, p.Generation, conditions, done})
	if err != nil { // types of the API marshal
		panic(err)
	}
	return h.Sum64()
}

// remove: the source does not have the Pod any more.
func (w *worker) remove() {
	w.put(func(in *inbox) { in.removed = true })
	w.interrupt()
}

func (w *worker) removed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inbox.removed
}

func (w *worker) evict(reason, message string, grace time.Duration) {
	w.put(func(in *inbox) {
		if in.evicted == nil {
			in.evicted, in.grace = &podstatus.Failure{Reason: reason, Message: message}, grace
		}
	})
	w.interrupt()
}

func (w *worker) refresh()   { w.put(func(in *inbox) { in.refresh = true }) }
func (w *worker) lookAgain() { w.put(func(in *inbox) { in.look = true }) }

// setListed gives what the runtime had of the Pod when it was listed.
func (w *worker) setListed(l *cri.Listed, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	in := &w.inbox
	if (l == nil && in.last == nil && !in.listedAt.IsZero()) || l.Equal(in.last) {
		return
	}
	in.listed, in.last, in.listedAt, in.fresh = l, l, at, true
	w.wake()
}

// take empties the inbox.
func (w *worker) take() inbox {
	w.mu.Lock()
	defer w.mu.Unlock()
	in := w.inbox
	w.inbox.fresh, w.inbox.look, w.inbox.stopped, w.inbox.ended, w.inbox.refresh = false, false, nil, nil, false
	return in
}

// lookAgainLater puts back what could not be done.
func (w *worker) lookAgainLater(in *inbox) {
	w.mu.Lock()
	w.inbox.look = true
	w.inbox.refresh = w.inbox.refresh || in.refresh
	w.mu.Unlock()
}
