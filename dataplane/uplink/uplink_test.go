// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newLab puts the test's thread into a network namespace with veth devices of
// these names, up; their peers are called NAME-peer.
func newLab(t testing.TB, names ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	runtime.LockOSThread() // not unlocked: the thread ends with the test, and the namespace with it
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	for _, name := range names {
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: name})
		veth.PeerName = name + "-peer"
		must(t, netlink.LinkAdd(veth))
		must(t, netlink.LinkSetUp(link(t, name)))
		must(t, netlink.LinkSetUp(link(t, name+"-peer")))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func address(t testing.TB, device, prefix string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(t, err)
	a.Flags = unix.IFA_F_NODAD
	must(t, netlink.AddrAdd(link(t, device), a))
	return a
}

func defaultRoute(t testing.TB, device string, all string) *netlink.Route {
	_, dst, err := net.ParseCIDR(all)
	must(t, err)
	return &netlink.Route{LinkIndex: link(t, device).Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}
}

func open(t testing.TB, patterns ...string) *Uplinks {
	t.Helper()
	u, err := Open(patterns, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	t.Cleanup(u.Close)
	return u
}

func wantNames(t testing.TB, u *Uplinks, want ...string) {
	t.Helper()
	if got := u.Names(); !slices.Equal(got, want) {
		t.Errorf("uplinks %q, want %q; devices %+v", got, want, u.Devices())
	}
}

// soon waits for a change to these names.
func soon(t testing.TB, u *Uplinks, what string, want ...string) {
	t.Helper()
	limit := time.After(5 * time.Second)
	for {
		select {
		case <-u.Changed():
			if slices.Equal(u.Names(), want) {
				return
			}
		case <-limit:
			t.Fatalf("%s: uplinks %q, want %q", what, u.Names(), want)
		}
	}
}

func quiet(t testing.TB, u *Uplinks, what string) {
	t.Helper()
	select {
	case <-u.Changed():
		t.Errorf("%s: signalled, uplinks %q", what, u.Names())
	case <-time.After(200 * time.Millisecond):
	}
}

// run follows changes until the test ends, and is then waited for.
func run(t testing.TB, u *Uplinks) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { u.Run(ctx); close(ended) }()
	t.Cleanup(func() { stop(); <-ended })
}

func TestDevicesWithADefaultRouteLeadOut(t *testing.T) {
	newLab(t, "eth0", "eth1", "pod1")
	must(t, netlink.RouteAdd(defaultRoute(t, "eth0", "0.0.0.0/0")))
	must(t, netlink.RouteAdd(defaultRoute(t, "eth1", "::/0")))
	wantNames(t, open(t), "eth0", "eth1")
}

func TestEveryHopOfADefaultRouteLeadsOut(t *testing.T) {
	newLab(t, "eth0", "eth1", "pod1")
	r := defaultRoute(t, "eth0", "0.0.0.0/0")
	r.MultiPath = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex}, {LinkIndex: link(t, "eth1").Attrs().Index}}
	r.LinkIndex = 0
	must(t, netlink.RouteAdd(r))
	wantNames(t, open(t), "eth0", "eth1")
}

func TestTheDeviceOfThePrimaryAddressLeadsOutUnlessItIsAPodsLink(t *testing.T) {
	newLab(t, "eth0", "pod1")
	address(t, "eth0", "192.0.2.1/24")
	address(t, "pod1", "192.0.2.1/32") // as CNI ptp does
	address(t, "pod1", "10.244.0.1/24")
	u := open(t)
	wantNames(t, u)
	u.SetPrimary([]netip.Addr{netip.MustParseAddr("192.0.2.1"), {}})
	wantNames(t, u, "eth0")
	u.SetPrimary([]netip.Addr{{}, {}})
	wantNames(t, u)
}

func TestPatternsAloneSayWhatLeadsOut(t *testing.T) {
	newLab(t, "eth0", "wan1", "wan22", "pod1")
	must(t, netlink.RouteAdd(defaultRoute(t, "eth0", "0.0.0.0/0")))
	wantNames(t, open(t, "wan*-peer", "wan22*", "pod1"), "pod1", "wan22", "wan22-peer")
}

func TestTunnelsLeadOutAndSoDoDevicesWithoutEthernet(t *testing.T) {
	newLab(t, "pod1")
	var want []string
	for _, l := range []netlink.Link{
		&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vxlan1"}, VxlanId: 1, Port: 4789},
		&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "ipip1"}, Local: net.IPv4(192, 0, 2, 1), Remote: net.IPv4(192, 0, 2, 2)},
		&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg1"}},
		&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun1"}, Mode: netlink.TUNTAP_MODE_TUN},
		&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap1"}, Mode: netlink.TUNTAP_MODE_TAP},
	} {
		name := l.Attrs().Name
		if err := netlink.LinkAdd(l); err != nil {
			t.Logf("%s (%s): not in this kernel: %v", name, l.Type(), err)
			continue
		}
		if name != "tap1" { // a virtual machine's
			want = append(want, name)
		}
	}
	if len(want) == 0 {
		t.Skip("this kernel has no tunnels")
	}
	slices.Sort(want)
	u := open(t)
	got := slices.DeleteFunc(slices.Clone(u.Names()), func(n string) bool {
		return strings.HasSuffix(n, "0") // tunl0, sit0: made by the kernel with its modules
	})
	if !slices.Equal(got, want) {
		t.Errorf("uplinks %q, want %q", got, want)
	}
	for _, d := range u.Devices() {
		if ethernet := d.Link == "ether"; d.Name == "tun1" && ethernet || strings.HasPrefix(d.Name, "pod1") && !ethernet {
			t.Errorf("%+v: wrong link layer", d)
		}
	}
}

func TestLoopbackIsNoDevice(t *testing.T) {
	newLab(t, "pod1")
	u := open(t, "*")
	wantNames(t, u, "pod1", "pod1-peer")
	if n := len(u.Devices()); n != 2 {
		t.Errorf("%d devices, want 2: %+v", n, u.Devices())
	}
}

func TestChangesAreFollowed(t *testing.T) {
	newLab(t, "eth0", "eth1", "pod1")
	u := open(t)
	run(t, u)
	u.SetPrimary([]netip.Addr{netip.MustParseAddr("2001:db8::1")})
	quiet(t, u, "nothing leads out")

	r := defaultRoute(t, "eth0", "0.0.0.0/0")
	must(t, netlink.RouteAdd(r))
	soon(t, u, "a default route came", "eth0")
	r6 := defaultRoute(t, "eth1", "::/0")
	must(t, netlink.RouteAdd(r6))
	soon(t, u, "an IPv6 default route came", "eth0", "eth1")
	must(t, netlink.RouteDel(r6))
	soon(t, u, "it went", "eth0")
	a := address(t, "eth1", "2001:db8::1/64")
	soon(t, u, "the primary address came", "eth0", "eth1")
	must(t, netlink.AddrDel(link(t, "eth1"), a))
	soon(t, u, "it went", "eth0")
	address(t, "pod1", "10.244.0.1/24")
	quiet(t, u, "another address came")

	must(t, netlink.LinkSetDown(link(t, "eth0"))) // its routes go too
	soon(t, u, "the device went down")
	must(t, netlink.LinkSetName(link(t, "eth0"), "wan0"))
	must(t, netlink.LinkSetUp(link(t, "wan0")))
	must(t, netlink.RouteAdd(r))
	soon(t, u, "another name", "wan0")
	must(t, netlink.LinkDel(link(t, "wan0")))
	soon(t, u, "the device is gone")
}

func TestADeviceThatComesLaterMatchesItsPattern(t *testing.T) {
	newLab(t)
	u := open(t, "wan*")
	run(t, u)
	wantNames(t, u)
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "wan0"})
	veth.PeerName = "lan0"
	must(t, netlink.LinkAdd(veth))
	soon(t, u, "it came", "wan0")
}

func TestEventsThatAreLostAreMadeGood(t *testing.T) {
	newLab(t, "eth0", "eth1")
	u := open(t)
	must(t, u.events.SetReceiveBufferSize(2304, false)) // the least: a few messages
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	looks := make(chan struct{})
	go func() {
		u.Watch(ctx, func() { looks <- struct{}{} })
		close(ended)
	}()
	<-looks // the goroutine stays in its callback until looks is read again
	for range 1000 {
		must(t, netlink.RouteAdd(defaultRoute(t, "eth0", "0.0.0.0/0")))
		must(t, netlink.RouteDel(defaultRoute(t, "eth0", "0.0.0.0/0")))
	}
	must(t, netlink.RouteAdd(defaultRoute(t, "eth1", "0.0.0.0/0")))
	go func() {
		for range looks {
		}
	}()
	soon(t, u, "after 2,000 events", "eth1")
	must(t, netlink.RouteDel(defaultRoute(t, "eth1", "0.0.0.0/0")))
	soon(t, u, "after that")
	stop()
	<-ended
	close(looks)
}

func TestTheNamespaceIsThatOfOpen(t *testing.T) {
	newLab(t, "eth0")
	u := open(t, "*")
	run(t, u)
	wantNames(t, u, "eth0", "eth0-peer")
	done := make(chan struct{})
	go func() { // on another thread
		defer close(done)
		u.SetPrimary([]netip.Addr{netip.MustParseAddr("192.0.2.9")})
		wantNames(t, u, "eth0", "eth0-peer")
	}()
	<-done
}

func TestNothingStaysBehindAfterTheEnd(t *testing.T) {
	newLab(t, "eth0")
	files := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	before, goroutines := files(), runtime.NumGoroutine()
	for range 10 {
		u, err := Open(nil, slog.Default())
		must(t, err)
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { u.Run(ctx); close(ended) }()
		u.SetPrimary([]netip.Addr{netip.MustParseAddr("192.0.2.9")})
		stop()
		<-ended
		u.Close()
	}
	for limit := time.Now().Add(2 * time.Second); runtime.NumGoroutine() > goroutines && time.Now().Before(limit); {
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	if n := files(); n > before {
		t.Errorf("%d files, %d before", n, before)
	}
}
