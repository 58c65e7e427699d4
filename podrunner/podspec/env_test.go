// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"fairlead.dev/podrunner/objects"
)

// testPod is web/front with one container.
func testPod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "front", Namespace: "web", UID: "0b1c-2d",
			Labels: map[string]string{"app": "x"}, Annotations: map[string]string{"Example.com/note": "say \"hi\"\n"}},
		Spec: corev1.PodSpec{
			EnableServiceLinks: ptr.To(false), ServiceAccountName: "sa",
			Containers: []corev1.Container{{Name: "main", Image: "img:1"}},
		},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func testFacts() *Facts {
	return &Facts{
		NodeName: "node-1", ClusterDomain: "cluster.local",
		HostIPs:    []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		PodIPs:     []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00::5")},
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"),
		},
		MemoryCapacity: 8 << 30, HugePageSizes: []string{"2MB", "1GB"},
	}
}

func testStore() *objects.Static {
	s := new(objects.Static)
	meta := metav1.ObjectMeta{Namespace: "web", Name: "conf"}
	s.SetConfigMap(&corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"A": "from-map", "mode": "fast"}})
	s.SetSecret(&corev1.Secret{ObjectMeta: meta, Data: map[string][]byte{"A": []byte("from-secret"), "key": []byte("s3cr3t")}})
	service := func(ns, name, ip string, ports ...corev1.ServicePort) {
		s.SetService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}})
	}
	service("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP})
	service("default", "other", "10.96.0.9", corev1.ServicePort{Port: 1})
	service("web", "my-db", "fd00:1::7", corev1.ServicePort{Port: 5432}, corev1.ServicePort{Name: "dns-udp", Port: 53, Protocol: corev1.ProtocolUDP})
	service("web", "headless", "None", corev1.ServicePort{Port: 80})
	service("web", "external", "", corev1.ServicePort{Port: 80})
	return s
}

func envOf(t *testing.T, pod *corev1.Pod, f *Facts) map[string]string {
	t.Helper()
	env, err := Env(t.Context(), pod, &pod.Spec.Containers[0], f, testStore(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return asMap(env)
}

var kubernetesEnv = map[string]string{
	"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443",
	"KUBERNETES_PORT": "tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443",
	"KUBERNETES_PORT_443_TCP_PROTO": "tcp", "KUBERNETES_PORT_443_TCP_PORT": "443", "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
}

func TestEnvNamesTheAPIServerAlwaysAndOtherServicesByServiceLinks(t *testing.T) {
	if d := cmp.Diff(kubernetesEnv, envOf(t, testPod(), testFacts())); d != "" {
		t.Errorf("without service links (-want +got):\n%s", d)
	}
	want := map[string]string{
		"MY_DB_SERVICE_HOST": "fd00:1::7", "MY_DB_SERVICE_PORT": "5432", "MY_DB_SERVICE_PORT_DNS_UDP": "53",
		"MY_DB_PORT": "tcp://[fd00:1::7]:5432", "MY_DB_PORT_5432_TCP": "tcp://[fd00:1::7]:5432",
		"MY_DB_PORT_5432_TCP_PROTO": "tcp", "MY_DB_PORT_5432_TCP_PORT": "5432", "MY_DB_PORT_5432_TCP_ADDR": "fd00:1::7",
		"MY_DB_PORT_53_UDP": "udp://[fd00:1::7]:53", "MY_DB_PORT_53_UDP_PROTO": "udp", "MY_DB_PORT_53_UDP_PORT": "53", "MY_DB_PORT_53_UDP_ADDR": "fd00:1::7",
	}
	for k, v := range kubernetesEnv {
		want[k] = v
	}
	for _, links := range []*bool{nil, ptr.To(true)} {
		pod := testPod(func(p *corev1.Pod) { p.Spec.EnableServiceLinks = links })
		if d := cmp.Diff(want, envOf(t, pod, testFacts())); d != "" {
			t.Errorf("with service links (-want +got):\n%s", d)
		}
	}
}

func TestEnvOfSourcesIsOverriddenInOrder(t *testing.T) {
	local := corev1.LocalObjectReference{Name: "conf"}
	gone := corev1.LocalObjectReference{Name: "gone"}
	pod := testPod(func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.EnvFrom = []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: local}},
			{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local}},
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: gone, Optional: ptr.To(true)}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: gone, Optional: ptr.To(true)}},
		}
		c.Env = []corev1.EnvVar{
			{Name: "mode", Value: "slow"},
			{Name: "LATER", Value: "$(FIRST)"},
			{Name: "FIRST", Value: "1-$(A)-$(mode)"},
			{Name: "NOW", Value: "$(FIRST)"},
			{Name: "API", Value: "$(KUBERNETES_SERVICE_HOST)"},
			{Name: "KUBERNETES_SERVICE_PORT", Value: "mine"},
			{Name: "EMPTY"},
			{Name: "KEY", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local, Key: "key"}}},
			{Name: "MODE", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: local, Key: "mode"}}},
			{Name: "NOKEY", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: local, Key: "x", Optional: ptr.To(true)}}},
			{Name: "NOMAP", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: gone, Key: "x", Optional: ptr.To(true)}}},
		}
	})
	want := map[string]string{
		"A": "from-secret", "mode": "slow", "key": "s3cr3t", "P_A": "from-map", "P_mode": "fast",
		"LATER": "$(FIRST)", "FIRST": "1-from-secret-slow", "NOW": "1-from-secret-slow",
		"API": "10.96.0.1", "EMPTY": "", "KEY": "s3cr3t", "MODE": "fast",
	}
	for k, v := range kubernetesEnv {
		want[k] = v
	}
	want["KUBERNETES_SERVICE_PORT"] = "mine"
	if d := cmp.Diff(want, envOf(t, pod, testFacts())); d != "" {
		t.Errorf("environment (-want +got):\n%s", d)
	}
}

func TestEnvOfFieldsAndResources(t *testing.T) {
	pod := testPod(func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "i", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"memory": resource.MustParse("100Mi"), "hugepages-2Mi": resource.MustParse("4Mi")}}}}
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"cpu": resource.MustParse("1500m")}
	})
	f := testFacts()
	for path, want := range map[string]string{
		"metadata.name": "front", "metadata.namespace": "web", "metadata.uid": "0b1c-2d",
		"metadata.labels": `app="x"`, "metadata.annotations": `Example.com/note="say \"hi\"\n"`,
		"metadata.labels['app']": "x", "metadata.annotations['Example.com/note']": "say \"hi\"\n", "metadata.labels['none']": "",
		"spec.nodeName": "node-1", "spec.serviceAccountName": "sa",
		"status.hostIP": "192.0.2.1", "status.hostIPs": "192.0.2.1,2001:db8::1", "status.podIP": "10.1.0.5", "status.podIPs": "10.1.0.5,fd00::5",
	} {
		if got, err := FieldValue(pod, path, f); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", path, got, err, want)
		}
	}
	for path, want := range map[string]string{
		"spec.volumes": "unsupported fieldPath: spec.volumes", "metadata.name['x']": `fieldPath "metadata.name['x']" does not support subscript`,
		"metadata.labels['a b']": "invalid key subscript in metadata.labels['a b']",
	} {
		if _, err := FieldValue(pod, path, f); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
	f.PodIPs = nil
	if got, _ := FieldValue(testPod(func(p *corev1.Pod) { p.Spec.HostNetwork = true }), "status.podIP", f); got != "192.0.2.1" {
		t.Errorf("podIP in the host's network is %q", got)
	}
	for _, c := range []struct{ container, resource, divisor, want string }{
		{"", "limits.cpu", "", "2"}, // 1.5 rounded up
		{"", "limits.cpu", "1m", "1500"},
		{"", "limits.memory", "", "4294967296"}, // the node's
		{"", "limits.memory", "1Mi", "4096"},
		{"", "requests.cpu", "1m", "0"},
		{"init", "requests.memory", "1M", "105"},
		{"init", "requests.hugepages-2Mi", "1Mi", "4"},
		{"init", "limits.hugepages-2Mi", "", "0"}, // never the node's
	} {
		r := &corev1.ResourceFieldSelector{ContainerName: c.container, Resource: c.resource}
		if c.divisor != "" {
			r.Divisor = resource.MustParse(c.divisor)
		}
		if got, err := ResourceValue(pod, &pod.Spec.Containers[0], r, f); err != nil || got != c.want {
			t.Errorf("%s of %q in %q = %q, %v; want %q", c.resource, c.container, c.divisor, got, err, c.want)
		}
	}
	for resource, want := range map[string]string{"limits.gpu": "unsupported container resource : limits.gpu", "cpu": "unsupported container resource : cpu"} {
		if _, err := ResourceValue(pod, &pod.Spec.Containers[0], &corev1.ResourceFieldSelector{Resource: resource}, f); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", resource, err, want)
		}
	}
	if _, err := ResourceValue(pod, nil, &corev1.ResourceFieldSelector{ContainerName: "nope", Resource: "limits.cpu"}, f); err == nil || err.Error() != "container nope not found" {
		t.Errorf("unknown container: %v", err)
	}
	podLimits := testPod(func(p *corev1.Pod) {
		p.Spec.Resources = &corev1.ResourceRequirements{Limits: corev1.ResourceList{"memory": resource.MustParse("1Gi")}}
	})
	if got, _ := ResourceValue(podLimits, &podLimits.Spec.Containers[0], &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}, f); got != "1024" {
		t.Errorf("limit of a container without one in a Pod with 1Gi: %s Mi", got)
	}
}

func TestEnvOfFiles(t *testing.T) {
	read := func(volume, path string) ([]byte, error) {
		if volume != "vol" || path != "dir/env" {
			return nil, fmt.Errorf("no %s/%s", volume, path)
		}
		return []byte("A='1'\nE=''\n"), nil
	}
	for _, c := range []struct {
		ref       corev1.FileKeySelector
		want, err string
	}{
		{corev1.FileKeySelector{VolumeName: "vol", Path: "dir/env", Key: "A"}, "1", ""},
		{corev1.FileKeySelector{VolumeName: "vol", Path: "dir/env", Key: "B"}, "", `environment variable key "B" not found in file "dir/env"`},
		{corev1.FileKeySelector{VolumeName: "vol", Path: "dir/env", Key: "B", Optional: ptr.To(true)}, "", ""},
		{corev1.FileKeySelector{VolumeName: "x", Path: "y", Key: "B"}, "", "couldn't parse env file: no x/y"},
	} {
		pod := testPod(func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "V", ValueFrom: &corev1.EnvVarSource{FileKeyRef: &c.ref}}}
		})
		env, err := Env(t.Context(), pod, &pod.Spec.Containers[0], testFacts(), testStore(), read)
		if (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%v: %v, want %s", c.ref, err, c.err)
		}
		v, ok := asMap(env)["V"]
		if err == nil && (v != c.want || ok != (c.want != "")) {
			t.Errorf("%v: %q %v, want %q", c.ref, v, ok, c.want)
		}
	}
}

func TestEnvThatIsNotThereRefusesTheContainerInTheKubeletsWords(t *testing.T) {
	local := corev1.LocalObjectReference{Name: "conf"}
	gone := corev1.LocalObjectReference{Name: "gone"}
	for _, c := range []struct {
		source   corev1.EnvVarSource
		message  string
		notFound bool
	}{
		{corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: gone, Key: "a"}}, `configmap "gone" not found`, true},
		{corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: gone, Key: "a"}}, `secret "gone" not found`, true},
		{corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local, Key: "a"}}, "couldn't find key a in Secret web/conf", false},
		{corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: local, Key: "a"}}, "couldn't find key a in ConfigMap web/conf", false},
	} {
		pod := testPod(func(p *corev1.Pod) { p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "V", ValueFrom: &c.source}} })
		_, err := Container(t.Context(), pod, &pod.Spec.Containers[0], ContainerInput{}, testFacts(), testStore())
		var r *Refused
		if !errors.As(err, &r) || r.Reason != "CreateContainerConfigError" || r.Message != c.message || apierrors.IsNotFound(err) != c.notFound {
			t.Errorf("got %#v, want %s", err, c.message)
		}
	}
}
