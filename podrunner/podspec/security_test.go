// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

// securityOf translates a Pod with these contexts.
func securityOf(t *testing.T, p *corev1.PodSecurityContext, c *corev1.SecurityContext, in ContainerInput) *runtimeapi.LinuxContainerSecurityContext {
	t.Helper()
	pod := testPod(func(pod *corev1.Pod) { pod.Spec.SecurityContext, pod.Spec.Containers[0].SecurityContext = p, c })
	config, err := Container(t.Context(), pod, &pod.Spec.Containers[0], in, testFacts(), testStore())
	if err != nil {
		t.Fatal(err)
	}
	return config.Linux.SecurityContext
}

func int64of(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

func profile(t runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: t, LocalhostRef: ref}
}

const (
	unconfined = runtimeapi.SecurityProfile_Unconfined
	standard   = runtimeapi.SecurityProfile_RuntimeDefault
	localhost  = runtimeapi.SecurityProfile_Localhost
)

func TestSecurityOfAContainerThatSaysNothing(t *testing.T) {
	want := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		RunAsUser:        int64of(0),
		Seccomp:          profile(unconfined, ""),
		MaskedPaths:      maskedPaths, ReadonlyPaths: readonlyPaths,
	}
	if d := cmp.Diff(want, securityOf(t, nil, nil, ContainerInput{}), protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestSecurityOfAContainerThatSaysEverything(t *testing.T) {
	got := securityOf(t, &corev1.PodSecurityContext{
		RunAsUser: ptr.To[int64](1), RunAsGroup: ptr.To[int64](2), FSGroup: ptr.To[int64](3), SupplementalGroups: []int64{4, 5},
		SupplementalGroupsPolicy: ptr.To(corev1.SupplementalGroupsPolicyStrict),
		SELinuxOptions:           &corev1.SELinuxOptions{Level: "pod"},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		AppArmorProfile:          &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined},
	}, &corev1.SecurityContext{
		RunAsUser: ptr.To[int64](10), Privileged: ptr.To(true), ReadOnlyRootFilesystem: ptr.To(true), AllowPrivilegeEscalation: ptr.To(false),
		Capabilities:    &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}},
		SELinuxOptions:  &corev1.SELinuxOptions{User: "u", Role: "r", Type: "t", Level: "l"},
		ProcMount:       ptr.To(corev1.UnmaskedProcMount),
		SeccompProfile:  &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr.To("my/p.json")},
		AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: ptr.To("aa")},
	}, ContainerInput{ImageUser: ImageUser{UID: ptr.To[int64](99)}})
	want := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		RunAsUser:        int64of(10), RunAsGroup: int64of(2), SupplementalGroups: []int64{3, 4, 5},
		SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict,
		Privileged:               true, ReadonlyRootfs: true, NoNewPrivs: true,
		Capabilities:   &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}},
		SelinuxOptions: &runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "l"},
		Seccomp:        profile(localhost, "/var/lib/kubelet/seccomp/my/p.json"),
		Apparmor:       profile(localhost, "aa"),
		//lint:ignore SA1019 containerd 1.6 reads this one
		ApparmorProfile: "localhost/aa",
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestSecurityOfThePodHoldsWhereTheContainerSaysNothing(t *testing.T) {
	got := securityOf(t, &corev1.PodSecurityContext{
		RunAsUser: ptr.To[int64](1), RunAsGroup: ptr.To[int64](2), RunAsNonRoot: ptr.To(true),
		SELinuxOptions:  &corev1.SELinuxOptions{Level: "pod"},
		SeccompProfile:  &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined},
		AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault},
	}, &corev1.SecurityContext{AllowPrivilegeEscalation: ptr.To(true)}, ContainerInput{ImageUser: ImageUser{Name: "www"}})
	want := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		RunAsUser:        int64of(1), RunAsGroup: int64of(2),
		SelinuxOptions: &runtimeapi.SELinuxOption{Level: "pod"},
		Seccomp:        profile(unconfined, ""), Apparmor: profile(standard, ""),
		//lint:ignore SA1019 containerd 1.6 reads this one
		ApparmorProfile: "runtime/default",
		MaskedPaths:     maskedPaths, ReadonlyPaths: readonlyPaths,
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestUserOfTheImageIsUsedWhereNoneIsSaid(t *testing.T) {
	if s := securityOf(t, nil, nil, ContainerInput{ImageUser: ImageUser{UID: ptr.To[int64](33)}}); s.RunAsUser.GetValue() != 33 || s.RunAsUsername != "" {
		t.Errorf("uid 33: %v", s)
	}
	if s := securityOf(t, nil, nil, ContainerInput{ImageUser: ImageUser{Name: "www"}}); s.RunAsUser != nil || s.RunAsUsername != "www" {
		t.Errorf("user www: %v", s)
	}
}

func TestRunAsNonRootIsHeldAgainstTheUserThatWillBe(t *testing.T) {
	const where = ` (pod: "front_web(0b1c-2d)", container: main)`
	for _, c := range []struct {
		runAs *int64
		image ImageUser
		want  string
	}{
		{ptr.To[int64](5), ImageUser{}, ""},
		{nil, ImageUser{UID: ptr.To[int64](5)}, ""},
		{ptr.To[int64](0), ImageUser{UID: ptr.To[int64](5)}, "container's runAsUser breaks non-root policy" + where},
		{nil, ImageUser{UID: ptr.To[int64](0)}, "container has runAsNonRoot and image will run as root" + where},
		{nil, ImageUser{}, "container has runAsNonRoot and image will run as root" + where},
		{nil, ImageUser{Name: "www"}, "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root" + where},
		{nil, ImageUser{UID: ptr.To[int64](-1)}, "container has runAsNonRoot and image has an invalid user id (-1)."},
	} {
		pod := testPod(func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: ptr.To(true)}
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: c.runAs}
		})
		_, err := Container(t.Context(), pod, &pod.Spec.Containers[0], ContainerInput{ImageUser: c.image}, testFacts(), testStore())
		var r *Refused
		if (c.want == "") != (err == nil) || err != nil && (!errors.As(err, &r) || r.Reason != ReasonContainerConfig || !strings.HasPrefix(r.Message, c.want)) {
			t.Errorf("%v %v: %v, want %q", c.runAs, c.image, err, c.want)
		}
	}
}

func TestProfilesThatAreNotWholeAreRefused(t *testing.T) {
	for want, s := range map[string]*corev1.SecurityContext{
		"localhostProfile must be set if seccompProfile type is Localhost": {SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost}},
		"localhostProfile \"../../x\" must be a relative path without '..'": {SeccompProfile: &corev1.SeccompProfile{
			Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr.To("../../x")}},
		"missing localhost apparmor profile name": {AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost}},
		`unknown apparmor profile type: "x"`:      {AppArmorProfile: &corev1.AppArmorProfile{Type: "x"}},
	} {
		pod := testPod(func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = s })
		if _, err := Container(t.Context(), pod, &pod.Spec.Containers[0], ContainerInput{}, testFacts(), testStore()); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestApparmorAnnotationIsBetweenPodAndContainer(t *testing.T) {
	for value, want := range map[string]string{"runtime/default": "runtime/default", "unconfined": "unconfined", "localhost/x": "localhost/x", "nonsense": "localhost/pod"} {
		pod := testPod(func(p *corev1.Pod) {
			p.Annotations["container.apparmor.security.beta.kubernetes.io/main"] = value
			p.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: ptr.To("pod")}}
		})
		p, err := apparmor(pod, &pod.Spec.Containers[0])
		if got := deprecatedApparmor(p); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", value, got, err, want)
		}
	}
}

func TestSeccompDefaultIsTheNodesChoice(t *testing.T) {
	if p, _ := seccomp(nil, &Facts{SeccompDefault: true}); p.ProfileType != standard {
		t.Errorf("with SeccompDefault: %v", p)
	}
	if p, _ := seccomp(&corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}, &Facts{SeccompDefault: true}); p.ProfileType != unconfined {
		t.Errorf("Unconfined with SeccompDefault: %v", p)
	}
}

func TestNamespacesAreTheHostsThePodsOrTheContainers(t *testing.T) {
	for _, c := range []struct {
		change func(*corev1.PodSpec)
		want   *runtimeapi.NamespaceOption
	}{
		{func(s *corev1.PodSpec) { s.HostNetwork = true }, &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "t"}},
		{func(s *corev1.PodSpec) { s.HostPID, s.HostIPC = true, true }, &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE}},
		{func(s *corev1.PodSpec) { s.ShareProcessNamespace = ptr.To(true) }, &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}},
	} {
		pod := testPod(func(p *corev1.Pod) { c.change(&p.Spec) })
		s, err := containerSecurity(pod, &pod.Spec.Containers[0], ContainerInput{TargetID: "t"}, testFacts())
		if d := cmp.Diff(c.want, s.GetNamespaceOptions(), protocmp.Transform()); d != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
	}
}
