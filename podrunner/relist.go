// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podstatus"
)

const (
	// fastest is how often the runtime is asked right after something happened.
	// From there on the pace slows down with the time that has passed.
	fastest = 100 * time.Millisecond
	// withEvents is how often it is asked where it tells by itself, and
	// withExits where the kernel tells of the end of each container: what is
	// left is what others do to the runtime.
	withEvents = 10 * time.Second
	withExits  = 3 * time.Second
	// upkeep is how often volumes are refreshed and remains looked for.
	upkeep = time.Minute
)

// transition notes that something happened that will be followed by more.
func (r *Runner) transition() { r.hurry.Store(time.Now().UnixNano()) }

// poke has the runtime listed now.
func (r *Runner) poke() {
	select {
	case r.relistCh <- struct{}{}:
	default:
	}
}

// pause is how long to wait for the next list: a tenth of the time since
// something last happened.
func (r *Runner) pause(events bool) time.Duration {
	most := r.o.Relist
	switch {
	case events:
		most = max(most, withEvents)
	case r.exits.watched() >= r.running():
		most = max(most, withExits)
	}
	quiet := time.Since(time.Unix(0, r.hurry.Load()))
	return min(max(quiet/10, fastest), most)
}

// relist lists what the runtime has, again and again until ctx ends.
func (r *Runner) relist(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	cared := time.Now()
	down := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.relistCh:
		}
		begin := time.Now()
		listed, err := r.client.List(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !down:
			down = true
			r.log.Warn("the container runtime does not answer; Pods stay as they are", "error", err)
		case err == nil && down:
			down = false
			r.log.Info("the container runtime answers again")
			r.askFeatures(ctx)
			r.wakeAll()
		}
		if err == nil {
			r.distribute(listed, begin)
			r.listedNow()
			if time.Since(cared) >= upkeep || r.firstCare() {
				cared = time.Now()
				r.care(ctx)
			}
		}
		timer.Reset(r.pause(r.eventsOn.Load()))
	}
}

// running is how many containers ran when the runtime was last asked.
func (r *Runner) running() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.listed {
		for _, c := range l.Items {
			if c.SandboxID != "" && c.State == podstatus.Running {
				n++
			}
		}
	}
	return n
}

func (r *Runner) wakeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		w.wake()
	}
}

// distribute gives each worker what was listed of its Pod, where that changed,
// and makes workers for Pods that nobody has told of.
func (r *Runner) distribute(listed map[types.UID]*cri.Listed, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, w := range r.workers {
		w.setListed(listed[uid], at)
	}
	if r.synced {
		r.lists++
		for uid, l := range listed {
			if r.workers[uid] == nil {
				r.orphan(uid, l)
			}
		}
	}
	for uid := range r.orphans {
		if listed[uid] == nil {
			delete(r.orphans, uid)
		}
	}
	r.listed = listed
	select {
	case <-r.ready:
	default:
		close(r.ready)
	}
}

// orphan ends a Pod that the source does not have: when it was seen twice, and
// the source is complete. mu is held.
func (r *Runner) orphan(uid types.UID, l *cri.Listed) {
	r.orphans[uid]++
	if r.orphans[uid] < 2 {
		r.transition()
		return
	}
	key := types.NamespacedName{Namespace: l.Namespace, Name: l.Name}
	r.log.Info("end a Pod that is not wanted any more", "pod", key, "uid", uid)
	w := r.newWorker(uid, key)
	w.inbox.removed = true
	r.add(w)
}

// firstCare is true once, when orphans had their time to be seen.
func (r *Runner) firstCare() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.synced && r.lists == 3
}

// care does what is due from time to time: volumes follow what expires, and what
// is left of Pods that are gone is removed.
func (r *Runner) care(ctx context.Context) {
	r.mu.Lock()
	synced := r.synced
	have := map[types.UID]bool{}
	for uid, w := range r.workers {
		have[uid] = true
		w.refresh()
	}
	for uid := range r.listed {
		have[uid] = true
	}
	r.mu.Unlock()
	if synced {
		r.removeRemains(ctx, have)
	}
}

// objectChanged has the Pods look again that refer to the object.
func (r *Runner) objectChanged(k objects.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if w.key.Namespace == k.Namespace && w.refersTo(k) {
			w.refresh()
		}
	}
}

// refersTo says whether a Pod's spec names the object.
func refersTo(pod *corev1.Pod, k objects.Key) bool {
	secret, config := k.Kind == objects.KindSecret, k.Kind == objects.KindConfigMap
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.Secret != nil && secret && v.Secret.SecretName == k.Name,
			v.ConfigMap != nil && config && v.ConfigMap.Name == k.Name:
			return true
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.Secret != nil && secret && s.Secret.Name == k.Name || s.ConfigMap != nil && config && s.ConfigMap.Name == k.Name {
					return true
				}
			}
		}
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		if secret && s.Name == k.Name {
			return true
		}
	}
	for _, cs := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range cs {
			if containerRefersTo(&cs[i], k.Name, secret, config) {
				return true
			}
		}
	}
	return false
}

func containerRefersTo(c *corev1.Container, name string, secret, config bool) bool {
	for _, f := range c.EnvFrom {
		if f.SecretRef != nil && secret && f.SecretRef.Name == name || f.ConfigMapRef != nil && config && f.ConfigMapRef.Name == name {
			return true
		}
	}
	for _, e := range c.Env {
		if f := e.ValueFrom; f != nil {
			if f.SecretKeyRef != nil && secret && f.SecretKeyRef.Name == name || f.ConfigMapKeyRef != nil && config && f.ConfigMapKeyRef.Name == name {
				return true
			}
		}
	}
	return false
}

// followEvents takes the runtime's events, where it has them.
func (r *Runner) followEvents(ctx context.Context) {
	for ctx.Err() == nil {
		err := r.client.Events(ctx, func() { r.eventsOn.Store(true); r.poke() }, func(uid types.UID) {
			r.transition()
			if uid == "" {
				r.poke()
				return
			}
			r.mu.Lock()
			w := r.workers[uid]
			r.mu.Unlock()
			if w != nil {
				w.lookAgain()
			}
		})
		r.eventsOn.Store(false)
		if errors.Is(err, cri.ErrNoEvents) {
			return
		}
		r.poke()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
