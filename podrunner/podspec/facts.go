// SPDX-License-Identifier: Apache-2.0

// Package podspec translates a Pod into what a container runtime is told: the
// sandbox's and the containers' configuration of the CRI. It is responsible
// for meaning by every field what the kubelet documents for it. It refuses to
// know runtimes, disks and clocks: all it needs is in Facts, and the same
// input gives the same output.
package podspec

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// Facts is what a translation needs to know besides the Pod.
type Facts struct {
	NodeName string
	// HostIPs are the node's addresses, the primary one first.
	HostIPs []netip.Addr
	// PodIPs are the Pod's addresses, the primary one first; none before its
	// sandbox has them. Pods of the host's network need none.
	PodIPs []netip.Addr
	// Allocatable answers a resourceFieldRef to a limit that is not set.
	Allocatable corev1.ResourceList
	// MemoryCapacity of the node in bytes: OOM scores are relative to it.
	MemoryCapacity int64

	ClusterDNS    []netip.Addr
	ClusterDomain string
	// HostResolvConf is the content of the node's resolv.conf, HostsFile that
	// of its /etc/hosts.
	HostResolvConf, HostsFile string

	// LogRoot is the directory of all Pods' logs. Default /var/log/pods.
	LogRoot string
	// CgroupDriver is "cgroupfs" or "systemd". Default cgroupfs.
	CgroupDriver string
	// CgroupRoot is the cgroup below which Pods are. Default /kubepods.
	CgroupRoot string
	// CgroupV2 says that the node has the unified hierarchy.
	CgroupV2 bool
	// HugePageSizes the node has, as the kernel names them ("2MB", "1GB"). A
	// container that asks for none of a size is held to none of it.
	HugePageSizes []string

	// SeccompRoot is the directory of Localhost seccomp profiles. Default
	// /var/lib/kubelet/seccomp.
	SeccompRoot string
	// SeccompDefault gives containers without a profile RuntimeDefault
	// instead of Unconfined.
	SeccompDefault bool
	// MaskedPaths are hidden from containers besides those that are on every
	// node: /sys/devices/system/cpu/cpu*/thermal_throttle where it exists.
	MaskedPaths []string
	// AllowedUnsafeSysctls are names, or prefixes that end in "*".
	AllowedUnsafeSysctls []string

	// RuntimeHandler returns the handler of a RuntimeClass, "" being the
	// runtime's default. nil knows only the default.
	RuntimeHandler func(runtimeClassName string) (string, error)
	Features       Features
}

// Features are what the runtime says that it can do (CRI StatusResponse).
type Features struct {
	// SupplementalGroupsPolicy is whether a policy other than Merge is
	// followed.
	SupplementalGroupsPolicy bool
	// MountOptions is whether bindMountOptions are followed.
	MountOptions bool
	// RecursiveReadOnly has the handlers that mount recursively read-only.
	RecursiveReadOnly map[string]bool
}

func (f *Facts) cgroupRoot() string {
	if f.CgroupRoot == "" {
		return "/kubepods"
	}
	return f.CgroupRoot
}

func (f *Facts) logRoot() string {
	if f.LogRoot == "" {
		return "/var/log/pods"
	}
	return f.LogRoot
}

func (f *Facts) seccompRoot() string {
	if f.SeccompRoot == "" {
		return "/var/lib/kubelet/seccomp"
	}
	return f.SeccompRoot
}
