// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	mobyipvs "github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

// names answers each datagram with the address that it was sent to.
func names(t *testing.T, at string) {
	t.Helper()
	c, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(at), from)
		}
	}()
}

// whoAnswers asks over a connected socket.
func whoAnswers(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("who")); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func needIPVS(t *testing.T) {
	t.Helper()
	if _, err := netlink.GenlFamilyGet("IPVS"); err != nil {
		t.Skipf("this kernel has no IPVS: %v; test/vm runs this on one that has", err)
	}
}

// besideIPVS makes a namespace where kube-proxy's device has 10.96.0.10, and lo the
// addresses of clients and Backends.
func besideIPVS(t *testing.T, own ...string) {
	t.Helper()
	needIPVS(t)
	newNamespace(t)
	lo, err := netlink.LinkByName("lo")
	do(t, err, netlink.LinkSetUp(lo), netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: ipvsDevice}}))
	device, err := netlink.LinkByName(ipvsDevice)
	do(t, err)
	add := func(link netlink.Link, address string) {
		a, err := netlink.ParseAddr(address + "/32")
		do(t, err, netlink.AddrAdd(link, a))
	}
	add(device, "10.96.0.10")
	for _, a := range own {
		add(lo, a)
	}
}

func TestOfIPVSDatagramsLeaveABackendThatWent(t *testing.T) {
	const at, stays, went = "10.96.0.10:53", "10.244.1.2:8053", "10.244.1.3:8053"
	besideIPVS(t, "10.244.1.2", "10.244.1.3")
	do(t, os.WriteFile("/proc/sys/net/ipv4/vs/expire_nodest_conn", []byte("1"), 0)) // as kube-proxy does
	v := &mobyipvs.Service{Address: net.IPv4(10, 96, 0, 10), Port: 53, Protocol: unix.IPPROTO_UDP, SchedName: "rr", AddressFamily: unix.AF_INET, Netmask: 0xffffffff}
	do(t, withIPVS(func(h *mobyipvs.Handle) error {
		err := h.NewService(v)
		for _, b := range []string{stays, went} {
			to := netip.MustParseAddrPort(b)
			err = errors.Join(err, h.NewDestination(v, &mobyipvs.Destination{Address: net.IP(to.Addr().AsSlice()), Port: to.Port(), Weight: 1,
				ConnectionFlags: mobyipvs.ConnectionFlagMasq, AddressFamily: unix.AF_INET}))
		}
		return err
	}))
	names(t, stays)
	names(t, went)
	sockets := map[string]net.Conn{}
	for range 2 { // rr
		c, err := net.Dial("udp4", at)
		do(t, err)
		defer c.Close()
		who, err := whoAnswers(c)
		do(t, err)
		sockets[who] = c
	}
	if len(sockets) != 2 {
		t.Fatalf("answers of %v, want both", sockets)
	}

	l, err := Find(t.Context())
	do(t, err)
	_, err = l.Withdraw(t.Context())
	do(t, err)
	do(t, l.ipvs.endDatagrams([]netfilter.FlowRule{{
		Frontend: dataplane.FrontendKey{Address: netip.MustParseAddr("10.96.0.10"), Port: 53, Protocol: dataplane.UDP},
		Keep:     func(b netip.AddrPort) bool { return b.String() == stays },
	}}))
	if who, err := whoAnswers(sockets[stays]); err != nil || who != stays {
		t.Errorf("a flow to a Backend that stays: answered by %q, %v", who, err)
	}
	refused := false
	for range 3 { // the datagram that finds out may be lost
		who, err := whoAnswers(sockets[went])
		if who != "" {
			t.Errorf("a flow to a Backend that went is answered by %s still", who)
		}
		refused = refused || errors.Is(err, unix.ECONNREFUSED)
	}
	if !refused {
		t.Error("who asks a Backend that went does not hear of it")
	}
}

func TestOfIPVSAnswersFindTheSocketThatAskedTheBackendItself(t *testing.T) {
	needIPVS(t)
	for _, c := range []struct{ name, client, service, backend, bits string }{
		{"IPv4", "10.244.1.9", "10.96.0.10", "10.244.1.2", "/32"}, {"IPv6", "fd00::9", "fd00:96::10", "fd00::2", "/128"},
	} {
		t.Run(c.name, func(t *testing.T) {
			newNamespace(t)
			lo, err := netlink.LinkByName("lo")
			do(t, err, netlink.LinkSetUp(lo), netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: ipvsDevice}}))
			device, err := netlink.LinkByName(ipvsDevice)
			do(t, err)
			do(t, netlink.LinkSetUp(device)) // else IPv6 has no route to its addresses
			for a, link := range map[string]netlink.Link{c.client: lo, c.backend: lo, c.service: device} {
				addr, err := netlink.ParseAddr(a + c.bits)
				do(t, err)
				addr.Flags = unix.IFA_F_NODAD
				do(t, netlink.AddrAdd(link, addr))
			}
			at, to := net.JoinHostPort(c.service, "53"), net.JoinHostPort(c.backend, "8053")
			do(t, os.WriteFile("/proc/sys/net/ipv4/vs/conntrack", []byte("1"), 0)) // as kube-proxy does
			virtualServer(t, at, 0, to)
			echo(t, to)
			d := from("tcp", c.client, 4711) // a port that the kernel may choose again, too
			old, err := d.Dial("tcp", at)
			do(t, err)
			do(t, echoes(old), old.Close()) // IPVS remembers it for 2 minutes
			if c, err := d.Dial("tcp", to); err == nil {
				c.Close()
				t.Fatal("IPVS does not take the answer of the Backend for one of the older connection: nothing to mend")
			}
			do(t, mend(), mend())
			young, err := d.Dial("tcp", to)
			do(t, err)
			do(t, echoes(young), young.Close())
			if removed, err := Cleanup(); err != nil || len(removed) != 2 {
				t.Errorf("removed %v, %v", removed, err)
			}
			if removed, err := Cleanup(); err != nil || len(removed) != 0 {
				t.Errorf("removed again %v, %v", removed, err)
			}
		})
	}
}
