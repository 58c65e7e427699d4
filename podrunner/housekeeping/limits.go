// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"

	"fairlead.dev/podrunner/cri"
)

// The walk through a Pod's volumes takes at most 1/effort of the time, however
// many files there are; but it is no later than rarest after the last one.
const (
	effort = 20
	rarest = 2 * time.Minute
)

// limits of a Pod on the node's disk.
type limits struct {
	emptyDir   bool // a volume has a sizeLimit
	pod        resource.Quantity
	hasPod     bool
	containers map[string]resource.Quantity
}

func limitsOf(p *corev1.Pod) (l limits) {
	for i := range p.Spec.Volumes {
		if sizeLimit(&p.Spec.Volumes[i]) != nil {
			l.emptyDir = true
		}
	}
	l.pod, l.hasPod = resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})[corev1.ResourceEphemeralStorage]
	l.containers = map[string]resource.Quantity{}
	for i := range p.Spec.Containers {
		if q := p.Spec.Containers[i].Resources.Limits.StorageEphemeral(); !q.IsZero() {
			l.containers[p.Spec.Containers[i].Name] = *q
		}
	}
	return l
}

func sizeLimit(v *corev1.Volume) *resource.Quantity {
	if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
		return nil
	}
	return v.EmptyDir.SizeLimit
}

// enforceLimits evicts the Pods that take more of the disk than they may, and
// says whether there were any. Pods without limits cost nothing.
func (k *Keeper) enforceLimits(ctx context.Context, c *cri.Client, pods []*corev1.Pod, running map[string]bool, dedicated bool) (evicted bool) {
	due := make(map[types.UID]time.Time, len(k.limitsDue))
	for _, p := range pods {
		if finished(p) || ctx.Err() != nil {
			continue
		}
		l := limitsOf(p)
		if !l.emptyDir && !l.hasPod {
			continue
		}
		if at, ok := k.limitsDue[p.UID]; ok && k.now().Before(at) {
			due[p.UID] = at
			continue
		}
		message, walk, err := k.exceeds(ctx, c, p, &l, running, dedicated)
		if err != nil { // a Pod that is just going, or a runtime that does not answer
			k.log.Debug("housekeeping: measure a Pod", "pod", p.Namespace+"/"+p.Name, "error", err)
		}
		if message != "" && k.evict(p, message) {
			evicted = true
		}
		due[p.UID] = k.now().Add(min(effort*walk, rarest))
	}
	k.limitsDue = due
	return evicted
}

// exceeds is what a Pod is evicted for, in the kubelet's words and order; "":
// it keeps its limits. walk is how long its volumes took.
func (k *Keeper) exceeds(ctx context.Context, c *cri.Client, p *corev1.Pod, l *limits, running map[string]bool, dedicated bool) (why string, walk time.Duration, err error) {
	var u usage
	begin := k.now()
	err = k.addVolumes(&u, p)
	walk = k.now().Sub(begin)
	if err != nil {
		return "", walk, err
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if limit := sizeLimit(v); limit != nil && bytesOf(u.volumes[v.Name]).Cmp(*limit) > 0 {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String()), walk, nil
		}
	}
	if !l.hasPod {
		return "", walk, nil
	}
	stats, err := containerStats(ctx, c, p.UID, running)
	if err != nil {
		return "", walk, err
	}
	k.addContainers(&u, p, stats[p.UID])
	if bytesOf(u.disk(where{layers: !dedicated, rest: true})).Cmp(l.pod) > 0 {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", l.pod.String()), walk, nil
	}
	for i := range p.Spec.Containers {
		name := p.Spec.Containers[i].Name
		used := u.containers[name].logs
		if !dedicated {
			used += u.containers[name].layer
		}
		if limit, ok := l.containers[name]; ok && bytesOf(used).Cmp(limit) > 0 {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", name, limit.String()), walk, nil
		}
	}
	return "", walk, nil
}

func bytesOf(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }
