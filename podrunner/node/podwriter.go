// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/apiclient"
)

// podWriters is how many Pods are written at once.
const podWriters = 4

// How long a Pod waits after its write failed, doubling.
const (
	podRetryFirst = 100 * time.Millisecond
	podRetryMost  = 30 * time.Second
)

// PodWriter writes the status of Pods to the API server, in the background. Of
// several states of a Pod that come while one is written, the last is written;
// what fails is tried again until it succeeds or the Pod is gone. It remembers
// only what is not yet written.
type PodWriter struct {
	client apiclient.Interface
	log    *slog.Logger

	mu    sync.Mutex
	pods  map[types.UID]*pendingPod
	queue []types.UID
	wake  chan struct{} // one slot for each writer
}

// pendingPod is what is to be written of a Pod.
type pendingPod struct {
	key      types.NamespacedName
	status   *corev1.PodStatus // the last one that was set
	finished bool
	again    bool // something was set since the last write began
	failures int
}

// NewPodWriter writes nothing before Run.
func NewPodWriter(client apiclient.Interface, log *slog.Logger) *PodWriter {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &PodWriter{client: client, log: log, pods: map[types.UID]*pendingPod{}, wake: make(chan struct{}, podWriters)}
}

// SetPodStatus has the status of a Pod written. It does not block, and keeps
// the status: it must not be modified any more.
func (w *PodWriter) SetPodStatus(key types.NamespacedName, uid types.UID, status corev1.PodStatus) {
	w.set(key, uid, func(p *pendingPod) { p.status = &status })
}

// PodFinished says that nothing of a Pod is left on this node: when the API
// server has its last status, and wants it deleted, it is deleted there. Called
// again when the deletion came later.
func (w *PodWriter) PodFinished(key types.NamespacedName, uid types.UID) {
	w.set(key, uid, func(p *pendingPod) { p.finished = true })
}

// Pending counts the Pods of which the API server does not have all yet.
func (w *PodWriter) Pending() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.pods)
}

func (w *PodWriter) set(key types.NamespacedName, uid types.UID, change func(*pendingPod)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[uid]
	if p == nil {
		p = &pendingPod{key: key}
		w.pods[uid] = p
		w.enqueue(uid)
	}
	change(p)
	p.again = true
}

func (w *PodWriter) enqueue(uid types.UID) {
	w.queue = append(w.queue, uid)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends.
func (w *PodWriter) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range podWriters {
		wg.Go(func() { w.work(ctx) })
	}
	return nil
}

func (w *PodWriter) work(ctx context.Context) {
	for {
		uid, p, ok := w.next()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-w.wake:
			}
			continue
		}
		gone, err := w.write(ctx, uid, p)
		if ctx.Err() != nil {
			return
		}
		w.done(ctx, uid, gone, err)
	}
}

// next takes a Pod from the queue: a copy of what is to be written.
func (w *PodWriter) next() (types.UID, pendingPod, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return "", pendingPod{}, false
	}
	uid := w.queue[0]
	w.queue = w.queue[1:]
	p := w.pods[uid]
	p.again = false
	return uid, *p, true
}

// done notes how a write went.
func (w *PodWriter) done(ctx context.Context, uid types.UID, gone bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[uid]
	switch {
	case gone || err == nil && !p.again:
		delete(w.pods, uid)
	case err == nil:
		p.failures = 0
		w.enqueue(uid)
	default:
		if p.failures++; p.failures == 1 {
			w.log.Warn("cannot write the status of a Pod; trying again", "pod", p.key, "err", err)
		}
		w.retryLater(ctx, uid, p.failures)
	}
}

// retryLater keeps the Pod out of the queue for a while.
func (w *PodWriter) retryLater(ctx context.Context, uid types.UID, failures int) {
	wait := min(podRetryFirst<<min(failures-1, 10), podRetryMost)
	time.AfterFunc(wait, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if ctx.Err() == nil {
			w.enqueue(uid)
		}
	})
}

// write brings a Pod's status to the API server; gone: it no longer has it.
func (w *PodWriter) write(ctx context.Context, uid types.UID, p pendingPod) (gone bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	pods := w.client.Pods(p.key.Namespace)
	pod, err := pods.Get(ctx, p.key.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("get pod %s: %w", p.key, err)
	case pod.UID != uid:
		return true, nil // another Pod of that name
	}
	if p.status != nil {
		patch, err := podStatusPatch(uid, &pod.Status, mergePodStatus(&pod.Status, p.status))
		if err != nil {
			return false, fmt.Errorf("status of pod %s: %w", p.key, err)
		}
		if patch != nil {
			_, err = pods.Patch(ctx, p.key.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
			if apierrors.IsNotFound(err) {
				return true, nil
			}
			if err != nil {
				return false, fmt.Errorf("patch status of pod %s: %w", p.key, err)
			}
		}
	}
	if !p.finished || pod.DeletionTimestamp == nil {
		return false, nil
	}
	err = pods.Delete(ctx, p.key.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(uid))})
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return true, nil
	}
	return false, fmt.Errorf("delete pod %s: %w", p.key, err)
}
