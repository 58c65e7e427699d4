// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/internal/cgroup"
	"fairlead.dev/test/internal/namespace"
)

// Node is one node of the lab, as a Dataplane has to know it.
type Node struct {
	// Name is what EndpointSlices call the node: "node1" or "node2".
	Name string
	// NetNSPath leads to the node's network namespace. Target.New and every
	// method of the Dataplane are called on a thread that is in it.
	NetNSPath string
	// CgroupRoot is the cgroup2 directory above the node's own processes and
	// those of its pods that the socket hooks see. Other pods are outside.
	CgroupRoot string
	// BPFFS is a directory of a bpffs mount of the node's own.
	BPFFS string
	// Devices are the names of the interfaces to other nodes and to clients.
	Devices []string
	// Addresses are all of the node's, without loopback and link-local ones.
	Addresses []netip.Addr
	// PrimaryIPv4 and PrimaryIPv6 are those of the uplink.
	PrimaryIPv4, PrimaryIPv6 netip.Addr
	// PodCIDRs are the ranges of the node's pods, IPv4 and IPv6.
	PodCIDRs []netip.Prefix

	index int
	ns    *namespace.Namespace
}

// uplink is the one interface of a node that is not a pod's.
const uplink = "uplink0"

// ClusterCIDRs are the ranges of all pods, ServiceCIDRs those of ClusterIPs.
var (
	ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
)

// externalCIDRs are where external and load balancer addresses of Services
// are taken from: whoever is not a node is routed to node1 with them.
var externalCIDRs = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:100::/112")}

// addresses of one member of the lab, IPv4 and IPv6.
type addresses struct{ v4, v6 netip.Addr }

func (a addresses) of(ipv6 bool) netip.Addr {
	if ipv6 {
		return a.v6
	}
	return a.v4
}

// member is a process of the lab with its addresses.
type member struct {
	*process
	addresses
	// node is where it runs, nil for clients beyond the nodes.
	node *Node
	// host: it runs in the node's own network namespace.
	host bool
	// clientOnly: another process serves at the same addresses.
	clientOnly bool
}

// lab is the whole topology, in the shape of a small cluster:
//
//	             outside, outside2                 far (MTU 1300)
//	                    |                             |
//	node1 (uplink0) --- bridge of the router, 192.0.2.1 and 2001:db8::1
//	   | pods           |
//	                  node2 (uplink0) --- pods, one of them with MTU 1300
type lab struct {
	root    string
	cgroups string
	janitor *janitor
	router  *namespace.Namespace
	nodes   [2]*Node
	members map[string]*member
	spaces  []*namespace.Namespace
}

// newLab builds it; whatever happens, t's cleanup takes it down.
func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces and cgroups")
	}
	l := &lab{members: map[string]*member{}}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
	for _, build := range []func() error{l.buildPlaces, l.buildRouter, l.buildNodes, l.buildMembers} {
		if err := build(); err != nil {
			t.Fatalf("build the lab: %v", err)
		}
	}
	return l
}

func (l *lab) close() error {
	for _, m := range l.members {
		m.stop()
	}
	for _, ns := range l.spaces {
		ns.Close()
	}
	if l.janitor == nil {
		return nil
	}
	return l.janitor.finish()
}

// buildPlaces makes the directory, the cgroup and the mounts of this lab.
func (l *lab) buildPlaces() error {
	mount, err := cgroup.Mount()
	if err != nil {
		return err
	}
	if l.janitor, err = startJanitor(); err != nil {
		return err
	}
	name := fmt.Sprintf("fairlead-test-%d-", os.Getpid())
	if l.root, err = os.MkdirTemp("", name); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	if err := l.janitor.later(removeDir, l.root); err != nil {
		return err
	}
	if l.cgroups, err = os.MkdirTemp(mount, name); err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	return l.janitor.later(removeCgroup, l.cgroups)
}

func (l *lab) newNamespace(sysctls ...map[string]string) (*namespace.Namespace, error) {
	all := map[string]string{
		"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0",
		"ipv6/conf/all/disable_ipv6": "0", "ipv6/conf/default/disable_ipv6": "0",
	}
	for _, s := range sysctls {
		for k, v := range s {
			all[k] = v
		}
	}
	ns, err := namespace.New(all)
	if err == nil {
		l.spaces = append(l.spaces, ns)
	}
	return ns, err
}

// forwarding are the sysctls of a router.
var forwarding = map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/default/forwarding": "1"}

// strictReversePath is what distributions set on nodes, in its strict form: a
// Dataplane must not depend on packets that come from where they don't belong.
var strictReversePath = map[string]string{"ipv4/conf/all/rp_filter": "1", "ipv4/conf/default/rp_filter": "1"}

func (l *lab) buildNodes() error {
	for i := range l.nodes {
		ns, err := l.newNamespace(forwarding, strictReversePath)
		if err != nil {
			return err
		}
		n := &Node{
			Name: fmt.Sprintf("node%d", i+1), NetNSPath: ns.Path(), Devices: []string{uplink}, ns: ns, index: i + 1,
			PrimaryIPv4: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}),
			PrimaryIPv6: netip.MustParseAddr(fmt.Sprintf("2001:db8::1%d", 1+i)),
			PodCIDRs: []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1)),
				netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", i+1)),
			},
			CgroupRoot: filepath.Join(l.cgroups, fmt.Sprintf("node%d", i+1)),
		}
		gateway := n.gateway()
		n.Addresses = []netip.Addr{n.PrimaryIPv4, gateway.v4, n.PrimaryIPv6, gateway.v6}
		l.nodes[i] = n
		if err := l.mountBPFFS(n); err != nil {
			return err
		}
		if err := l.plug(ns, uplink, n.Name, addresses{n.PrimaryIPv4, n.PrimaryIPv6}); err != nil {
			return err
		}
	}
	return l.routeNodes()
}

// routeNodes lets everyone reach everyone's pods, and what is no node the
// addresses of Services by way of node1.
func (l *lab) routeNodes() error {
	for _, n := range l.nodes {
		for i, via := range []netip.Addr{n.PrimaryIPv4, n.PrimaryIPv6} {
			if err := l.router.Route(n.PodCIDRs[i], via, "bridge0"); err != nil {
				return err
			}
		}
	}
	for i, via := range []netip.Addr{l.nodes[0].PrimaryIPv4, l.nodes[0].PrimaryIPv6} {
		for _, p := range []netip.Prefix{externalCIDRs[i], ServiceCIDRs[i]} {
			if err := l.router.Route(p, via, "bridge0"); err != nil {
				return err
			}
		}
	}
	for i, n := range l.nodes {
		other := l.nodes[1-i]
		for j, via := range []netip.Addr{other.PrimaryIPv4, other.PrimaryIPv6} {
			if err := n.ns.Route(other.PodCIDRs[j], via, uplink); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lab) mountBPFFS(n *Node) error {
	n.BPFFS = filepath.Join(l.root, n.Name+"-bpffs")
	if err := os.Mkdir(n.BPFFS, 0o700); err != nil {
		return fmt.Errorf("make bpffs directory: %w", err)
	}
	if err := unix.Mount("fairlead", n.BPFFS, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", n.BPFFS, err)
	}
	return l.janitor.later(removeMount, n.BPFFS)
}

// gateway is the node's address on every pod's link.
func (n *Node) gateway() addresses {
	return addresses{n.PodCIDRs[0].Addr().Next(), n.PodCIDRs[1].Addr().Next()}
}
