// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"hash/maphash"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// record is what is kept of an object: not the object, of which there may be
// too many, but who has it and whether the Handler has it as it is.
type record struct {
	// owner is the file whose version is in force; others have the object too,
	// sorted by name.
	owner  *file
	others []*file
	// hash is that of the object as delivered; 0: not delivered.
	hash uint64
	// service is the Service of an EndpointSlice.
	service string
}

// pass collects what one round of looking at files brings, to be settled at its
// end.
type pass struct {
	// orphans lost a file that had them; they may have come up in another one.
	orphans map[objectKey]struct{}
	// reload names files whose version of an object is now in force.
	reload map[string]struct{}
	// fill and follow are Services to be filled and delivered, and Services
	// whose Pods are to be looked at.
	fill, follow map[types.NamespacedName]struct{}
	// evicted are Services that lost an address or port to a manifest.
	evicted map[types.NamespacedName]struct{}
}

func newPass() pass {
	return pass{
		orphans: map[objectKey]struct{}{}, reload: map[string]struct{}{},
		evicted: map[types.NamespacedName]struct{}{},
		fill:    map[types.NamespacedName]struct{}{}, follow: map[types.NamespacedName]struct{}{},
	}
}

var hashSeed = maphash.MakeSeed()

// protoObject is an object in its wire form, which is canonical: map keys are
// sorted.
type protoObject interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// hash gives a hash of an object that is never 0.
func (d *Directory) hash(o protoObject) uint64 {
	size := o.Size()
	d.scratch = slices.Grow(d.scratch[:0], size)[:size]
	n, err := o.MarshalToSizedBuffer(d.scratch)
	if err != nil { // cannot be; delivering too often does no harm
		return 0
	}
	h := maphash.Bytes(hashSeed, d.scratch[size-n:])
	return h | 1
}

// take puts objects in the place of what f held.
func (d *Directory) take(f *file, objects []object) {
	old := f.objects
	f.objects = make([]objectRef, len(objects))
	have := make(map[objectKey]struct{}, len(objects))
	for i := range objects {
		o := &objects[i]
		f.objects[i] = objectRef{o.key, o.line}
		have[o.key] = struct{}{}
		if d.own(f, o.key) {
			d.put(o)
		}
	}
	d.objects += len(objects) - len(old)
	for _, r := range old {
		if _, ok := have[r.key]; !ok {
			d.disown(f, r.key)
		}
	}
}

// own notes that f has an object, and reports whether its version is in force.
func (d *Directory) own(f *file, key objectKey) bool {
	r := d.records[key]
	switch {
	case r == nil:
		d.records[key] = &record{owner: f}
		return true
	case r.owner == nil:
		r.owner = f
		return true
	case r.owner == f:
		return true
	}
	if slices.Contains(r.others, f) {
		return false
	}
	r.others = append(r.others, f)
	d.twice[key] = struct{}{}
	if first := f.name < r.owner.name; first {
		r.owner, r.others[len(r.others)-1] = f, r.owner
		d.sortOthers(r)
		return true
	}
	d.sortOthers(r)
	return false
}

func (d *Directory) sortOthers(r *record) {
	slices.SortFunc(r.others, func(a, b *file) int { return cmp.Compare(a.name, b.name) })
}

// disown notes that f has an object no more.
func (d *Directory) disown(f *file, key objectKey) {
	r := d.records[key]
	if r == nil {
		return
	}
	if r.owner != f {
		r.others = slices.DeleteFunc(r.others, func(o *file) bool { return o == f })
	} else if r.owner = nil; len(r.others) > 0 {
		r.owner, r.others = r.others[0], r.others[1:]
		d.pass.reload[r.owner.name] = struct{}{}
	} else {
		d.pass.orphans[key] = struct{}{}
	}
	if len(r.others) == 0 {
		r.others = nil
		delete(d.twice, key)
	}
}

// put delivers an object that is in force; a Service waits for the end of the
// pass, when all that is taken is known.
func (d *Directory) put(o *object) {
	r := d.records[o.key]
	switch v := o.value.(type) {
	case *corev1.Service:
		d.putService(o.key.NamespacedName, v)
	case *discoveryv1.EndpointSlice:
		d.relabel(o.key, r, v.Labels[discoveryv1.LabelServiceName])
		if h := d.hash(v); h != r.hash || h == 0 {
			r.hash = h
			d.h.OnEndpointSlice(o.key.NamespacedName, v)
		}
	case *corev1.Pod:
		d.putPod(o.key, r, v)
	case *corev1.Node:
		if h := d.hash(v); v.Name == d.o.NodeName && (h != r.hash || h == 0) {
			r.hash = h
			d.h.OnNode(v.Name, v)
		}
	case *corev1.ConfigMap:
		if h := d.hash(v); d.configs != nil && (h != r.hash || h == 0) {
			r.hash = h
			d.configs.OnConfigMap(o.key.NamespacedName, v)
		}
	case *corev1.Secret:
		if h := d.hash(v); d.configs != nil && (h != r.hash || h == 0) {
			r.hash = h
			d.configs.OnSecret(o.key.NamespacedName, v)
		}
	}
}

// remove takes back what is in no file any more.
func (d *Directory) remove(key objectKey, r *record) {
	delete(d.records, key)
	switch key.kind {
	case kindService:
		d.removeService(key.NamespacedName, r)
	case kindEndpointSlice:
		d.relabel(key, r, "")
		if r.hash != 0 {
			d.h.OnEndpointSlice(key.NamespacedName, nil)
		}
	case kindPod:
		d.removePod(key, r)
	case kindNode:
		if r.hash != 0 {
			d.h.OnNode(key.Name, nil)
		}
	case kindConfigMap:
		if r.hash != 0 {
			d.configs.OnConfigMap(key.NamespacedName, nil)
		}
	case kindSecret:
		if r.hash != 0 {
			d.configs.OnSecret(key.NamespacedName, nil)
		}
	}
}

// relabel counts the EndpointSlices of each Service: one that has any does not
// follow Pods.
func (d *Directory) relabel(key objectKey, r *record, service string) {
	if r.service == service {
		return
	}
	if r.service != "" {
		of := types.NamespacedName{Namespace: key.Namespace, Name: r.service}
		if d.slices[of]--; d.slices[of] == 0 {
			delete(d.slices, of)
			d.pass.follow[of] = struct{}{}
		}
	}
	if r.service = service; service != "" {
		of := types.NamespacedName{Namespace: key.Namespace, Name: service}
		if d.slices[of]++; d.slices[of] == 1 {
			d.pass.follow[of] = struct{}{}
		}
	}
}
