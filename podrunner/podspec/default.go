// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// Default fills in what the API server would, for Pods that come from
// manifests. A Pod from an API server is left as it is.
func Default(pod *corev1.Pod) {
	s := &pod.Spec
	if pod.Namespace == "" {
		pod.Namespace = corev1.NamespaceDefault
	}
	if s.ServiceAccountName == "" {
		s.ServiceAccountName = s.DeprecatedServiceAccount
	}
	s.DeprecatedServiceAccount = s.ServiceAccountName
	unset(&s.DNSPolicy, corev1.DNSClusterFirst)
	unset(&s.RestartPolicy, corev1.RestartPolicyAlways)
	unset(&s.SchedulerName, corev1.DefaultSchedulerName)
	unset(&s.EnableServiceLinks, ptr.To(corev1.DefaultEnableServiceLinks))
	unset(&s.TerminationGracePeriodSeconds, ptr.To[int64](corev1.DefaultTerminationGracePeriodSeconds))
	if *s.TerminationGracePeriodSeconds < 0 {
		s.TerminationGracePeriodSeconds = ptr.To[int64](1)
	}
	if s.SecurityContext == nil {
		s.SecurityContext = new(corev1.PodSecurityContext)
	}
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
	eachContainer(pod, func(c *corev1.Container, field string) {
		defaultContainer(c, s.HostNetwork, field == "ephemeralContainers")
	})
}

// unset sets *p to v where it is its type's zero.
func unset[T comparable](p *T, v T) {
	if *p == *new(T) {
		*p = v
	}
}

func defaultContainer(c *corev1.Container, hostNetwork, ephemeral bool) {
	unset(&c.ImagePullPolicy, pullPolicy(c.Image))
	unset(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	unset(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		unset(&c.Ports[i].Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			unset(&c.Ports[i].HostPort, c.Ports[i].ContainerPort)
		}
	}
	if !ephemeral && len(c.Resources.Limits) > 0 {
		if c.Resources.Requests == nil {
			c.Resources.Requests = corev1.ResourceList{}
		}
		for n, q := range c.Resources.Limits {
			if _, ok := c.Resources.Requests[n]; !ok {
				c.Resources.Requests[n] = q.DeepCopy()
			}
		}
	}
	for i := range c.Env {
		if v := c.Env[i].ValueFrom; v != nil && v.FieldRef != nil {
			unset(&v.FieldRef.APIVersion, "v1")
		}
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		defaultProbe(p)
	}
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil {
				defaultHTTP(h.HTTPGet)
			}
		}
	}
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	unset(&p.TimeoutSeconds, 1)
	unset(&p.PeriodSeconds, 10)
	unset(&p.SuccessThreshold, 1)
	unset(&p.FailureThreshold, 3)
	defaultHTTP(p.HTTPGet)
	if p.GRPC != nil {
		unset(&p.GRPC.Service, ptr.To(""))
	}
}

func defaultHTTP(h *corev1.HTTPGetAction) {
	if h == nil {
		return
	}
	unset(&h.Path, "/")
	unset(&h.Scheme, corev1.URISchemeHTTP)
}

// pullPolicy of an image: what has no tag but latest may change at any time.
func pullPolicy(image string) corev1.PullPolicy {
	name := image[strings.LastIndexByte(image, '/')+1:]
	if strings.Contains(name, "@") {
		return corev1.PullIfNotPresent
	}
	if _, tag, ok := strings.Cut(name, ":"); ok && tag != "latest" {
		return corev1.PullIfNotPresent
	}
	return corev1.PullAlways
}

func defaultVolume(v *corev1.Volume) {
	if v.VolumeSource == (corev1.VolumeSource{}) {
		v.EmptyDir = new(corev1.EmptyDirVolumeSource)
	}
	if v.HostPath != nil {
		unset(&v.HostPath.Type, ptr.To(corev1.HostPathUnset))
	}
	if v.Secret != nil {
		unset(&v.Secret.DefaultMode, ptr.To(corev1.SecretVolumeSourceDefaultMode))
	}
	if v.ConfigMap != nil {
		unset(&v.ConfigMap.DefaultMode, ptr.To(corev1.ConfigMapVolumeSourceDefaultMode))
	}
	if v.DownwardAPI != nil {
		unset(&v.DownwardAPI.DefaultMode, ptr.To(corev1.DownwardAPIVolumeSourceDefaultMode))
		defaultItems(v.DownwardAPI.Items)
	}
	if v.Projected != nil {
		unset(&v.Projected.DefaultMode, ptr.To(corev1.ProjectedVolumeSourceDefaultMode))
		for i := range v.Projected.Sources {
			p := &v.Projected.Sources[i]
			if p.ServiceAccountToken != nil {
				unset(&p.ServiceAccountToken.ExpirationSeconds, ptr.To[int64](3600))
			}
			if p.DownwardAPI != nil {
				defaultItems(p.DownwardAPI.Items)
			}
		}
	}
}

func defaultItems(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		if items[i].FieldRef != nil {
			unset(&items[i].FieldRef.APIVersion, "v1")
		}
	}
}
