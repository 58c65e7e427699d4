// SPDX-License-Identifier: Apache-2.0

package source

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// putPod delivers a Pod of this node; one that moved to another node is gone.
func (d *Directory) putPod(key objectKey, r *record, p *corev1.Pod) {
	if p.Spec.NodeName != "" && p.Spec.NodeName != d.o.NodeName {
		d.removePod(key, r)
		return
	}
	if status, ok := d.status[key.NamespacedName]; ok {
		p.Status = status
	}
	d.followPod(d.pods[key.NamespacedName])
	d.followPod(p)
	d.pods[key.NamespacedName] = p
	if h := d.hash(p); h != r.hash || h == 0 {
		r.hash = h
		d.h.OnPod(key.NamespacedName, p)
	}
}

func (d *Directory) removePod(key objectKey, r *record) {
	d.followPod(d.pods[key.NamespacedName])
	delete(d.pods, key.NamespacedName)
	delete(d.status, key.NamespacedName)
	if r.hash != 0 {
		r.hash = 0
		d.h.OnPod(key.NamespacedName, nil)
	}
}

// followPod notes the Services that a change of a Pod may matter to.
func (d *Directory) followPod(p *corev1.Pod) {
	if p == nil {
		return
	}
	for key, s := range d.services {
		if key.Namespace == p.Namespace && s.selector.selects(p.Labels) {
			d.pass.follow[key] = struct{}{}
		}
	}
}

// takePodStatus applies what SetPodStatus brought.
func (d *Directory) takePodStatus() {
	d.mu.Lock()
	brought := d.newStatus
	if len(brought) > 0 {
		d.newStatus = map[types.NamespacedName]corev1.PodStatus{}
	}
	d.mu.Unlock()
	for name, status := range brought {
		p := d.pods[name]
		if p == nil {
			continue
		}
		d.status[name] = status
		with := p.DeepCopy() // the Handler may still look at the old one
		with.Status = status
		key := objectKey{kindPod, name}
		d.putPod(key, d.records[key], with)
	}
}

// followPods brings the EndpointSlices made of Pods in line: none where the
// Service has slices in files or no selector.
func (d *Directory) followPods(key types.NamespacedName) {
	s := d.services[key]
	if s == nil || d.refused[key] != "" {
		return
	}
	var want map[string]uint64
	if len(s.selector) > 0 && d.slices[key] == 0 && len(d.pods) > 0 {
		want = d.deliverFollowing(key, s)
	}
	for _, name := range slices.Sorted(maps.Keys(s.following)) {
		if _, ok := want[name]; !ok {
			d.h.OnEndpointSlice(types.NamespacedName{Namespace: key.Namespace, Name: name}, nil)
		}
	}
	s.following = want
}

// deliverFollowing gives the names of the slices, with hashes.
func (d *Directory) deliverFollowing(key types.NamespacedName, s *service) map[string]uint64 {
	pods := sortedPods(d.pods, key.Namespace, s.selector)
	if len(pods) == 0 {
		return nil
	}
	v := s.unpack()
	if err := d.alloc.fillFamilies(v); err != nil {
		return nil // fill said so
	}
	want := map[string]uint64{}
	made := slicesOfPods(v, pods, d.o.NodeName)
	for _, name := range slices.Sorted(maps.Keys(made)) {
		h := d.hash(made[name])
		if h != s.following[name] || h == 0 {
			d.h.OnEndpointSlice(types.NamespacedName{Namespace: key.Namespace, Name: name}, made[name])
		}
		want[name] = h
	}
	return want
}
