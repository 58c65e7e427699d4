// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	resourcehelper "k8s.io/component-helpers/resource"
)

// FieldValue returns a field of a Pod as a fieldRef names it, for the
// environment and for downwardAPI volumes.
func FieldValue(pod *corev1.Pod, path string, f *Facts) (string, error) {
	if field, key, ok := subscript(path); ok {
		return subscriptValue(pod, path, field, key)
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		if pod.Spec.NodeName != "" {
			return pod.Spec.NodeName, nil
		}
		return f.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(f.HostIPs), nil
	case "status.hostIPs":
		return join(f.HostIPs), nil
	case "status.podIP":
		return first(podIPs(pod, f)), nil
	case "status.podIPs":
		return join(podIPs(pod, f)), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", path)
}

// podIPs of a Pod in the host's network are the node's.
func podIPs(pod *corev1.Pod, f *Facts) []netip.Addr {
	if len(f.PodIPs) == 0 && pod.Spec.HostNetwork {
		return f.HostIPs
	}
	return f.PodIPs
}

func first(a []netip.Addr) string {
	if len(a) == 0 {
		return ""
	}
	return a[0].String()
}

func join(a []netip.Addr) string {
	s := make([]string, len(a))
	for i := range a {
		s[i] = a[i].String()
	}
	return strings.Join(s, ",")
}

// subscript splits metadata.labels['key'].
func subscript(path string) (field, key string, ok bool) {
	s, ok := strings.CutSuffix(path, "']")
	if !ok {
		return path, "", false
	}
	field, key, ok = strings.Cut(s, "['")
	return field, key, ok && field != ""
}

func subscriptValue(pod *corev1.Pod, path, field, key string) (string, error) {
	m, check := pod.Labels, key
	switch field {
	case "metadata.labels":
	case "metadata.annotations": // keys of annotations may have capitals in their prefix
		m, check = pod.Annotations, strings.ToLower(key)
	default:
		return "", fmt.Errorf("fieldPath %q does not support subscript", path)
	}
	if errs := validation.IsQualifiedName(check); len(errs) != 0 {
		return "", fmt.Errorf("invalid key subscript in %s: %s", path, strings.Join(errs, ";"))
	}
	return m[key], nil
}

// formatMap is the form of labels and annotations in the downward API: a line
// key="escaped value" for each, sorted.
func formatMap(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for k, v := range m {
		lines = append(lines, k+"="+strconv.Quote(v))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// ResourceValue returns what a resourceFieldRef names, in units of its
// divisor, rounded up. c is the container that is meant where the reference
// names none; it may be nil. A limit that is not set is the Pod's, or what
// the node can give.
func ResourceValue(pod *corev1.Pod, c *corev1.Container, r *corev1.ResourceFieldSelector, f *Facts) (string, error) {
	if r.ContainerName != "" {
		if c = findContainer(pod, r.ContainerName); c == nil {
			return "", fmt.Errorf("container %s not found", r.ContainerName)
		}
	}
	if c == nil {
		return "", fmt.Errorf("container of resource %s is not named", r.Resource)
	}
	which, name, _ := strings.Cut(r.Resource, ".")
	n := corev1.ResourceName(name)
	known := n == corev1.ResourceCPU || n == corev1.ResourceMemory || n == corev1.ResourceEphemeralStorage
	huge := strings.HasPrefix(name, corev1.ResourceHugePagesPrefix)
	if which != "limits" && which != "requests" || !known && !huge {
		return "", fmt.Errorf("unsupported container resource : %v", r.Resource)
	}
	q := c.Resources.Requests[n]
	if which == "limits" {
		q = c.Resources.Limits[n]
		if known && q.IsZero() {
			q = defaultLimit(pod, n, f)
		}
	}
	return divide(q, r.Divisor, n == corev1.ResourceCPU), nil
}

func defaultLimit(pod *corev1.Pod, n corev1.ResourceName, f *Facts) resource.Quantity {
	if resourcehelper.IsPodLevelLimitsSet(pod) && resourcehelper.IsSupportedPodLevelResource(n) {
		if q, ok := pod.Spec.Resources.Limits[n]; ok && !q.IsZero() {
			return q
		}
	}
	return f.Allocatable[n]
}

// divide returns q/divisor rounded up; a divisor of 0 is 1. CPUs are counted
// in thousandths, all else in ones.
func divide(q, divisor resource.Quantity, cpu bool) string {
	n, d := q.Value(), divisor.Value()
	if cpu {
		n, d = q.MilliValue(), divisor.MilliValue()
	}
	if divisor.IsZero() || d <= 0 {
		d = 1
		if cpu {
			d = 1000
		}
	}
	result := n / d
	if n%d > 0 {
		result++
	}
	return strconv.FormatInt(result, 10)
}

// findContainer returns a container or init container by its name.
func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
