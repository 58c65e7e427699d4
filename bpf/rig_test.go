// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
)

// What a tc program returns (linux/pkt_cls.h).
type verdict int32

const (
	stack    verdict = -1 // TC_ACT_UNSPEC: left to the next program and the stack
	drop     verdict = 2  // TC_ACT_SHOT
	redirect verdict = 7  // TC_ACT_REDIRECT
)

func (v verdict) String() string {
	switch v {
	case stack:
		return "left to the stack"
	case drop:
		return "dropped"
	case redirect:
		return "redirected"
	}
	return fmt.Sprintf("verdict(%d)", int32(v))
}

// hook is where a packet meets a program.
type hook struct {
	side   side
	device string
}

type side int

const (
	fromUplink side = iota
	fromPod
	fromHost
)

func (s side) String() string { return [...]string{"from uplink", "from pod", "from host"}[s] }

// The devices of the rig. All packets arrive at or leave from one of them.
const (
	uplink   = "fairlead-up"
	podLink  = "fairlead-pod"
	thinLink = "fairlead-thin" // its MTU is small
	thinMTU  = 1400
)

var (
	arriving     = hook{fromUplink, uplink}
	leavingPod   = hook{fromPod, podLink}
	leavingThin  = hook{fromPod, thinLink}
	leavingHost  = hook{fromHost, uplink}
	hostToPod    = hook{fromHost, podLink}
	linkMAC      = map[string]mac{uplink: {2, 0, 0, 0, 0, 1}, podLink: {2, 0, 0, 0, 0, 2}, thinLink: {2, 0, 0, 0, 0, 3}}
	podMAC       = mac{2, 0, 0, 0, 1, 11}
	thinMAC      = mac{2, 0, 0, 0, 1, 12}
	remoteMAC    = mac{2, 0, 0, 0, 2, 2}
	gatewayMAC   = mac{2, 0, 0, 0, 2, 254}
	sharedRig    *rig
	sharedRigErr error
	startRig     sync.Once
)

// rig is the loaded programs, and a network namespace in which one locked
// thread runs them. There is one for the process; the namespace has no name
// and dies with it.
type rig struct {
	objects packetPath
	work    chan func()
	index   map[string]int
}

// tellsMTU is whether bpf_fib_lookup answers with the path's MTU: it does where
// there is bpf_check_mtu, which came with it (5.12).
var tellsMTU = features.HaveProgramHelper(ebpf.SchedCLS, asm.FnCheckMtu) == nil

// packetPath is what the rig uses: no program that not every kernel can load.
type packetPath struct {
	bpf.FairleadMaps
	FairleadFromUplink *ebpf.Program `ebpf:"fairlead_from_uplink"`
	FairleadFromPod    *ebpf.Program `ebpf:"fairlead_from_pod"`
	FairleadFromHost   *ebpf.Program `ebpf:"fairlead_from_host"`
}

// newRig gives the process's rig with empty maps. Tests that use it do not run
// in parallel.
func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: eBPF programs are loaded and run")
	}
	startRig.Do(func() { sharedRig, sharedRigErr = openRig(1 << 11) })
	if sharedRigErr != nil {
		t.Fatal(sharedRigErr)
	}
	sharedRig.clear(t)
	return sharedRig
}

func openRig(conntrackMax uint32) (*rig, error) {
	r := &rig{work: make(chan func()), index: map[string]int{}}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, err
	}
	spec, err := bpf.LoadFairlead()
	if err != nil {
		return nil, err
	}
	if path := os.Getenv("FAIRLEAD_TEST_OBJECT"); path != "" { // to compare builds of the same layout
		if spec, err = ebpf.LoadCollectionSpec(path); err != nil {
			return nil, err
		}
	}
	spec.Maps["conntrack"].MaxEntries, spec.Maps["fragments"].MaxEntries = conntrackMax, 1<<10
	if err := spec.LoadAndAssign(&r.objects, nil); err != nil {
		return nil, fmt.Errorf("load programs: %+v", err)
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in another namespace
		failed <- r.buildNamespace()
		for f := range r.work {
			f()
		}
	}()
	return r, <-failed
}

// in runs f on the thread that is in the rig's namespace.
func (r *rig) in(f func()) {
	done := make(chan struct{})
	r.work <- func() { defer close(done); f() }
	<-done
}

func (r *rig) buildNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	for _, path := range []string{
		"ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding",
	} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0); err != nil {
			return err
		}
	}
	for _, path := range []string{"ipv6/conf/default/accept_dad", "ipv6/conf/all/accept_dad"} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte("0"), 0); err != nil {
			return err
		}
	}
	if err := errors.Join(
		r.addDevice(uplink, 1500, "192.0.2.1/24", "2001:db8:1::1/64"),
		r.addDevice(podLink, 1500),
		r.addDevice(thinLink, thinMTU),
		r.addNeighbour(uplink, "192.0.2.2", remoteMAC), r.addNeighbour(uplink, "2001:db8:1::2", remoteMAC),
		r.addNeighbour(uplink, "192.0.2.254", gatewayMAC), r.addNeighbour(uplink, "2001:db8:1::254", gatewayMAC),
		r.addNeighbour(podLink, "10.244.1.11", podMAC), r.addNeighbour(podLink, "fd00:10:244:1::11", podMAC),
		r.addNeighbour(thinLink, "10.244.1.12", thinMAC), r.addNeighbour(thinLink, "fd00:10:244:1::12", thinMAC),
	); err != nil {
		return err
	}
	return errors.Join(
		r.addRoute(podLink, "10.244.1.11/32", ""), r.addRoute(podLink, "fd00:10:244:1::11/128", ""),
		r.addRoute(podLink, "10.244.1.13/32", ""), r.addRoute(podLink, "fd00:10:244:1::13/128", ""), // no neighbour
		r.addRoute(thinLink, "10.244.1.12/32", ""), r.addRoute(thinLink, "fd00:10:244:1::12/128", ""),
		r.addRoute(uplink, "10.244.2.0/24", "192.0.2.2"), r.addRoute(uplink, "fd00:10:244:2::/64", "2001:db8:1::2"),
		r.addRoute(uplink, "0.0.0.0/0", "192.0.2.254"), r.addRoute(uplink, "::/0", "2001:db8:1::254"),
		r.addRoute("", "10.244.9.0/24", ""), r.addRoute("", "fd00:10:244:9::/64", ""), // blackholes
	)
}

func (r *rig) addDevice(name string, mtu int, addresses ...string) error {
	m := linkMAC[name]
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: m[:]}, PeerName: name + "-x"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add device %s: %w", name, err)
	}
	for _, n := range []string{name + "-x", name} {
		l, err := netlink.LinkByName(n)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		r.index[n] = l.Attrs().Index
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(veth, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	return nil
}

func (r *rig) addNeighbour(device, address string, m mac) error {
	err := netlink.NeighAdd(&netlink.Neigh{LinkIndex: r.index[device], IP: net.ParseIP(address), HardwareAddr: m[:], State: netlink.NUD_PERMANENT})
	if err != nil {
		return fmt.Errorf("add neighbour %s: %w", address, err)
	}
	return nil
}

func (r *rig) addRoute(device, prefix, via string) error {
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: r.index[device], Dst: dst, Gw: net.ParseIP(via)}
	if device == "" {
		route.Type = unix.RTN_BLACKHOLE
	} else if via == "" {
		route.Scope = netlink.SCOPE_LINK
	}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("add route %s: %w", prefix, err)
	}
	return nil
}

func (r *rig) program(s side) *ebpf.Program {
	return [...]*ebpf.Program{r.objects.FairleadFromUplink, r.objects.FairleadFromPod, r.objects.FairleadFromHost}[s]
}

// skBuff is struct __sk_buff (linux/bpf.h), what a test run takes of it.
type skBuff struct {
	Len, PktType, Mark, QueueMapping, Protocol, VLANPresent, VLANTCI, VLANProto, Priority,
	IngressIfindex, Ifindex, TCIndex uint32
	CB                                             [5]uint32
	Hash, TCClassid, Data, DataEnd, NAPIID, Family uint32
	RemoteIP4, LocalIP4                            uint32
	RemoteIP6, LocalIP6                            [4]uint32
	RemotePort, LocalPort, DataMeta                uint32
	FlowKeys                                       uint64
	Tstamp                                         uint64
	WireLen, GSOSegs                               uint32
	Sk                                             uint64
	GSOSize                                        uint32
	TstampType                                     uint8
	_                                              [3]uint8
	HWTstamp                                       uint64
}

// run gives a frame to the hook's program.
func (r *rig) run(h hook, frame []byte) (verdict, []byte, error) {
	var code uint32
	var err error
	out := make([]byte, len(frame)+256)
	opts := ebpf.RunOptions{Data: frame, DataOut: out, Context: skBuff{Ifindex: uint32(r.index[h.device])}}
	r.in(func() { code, err = r.program(h.side).Run(&opts) })
	return verdict(code), opts.DataOut, err
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
