// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// The addresses of a lab, all on its loopback device. What is for silent ones
// leaves by a device whose other end answers nothing.
var (
	client   = netip.MustParseAddr("192.0.2.10")
	node     = netip.MustParseAddr("192.0.2.1")
	backendA = netip.MustParseAddr("10.244.1.11")
	backendB = netip.MustParseAddr("10.244.1.12")
	silentA  = netip.MustParseAddr("10.244.9.11")
	silentB  = netip.MustParseAddr("10.244.9.12")
	frontend = netip.MustParseAddr("10.96.0.10")

	client6   = netip.MustParseAddr("2001:db8::10")
	backendA6 = netip.MustParseAddr("fd00:244::11")
	frontend6 = netip.MustParseAddr("fd00:96::10")
)

const backendPort = 8080

// lab is a network namespace of the test goroutine's thread, where nft rules
// translate what the namespace itself sends.
type lab struct {
	t  testing.TB
	ct *Conntrack
	// translated are the Frontends with a rule.
	translated map[dataplane.FrontendKey]netip.AddrPort
	masquerade bool
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace and netfilter rules in it")
	}
	runtime.LockOSThread() // not unlocked: the thread ends with the test, and the namespace with it
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "out"})
	veth.PeerName = "nowhere"
	must(t, netlink.LinkAdd(veth))
	for _, name := range []string{"lo", "out", "nowhere"} {
		l, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetUp(l))
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	for _, a := range []netip.Addr{client, node, backendA, backendB, client6, backendA6} {
		must(t, netlink.AddrAdd(lo, &netlink.Addr{IPNet: hostNet(a), Flags: unix.IFA_F_NODAD}))
	}
	for _, ip := range []string{"0.0.0.0/0", "::/0"} {
		_, all, err := net.ParseCIDR(ip)
		must(t, err)
		hop := netip.MustParseAddr("198.51.100.1")
		if all.IP.To4() == nil {
			hop = netip.MustParseAddr("2001:db8:1::1")
		}
		must(t, netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: veth.Index, IP: hop.AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9},
		}))
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Dst: all, Gw: hop.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
	}
	ct, err := Open()
	must(t, err)
	t.Cleanup(func() { ct.Close() })
	l := &lab{t: t, ct: ct, translated: map[dataplane.FrontendKey]netip.AddrPort{}}
	l.program()
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// send makes new flows to a Frontend go to a Backend; invalid: untranslated.
func (l *lab) send(key dataplane.FrontendKey, to netip.AddrPort) {
	l.t.Helper()
	delete(l.translated, key)
	if to.IsValid() {
		l.translated[key] = to
	}
	l.program()
}

// program writes the rules anew.
func (l *lab) program() {
	l.t.Helper()
	c, err := nftables.New()
	must(l.t, err)
	c.AddTable(&nftables.Table{Name: "fairlead-lab", Family: nftables.TableFamilyINet})
	c.DelTable(&nftables.Table{Name: "fairlead-lab", Family: nftables.TableFamilyINet})
	table := c.AddTable(&nftables.Table{Name: "fairlead-lab", Family: nftables.TableFamilyINet})
	out := c.AddChain(&nftables.Chain{
		Name: "out", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	post := c.AddChain(&nftables.Chain{
		Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	// The kernel tracks only where a rule needs it.
	unused := dataplane.FrontendKey{Address: frontend, Port: 65535, Protocol: dataplane.TCP}
	unused6 := dataplane.FrontendKey{Address: frontend6, Port: 65535, Protocol: dataplane.TCP}
	c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: dnat(unused, at(backendA))})
	c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: dnat(unused6, at(backendA6))})
	for key, to := range l.translated {
		c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: dnat(key, to)})
	}
	if l.masquerade {
		c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			&expr.Immediate{Register: 1, Data: node.AsSlice()},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
		}})
	}
	must(l.t, c.Flush())
}

func dnat(key dataplane.FrontendKey, to netip.AddrPort) []expr.Any {
	family, offset, length := uint32(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if key.Address.Is6() {
		family, offset, length = unix.NFPROTO_IPV6, 24, 16
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(family)}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{uint8(key.Protocol)}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: key.Address.AsSlice()},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(key.Port)},
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
	}
}

// serve answers UDP datagrams and TCP connections at a Backend with its
// address.
func (l *lab) serve(at netip.Addr) {
	l.t.Helper()
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, backendPort)))
	must(l.t, err)
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, backendPort)))
	must(l.t, err)
	l.t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := udp.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			udp.WriteToUDPAddrPort([]byte(at.String()), from)
		}
	}()
	go func() {
		for {
			conn, err := tcp.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := make([]byte, 64)
				for {
					if _, err := conn.Read(b); err != nil {
						return
					}
					conn.Write([]byte(at.String()))
				}
			}()
		}
	}()
}

// udp is a connected socket of the client.
func (l *lab) udp(key dataplane.FrontendKey) *net.UDPConn {
	l.t.Helper()
	from := client
	if key.Address.Is6() {
		from = client6
	}
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(addrPortOf(key)))
	must(l.t, err)
	l.t.Cleanup(func() { c.Close() })
	return c
}

// ask sends one datagram or segment and gives who answered, "" for nobody.
func (l *lab) ask(c net.Conn) string {
	l.t.Helper()
	if _, err := c.Write([]byte("who")); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		l.t.Fatalf("send: %v", err)
	}
	c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

func (l *lab) wantAnswer(c net.Conn, want string, when string) {
	l.t.Helper()
	if got := l.ask(c); got != want {
		l.t.Fatalf("%s: %s -> %s was answered by %q, want %q", when, c.LocalAddr(), c.RemoteAddr(), got, want)
	}
}

// halfOpen sends a SYN that nobody answers.
func (l *lab) halfOpen(key dataplane.FrontendKey) {
	l.t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(l.t, err)
	l.t.Cleanup(func() { unix.Close(fd) })
	must(l.t, unix.Bind(fd, &unix.SockaddrInet4{Addr: client.As4()}))
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: key.Address.As4(), Port: int(key.Port)})
	if !errors.Is(err, unix.EINPROGRESS) {
		l.t.Fatalf("connect to %s: %v, want in progress", key, err)
	}
}

// sctpInit sends the chunk that begins an association (RFC 9260, 3.3.2).
func (l *lab) sctpInit(key dataplane.FrontendKey, fromPort uint16) {
	l.t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(dataplane.SCTP))
	must(l.t, err)
	defer unix.Close(fd)
	must(l.t, unix.Bind(fd, &unix.SockaddrInet4{Addr: client.As4()}))
	b := binary.BigEndian.AppendUint16(nil, fromPort)
	b = binary.BigEndian.AppendUint16(b, key.Port)
	b = append(b, make([]byte, 8)...) // tag 0; the checksum of what is sent here is not looked at
	b = append(b, 1, 0, 0, 20)
	b = binary.BigEndian.AppendUint32(b, 0xfeed) // initiate tag
	b = binary.BigEndian.AppendUint32(b, 65536)
	b = append(b, 0, 1, 0, 1, 0, 0, 0, 1)
	must(l.t, unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: key.Address.As4()}))
}

// flows lists all flows to a Frontend.
func (l *lab) flows(key dataplane.FrontendKey) []dataplane.ConntrackRow {
	l.t.Helper()
	rows, err := l.ct.Flows(func(k dataplane.FrontendKey) (string, string, bool) { return "ns/lab", "p", k == key })
	must(l.t, err)
	return rows
}

// backendsSeen lists where the flows to a Frontend go.
func (l *lab) backendsSeen(key dataplane.FrontendKey) []netip.AddrPort {
	l.t.Helper()
	var seen []netip.AddrPort
	for _, r := range l.flows(key) {
		seen = append(seen, r.Backend)
	}
	return seen
}

func (l *lab) endStale(want int, rules ...FlowRule) {
	l.t.Helper()
	n, err := l.ct.EndStale(rules)
	if err != nil {
		l.t.Fatalf("end stale flows: %v", err)
	}
	if n != want {
		l.t.Fatalf("ended %d flows, want %d", n, want)
	}
}

// keep keeps the given Backends at backendPort.
func keep(addrs ...netip.Addr) func(netip.AddrPort) bool {
	b := backends{}
	for _, a := range addrs {
		b[netip.AddrPortFrom(a, backendPort)] = struct{}{}
	}
	return b.has
}

func at(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, backendPort) }

func udpFrontend(port uint16) dataplane.FrontendKey {
	return dataplane.FrontendKey{Address: frontend, Port: port, Protocol: dataplane.UDP}
}

func tcpFrontend(port uint16) dataplane.FrontendKey {
	return dataplane.FrontendKey{Address: frontend, Port: port, Protocol: dataplane.TCP}
}

func threadNamespace(t testing.TB) netns.NsHandle {
	t.Helper()
	ns, err := netns.Get()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

func addrPortOf(k dataplane.FrontendKey) netip.AddrPort { return netip.AddrPortFrom(k.Address, k.Port) }
