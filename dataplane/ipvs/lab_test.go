// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// lab is a network namespace of one test's own, which the test's goroutine is
// in: an uplink with the node's addresses, and no more.
type lab struct {
	t       testing.TB
	options Options
	node    dataplane.Node
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	if ok, reason := dataplane.Usable(Check(Options{})); !ok {
		t.Skip("this machine can't do IPVS (test/vm can): " + reason)
	}
	enterNewNamespace(t)
	l := &lab{t: t, options: Options{Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}}
	l.node = dataplane.Node{
		Addresses:       []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")},
		PrimaryIPv4:     netip.MustParseAddr("192.0.2.11"),
		PrimaryIPv6:     netip.MustParseAddr("2001:db8::11"),
		InternalSources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244::/48")},
	}
	l.must(netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "uplink0"}}))
	for _, name := range []string{"lo", "uplink0"} {
		link, err := netlink.LinkByName(name)
		l.must(err)
		l.must(netlink.LinkSetUp(link))
		if name == "lo" {
			continue
		}
		for _, p := range []string{"192.0.2.11/24", "2001:db8::11/64"} {
			a, err := netlink.ParseAddr(p)
			l.must(err)
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			l.must(netlink.AddrAdd(link, a))
		}
	}
	return l
}

// enterNewNamespace puts the test's thread into a network namespace that ends
// with the thread.
func enterNewNamespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // not unlocked: the thread dies with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("make a network namespace: %v", err)
	}
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) open() *Dataplane {
	l.t.Helper()
	d, err := New(context.Background(), l.options)
	if err != nil {
		l.t.Fatalf("open dataplane: %+v", err)
	}
	l.t.Cleanup(func() { d.Close() })
	return d
}

func (l *lab) sync(d *Dataplane, t *dataplane.Table) int {
	l.t.Helper()
	n, err := d.Sync(context.Background(), t)
	l.must(err)
	return n
}

func (l *lab) apply(d *Dataplane, services ...*dataplane.Service) {
	l.t.Helper()
	c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{}}
	for _, s := range services {
		c.Services[s.Name] = s
	}
	l.must(d.Apply(context.Background(), c))
}

// holds fails the test unless the kernel's dump equals the Table's.
func (l *lab) holds(t *dataplane.Table) {
	l.t.Helper()
	r, err := Read(l.options)
	l.must(err)
	defer r.Close()
	got, err := r.Table()
	l.must(err)
	want := t.Rows()
	if want == nil {
		want = []dataplane.Row{}
	}
	if diff := cmp.Diff(want, got.Frontends, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		l.t.Fatalf("kernel does not hold the Table (-want +got):\n%s", diff)
	}
}

func (l *lab) table(services ...*dataplane.Service) *dataplane.Table {
	t := &dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{}, Node: l.node}
	for _, s := range services {
		t.Services[s.Name] = s
	}
	return t
}

func backends(hostPorts ...string) []dataplane.Backend {
	out := make([]dataplane.Backend, len(hostPorts))
	for i, hp := range hostPorts {
		ap := netip.MustParseAddrPort(hp)
		out[i] = dataplane.Backend{Address: ap.Addr(), Port: ap.Port()}
	}
	return out
}

// serviceAt is a Service with one ClusterIP Frontend.
func serviceAt(name, frontend string, p dataplane.Protocol, bs ...dataplane.Backend) *dataplane.Service {
	ap := netip.MustParseAddrPort(frontend)
	set := dataplane.BackendSet{Backends: bs}
	return &dataplane.Service{
		Name: dataplane.ServiceName{Namespace: "default", Name: name},
		Frontends: []dataplane.Frontend{{
			FrontendKey: dataplane.FrontendKey{Address: ap.Addr(), Port: ap.Port(), Protocol: p},
			Kind:        dataplane.ClusterIP, PortName: "http", Internal: set, External: set, MasqueradeExternal: true,
		}},
	}
}

// synthetic is a Table of n Services with m Backends each.
func (l *lab) synthetic(n, m int) *dataplane.Table {
	t := l.table()
	for i := range n {
		var bs []dataplane.Backend
		for k := range m {
			bs = append(bs, dataplane.Backend{Address: netip.AddrFrom4([4]byte{10, 128 + byte(k), byte(i >> 8), byte(i)}), Port: 8080})
		}
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80)
		s := serviceAt(fmt.Sprintf("s%05d", i), at.String(), dataplane.TCP, bs...)
		t.Services[s.Name] = s
	}
	return t
}
