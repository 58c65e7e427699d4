// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/internal/cgroup"
	"fairlead.dev/test/internal/namespace"
)

// The addresses of the server pod: those that Backends of the probed Service
// have before a flip, and those after.
const (
	backends    = 10
	firstBefore = 11 // last byte of the first address
	firstAfter  = firstBefore + backends
	serverPort  = 8080
)

func podIPv4(last int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 1, byte(last)}) }
func podIPv6(last int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:10:244:1::%d", last))
}

// site is a node with a client pod and a server pod, each with a veth to it.
type site struct {
	node, client, server *namespace.Namespace
	serving              *process // ends when nobody holds it
}

// lab is everything that is made: in the file system, in cgroup2, and two
// sites of the same shape, one for fairlead and one that it never touches.
type lab struct {
	root    string
	cgroup  string
	janitor *exec.Cmd
	hooked  *site
	bare    *site
	spaces  []*namespace.Namespace
	places  int
}

func newLab() (l *lab, err error) {
	mount, err := cgroup.Mount()
	if err != nil {
		return nil, err
	}
	l = &lab{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	name := fmt.Sprintf("fairlead-bench-%d", os.Getpid())
	l.root, l.cgroup = filepath.Join(os.TempDir(), name), filepath.Join(mount, name)
	if l.janitor, err = startJanitor(l.root, l.cgroup); err != nil {
		return l, err
	}
	for _, dir := range []string{l.root, l.cgroup} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return l, fmt.Errorf("make a place for the run: %w", err)
		}
	}
	for _, at := range []**site{&l.hooked, &l.bare} {
		if *at, err = l.newSite(); err != nil {
			return l, err
		}
	}
	return l, nil
}

// kill ends every process of the lab.
func (l *lab) kill() {
	_ = os.WriteFile(filepath.Join(l.cgroup, "cgroup.kill"), []byte("1"), 0)
}

func (l *lab) close() error {
	for _, ns := range l.spaces {
		ns.Close()
	}
	if l.janitor == nil {
		return nil
	}
	return finishJanitor(l.janitor)
}

// sysctls of every namespace: addresses are usable at once, the nodes forward.
var sysctls = map[string]string{
	"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0",
	"ipv6/conf/all/disable_ipv6": "0", "ipv6/conf/default/disable_ipv6": "0",
	"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/default/forwarding": "1",
	"core/somaxconn": "65535", "ipv4/tcp_max_syn_backlog": "65535",
}

func (l *lab) newNamespace() (*namespace.Namespace, error) {
	ns, err := namespace.New(sysctls)
	if err == nil {
		l.spaces = append(l.spaces, ns)
	}
	return ns, err
}

func (l *lab) newSite() (*site, error) {
	s := &site{}
	for _, ns := range []**namespace.Namespace{&s.node, &s.client, &s.server} {
		var err error
		if *ns, err = l.newNamespace(); err != nil {
			return nil, err
		}
	}
	err := addPod(s.node, s.client, "pod-client", 10, 1)
	if err == nil {
		err = addPod(s.node, s.server, "pod-server", firstBefore, 2*backends)
	}
	if err == nil {
		s.serving, err = l.start("server", s.server, "server")
	}
	return s, err
}

// closeSite ends a site before the lab ends, and so what is in its kernel.
func (l *lab) closeSite(s *site) {
	if s.serving != nil {
		s.serving.stop()
	}
	for _, ns := range []*namespace.Namespace{s.node, s.client, s.server} {
		if ns != nil {
			ns.Close()
			l.spaces = slices.DeleteFunc(l.spaces, func(other *namespace.Namespace) bool { return other == ns })
		}
	}
}

// addPod plugs a pod with n addresses, whose last bytes begin at first, into a
// node, as a CNI plugin of the kind "ptp" does.
func addPod(node, pod *namespace.Namespace, port string, first, n int) error {
	if err := namespace.Wire(node, port, pod, "eth0", 0); err != nil {
		return err
	}
	gateways := []netip.Addr{podIPv4(1), podIPv6(1)}
	for i, of := range []func(int) netip.Addr{podIPv4, podIPv6} {
		if err := node.Address(port, host(gateways[i])); err != nil {
			return err
		}
		for last := first; last < first+n; last++ {
			if err := pod.Address("eth0", host(of(last))); err != nil {
				return err
			}
			if err := node.Route(host(of(last)), netip.Addr{}, port); err != nil {
				return err
			}
		}
		if err := pod.Route(host(gateways[i]), netip.Addr{}, "eth0"); err != nil {
			return err
		}
		all := netip.PrefixFrom(map[bool]netip.Addr{false: netip.IPv4Unspecified(), true: netip.IPv6Unspecified()}[i == 1], 0)
		if err := pod.Route(all, gateways[i], "eth0"); err != nil {
			return err
		}
	}
	return nil
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// place is what one agent has to itself: pins, a cgroup for the processes that
// get its hooks, directories.
type place struct {
	dir, bpffs, manifests, state string
	// pods is the cgroup that gets hooks, self that of the agent alone.
	pods, self string
}

func (l *lab) newPlace() (*place, error) {
	l.places++
	name := fmt.Sprintf("agent%d", l.places)
	p := &place{dir: filepath.Join(l.root, name), self: name, pods: name + "-pods"}
	p.bpffs, p.manifests, p.state = filepath.Join(p.dir, "bpffs"), filepath.Join(p.dir, "manifests"), filepath.Join(p.dir, "state")
	for _, dir := range []string{p.dir, p.bpffs, p.manifests, p.state, l.cgroupDir(p.self), l.cgroupDir(p.pods)} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make a place for an agent: %w", err)
		}
	}
	if err := unix.Mount("fairlead", p.bpffs, "bpf", 0, ""); err != nil {
		return nil, fmt.Errorf("mount bpffs at %s: %w", p.bpffs, err)
	}
	return p, nil
}

// leave lets go of the pins, and so of all that the agent left in the kernel.
func (p *place) leave() error {
	if err := unix.Unmount(p.bpffs, 0); err != nil {
		return fmt.Errorf("unmount bpffs %s: %w", p.bpffs, err)
	}
	return os.RemoveAll(p.dir)
}

func (l *lab) cgroupDir(name string) string { return filepath.Join(l.cgroup, name) }
