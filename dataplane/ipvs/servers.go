// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	mobyipvs "github.com/moby/ipvs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// server is a virtual server as IPVS has it.
type server struct {
	family    *family
	scheduler string
	// weights of the destinations: 1 gets new connections, 0 none.
	weights map[netip.AddrPort]int
}

// kernel is IPVS of the network namespace it was opened in. Its methods may be
// called by several goroutines; they take turns.
type kernel struct {
	mu     sync.Mutex
	handle *mobyipvs.Handle
	marks  marks
}

var quiet sync.Once

// OpenHandle opens IPVS of the calling thread's network namespace. Close it.
func OpenHandle() (*mobyipvs.Handle, error) {
	quiet.Do(func() {
		// Its first call runs modprobe, and warns where that is not installed:
		// who comes here knows that the module is there.
		was := logrus.StandardLogger().Out
		logrus.SetOutput(io.Discard)
		defer logrus.SetOutput(was)
		if h, err := mobyipvs.New(""); err == nil {
			h.Close()
		}
	})
	h, err := mobyipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	return h, nil
}

func openKernel(m marks) (*kernel, error) {
	if err := haveIPVS(); err != nil {
		return nil, err
	}
	h, err := OpenHandle()
	if err != nil {
		return nil, err
	}
	return &kernel{handle: h, marks: m}, nil
}

func (k *kernel) close() { k.handle.Close() }

// service is what IPVS has to be told of a virtual server.
func service(mark uint32, f *family, scheduler string) *mobyipvs.Service {
	s := &mobyipvs.Service{FWMark: mark, AddressFamily: f.protocol, SchedName: scheduler, Netmask: 0xffffffff}
	if f == ipv6 {
		s.Netmask = 128
	}
	return s
}

func destinationOf(a netip.AddrPort, weight int) *mobyipvs.Destination {
	return &mobyipvs.Destination{
		Address: net.IP(a.Addr().AsSlice()), Port: a.Port(), Weight: weight,
		ConnectionFlags: mobyipvs.ConnectionFlagMasq, AddressFamily: familyOf(a.Addr()).protocol,
	}
}

// servers reads all of ours.
func (k *kernel) servers() (map[uint32]*server, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list, err := k.handle.GetServices()
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	out := map[uint32]*server{}
	for _, s := range list {
		if s.FWMark == 0 || !k.marks.ours(s.FWMark) {
			continue
		}
		v := &server{family: ipv4, scheduler: s.SchedName, weights: map[netip.AddrPort]int{}}
		if s.AddressFamily == unix.AF_INET6 {
			v.family = ipv6
		}
		destinations, err := k.destinations(s.FWMark, v.family)
		if err != nil {
			return nil, err
		}
		for _, d := range destinations {
			v.weights[d.address] = d.weight
		}
		out[s.FWMark] = v
	}
	return out, nil
}

// destination is what IPVS tells of one.
type destinationInfo struct {
	address     netip.AddrPort
	weight      int
	connections int // of any state
}

// destinations of a virtual server; k.mu is held.
func (k *kernel) destinations(mark uint32, f *family) ([]destinationInfo, error) {
	list, err := k.handle.GetDestinations(service(mark, f, ""))
	if err != nil {
		return nil, fmt.Errorf("list destinations of virtual server %#x: %w", mark, err)
	}
	out := make([]destinationInfo, 0, len(list))
	for _, d := range list {
		a, ok := netip.AddrFromSlice(d.Address)
		if !ok {
			continue
		}
		out = append(out, destinationInfo{netip.AddrPortFrom(a, d.Port), d.Weight, d.ActiveConnections + d.InactiveConnections})
	}
	return out, nil
}

// busy are the destinations of a virtual server that have connections.
func (k *kernel) busy(mark uint32, f *family) (map[netip.AddrPort]bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list, err := k.destinations(mark, f)
	out := map[netip.AddrPort]bool{}
	for _, d := range list {
		if d.connections > 0 {
			out[d.address] = true
		}
	}
	return out, err
}

// add makes a virtual server; one that is there is fine.
func (k *kernel) add(mark uint32, f *family, scheduler string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.handle.NewService(service(mark, f, scheduler))
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("make virtual server: this kernel has no scheduler %q (module ip_vs_%s)", scheduler, scheduler)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make virtual server %#x: %w", mark, err)
	}
	return nil
}

// schedule changes the scheduler of a virtual server.
func (k *kernel) schedule(mark uint32, f *family, scheduler string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.handle.UpdateService(service(mark, f, scheduler)); err != nil {
		return fmt.Errorf("change virtual server %#x to scheduler %s: %w", mark, scheduler, err)
	}
	return nil
}

// remove deletes a virtual server; one that is gone is fine.
func (k *kernel) remove(mark uint32, f *family) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.handle.DelService(service(mark, f, ""))
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete virtual server %#x: %w", mark, err)
	}
	return nil
}

// weigh gives a destination a weight; there says whether it is there.
func (k *kernel) weigh(mark uint32, f *family, a netip.AddrPort, weight int, there bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	do := k.handle.NewDestination
	if there {
		do = k.handle.UpdateDestination
	}
	err := do(service(mark, f, ""), destinationOf(a, weight))
	switch {
	case !there && errors.Is(err, unix.EEXIST):
		err = k.handle.UpdateDestination(service(mark, f, ""), destinationOf(a, weight))
	case there && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)):
		err = k.handle.NewDestination(service(mark, f, ""), destinationOf(a, weight))
	}
	if err != nil {
		return fmt.Errorf("give destination %s of virtual server %#x weight %d: %w", a, mark, weight, err)
	}
	return nil
}

// drop deletes a destination; one that is gone is fine.
func (k *kernel) drop(mark uint32, f *family, a netip.AddrPort) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.handle.DelDestination(service(mark, f, ""), destinationOf(a, 0))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("delete destination %s of virtual server %#x: %w", a, mark, err)
	}
	return nil
}

// present reports whether a virtual server is there.
func (k *kernel) present(mark uint32, f *family) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, err := k.handle.GetService(service(mark, f, ""))
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}
