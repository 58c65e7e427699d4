// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
)

// pull is an image that is being got.
type pull struct {
	done  chan struct{}
	image cri.Image
	err   error
	// missed: the worker has gone on without it, and is to be woken. One that
	// waits is not: it would try again at once what has just failed.
	missed atomic.Bool
}

// prefetch gets the images of the containers that are first to start, while the
// sandbox is made.
func (w *worker) prefetch(config *runtimeapi.PodSandboxConfig, handler string) {
	first := w.pod.Spec.Containers
	r := regular
	if len(w.pod.Spec.InitContainers) > 0 {
		first, r = w.pod.Spec.InitContainers[:1], initial
	}
	for i := range first {
		if w.pulls[first[i].Name] == nil {
			w.get(startOrder{&first[i], r}, config, handler)
		}
	}
}

// get begins to get a container's image.
func (w *worker) get(o startOrder, config *runtimeapi.PodSandboxConfig, handler string) *pull {
	p := &pull{done: make(chan struct{})}
	w.pulls[o.spec.Name] = p
	request := w.pullRequest(o.spec, o.role, config, handler)
	go func() {
		p.image, p.err = w.r.puller.Ensure(w.run, request)
		close(p.done)
		if p.missed.Load() {
			w.wake()
		}
	}()
	return p
}

func (w *worker) pullRequest(c *corev1.Container, r role, config *runtimeapi.PodSandboxConfig, handler string) cri.PullRequest {
	pod := w.pod
	return cri.PullRequest{
		Pod: w.uid, Image: c.Image, Policy: c.ImagePullPolicy, Sandbox: config, Handler: handler,
		Secrets: func(ctx context.Context) []*corev1.Secret { return w.r.pullSecrets(ctx, pod) },
		Event:   func(kind, reason, message string) { w.r.event(pod, fieldPath(c.Name, r), kind, reason, message) },
	}
}

// pullSecrets are those of the Pod that exist; the others are passed over, as
// the kubelet does.
func (r *Runner) pullSecrets(ctx context.Context, pod *corev1.Pod) (secrets []*corev1.Secret) {
	for _, ref := range pod.Spec.ImagePullSecrets {
		if ref.Name == "" {
			continue
		}
		s, err := r.o.Objects.Secret(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: ref.Name})
		if err != nil {
			r.event(pod, "", corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				"Unable to retrieve some image pull secrets ("+ref.Name+"); attempting to pull the image may not succeed.")
			continue
		}
		secrets = append(secrets, s)
	}
	return secrets
}

// pullPatience is how long a worker waits for an image that may be there
// already. After it the others of the Pod go on.
const pullPatience = 100 * time.Millisecond

var errPulling = errors.New("the image is being pulled")

// image of a container that is to be started, or errPulling.
func (w *worker) image(ctx context.Context, o startOrder) (cri.Image, error) {
	p := w.pulls[o.spec.Name]
	if p == nil {
		f := w.facts()
		config, err := podspec.Sandbox(w.pod, w.observed.Active().Attempt, f)
		if err != nil {
			return cri.Image{}, err
		}
		handler, err := podspec.Handler(w.pod, f)
		if err != nil {
			return cri.Image{}, err
		}
		p = w.get(o, config, handler)
	}
	timer := time.NewTimer(pullPatience)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-ctx.Done():
		return cri.Image{}, ctx.Err()
	case <-timer.C:
		p.missed.Store(true)
		select {
		case <-p.done: // just now, and it may not have seen that
		default:
			return cri.Image{}, errPulling
		}
	}
	delete(w.pulls, o.spec.Name)
	return p.image, p.err
}

// noImage notes why a container waits for its image.
func (w *worker) noImage(o startOrder, err error, event func(string, string, string)) (time.Time, error) {
	if errors.Is(err, errPulling) {
		return time.Time{}, err
	}
	var e *cri.ImageError
	if !errors.As(err, &e) {
		return w.retry(), err
	}
	w.waiting[o.spec.Name] = podstatus.Waiting{Reason: e.Reason, Message: e.Message}
	if e.Reason != cri.ReasonImagePullBackOff {
		event(corev1.EventTypeWarning, "Failed", "Error: "+e.Reason)
	}
	if !e.Retry.IsZero() {
		return e.Retry, err
	}
	return w.retry(), err
}
