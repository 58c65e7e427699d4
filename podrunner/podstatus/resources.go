// SPDX-License-Identifier: Apache-2.0

package podstatus

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Bounds of what a cgroup can hold, as the kubelet's.
const (
	minMilliLimit  = 10 // of CPU: a quota of less is rounded up
	minShares      = 2
	sharesPerCPU   = 1024
	milliCPUPerCPU = 1000
)

// resources is what a container has now: the spec's, with what its cgroup holds
// where the runtime tells and it is another.
func resources(c *corev1.Container, o *Container) *corev1.ResourceRequirements {
	r := c.Resources.DeepCopy()
	a := o.Actual
	if o.State != Running || a == nil {
		return r
	}
	if r.Limits != nil {
		if a.CPUQuota > 0 && a.CPUPeriod > 0 {
			milli := (a.CPUQuota*milliCPUPerCPU + a.CPUPeriod - 1) / a.CPUPeriod
			set(r.Limits, corev1.ResourceCPU, milli, minMilliLimit)
		}
		if a.MemoryBytes > 0 {
			if q := r.Limits[corev1.ResourceMemory]; q.Value() != a.MemoryBytes {
				r.Limits[corev1.ResourceMemory] = *resource.NewQuantity(a.MemoryBytes, resource.BinarySI)
			}
		}
	}
	if r.Requests != nil && a.CPUShares > 0 {
		want := r.Requests.Cpu().MilliValue()
		if max(want*sharesPerCPU/milliCPUPerCPU, minShares) != a.CPUShares {
			set(r.Requests, corev1.ResourceCPU, (a.CPUShares*milliCPUPerCPU+sharesPerCPU-1)/sharesPerCPU, minShares)
		}
	}
	return r
}

func set(l corev1.ResourceList, name corev1.ResourceName, milli, least int64) {
	if q := l[name]; q.MilliValue() != milli && (milli > least || q.MilliValue() > least) {
		l[name] = *resource.NewMilliQuantity(milli, resource.DecimalSI)
	}
}
