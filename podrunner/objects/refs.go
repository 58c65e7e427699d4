// SPDX-License-Identifier: Apache-2.0

package objects

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Refs returns the ConfigMaps and Secrets that a Pod refers to: in its
// environment, its volumes and its image pull secrets. True are those that a
// volume shows, which must be current at all times; the others are needed when
// a container starts.
func Refs(pod *corev1.Pod) map[Key]bool {
	r := refs{namespace: pod.Namespace, keys: map[Key]bool{}}
	for _, s := range pod.Spec.ImagePullSecrets {
		r.add(KindSecret, s.Name)
	}
	for i := range pod.Spec.InitContainers {
		r.env(pod.Spec.InitContainers[i].EnvFrom, pod.Spec.InitContainers[i].Env)
	}
	for i := range pod.Spec.Containers {
		r.env(pod.Spec.Containers[i].EnvFrom, pod.Spec.Containers[i].Env)
	}
	for i := range pod.Spec.EphemeralContainers {
		r.env(pod.Spec.EphemeralContainers[i].EnvFrom, pod.Spec.EphemeralContainers[i].Env)
	}
	r.shown = true
	for i := range pod.Spec.Volumes {
		r.volume(&pod.Spec.Volumes[i])
	}
	return r.keys
}

type refs struct {
	namespace string
	shown     bool // what is added from here on is shown by a volume
	keys      map[Key]bool
}

func (r *refs) add(kind Kind, name string) {
	k := Key{kind, types.NamespacedName{Namespace: r.namespace, Name: name}}
	if name != "" {
		r.keys[k] = r.keys[k] || r.shown
	}
}

func (r *refs) env(from []corev1.EnvFromSource, env []corev1.EnvVar) {
	for _, e := range from {
		if e.ConfigMapRef != nil {
			r.add(KindConfigMap, e.ConfigMapRef.Name)
		}
		if e.SecretRef != nil {
			r.add(KindSecret, e.SecretRef.Name)
		}
	}
	for _, e := range env {
		if e.ValueFrom == nil {
			continue
		}
		if s := e.ValueFrom.ConfigMapKeyRef; s != nil {
			r.add(KindConfigMap, s.Name)
		}
		if s := e.ValueFrom.SecretKeyRef; s != nil {
			r.add(KindSecret, s.Name)
		}
	}
}

func (r *refs) volume(v *corev1.Volume) {
	if v.ConfigMap != nil {
		r.add(KindConfigMap, v.ConfigMap.Name)
	}
	if v.Secret != nil {
		r.add(KindSecret, v.Secret.SecretName)
	}
	if v.Projected == nil {
		return
	}
	for _, s := range v.Projected.Sources {
		if s.ConfigMap != nil {
			r.add(KindConfigMap, s.ConfigMap.Name)
		}
		if s.Secret != nil {
			r.add(KindSecret, s.Secret.Name)
		}
	}
}
