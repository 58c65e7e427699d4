// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Check says whether a Pod can be run at all on this node; it is called once,
// before the Pod starts. nil means yes; what is refused here stays refused,
// and the Pod's phase becomes Failed with this reason and message.
func Check(pod *corev1.Pod, f *Facts) *Refused {
	if errs := Validate(pod); len(errs) > 0 {
		return &Refused{Reason: ReasonInvalid, Message: errs.ToAggregate().Error(), Err: errs.ToAggregate()}
	}
	if os := pod.Spec.OS; os != nil && os.Name != "" && os.Name != corev1.Linux {
		return &Refused{Reason: ReasonOS, Message: "Failed to admit pod as the OS field doesn't match node OS"}
	}
	if p := pod.Spec.SecurityContext; p != nil {
		if m := p.SupplementalGroupsPolicy; m != nil && *m != corev1.SupplementalGroupsPolicyMerge && !f.Features.SupplementalGroupsPolicy {
			return &Refused{Reason: ReasonGroupsPolicy, Message: fmt.Sprintf("SupplementalGroupsPolicy=%s is not supported in this node", *m)}
		}
		for _, s := range p.Sysctls {
			if err := checkSysctl(pod, s.Name, f.AllowedUnsafeSysctls); err != nil {
				return &Refused{Reason: ReasonSysctl, Message: "forbidden sysctl: " + err.Error()}
			}
		}
	}
	return nil
}

// safeSysctls are those that a Pod can set for itself and no other Pod
// notices (kubernetes.io/docs "Using sysctls in a Kubernetes Cluster").
var safeSysctls = []string{
	"kernel.shm_rmid_forced",
	"net.ipv4.ip_local_port_range",
	"net.ipv4.tcp_syncookies",
	"net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start",
	"net.ipv4.ip_local_reserved_ports",
	"net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout",
	"net.ipv4.tcp_keepalive_intvl",
	"net.ipv4.tcp_keepalive_probes",
	"net.ipv4.tcp_rmem",
	"net.ipv4.tcp_wmem",
	"net.ipv4.tcp_slow_start_after_idle",
	"net.ipv4.tcp_notsent_lowat",
}

// sysctlNamespaces says which namespace a sysctl is of; the rest is the
// node's.
var sysctlNamespaces = []struct{ prefix, namespace string }{
	{"kernel.domainname", "UTS"}, {"kernel.sem", "IPC"}, {"kernel.shm", "IPC"}, {"kernel.msg", "IPC"}, {"fs.mqueue.", "IPC"}, {"net.", "Net"}, {"user.", "User"},
}

func checkSysctl(pod *corev1.Pod, name string, unsafe []string) error {
	name = dotted(name)
	allowed := false
	for _, list := range [][]string{safeSysctls, unsafe} {
		for _, a := range list {
			prefix, pattern := strings.CutSuffix(dotted(a), "*")
			allowed = allowed || name == prefix || pattern && strings.HasPrefix(name, prefix)
		}
	}
	namespace := ""
	for _, n := range sysctlNamespaces {
		if strings.HasPrefix(name, n.prefix) {
			namespace = n.namespace
		}
	}
	switch {
	case !allowed, namespace == "":
		return fmt.Errorf("%q not allowlisted", name)
	case namespace == "Net" && pod.Spec.HostNetwork,
		namespace == "IPC" && pod.Spec.HostIPC,
		namespace == "User" && (pod.Spec.HostUsers == nil || *pod.Spec.HostUsers):
		return fmt.Errorf("%q not allowed with host %s enabled", name, namespace)
	}
	return nil
}
