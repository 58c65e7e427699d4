// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/controller/config"
	"fairlead.dev/podrunner/node"
	"fairlead.dev/podrunner/podspec"
)

// podFacts are what Pods can see of the node.
type podFacts struct {
	c              *config.Configuration
	hostIPs        []netip.Addr
	dns            []netip.Addr
	node           *corev1.Node // of this machine, as no API server knows it
	hugePages      []string
	masked         []string
	unified        bool
	runtimeHandler func(class string) (string, error) // nil: only the default
}

func newPodFacts(c *config.Configuration) (*podFacts, error) {
	f := &podFacts{c: c}
	var err error
	if f.hostIPs, err = hostAddresses(c); err != nil {
		return nil, err
	}
	if f.dns, err = c.ClusterDNSAddresses(); err != nil {
		return nil, err
	}
	labels, err := c.NodeLabelMap()
	if err != nil {
		return nil, err
	}
	if f.node, err = node.Local(node.Options{Name: c.NodeName, MaxPods: c.MaxPods, Labels: labels, Addresses: f.hostIPs, Root: c.StateDir}); err != nil {
		return nil, err
	}
	sizes, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, s := range sizes {
		f.hugePages = append(f.hugePages, hugePageSize(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(s), "hugepages-"), "kB")))
	}
	f.masked, _ = filepath.Glob("/sys/devices/system/cpu/cpu*/thermal_throttle")
	var fs unix.Statfs_t
	f.unified = unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
	return f, nil
}

// hugePageSize writes a number of KiB as cgroups do: 2048 is 2MB.
func hugePageSize(kib string) string {
	var n int
	if _, err := fmt.Sscan(kib, &n); err != nil {
		return kib + "KB"
	}
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%dGB", n>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%dMB", n>>10)
	}
	return fmt.Sprintf("%dKB", n)
}

// facts are asked for at each step of a Pod. Files of the node are read anew:
// they may change.
func (f *podFacts) facts() podspec.Facts {
	memory := f.node.Status.Capacity[corev1.ResourceMemory]
	resolv, _ := os.ReadFile(f.c.ResolvConf)
	hosts, _ := os.ReadFile("/etc/hosts")
	return podspec.Facts{
		NodeName: f.c.NodeName, HostIPs: f.hostIPs,
		Allocatable: f.node.Status.Allocatable, MemoryCapacity: memory.Value(),
		ClusterDNS: f.dns, ClusterDomain: f.c.ClusterDomain,
		HostResolvConf: string(resolv), HostsFile: string(hosts),
		LogRoot: f.c.PodLogDir, CgroupDriver: f.c.CgroupDriver, CgroupRoot: f.c.PodCgroupRoot, CgroupV2: f.unified,
		HugePageSizes: f.hugePages, MaskedPaths: f.masked, RuntimeHandler: f.runtimeHandler,
	}
}

// podCgroup is the cgroup that a Pod's containers are in.
func (f *podFacts) podCgroup(p *corev1.Pod) string {
	return podspec.CgroupParent(p, &podspec.Facts{CgroupDriver: f.c.CgroupDriver, CgroupRoot: f.c.PodCgroupRoot})
}

// hostAddresses are the node's primary ones: of --bind-address, or those that
// it would speak from to the rest of the world.
func hostAddresses(c *config.Configuration) ([]netip.Addr, error) {
	if ips, err := c.NodeIPs(); err != nil || len(ips) > 0 {
		return ips, err
	}
	var out []netip.Addr
	// Addresses for documentation (RFC 5737, RFC 3849): no packet is sent.
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		routes, err := netlink.RouteGet(net.ParseIP(to))
		if err != nil || len(routes) == 0 {
			continue
		}
		if a, ok := netip.AddrFromSlice(routes[0].Src); ok && a.Unmap().IsGlobalUnicast() {
			out = append(out, a.Unmap())
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no address of the node was found, since it has no default route: set --bind-address")
	}
	return out, nil
}
