// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// service is what is kept of a Service that is in force.
type service struct {
	// packed is the Service as its manifest has it, in wire form. It is kept
	// where something outside the manifest has a say: an allocation, or Pods.
	packed   []byte
	claim    claim
	selector selector
	// following are the EndpointSlices that were made of Pods, with the hash of
	// what was delivered.
	following map[string]uint64
}

func (s *service) unpack() *corev1.Service {
	out := &corev1.Service{}
	if err := out.Unmarshal(s.packed); err != nil {
		panic("source: a Service does not survive its own wire form: " + err.Error())
	}
	return out
}

func (d *Directory) putService(key types.NamespacedName, v *corev1.Service) {
	s := d.services[key]
	if s == nil {
		s = &service{}
		d.services[key] = s
	}
	packed, err := v.Marshal()
	if err != nil {
		d.log.Error("Service has no wire form", "service", key.String(), "err", err)
		return
	}
	now := claimOf(v)
	for _, k := range d.alloc.claim(key, s.claim, now) {
		d.pass.fill[k] = struct{}{}
		d.pass.evicted[k] = struct{}{}
	}
	s.packed, s.claim, s.selector = packed, now, nil
	if v.Spec.Type != corev1.ServiceTypeExternalName {
		s.selector = selectorOf(v.Spec.Selector)
	}
	d.pass.fill[key] = struct{}{}
	d.pass.follow[key] = struct{}{}
}

func (d *Directory) removeService(key types.NamespacedName, r *record) {
	s := d.services[key]
	if s == nil {
		return
	}
	d.alloc.claim(key, s.claim, claim{})
	d.alloc.gone(key, time.Now())
	if r.hash != 0 {
		d.h.OnService(key, nil)
	}
	for name := range s.following {
		d.h.OnEndpointSlice(types.NamespacedName{Namespace: key.Namespace, Name: name}, nil)
	}
	delete(d.services, key)
	delete(d.refused, key)
}

// settle ends a pass: what is gone is taken back, Services are filled and
// delivered, those that follow Pods get their EndpointSlices.
func (d *Directory) settle() {
	for key := range d.pass.orphans {
		if r := d.records[key]; r != nil && r.owner == nil {
			d.remove(key, r)
		}
	}
	d.takePodStatus()
	d.fillServices()
	for _, key := range sortedNames(d.pass.follow) {
		d.followPods(key)
	}
	d.pass = newPass()
	d.report()
}

func (d *Directory) fillServices() {
	for key := range d.refused {
		d.pass.fill[key] = struct{}{} // there may be room now
	}
	keys := sortedNames(d.pass.fill)
	for _, key := range keys {
		s := d.services[key]
		if s == nil || s.packed == nil {
			continue
		}
		if err := d.alloc.fill(s.unpack()); err != nil {
			d.refuseService(key, err)
		} else if _, was := d.refused[key]; was {
			delete(d.refused, key)
			d.pass.follow[key] = struct{}{}
		}
	}
	d.saveState()
	for _, key := range keys {
		if s := d.services[key]; s != nil && s.packed != nil && d.refused[key] == "" {
			d.deliverService(key, s)
		}
	}
}

// refuseService leaves what was last delivered in force, unless another Service
// has its address by now.
func (d *Directory) refuseService(key types.NamespacedName, err error) {
	if d.refused[key] != err.Error() {
		d.log.Warn("Service is not in force as written", "service", key.String(), "problem", err)
	}
	d.refused[key] = err.Error()
	r := d.records[objectKey{kindService, key}]
	if _, evicted := d.pass.evicted[key]; evicted && r.hash != 0 {
		r.hash = 0
		d.h.OnService(key, nil)
	}
}

// deliverService finds all that the Service needs allocated already.
func (d *Directory) deliverService(key types.NamespacedName, s *service) {
	v := s.unpack()
	if err := d.alloc.fill(v); err != nil {
		d.refuseService(key, err)
		return
	}
	if len(s.selector) == 0 && d.alloc.grants[key] == nil {
		s.packed = nil
	}
	r := d.records[objectKey{kindService, key}]
	if h := d.hash(v); h != r.hash || h == 0 {
		r.hash = h
		d.h.OnService(key, v)
	}
}

// expire lets the grants of Services run out that are gone for long enough. As
// long as a file cannot be taken, a Service may only seem to be gone.
func (d *Directory) expire(now time.Time) {
	if len(d.bad) == 0 {
		d.alloc.expire(now.Add(-keepGrant))
	}
}

// report renews what State and Stats tell.
func (d *Directory) report() {
	var lines []string
	for _, f := range d.bad {
		for _, x := range f.faults {
			lines = append(lines, problem(f.name, x.line, x.text))
		}
	}
	for key := range d.twice {
		r := d.records[key]
		for _, f := range r.others {
			lines = append(lines, problem(f.name, f.line(key), key.String()+" is in "+r.owner.name+" too, which is in force"))
		}
	}
	for name, why := range d.refused {
		key := objectKey{kindService, name}
		f := d.records[key].owner
		lines = append(lines, problem(f.name, f.line(key), key.String()+" "+why))
	}
	lines = slices.AppendSeq(lines, maps.Values(d.lack))
	slices.Sort(lines)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state.Problems = lines
	d.stats.Files, d.stats.Objects, d.stats.BadFiles, d.stats.Grants = len(d.files), d.objects, len(d.bad), len(d.alloc.grants)
}

func sortedNames(set map[types.NamespacedName]struct{}) []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(set), func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}
