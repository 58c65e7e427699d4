// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func named(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func key(kind Kind, name string) Key {
	return Key{kind, types.NamespacedName{Namespace: "ns", Name: name}}
}

func TestStaticAnswersWithWhatItWasToldAndNotFoundOtherwise(t *testing.T) {
	var s Static
	ctx := t.Context()
	a := types.NamespacedName{Namespace: "ns", Name: "a"}
	if _, err := s.ConfigMap(ctx, a); !apierrors.IsNotFound(err) || err.Error() != `configmap "a" not found` {
		t.Errorf("missing ConfigMap: %v", err)
	}
	if _, err := s.Secret(ctx, a); !apierrors.IsNotFound(err) || err.Error() != `secret "a" not found` {
		t.Errorf("missing Secret: %v", err)
	}
	if _, err := s.Token(ctx, TokenRequest{}); !errors.Is(err, ErrNoTokens) {
		t.Errorf("token: %v", err)
	}
	s.SetConfigMap(&corev1.ConfigMap{ObjectMeta: named("ns", "a"), Data: map[string]string{"k": "v"}})
	s.SetSecret(&corev1.Secret{ObjectMeta: named("ns", "a"), Data: map[string][]byte{"k": []byte("s")}})
	if m, err := s.ConfigMap(ctx, a); err != nil || m.Data["k"] != "v" {
		t.Errorf("ConfigMap: %v, %v", m, err)
	}
	if m, err := s.Secret(ctx, a); err != nil || string(m.Data["k"]) != "s" {
		t.Errorf("Secret: %v, %v", m, err)
	}
	s.Delete(key(KindConfigMap, "a"))
	if _, err := s.ConfigMap(ctx, a); !apierrors.IsNotFound(err) {
		t.Errorf("deleted ConfigMap: %v", err)
	}
	if _, err := s.Secret(ctx, a); err != nil {
		t.Errorf("the Secret of the same name went with the ConfigMap: %v", err)
	}
	s.SetService(&corev1.Service{ObjectMeta: named("ns", "a")})
	s.SetService(&corev1.Service{ObjectMeta: named("other", "b")})
	if l, _ := s.Services(ctx, "ns"); len(l) != 1 || l[0].Name != "a" {
		t.Errorf("Services of ns: %v", l)
	}
	s.DeleteService(a)
	if l, _ := s.Services(ctx, "ns"); len(l) != 0 {
		t.Errorf("Services after the deletion: %v", l)
	}
}

func TestStaticTellsOfChangesOnly(t *testing.T) {
	var s Static
	var got []Key
	stop := s.OnChange(func(k Key) { got = append(got, k) })
	s.SetConfigMap(&corev1.ConfigMap{ObjectMeta: named("ns", "a")})
	s.SetConfigMap(&corev1.ConfigMap{ObjectMeta: named("ns", "a"), Immutable: new(bool)})
	s.SetConfigMap(&corev1.ConfigMap{ObjectMeta: named("ns", "a"), Data: map[string]string{"k": "v"}})
	s.SetSecret(&corev1.Secret{ObjectMeta: named("ns", "b")})
	s.Delete(key(KindConfigMap, "b"))
	s.Delete(key(KindSecret, "b"))
	stop()
	s.SetSecret(&corev1.Secret{ObjectMeta: named("ns", "c")})
	want := []Key{key(KindConfigMap, "a"), key(KindConfigMap, "a"), key(KindSecret, "b"), key(KindSecret, "b")}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
}

func TestRefsAreAllThatAPodNames(t *testing.T) {
	local := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	env := func(m, s string) ([]corev1.EnvFromSource, []corev1.EnvVar) {
		return []corev1.EnvFromSource{
				{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local(m + "-from")}},
				{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: local(s + "-from")}},
			}, []corev1.EnvVar{
				{Name: "PLAIN", Value: "x"},
				{Name: "M", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: local(m)}}},
				{Name: "S", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local(s)}}},
			}
	}
	pod := &corev1.Pod{ObjectMeta: named("ns", "p")}
	pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{local("pull"), {}}
	pod.Spec.InitContainers = make([]corev1.Container, 1)
	pod.Spec.Containers = make([]corev1.Container, 1)
	pod.Spec.EphemeralContainers = make([]corev1.EphemeralContainer, 1)
	pod.Spec.InitContainers[0].EnvFrom, pod.Spec.InitContainers[0].Env = env("init-m", "init-s")
	pod.Spec.Containers[0].EnvFrom, pod.Spec.Containers[0].Env = env("m", "s")
	pod.Spec.EphemeralContainers[0].EnvFrom, pod.Spec.EphemeralContainers[0].Env = env("eph-m", "eph-s")
	pod.Spec.Volumes = []corev1.Volume{
		{VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("vol-m")}}},
		{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vol-s"}}},
		{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("proj-m")}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("m")}}, // and in the environment
			{Secret: &corev1.SecretProjection{LocalObjectReference: local("proj-s")}},
		}}}},
	}
	want := map[Key]bool{}
	for _, n := range []string{"init-m", "init-m-from", "m", "m-from", "eph-m", "eph-m-from", "vol-m", "proj-m"} {
		want[key(KindConfigMap, n)] = n == "vol-m" || n == "proj-m" || n == "m"
	}
	for _, n := range []string{"pull", "init-s", "init-s-from", "s", "s-from", "eph-s", "eph-s-from", "vol-s", "proj-s"} {
		want[key(KindSecret, n)] = n == "vol-s" || n == "proj-s"
	}
	if d := cmp.Diff(want, Refs(pod)); d != "" {
		t.Errorf("references (-want +got):\n%s", d)
	}
}
