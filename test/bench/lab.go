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
	"strings"

	"golang.org/x/sys/unix"
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
	node, client, server *namespace
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
	spaces  []*namespace
	places  int
}

func newLab() (l *lab, err error) {
	mount, err := cgroup2Mount()
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
		ns.close()
	}
	if l.janitor == nil {
		return nil
	}
	return finishJanitor(l.janitor)
}

func (l *lab) newNamespace() (*namespace, error) {
	ns, err := newNamespace()
	if err == nil {
		l.spaces = append(l.spaces, ns)
	}
	return ns, err
}

func (l *lab) newSite() (*site, error) {
	s := &site{}
	for _, ns := range []**namespace{&s.node, &s.client, &s.server} {
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
	for _, ns := range []*namespace{s.node, s.client, s.server} {
		if ns != nil {
			ns.close()
			l.spaces = slices.DeleteFunc(l.spaces, func(other *namespace) bool { return other == ns })
		}
	}
}

// addPod plugs a pod with n addresses, whose last bytes begin at first, into a
// node, as a CNI plugin of the kind "ptp" does.
func addPod(node, pod *namespace, port string, first, n int) error {
	if err := wire(node, port, pod, "eth0"); err != nil {
		return err
	}
	gateways := []netip.Addr{podIPv4(1), podIPv6(1)}
	for i, of := range []func(int) netip.Addr{podIPv4, podIPv6} {
		if err := node.address(port, gateways[i]); err != nil {
			return err
		}
		for last := first; last < first+n; last++ {
			if err := pod.address("eth0", of(last)); err != nil {
				return err
			}
			if err := node.route(host(of(last)), netip.Addr{}, port); err != nil {
				return err
			}
		}
		if err := pod.route(host(gateways[i]), netip.Addr{}, "eth0"); err != nil {
			return err
		}
		all := netip.PrefixFrom(map[bool]netip.Addr{false: netip.IPv4Unspecified(), true: netip.IPv6Unspecified()}[i == 1], 0)
		if err := pod.route(all, gateways[i], "eth0"); err != nil {
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

// cgroup2Mount finds where cgroup2 is mounted, alone or beside version 1.
func cgroup2Mount() (string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4], nil
		}
	}
	return "", errors.New("find cgroup2: it is not mounted; mount -t cgroup2 none /sys/fs/cgroup/unified")
}
