// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Sandbox returns the configuration of a Pod's sandbox; attempt counts the
// sandboxes that it had before. Errors are *Refused.
func Sandbox(pod *corev1.Pod, attempt uint32, f *Facts) (*runtimeapi.PodSandboxConfig, error) {
	c, err := sandbox(pod, attempt, f)
	return c, refuse(ReasonSandbox, err)
}

func sandbox(pod *corev1.Pod, attempt uint32, f *Facts) (*runtimeapi.PodSandboxConfig, error) {
	if err := unsupported(pod); err != nil {
		return nil, err
	}
	security, err := sandboxSecurity(pod)
	if err != nil {
		return nil, err
	}
	dns, _ := DNS(pod, f)
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt},
		Labels:       sandboxLabels(pod),
		Annotations:  sandboxAnnotations(pod),
		DnsConfig:    dns,
		LogDirectory: LogDir(pod, f),
		PortMappings: portMappings(pod),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    CgroupParent(pod, f),
			SecurityContext: security,
			Sysctls:         sysctls(pod),
		},
	}
	c.Linux.Resources, c.Linux.Overhead = sandboxResources(pod)
	if !pod.Spec.HostNetwork {
		if c.Hostname, err = kernelHostname(pod, f); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// unsupported is what the kubelet does with other parts that this runner has
// not.
func unsupported(pod *corev1.Pod) error {
	if u := pod.Spec.HostUsers; u != nil && !*u {
		return fmt.Errorf("can't set `spec.hostUsers: false` for pod %q, runtime does not support user namespaces", describe(pod))
	}
	if len(pod.Spec.ResourceClaims) > 0 {
		return fmt.Errorf("pod %q: resourceClaims need dynamic resource allocation, which is not supported", describe(pod))
	}
	return nil
}

func sandboxSecurity(pod *corev1.Pod) (*runtimeapi.LinuxSandboxSecurityContext, error) {
	groups, policy, err := supplementalGroups(pod)
	if err != nil {
		return nil, err
	}
	s := &runtimeapi.LinuxSandboxSecurityContext{
		Privileged:               hasPrivileged(pod),
		NamespaceOptions:         namespaces(pod),
		SupplementalGroups:       groups,
		SupplementalGroupsPolicy: policy,
		// The sandbox's own process needs no more than the least.
		Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	if p := pod.Spec.SecurityContext; p != nil {
		s.RunAsUser, s.RunAsGroup = int64Value(p.RunAsUser), int64Value(p.RunAsGroup)
		s.SelinuxOptions = selinux(p.SELinuxOptions)
	}
	return s, nil
}

// hasPrivileged of any kind of container: the sandbox must not be less.
func hasPrivileged(pod *corev1.Pod) bool {
	found := false
	eachContainer(pod, func(c *corev1.Container, _ string) {
		found = found || c.SecurityContext != nil && is(c.SecurityContext.Privileged)
	})
	return found
}

// eachContainer calls f for all containers: init, regular, ephemeral ones.
// field is the name of the list in the Pod's spec.
func eachContainer(pod *corev1.Pod, f func(c *corev1.Container, field string)) {
	for i := range pod.Spec.InitContainers {
		f(&pod.Spec.InitContainers[i], "initContainers")
	}
	for i := range pod.Spec.Containers {
		f(&pod.Spec.Containers[i], "containers")
	}
	for i := range pod.Spec.EphemeralContainers {
		f((*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon), "ephemeralContainers")
	}
}

// portMappings of the regular containers and sidecars; a port that is
// declared twice in one container is mapped once.
func portMappings(pod *corev1.Pod) []*runtimeapi.PortMapping {
	var mappings []*runtimeapi.PortMapping
	eachContainer(pod, func(c *corev1.Container, field string) {
		if field != "containers" && !(field == "initContainers" && restartable(c)) {
			return
		}
		seen := map[string]bool{}
		for _, p := range c.Ports {
			name := p.Name
			if name == "" {
				name = fmt.Sprintf("%s-%s-%s:%d:%d", family(p.HostIP), p.Protocol, p.HostIP, p.ContainerPort, p.HostPort)
			}
			if seen[name] {
				continue
			}
			seen[name] = true
			mappings = append(mappings, &runtimeapi.PortMapping{
				HostIp: p.HostIP, HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: protocol(p.Protocol),
			})
		}
	})
	return mappings
}

func family(ip string) string {
	a, err := netip.ParseAddr(ip)
	switch {
	case err != nil:
		return "any"
	case a.Is4():
		return "v4"
	}
	return "v6"
}

func protocol(p corev1.Protocol) runtimeapi.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return runtimeapi.Protocol_UDP
	case corev1.ProtocolSCTP:
		return runtimeapi.Protocol_SCTP
	}
	return runtimeapi.Protocol_TCP
}

func sysctls(pod *corev1.Pod) map[string]string {
	m := map[string]string{}
	if p := pod.Spec.SecurityContext; p != nil {
		for _, s := range p.Sysctls {
			m[dotted(s.Name)] = s.Value
		}
	}
	return m
}

// dotted writes a sysctl's name with dots (sysctl(8)): one with slashes may
// have dots within its elements, which then become slashes.
func dotted(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '.' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// Handler returns the runtime handler of a Pod. Errors are *Refused.
func Handler(pod *corev1.Pod, f *Facts) (string, error) {
	name := pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	if f.RuntimeHandler == nil {
		return "", &Refused{Reason: ReasonSandbox, Message: fmt.Sprintf("failed to get sandbox runtime: no runtime for %q is configured", *name)}
	}
	h, err := f.RuntimeHandler(*name)
	if err != nil {
		return "", &Refused{Reason: ReasonSandbox, Message: "failed to get sandbox runtime: " + err.Error(), Err: err}
	}
	return h, nil
}
