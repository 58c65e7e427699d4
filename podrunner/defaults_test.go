// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"regexp"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestAPodFromAFileGetsTheDefaultsOfTheAPI(t *testing.T) {
	p := parsePod(t, `
metadata: {name: p, namespace: ""}
spec:
  hostNetwork: true
  volumes: [{name: e}, {name: s, secret: {secretName: x}}]
  containers:
  - name: c
    image: registry.test:5000/x
    ports: [{containerPort: 80}]
    resources: {limits: {cpu: "1"}}
    env: [{name: N, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    livenessProbe: {httpGet: {port: 80}}
  - {name: d, image: "x:1"}
  - {name: e, image: "x@sha256:0000000000000000000000000000000000000000000000000000000000000000"}`)
	Default(p)
	c := &p.Spec.Containers[0]
	for what, ok := range map[string]bool{
		"namespace":       p.Namespace == "default",
		"restartPolicy":   p.Spec.RestartPolicy == corev1.RestartPolicyAlways,
		"dnsPolicy":       p.Spec.DNSPolicy == corev1.DNSClusterFirst,
		"grace":           *p.Spec.TerminationGracePeriodSeconds == 30,
		"service links":   *p.Spec.EnableServiceLinks,
		"emptyDir":        p.Spec.Volumes[0].EmptyDir != nil,
		"secret mode":     *p.Spec.Volumes[1].Secret.DefaultMode == 0o644,
		"hostPort":        c.Ports[0].HostPort == 80 && c.Ports[0].Protocol == corev1.ProtocolTCP,
		"request = limit": c.Resources.Requests.Cpu().Cmp(resource.MustParse("1")) == 0,
		"pull untagged":   c.ImagePullPolicy == corev1.PullAlways,
		"pull tagged":     p.Spec.Containers[1].ImagePullPolicy == corev1.PullIfNotPresent,
		"pull digest":     p.Spec.Containers[2].ImagePullPolicy == corev1.PullIfNotPresent,
		"probe":           c.LivenessProbe.PeriodSeconds == 10 && c.LivenessProbe.FailureThreshold == 3 && c.LivenessProbe.TimeoutSeconds == 1,
		"probe path":      c.LivenessProbe.HTTPGet.Path == "/" && c.LivenessProbe.HTTPGet.Scheme == corev1.URISchemeHTTP,
		"fieldRef":        c.Env[0].ValueFrom.FieldRef.APIVersion == "v1",
		"messages":        c.TerminationMessagePath == "/dev/termination-log" && c.TerminationMessagePolicy == corev1.TerminationMessageReadFile,
	} {
		if !ok {
			t.Errorf("%s is not as the API server sets it", what)
		}
	}
	before := p.DeepCopy()
	if Default(p); hashOf(before) != hashOf(p) {
		t.Error("a second time changes something")
	}
}

func TestTheUIDOfAPodFromAFileChangesWithWhatItIs(t *testing.T) {
	p := parsePod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "x:1", resources: {limits: {cpu: 2}}}]}}`)
	uid := uidOf("node", p)
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(string(uid)) {
		t.Errorf("%q is not a UUID of version 8", uid)
	}
	resized := p.DeepCopy()
	resized.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	if uidOf("node", resized) != uid {
		t.Error("a resize makes it another Pod")
	}
	other := p.DeepCopy()
	other.Spec.Containers[0].Resources.Limits = nil
	if uidOf("node", other) == uid {
		t.Error("another QoS class leaves it the same Pod")
	}
	edited := p.DeepCopy()
	edited.Spec.Containers[0].Args = []string{"x"}
	if uidOf("node", edited) == uid || uidOf("other", p) == uid {
		t.Error("another command, or another node, leaves it the same Pod")
	}
}
