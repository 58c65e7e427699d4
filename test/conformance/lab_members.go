// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"

	"fairlead.dev/test/internal/namespace"
)

// Addresses of the router and the clients.
var (
	routerAddresses  = addresses{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	farLinkAddresses = addresses{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:ffff::1")}
	farAddresses     = addresses{netip.MustParseAddr("203.0.113.100"), netip.MustParseAddr("2001:db8:ffff::100")}

	defaultRoutes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
)

const (
	ordinaryMTU = 1500
	// narrowMTU is that of the far client's link and of one pod: big enough
	// for IPv6 (1280), small enough to need path MTU discovery.
	narrowMTU = 1300
	// extraClients are further addresses of the client "outside", from .101.
	extraClients = 24
)

// buildRouter makes the bridge between nodes and clients, and the clients' links.
func (l *lab) buildRouter() error {
	// Path MTU errors are what some cases wait for: no limit on their rate.
	ns, err := l.newNamespace(forwarding, map[string]string{"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0"})
	if err != nil {
		return err
	}
	l.router = ns
	if err := ns.Links.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge0", MTU: ordinaryMTU}}); err != nil {
		return fmt.Errorf("make the bridge: %w", err)
	}
	if err := ns.Up("bridge0"); err != nil {
		return err
	}
	return addressBoth(ns, "bridge0", routerAddresses, 24, 64)
}

// plug gives a namespace a link to the bridge and a default route. The further
// addresses come first: Linux speaks from the IPv6 address it got last.
func (l *lab) plug(ns *namespace.Namespace, link, name string, a addresses, further ...addresses) error {
	port := "to-" + name
	if err := namespace.Wire(l.router, port, ns, link, ordinaryMTU); err != nil {
		return err
	}
	p, err := l.router.Links.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find bridge port: %w", err)
	}
	b, err := l.router.Links.LinkByName("bridge0")
	if err == nil {
		err = l.router.Links.LinkSetMaster(p, b)
	}
	if err != nil {
		return fmt.Errorf("join %s to the bridge: %w", port, err)
	}
	for _, f := range further {
		if err := addressBoth(ns, link, f, 32, 64); err != nil {
			return err
		}
	}
	if err := addressBoth(ns, link, a, 24, 64); err != nil {
		return err
	}
	return defaultVia(ns, link, routerAddresses)
}

func addressBoth(ns *namespace.Namespace, link string, a addresses, bits4, bits6 int) error {
	if err := ns.Address(link, netip.PrefixFrom(a.v4, bits4)); err != nil {
		return err
	}
	return ns.Address(link, netip.PrefixFrom(a.v6, bits6))
}

func defaultVia(ns *namespace.Namespace, link string, via addresses) error {
	if err := ns.Route(defaultRoutes[0], via.v4, link); err != nil {
		return err
	}
	return ns.Route(defaultRoutes[1], via.v6, link)
}

// podPlan is one pod: its node, its last address byte, and its peculiarity.
type podPlan struct {
	name     string
	node     int
	last     byte
	bypasses bool // its process is outside the node's cgroup
	mtu      int
	silent   bool // has no route and no process: nothing ever comes back
	// unhooked adds a second process of this name to the pod, outside the
	// node's cgroup: the same client, by the other path.
	unhooked string
}

var podPlans = []podPlan{
	{name: "client", node: 0, last: 10, mtu: ordinaryMTU, unhooked: "client-unhooked"},
	{name: "bypass", node: 0, last: 20, mtu: ordinaryMTU, bypasses: true},
	{name: "a", node: 0, last: 11, mtu: ordinaryMTU},
	{name: "b", node: 0, last: 12, mtu: ordinaryMTU},
	{name: "c", node: 0, last: 13, mtu: ordinaryMTU, bypasses: true},
	{name: "mute", node: 0, last: 99, mtu: ordinaryMTU, silent: true},
	{name: "d", node: 1, last: 11, mtu: ordinaryMTU},
	{name: "e", node: 1, last: 12, mtu: ordinaryMTU},
	{name: "narrow", node: 1, last: 13, mtu: narrowMTU},
	{name: "pod2", node: 1, last: 10, mtu: ordinaryMTU},
}

// serverPorts are where every process answers, TCP and UDP.
var serverPorts = []uint16{8080, 8081, 9090}

func (l *lab) buildMembers() error {
	for _, p := range podPlans {
		if err := l.buildPod(p); err != nil {
			return fmt.Errorf("pod %s: %w", p.name, err)
		}
	}
	for i, n := range l.nodes {
		name := fmt.Sprintf("host%d", i+1)
		m := &member{node: n, host: true, addresses: addresses{n.PrimaryIPv4, n.PrimaryIPv6}}
		if err := l.enlist(name, m, n.ns, filepath.Join(n.CgroupRoot, "host")); err != nil {
			return err
		}
	}
	for i, name := range []string{"outside", "outside2"} {
		a := addresses{netip.AddrFrom4([4]byte{192, 0, 2, byte(100 - 10*i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 100-10*i))}
		if err := l.buildClient(name, a); err != nil {
			return err
		}
	}
	if err := l.buildFarClient(); err != nil {
		return err
	}
	return l.serve()
}

func (l *lab) buildPod(p podPlan) error {
	n := l.nodes[p.node]
	ns, err := l.newNamespace()
	if err != nil {
		return err
	}
	port := "pod-" + p.name
	if err := namespace.Wire(n.ns, port, ns, "eth0", p.mtu); err != nil {
		return err
	}
	gateway, a := n.gateway(), n.pod(p.last)
	if err := addressBoth(n.ns, port, gateway, 32, 128); err != nil {
		return err
	}
	if err := addressBoth(ns, "eth0", a, 32, 128); err != nil {
		return err
	}
	for _, host := range []netip.Addr{a.v4, a.v6} {
		if err := n.ns.Route(netip.PrefixFrom(host, host.BitLen()), netip.Addr{}, port); err != nil {
			return err
		}
	}
	if p.silent {
		return nil
	}
	for _, host := range []netip.Addr{gateway.v4, gateway.v6} {
		if err := ns.Route(netip.PrefixFrom(host, host.BitLen()), netip.Addr{}, "eth0"); err != nil {
			return err
		}
	}
	if err := defaultVia(ns, "eth0", gateway); err != nil {
		return err
	}
	cgroup := filepath.Join(n.CgroupRoot, "pod-"+p.name)
	if p.bypasses {
		cgroup = filepath.Join(l.cgroups, "elsewhere", "pod-"+p.name)
	}
	if p.unhooked != "" {
		other := filepath.Join(l.cgroups, "elsewhere", p.unhooked)
		if err := l.enlist(p.unhooked, &member{node: n, addresses: a, clientOnly: true}, ns, other); err != nil {
			return err
		}
	}
	return l.enlist(p.name, &member{node: n, addresses: a}, ns, cgroup)
}

// pod is the address of the node's pod with that last byte.
func (n *Node) pod(last byte) addresses {
	v6 := n.PodCIDRs[1].Addr().As16()
	v6[15] = last
	return addresses{netip.AddrFrom4([4]byte{10, 244, byte(n.index), last}), netip.AddrFrom16(v6)}
}

func (l *lab) buildClient(name string, a addresses) error {
	ns, err := l.newNamespace()
	if err != nil {
		return err
	}
	var further []addresses
	for i := range extraClients {
		if name == "outside" {
			further = append(further, extraClient(i))
		}
	}
	if err := l.plug(ns, "eth0", name, a, further...); err != nil {
		return err
	}
	return l.enlist(name, &member{addresses: a}, ns, filepath.Join(l.cgroups, "elsewhere", name))
}

// extraClient is a further address of the client "outside", i from 0.
func extraClient(i int) addresses {
	return addresses{netip.AddrFrom4([4]byte{192, 0, 2, byte(101 + i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 101+i))}
}

// buildFarClient makes the client behind a link too narrow for full packets.
func (l *lab) buildFarClient() error {
	ns, err := l.newNamespace()
	if err != nil {
		return err
	}
	if err := namespace.Wire(l.router, "to-far", ns, "eth0", narrowMTU); err != nil {
		return err
	}
	if err := addressBoth(l.router, "to-far", farLinkAddresses, 24, 64); err != nil {
		return err
	}
	if err := addressBoth(ns, "eth0", farAddresses, 24, 64); err != nil {
		return err
	}
	if err := defaultVia(ns, "eth0", farLinkAddresses); err != nil {
		return err
	}
	return l.enlist("far", &member{addresses: farAddresses}, ns, filepath.Join(l.cgroups, "elsewhere", "far"))
}

func (l *lab) enlist(name string, m *member, ns *namespace.Namespace, cgroup string) error {
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return fmt.Errorf("make cgroup of %s: %w", name, err)
	}
	var err error
	if m.process, err = startProcess(name, ns, cgroup); err != nil {
		return err
	}
	l.members[name] = m
	return nil
}

// serve makes every process listen, all at the same time.
func (l *lab) serve() error {
	errs := make(chan error, len(l.members))
	var wg sync.WaitGroup
	for _, m := range l.members {
		if m.clientOnly {
			continue
		}
		var at []netip.AddrPort
		for _, port := range serverPorts {
			at = append(at, netip.AddrPortFrom(m.v4, port), netip.AddrPortFrom(m.v6, port))
		}
		wg.Go(func() {
			_, err := m.do(call{Op: opServe, Listen: at})
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
