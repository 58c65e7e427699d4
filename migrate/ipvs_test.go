// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mobyipvs "github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// do fails the test where one of the errors is one.
func do(t *testing.T, errs ...error) {
	t.Helper()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

// virtualServer makes one with a destination.
func virtualServer(t *testing.T, at string, mark uint32, to string) {
	t.Helper()
	v := &mobyipvs.Service{SchedName: "rr", AddressFamily: unix.AF_INET, Netmask: 0xffffffff, FWMark: mark}
	if mark == 0 {
		a := netip.MustParseAddrPort(at)
		v.Address, v.Port, v.Protocol = net.IP(a.Addr().AsSlice()), a.Port(), unix.IPPROTO_TCP
		if a.Addr().Is6() {
			v.AddressFamily, v.Netmask = unix.AF_INET6, 128
		}
	}
	d := netip.MustParseAddrPort(to)
	do(t, withIPVS(func(h *mobyipvs.Handle) error {
		if err := h.NewService(v); err != nil {
			return err
		}
		return h.NewDestination(v, &mobyipvs.Destination{Address: net.IP(d.Addr().AsSlice()), Port: d.Port(), Weight: 1,
			ConnectionFlags: mobyipvs.ConnectionFlagMasq, AddressFamily: v.AddressFamily})
	}))
}

// addPort adds to a bitmap:port, which netlink.IpsetAdd cannot: the kernel wants
// the port marked as in network byte order.
func addPort(set string, port uint16) error {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_ADD|unix.NFNL_SUBSYS_IPSET<<8, unix.NLM_F_ACK|unix.NLM_F_EXCL)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(set)))
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	data.AddRtAttr(nl.IPSET_ATTR_PORT|int(nl.NLA_F_NET_BYTEORDER), binary.BigEndian.AppendUint16(nil, port))
	data.AddChild(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_LINENO | nl.NLA_F_NET_BYTEORDER, Value: 0})
	req.AddData(data)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

func virtualServers(t *testing.T) (list []string) {
	t.Helper()
	do(t, withIPVS(func(h *mobyipvs.Handle) error {
		all, err := h.GetServices()
		for _, v := range all {
			list = append(list, fmt.Sprintf("%v:%d mark %d", v.Address, v.Port, v.FWMark))
		}
		slices.Sort(list)
		return err
	}))
	return list
}

// echo answers each line by itself.
func echo(t *testing.T, at string) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					fmt.Fprint(c, line)
				}
			}()
		}
	}()
}

func echoes(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintln(c, "x"); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 2))
	return err
}

func TestIPSetsOfKubeProxyAreKnownByTheirNames(t *testing.T) {
	newNamespace(t)
	for _, name := range []string{"MINE", "KUBE-ROUTER-NETPOL", "KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"} {
		do(t, netlink.IpsetCreate(name, "hash:ip,port", netlink.IpsetCreateOptions{Family: unix.AF_INET}))
	}
	do(t, netlink.IpsetCreate("KUBE-NODE-PORT-UDP", "bitmap:port", netlink.IpsetCreateOptions{PortFrom: 0, PortTo: 65535}), addPort("KUBE-NODE-PORT-UDP", 30053))
	var s ipvsState
	ports, err := s.findSets()
	do(t, err)
	want := []string{"KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS", "KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-NODE-PORT-UDP"}
	if diff := cmp.Diff(want, s.sets); diff != "" {
		t.Errorf("sets (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[nodePort]bool{{unix.IPPROTO_UDP, 30053}: true}, ports, cmp.AllowUnexported(nodePort{})); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
}

func TestOfIPVSOnlyKubeProxysIsRemovedOnceItsConnectionsHaveEnded(t *testing.T) {
	if _, err := netlink.GenlFamilyGet("IPVS"); err != nil {
		t.Skipf("this kernel has no IPVS: %v; test/vm runs this on one that has", err)
	}
	newNamespace(t)
	lo, err := netlink.LinkByName("lo")
	do(t, err, netlink.LinkSetUp(lo))
	for link, addresses := range map[string][]string{"lo": {"10.244.1.2/32", "192.0.2.1/32"}, ipvsDevice: {"10.96.0.10/32", "fd00::10/128"}} {
		l := lo
		if link != "lo" {
			l = &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: link}}
			do(t, netlink.LinkAdd(l))
		}
		for _, a := range addresses {
			addr, err := netlink.ParseAddr(a)
			do(t, err, netlink.AddrAdd(l, addr))
		}
	}
	do(t, netlink.IpsetCreate("MINE", "hash:ip,port", netlink.IpsetCreateOptions{Family: unix.AF_INET}),
		netlink.IpsetCreate("KUBE-CLUSTER-IP", "hash:ip,port", netlink.IpsetCreateOptions{Family: unix.AF_INET}),
		netlink.IpsetCreate("KUBE-6-CLUSTER-IP", "hash:ip,port", netlink.IpsetCreateOptions{Family: unix.AF_INET6}),
		netlink.IpsetCreate("KUBE-NODE-PORT-TCP", "bitmap:port", netlink.IpsetCreateOptions{PortFrom: 0, PortTo: 65535}),
		addPort("KUBE-NODE-PORT-TCP", 30080))
	virtualServer(t, "192.0.2.1:9999", 0, "10.244.1.2:8080") // somebody's
	virtualServer(t, "", 4711, "10.244.1.2:8080")
	foreign := virtualServers(t)
	virtualServer(t, "10.96.0.10:80", 0, "10.244.1.2:8080")
	virtualServer(t, "192.0.2.1:30080", 0, "10.244.1.2:8080")
	virtualServer(t, "[fd00::10]:80", 0, "[fd00::2]:8080")

	l, err := Find(t.Context())
	do(t, err)
	want := []string{"3 IPVS virtual servers", "device kube-ipvs0 with 2 addresses", "3 ipsets KUBE-6-CLUSTER-IP, KUBE-CLUSTER-IP, KUBE-NODE-PORT-TCP"}
	if diff := cmp.Diff(want, l.Lines()); diff != "" || !slices.Equal(l.Modes(), []string{"ipvs"}) {
		t.Fatalf("modes %v; found (-want +got):\n%s", l.Modes(), diff)
	}
	s := &servedSet{at: map[dataplane.FrontendKey]bool{}}
	do(t, s.addServers(l.ipvs, map[bool]bool{}))
	if len(s.at) > 0 {
		t.Errorf("kube-proxy is seen to serve %v before it has written its rules", s.at)
	}
	do(t, s.addServers(l.ipvs, map[bool]bool{false: true, true: true}))
	for _, at := range []string{"10.96.0.10:80", "[fd00::10]:80", "192.0.2.1:30080"} {
		a := netip.MustParseAddrPort(at)
		if !s.has(wantedFrontend{key: dataplane.FrontendKey{Address: a.Addr(), Port: a.Port(), Protocol: dataplane.TCP}}) {
			t.Errorf("kube-proxy is not seen to serve %s", at)
		}
	}

	echo(t, "10.244.1.2:8080")
	c, err := net.DialTimeout("tcp4", "10.96.0.10:80", 5*time.Second)
	do(t, err, echoes(c))
	_, err = l.Withdraw(t.Context())
	do(t, err)
	s.at = map[dataplane.FrontendKey]bool{}
	do(t, s.addServers(l.ipvs, map[bool]bool{false: true, true: true}))
	if len(s.at) > 0 {
		t.Errorf("kube-proxy is seen to serve %v after Withdraw", s.at)
	}
	if carries, err := l.Carries(); err != nil || !carries {
		t.Errorf("with an established connection: carries %t, %v", carries, err)
	}
	if err := echoes(c); err != nil {
		t.Errorf("an established connection does not outlive Withdraw: %v", err)
	}
	if n, err := net.DialTimeout("tcp4", "10.96.0.10:80", 2*time.Second); err == nil {
		if echoes(n) == nil {
			t.Error("a new connection was scheduled after Withdraw")
		}
		n.Close()
	}
	c.Close()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		carries, err := l.Carries()
		do(t, err)
		if !carries {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it carries something 30 s after its last connection was closed")
		}
	}
	removed, err := l.Remove()
	if diff := cmp.Diff(want, removed); err != nil || diff != "" {
		t.Errorf("%v; removed (-want +got):\n%s", err, diff)
	}
	if diff := cmp.Diff(foreign, virtualServers(t)); diff != "" {
		t.Errorf("virtual servers of others (-before +after):\n%s", diff)
	}
	sets, err := netlink.IpsetListAll()
	do(t, err)
	var names []string
	for _, s := range sets {
		names = append(names, s.SetName)
	}
	if strings.Join(names, " ") != "MINE" {
		t.Errorf("ipsets %v are left, want MINE", names)
	}
	if l, err := Find(t.Context()); err != nil || !l.Empty() {
		t.Errorf("after all: %v, %v", l.Lines(), err)
	}
}
