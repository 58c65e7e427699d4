// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

func TestCheckEndsPodsThatCanNeverRun(t *testing.T) {
	sysctl := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: name, Value: "1"}}}
		}
	}
	for _, c := range []struct {
		change          func(*corev1.Pod)
		unsafe          string
		reason, message string
	}{
		{func(p *corev1.Pod) {}, "", "", ""},
		{func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Linux} }, "", "", ""},
		{func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, "", "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"},
		{sysctl("net.ipv4.tcp_syncookies"), "", "", ""},
		{sysctl("net/ipv4/tcp_syncookies"), "", "", ""},
		{sysctl("net.ipv4.tcp_congestion"), "", "SysctlForbidden", `forbidden sysctl: "net.ipv4.tcp_congestion" not allowlisted`},
		{sysctl("net.ipv4.tcp_congestion"), "net.ipv4.*", "", ""},
		{sysctl("kernel.msgmax"), "kernel.msg*", "", ""},
		{sysctl("vm.swappiness"), "vm.swappiness", "SysctlForbidden", `forbidden sysctl: "vm.swappiness" not allowlisted`},
		{func(p *corev1.Pod) { sysctl("net.ipv4.tcp_syncookies")(p); p.Spec.HostNetwork = true }, "", "SysctlForbidden", `forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host Net enabled`},
		{func(p *corev1.Pod) { sysctl("kernel.shm_rmid_forced")(p); p.Spec.HostIPC = true }, "", "SysctlForbidden", `forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host IPC enabled`},
		{func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{SupplementalGroupsPolicy: ptr.To(corev1.SupplementalGroupsPolicyStrict)}
		}, "", "SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node"},
		{func(p *corev1.Pod) { p.Spec.Containers = nil }, "", "Invalid", "spec.containers: Required value"},
	} {
		f := testFacts()
		if c.unsafe != "" {
			f.AllowedUnsafeSysctls = []string{c.unsafe}
		}
		r := Check(testPod(c.change), f)
		if (r == nil) != (c.reason == "") || r != nil && (r.Reason != c.reason || r.Message != c.message) {
			t.Errorf("got %+v, want %s: %s", r, c.reason, c.message)
		}
	}
}

func TestValidateNamesTheField(t *testing.T) {
	mount := func(m corev1.VolumeMount) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v"}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{m}
		}
	}
	for want, change := range map[string]func(*corev1.Pod){
		"metadata.name: Required value":                           func(p *corev1.Pod) { p.Name = "" },
		`metadata.name: Invalid value: "../x"`:                    func(p *corev1.Pod) { p.Name = "../x" },
		`metadata.namespace: Invalid value: "a/b"`:                func(p *corev1.Pod) { p.Namespace = "a/b" },
		`metadata.uid: Invalid value: "../.."`:                    func(p *corev1.Pod) { p.UID = "../.." },
		`metadata.uid: Invalid value: ""`:                         func(p *corev1.Pod) { p.UID = "" },
		`spec.containers[0].name: Invalid value: "a/b"`:           func(p *corev1.Pod) { p.Spec.Containers[0].Name = "a/b" },
		"spec.containers[0].image: Required value":                func(p *corev1.Pod) { p.Spec.Containers[0].Image = "" },
		`spec.containers[0].name: Duplicate value: "main"`:        func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "main", Image: "i"}} },
		`spec.restartPolicy: Unsupported value: "Sometimes"`:      func(p *corev1.Pod) { p.Spec.RestartPolicy = "Sometimes" },
		`spec.dnsPolicy: Unsupported value: "x"`:                  func(p *corev1.Pod) { p.Spec.DNSPolicy = "x" },
		"spec.dnsConfig.nameservers: Required value":              func(p *corev1.Pod) { p.Spec.DNSPolicy = corev1.DNSNone },
		`spec.activeDeadlineSeconds: Invalid value: 0`:            func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr.To[int64](0) },
		`spec.hostAliases[0].ip: Invalid value: "x"`:              func(p *corev1.Pod) { p.Spec.HostAliases = []corev1.HostAlias{{IP: "x"}} },
		`spec.hostAliases[0].hostnames[0]: Invalid value: "a\nb"`: func(p *corev1.Pod) { p.Spec.HostAliases = []corev1.HostAlias{{IP: "::1", Hostnames: []string{"a\nb"}}} },
		`spec.volumes[0].name: Invalid value: ".."`:               func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: ".."}} },
		`spec.volumes[1].name: Duplicate value: "v"`:              func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: "v"}, {Name: "v"}} },
		"spec.volumes[0]: Forbidden: may not specify more than 1": func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}, NFS: &corev1.NFSVolumeSource{}}}}
		},
		`spec.volumes[0].hostPath.path: Invalid value: "/a/../b"`: func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/a/../b"}}}}
		},
		`spec.containers[0].volumeMounts[0].name: Not found: "w"`:         mount(corev1.VolumeMount{Name: "w", MountPath: "/m"}),
		"spec.containers[0].volumeMounts[0].mountPath: Required value":    mount(corev1.VolumeMount{Name: "v"}),
		`spec.containers[0].volumeMounts[0].subPath: Invalid value: "a/.`: mount(corev1.VolumeMount{Name: "v", MountPath: "/m", SubPath: "a/../b"}),
		`spec.containers[0].volumeMounts[0].subPath: Invalid value: "/a"`: mount(corev1.VolumeMount{Name: "v", MountPath: "/m", SubPath: "/a"}),
		"spec.containers[0].volumeMounts[0].mountPropagation: Forbidden":  mount(corev1.VolumeMount{Name: "v", MountPath: "/m", MountPropagation: ptr.To(corev1.MountPropagationBidirectional)}),
		`spec.containers[0].ports[0].containerPort: Invalid value: "0"`:   func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{}} },
		`spec.containers[0].env[0].name: Invalid value: "a=b"`:            func(p *corev1.Pod) { p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "a=b"}} },
		`spec.containers[0].resources.requests: Invalid value: "2"`:       withResources(list("cpu", "2"), list("cpu", "1")),
		"spec.containers[0].securityContext: Invalid value": func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true), AllowPrivilegeEscalation: ptr.To(false)}
		},
	} {
		errs := Validate(testPod(change))
		if len(errs) == 0 || !strings.HasPrefix(errs[0].Error(), want) {
			t.Errorf("got %v, want %s", errs, want)
		}
	}
	if errs := Validate(testPod(fullContainer)); len(errs) != 0 {
		t.Errorf("a valid Pod: %v", errs)
	}
}

func TestDefaultFillsInWhatTheAPIServerWould(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{
		HostNetwork:              true,
		DeprecatedServiceAccount: "sa",
		Volumes: []corev1.Volume{{Name: "e"},
			{Name: "h", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}},
			{Name: "p", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}}},
		Containers: []corev1.Container{{
			Name: "c", Image: "host:5000/img", Ports: []corev1.ContainerPort{{ContainerPort: 80}},
			Resources:     corev1.ResourceRequirements{Limits: list("cpu", "1")},
			LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}}},
			StartupProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 1}}, PeriodSeconds: 3},
			Lifecycle:     &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/x"}}},
			Env:           []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}},
		}},
	}}
	want := pod.DeepCopy()
	want.Namespace = "default"
	s := &want.Spec
	s.ServiceAccountName, s.DNSPolicy, s.RestartPolicy, s.SchedulerName = "sa", "ClusterFirst", "Always", "default-scheduler"
	s.EnableServiceLinks, s.TerminationGracePeriodSeconds, s.SecurityContext = ptr.To(true), ptr.To[int64](30), &corev1.PodSecurityContext{}
	s.Volumes[0].EmptyDir = &corev1.EmptyDirVolumeSource{}
	s.Volumes[1].HostPath.Type = ptr.To(corev1.HostPathUnset)
	s.Volumes[2].Projected.DefaultMode = ptr.To[int32](0o644)
	s.Volumes[2].Projected.Sources[0].ServiceAccountToken.ExpirationSeconds = ptr.To[int64](3600)
	c := &s.Containers[0]
	c.ImagePullPolicy, c.TerminationMessagePath, c.TerminationMessagePolicy = "Always", "/dev/termination-log", "File"
	c.Ports[0] = corev1.ContainerPort{ContainerPort: 80, HostPort: 80, Protocol: "TCP"}
	c.Resources.Requests = list("cpu", "1")
	*c.LivenessProbe = corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80), Path: "/", Scheme: "HTTP"}},
		TimeoutSeconds: 1, PeriodSeconds: 10, SuccessThreshold: 1, FailureThreshold: 3}
	*c.StartupProbe = corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 1, Service: ptr.To("")}},
		TimeoutSeconds: 1, PeriodSeconds: 3, SuccessThreshold: 1, FailureThreshold: 3}
	c.Lifecycle.PreStop.HTTPGet.Scheme = "HTTP"
	c.Env[0].ValueFrom.FieldRef.APIVersion = "v1"
	Default(pod)
	if d := cmp.Diff(want, pod); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	again := pod.DeepCopy()
	if Default(again); !cmp.Equal(pod, again) {
		t.Errorf("a second time changes:\n%s", cmp.Diff(pod, again))
	}
}

func TestPullPolicyDependsOnTheTag(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"a": "Always", "a:latest": "Always", "a:1": "IfNotPresent", "h:5000/a": "Always", "h:5000/a:1": "IfNotPresent",
		"a@sha256:abcd": "IfNotPresent", "h/a:latest@sha256:abcd": "IfNotPresent",
	} {
		if got := pullPolicy(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestSourceNameIsTheAPIsName(t *testing.T) {
	if got := SourceName(&corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}); got != "nfs" {
		t.Errorf("got %s", got)
	}
	if got := SourceName(&corev1.VolumeSource{}); got != "emptyDir" {
		t.Errorf("got %s", got)
	}
}
