// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
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

func TestSourceNameIsTheAPIsName(t *testing.T) {
	if got := SourceName(&corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}); got != "nfs" {
		t.Errorf("got %s", got)
	}
	if got := SourceName(&corev1.VolumeSource{}); got != "emptyDir" {
		t.Errorf("got %s", got)
	}
}
